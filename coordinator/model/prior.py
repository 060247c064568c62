"""The prior Pi: which cluster a code belongs to, as far as anchors, categories and must-link candidates tell.

Pi is (n, K) csr and its rows sum to 1. An anchor's row is one-hot. Any other code sees the clusters of its own
category only:

    pi_ik = (1 - e) f_ik + (1 - (1 - e) sum_l f_il) 1[k in S_i] / |S_i|,        sum_l f_il <= 1,

with f_i the belief that its pairs give it (zero without pairs), e the smoothing, and S_i the clusters it may join.

Size: f_i keeps its few greatest entries, but S_i is the whole category unless `candidates` says otherwise, so a code
that is no anchor takes 12 bytes a cluster of its category. Name candidates (the nearest clusters, say) where that is
too much; only codes without candidates and without belief then see their whole category.

61,000 codes, 8,000 clusters in five categories, 1.6 M pairs, 32 candidates a code, one core of a busy machine:
propagation 35 s, spectral 99 s, 1.2 M entries; without candidates propagation 43 s, 83 M entries, 1.4 GiB at the peak.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.utils.extmath import randomized_svd

from coordinator.model import clusters
from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Index
from protocol.errors import FitError

_LEAST_BELIEF = 1e-4  # propagated belief below this is dropped
_TIE = 1e-9  # relative difference below which two beliefs are the same
_BLOCK = 1 << 22  # entries formed at once
_POWER_ITERATIONS = 12
_MOST_EDGE = 0.9  # eigenvalues of 1, one for each connected part, are always signal
_SAME = 1.0 - 1e-6  # cosine of centroids from which they are one


@dataclass(frozen=True, eq=False)
class Membership:
    """What is known of membership before any data: anchors and categories.

    Args:
        anchors: (n,) cluster of each anchor, -1 for other codes.
        codes: (n,) category of each code.
        clusters: (K,) category of each cluster.
        exclusive: a cluster that has an anchor takes no code but its anchors (the rule of the SMILE paper).

    Raises:
        FitError: wrong shapes, an anchor outside its category, or a code that no cluster can take.
    """

    anchors: Index
    codes: Index
    clusters: Index
    exclusive: bool = False

    def __post_init__(self) -> None:
        anchors, codes, of_cluster = (np.asarray(a) for a in (self.anchors, self.codes, self.clusters))
        if anchors.ndim != 1 or codes.shape != anchors.shape or of_cluster.ndim != 1 or not of_cluster.size:
            shapes = f"{anchors.shape}, {codes.shape} and {of_cluster.shape}"
            raise FitError(f"anchors, categories of codes and of clusters have shapes {shapes}")
        if not all(np.issubdtype(a.dtype, np.integer) for a in (anchors, codes, of_cluster)):
            raise FitError("anchors and categories must be whole numbers")
        if anchors.size and (anchors.min() < -1 or anchors.max() >= len(of_cluster)):
            raise FitError(f"an anchor names a cluster outside the {len(of_cluster)} clusters")
        for name, value in (("anchors", anchors), ("codes", codes), ("clusters", of_cluster)):
            object.__setattr__(self, name, value.astype(np.intp))
        fixed = np.flatnonzero(self.anchors >= 0)
        wrong = fixed[self.codes[fixed] != self.clusters[self.anchors[fixed]]]
        if wrong.size:
            raise FitError(
                f"code {wrong[0]} is anchored in cluster {self.anchors[wrong[0]]} of another category",
                do="give the anchor and its cluster the same category",
            )
        lost = np.flatnonzero((self.anchors < 0) & ~np.isin(self.codes, self.clusters[self.open]))
        if lost.size:
            raise FitError(
                f"code {lost[0]} of category {self.codes[lost[0]]} has no cluster that it may join",
                do="raise the number of clusters of that category",
            )

    @property
    def open(self) -> NDArray[np.bool_]:
        """(K,) clusters that codes other than anchors may join."""
        taken = np.zeros(len(self.clusters), dtype=bool)
        if self.exclusive:
            taken[self.anchors[self.anchors >= 0]] = True
        return ~taken


def anchored_prior(known: Membership, *, candidates: sp.csr_array | None = None) -> sp.csr_array:
    """Anchors one-hot, every other code uniform over the clusters that it may join.

    Args:
        known: anchors and categories.
        candidates: (n, K), non-zero where a code may join a cluster; all clusters of its category if None.

    Returns:
        (n, K).

    Raises:
        FitError: candidates of another shape.
    """
    nothing = sp.csr_array((len(known.anchors), len(known.clusters)), dtype=np.float64)
    return _compose(nothing, known, 0.0, candidates)


def propagate(
    known: Membership,
    graph: sp.csr_array,
    *,
    alpha: float = 0.9,
    smoothing: float = 0.1,
    keep: int = 16,
    iterations: int = 20,
    tol: float = 1e-3,
    candidates: sp.csr_array | None = None,
) -> sp.csr_array:
    """Label propagation along must-link candidates, with the anchors clamped.

    A walker starts at a code and at each step goes on with probability alpha, to a neighbour in proportion to the
    pair's weight, until it meets an anchor. f_ik is the probability that it meets an anchor of cluster k:

        f_i = alpha sum_j w_ij f_j / max(1, sum_j w_ij),        f_anchor one-hot,

    iterated from zero. The rest, 1 - sum_k f_ik, stays uniform: it grows with the distance to the anchors.
    Pairs between categories are left out.

    Args:
        known: anchors and categories.
        graph: (n, n) symmetric weights in [0, 1], how sure it is that two codes mean the same.
        alpha: in (0, 1).
        smoothing: e in [0, 1], the least share that is spread uniformly.
        keep: beliefs kept a code; what is cut off becomes uniform. Of equal beliefs at the cut none is kept.
        iterations: at most this many steps of the walk.
        tol: stop when the mean belief of the codes that are no anchors grows less than this.
        candidates: as for `anchored_prior`.

    Returns:
        (n, K).

    Raises:
        FitError: a graph or candidates of another shape, or weights that are negative, not finite or not symmetric.
        ValueError: a number out of its range.

    Laws: renaming clusters and reordering codes commute with it; without pairs it is `anchored_prior`.
    Source: Zhu and Ghahramani 2002 (clamping); Zhou et al. 2004 (alpha).
    """
    if not 0.0 < alpha < 1.0 or keep < 1 or iterations < 1:
        raise ValueError("alpha must lie between 0 and 1, keep and iterations must be at least 1")
    weight = _within_categories(graph, known)
    loose = np.flatnonzero((known.anchors < 0) & (np.diff(weight.indptr) > 0))
    total = np.asarray(weight.sum(axis=1)).ravel()
    step = sp.csr_array(weight[loose] * (alpha / np.maximum(total[loose], 1.0))[:, None])
    fixed = _one_hot(known)
    place = sp.csr_array(
        (np.ones(len(loose)), (loose, np.arange(len(loose)))), shape=(len(total), len(loose))
    )
    belief, mass = fixed, 0.0
    for _ in range(iterations):
        moved = _step(step, belief, keep)
        belief = sp.csr_array(fixed + place @ moved)
        last, mass = mass, float(moved.sum())
        if abs(mass - last) < tol * max(len(loose), 1):
            break
    return _compose(belief, known, smoothing, candidates)


def spectral_prior(
    known: Membership,
    graph: sp.csr_array,
    *,
    dim: int = 64,
    temperature: float = 0.05,
    smoothing: float = 0.1,
    keep: int = 16,
    candidates: sp.csr_array | None = None,
    seed: int = 0,
) -> sp.csr_array:
    """Spectral clusters of the must-link candidates, softly.

    In each category: leading eigenvectors of D^(-1/2) W D^(-1/2), scaled by the eigenvalues less what those of a random
    graph of the same degree reach, rows to unit length; centroids are the mean rows of a cluster's anchors and, for
    clusters without anchors, of spherical k-means groups of the other codes; f_i is the softmax of the cosines with
    the centroids over the temperature.
    Unlike `propagate` it also groups codes that no path joins to an anchor.

    Args:
        known: anchors and categories.
        graph: as for `propagate`.
        dim: eigenvectors, at most.
        temperature: of the softmax, above 0.
        smoothing: as for `propagate`, and so are keep and candidates.
        seed: of the eigenvectors and of k-means.

    Returns:
        (n, K).

    Raises:
        FitError, ValueError: as `propagate`.

    Law: which of the clusters without an anchor a group becomes is arbitrary.
    Source: Ng, Jordan and Weiss 2001 (the embedding).
    """
    if temperature <= 0.0 or keep < 1 or dim < 1:
        raise ValueError("temperature must be above 0, keep and dim at least 1")
    weight = _within_categories(graph, known)
    linked = np.diff(weight.indptr) > 0
    rows, columns, values = [], [], []
    for category in np.unique(known.codes[linked]):
        nodes = np.flatnonzero(linked & (known.codes == category))
        columns_here = np.flatnonzero((known.clusters == category) & known.open)
        points = _spectral_points(sp.csr_array(weight[nodes][:, nodes]), dim, seed)
        names, centers = _centroids(points, known.anchors[nodes], columns_here, seed)
        if not len(names):
            continue
        size = max(1, _BLOCK // len(names))
        for low in range(0, len(nodes), size):
            part = slice(low, low + size)
            chance = softmax(points[part] @ centers.T / temperature, axis=1)
            chance[chance < _LEAST_BELIEF] = 0.0
            few = _greatest(sp.csr_array(chance), keep).tocoo()
            rows.append(nodes[part][few.coords[0]])
            columns.append(names[few.coords[1]])
            values.append(few.data)
    shape = (len(known.anchors), len(known.clusters))
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))) if rows else shape
    return _compose(sp.csr_array(entries, shape=shape), known, smoothing, candidates)


def _within_categories(graph: sp.csr_array, known: Membership) -> sp.csr_array:
    """The graph without pairs between categories, or of a code with itself."""
    n = len(known.anchors)
    weight: sp.coo_array = sp.csr_array(graph).astype(np.float64).tocoo()
    if weight.shape != (n, n):
        raise FitError(f"the graph of pairs has shape {weight.shape}, not ({n}, {n})")
    if not np.all((weight.data >= 0.0) & np.isfinite(weight.data)):
        raise FitError("a weight of a pair is negative or not finite")
    i, j = weight.coords
    inside = (known.codes[i] == known.codes[j]) & (i != j) & (weight.data > 0.0)
    kept = sp.csr_array((weight.data[inside], (i[inside], j[inside])), shape=(n, n))
    if abs(kept - kept.T).max() > 1e-9:
        raise FitError(
            "the graph of pairs is not symmetric", do="give a pair its weight at both of its places"
        )
    return kept


def _one_hot(known: Membership) -> sp.csr_array:
    fixed = np.flatnonzero(known.anchors >= 0)
    shape = (len(known.anchors), len(known.clusters))
    return sp.csr_array((np.ones(len(fixed)), (fixed, known.anchors[fixed])), shape=shape)


def _step(step: sp.csr_array, belief: sp.csr_array, keep: int) -> sp.csr_array:
    """The greatest entries of step @ belief, by blocks of rows."""
    # A row of the product has at most as many entries as its neighbours have together.
    bound = np.concatenate([[0], np.cumsum(step.sign() @ np.diff(belief.indptr))])
    blocks, low = [], 0
    while low < step.shape[0]:
        high = max(low + 1, int(np.searchsorted(bound, bound[low] + _BLOCK, side="right")) - 1)
        blocks.append(_greatest(sp.csr_array(step[low:high] @ belief), keep))
        low = high
    empty = sp.csr_array((0, belief.shape[1]), dtype=np.float64)
    return sp.csr_array(sp.vstack([empty, *blocks], format="csr"))


def _greatest(matrix: sp.csr_array, keep: int) -> sp.csr_array:
    """The `keep` greatest entries of each row above a floor; fewer where entries tie at the cut.

    A tie is not broken, because any rule for that would depend on how the clusters are numbered.
    """
    count = np.diff(matrix.indptr)
    row = np.repeat(np.arange(len(count)), count)
    cut = np.full(len(count), _LEAST_BELIEF)
    long = np.flatnonzero(count > keep)
    if long.size:
        padded = np.zeros((len(long), int(count[long].max())))
        place = np.full(len(count), -1)
        place[long] = np.arange(len(long))
        inside = place[row] >= 0
        column = np.arange(matrix.nnz) - matrix.indptr[row]
        padded[place[row[inside]], column[inside]] = matrix.data[inside]
        next_one = np.partition(padded, padded.shape[1] - keep - 1, axis=1)[:, -keep - 1]
        cut[long] = np.maximum(next_one * (1.0 + _TIE), _LEAST_BELIEF)
    chosen = matrix.data > cut[row]
    return sp.csr_array((matrix.data[chosen], (row[chosen], matrix.indices[chosen])), shape=matrix.shape)


def _spectral_points(weight: sp.csr_array, dim: int, seed: int) -> Array:
    """(m, <= dim) unit rows of the normalised graph's leading eigenvectors, scaled by the eigenvalues."""
    n = weight.shape[0]
    # A random graph of mean degree c has eigenvalues up to about 2 / sqrt(c) (Füredi and Komlós 1981): what lies below
    # tells nothing.
    edge = min(2.0 / np.sqrt(weight.nnz / n), _MOST_EDGE)
    root = 1.0 / np.sqrt(np.asarray(weight.sum(axis=1)).ravel())
    # Shifted by the identity, so that the greatest singular values are the greatest eigenvalues.
    shifted = sp.csr_array(weight * root[:, None] * root) + sp.eye_array(n, format="csr")
    left, singular, _ = randomized_svd(
        shifted, min(dim, n), n_iter=_POWER_ITERATIONS, random_state=seed, power_iteration_normalizer="QR"
    )
    return unit_rows(left * np.maximum(singular - 1.0 - edge, 0.0))


def _centroids(points: Array, anchors: Index, columns: Index, seed: int) -> tuple[Index, Array]:
    """Clusters that have a centroid, and the (k, d) unit centroids."""
    names = np.intersect1d(anchors, columns)
    heads = unit_rows(
        np.array([points[anchors == k].sum(axis=0) for k in names]).reshape(-1, points.shape[1])
    )
    spare, loose = np.setdiff1d(columns, names), points[anchors < 0]
    pool = np.vstack([heads, loose])
    count = min(len(names) + len(spare), len(pool))
    if not len(spare) or not len(loose):
        return names.astype(np.intp), heads
    # Codes that go with an anchored cluster are grouped with it, and form no cluster of their own.
    label = clusters.group(pool, count, "spherical", seed)
    member = label[len(heads) :]
    size = np.bincount(member, minlength=count)
    size[label[: len(heads)]] = 0
    order = np.argsort(-size, kind="stable")
    groups = order[: min(len(spare), int(np.sum(size > 0)))]
    found = unit_rows(np.array([loose[member == g].sum(axis=0) for g in groups]).reshape(-1, points.shape[1]))
    apart = np.all(found @ heads.T < _SAME, axis=1)
    kept = found[apart]
    return np.concatenate([names, spare[: len(kept)]]).astype(np.intp), np.vstack([heads, kept])


def _compose(
    belief: sp.csr_array, known: Membership, smoothing: float, candidates: sp.csr_array | None
) -> sp.csr_array:
    """Pi from beliefs f, see the head of this file."""
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError("smoothing must lie between 0 and 1")
    shape = (len(known.anchors), len(known.clusters))
    fixed = known.anchors >= 0
    entry = belief.tocoo()
    i, k = (np.asarray(axis, dtype=np.intp) for axis in entry.coords)
    counted = ~fixed[i] & known.open[k]
    i, k, f = i[counted], k[counted], (1.0 - smoothing) * entry.data[counted]
    rest = np.clip(1.0 - np.bincount(i, weights=f, minlength=shape[0]), 0.0, 1.0)
    narrow = np.zeros(shape[0], dtype=bool)
    parts = []
    if candidates is not None:
        seen = _allowed(candidates, known)
        narrow[seen.coords[0]] = True
        narrow[i] = True
        both = sp.csr_array(
            (np.ones(len(seen.data) + len(i)), (np.r_[seen.coords[0], i], np.r_[seen.coords[1], k])),
            shape=shape,
        )
        size = np.maximum(np.diff(both.indptr), 1)
        both.data[:] = np.repeat(rest / size, np.diff(both.indptr))
        parts += [both, sp.csr_array((f, (i, k)), shape=shape)]
    wide = ~fixed & ~narrow
    inside = wide[i]
    parts.append(_category_rows(wide, known, rest, (i[inside], k[inside], f[inside])))
    total = parts.pop()
    for part in parts:
        total = sp.csr_array(total + part)
    return total


def _allowed(candidates: sp.csr_array, known: Membership) -> sp.coo_array:
    """Candidates that are open, in the code's category, and not an anchor's."""
    seen = sp.csr_array(candidates).tocoo()
    if seen.shape != (len(known.anchors), len(known.clusters)):
        raise FitError(f"the candidates have shape {seen.shape}, not that of the prior")
    i, k = seen.coords
    good = (seen.data != 0) & (known.codes[i] == known.clusters[k]) & known.open[k] & (known.anchors[i] < 0)
    return sp.coo_array((np.ones(int(good.sum())), (i[good], k[good])), shape=seen.shape)


def _category_rows(
    wide: NDArray[np.bool_], known: Membership, rest: Array, belief: tuple[Index, Index, Array]
) -> sp.csr_array:
    """Rows that hold their whole category: rest_i spread evenly, plus the belief; and the rows of anchors.

    Filled in place, because this is the one large array: sums of sparse matrices would hold it twice.
    """
    n, n_clusters = len(wide), len(known.clusters)
    members = {c: np.flatnonzero((known.clusters == c) & known.open) for c in np.unique(known.clusters)}
    place = np.zeros(n_clusters, dtype=np.intp)
    length = (known.anchors >= 0).astype(np.int64)
    for c, columns in members.items():
        place[columns] = np.arange(len(columns))
        length[wide & (known.codes == c)] = len(columns)
    indptr = np.concatenate([[0], np.cumsum(length)])
    kind = np.int32 if indptr[-1] < np.iinfo(np.int32).max else np.int64
    indices, data = np.empty(indptr[-1], dtype=kind), np.empty(indptr[-1])
    for c, columns in members.items():
        rows = np.flatnonzero(wide & (known.codes == c))
        size = max(1, _BLOCK // max(len(columns), 1))
        for low in range(0, len(rows), size):
            part = rows[low : low + size]
            at = indptr[part][:, None] + np.arange(len(columns))
            indices[at] = columns
            data[at] = (rest[part] / max(len(columns), 1))[:, None]
    fixed = np.flatnonzero(known.anchors >= 0)
    indices[indptr[fixed]], data[indptr[fixed]] = known.anchors[fixed], 1.0
    i, k, f = belief
    data[indptr[i] + place[k]] += f
    return sp.csr_array((data, indices, indptr.astype(kind)), shape=(n, n_clusters))
