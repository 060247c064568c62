"""The mixture layer, u_i ~ sum_k pi_ik vMF(mu_k, kappa): its prior, its concentration, and where a fit starts."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import AgglomerativeClustering, KMeans, kmeans_plusplus

from coordinator.model import vmf
from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Index
from protocol.errors import FitError

_MOST_FOR_LINKAGE = 8000  # rows; average linkage keeps all pairwise distances
_LARGE = 50_000_000  # codes times groups above which a k-means takes shortcuts
_SWEEPS, _FEW_SWEEPS = 50, 10
_BLOCK = 1 << 22  # inner products formed at once
# Of the number of codes: with a mean for almost every code, nothing is left to tell kappa by.
MOST_MEANS = 0.8
_ANCHORED = 0.5  # a prior probability from which a code starts in that cluster


def checked_prior(prior: sp.csr_array | sp.csr_matrix, n_codes: int, n_clusters: int) -> sp.csr_array:
    """The prior as an (n, K) csr array without stored zeros.

    Raises:
        FitError: another shape, or a row that is not a probability distribution.
    """
    checked: sp.csr_array = sp.csr_array(prior).astype(np.float64)
    checked.sum_duplicates()
    checked.eliminate_zeros()
    if checked.shape != (n_codes, n_clusters):
        raise FitError(f"the prior has shape {checked.shape}, not ({n_codes}, {n_clusters})")
    wrong = ~(np.abs(np.asarray(checked.sum(axis=1)).ravel() - 1.0) <= 1e-6)
    wrong[checked.tocoo().coords[0][~(checked.data > 0.0)]] = True
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise FitError(f"row {row} of the prior is not a probability distribution over clusters")
    return checked


def log_prior_rows(prior: sp.csr_array | None, rows: slice, n_clusters: int) -> Array:
    """Dense log pi of a slice of codes; uniform without a prior, -inf where the prior is zero."""
    if prior is None:
        return np.full((1, n_clusters), -np.log(n_clusters))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(prior[rows].toarray()))


def fit_concentration(along: float, n: int, dim: int, freedom: float) -> float:
    """Concentration kappa with A_d(kappa) = 1 - (1 - rbar) n / (n - f), rbar = along / n.

    The plain estimate is biased upward when many means are fitted to few codes each. This one maximises the
    bound less f (log C_d(kappa) + kappa), that is, the likelihood with f means integrated out (derived: a
    mean's posterior under a flat prior has a volume proportional to C_d(kappa) exp(kappa) to the power -1).

    Args:
        along: sum_ik r_ik mu_k'E[u_i | k].
        n: number of codes.
        dim: d.
        freedom: f < n, the number of means that were fitted.
    """
    resultant = 1.0 - (n - along) / (n - freedom)
    return vmf.concentration(dim, float(np.clip(resultant, 1e-3, 1.0 - 1e-6)))


def start_clusters(
    points: Array, n_clusters: int, prior: sp.csr_array | None, *, method: str = "average", seed: int = 0
) -> tuple[Array, float]:
    """Cluster means to start from, and the mean cosine of codes with the mean that they start at.

    Codes with a prior probability of at least 1/2 for a cluster (anchors) make that cluster's mean. The other
    codes are grouped; each group becomes one of the remaining clusters, the one that the prior of its members
    likes best. If the prior lets them, they may also join an anchored cluster, and then give it no say in its mean.

    Args:
        points: (n, d) unit rows.
        n_clusters: K.
        prior: (n, K) or None.
        method: "average" (average-linkage cosine clustering), "k-means" or "spherical" (spherical k-means).
        seed: for the k-means methods, and for the means of clusters that no group is left for.

    Returns:
        (K, d) unit rows, and the mean cosine.
    """
    anchored = _anchored(prior, len(points))
    fixed, free = np.unique(anchored[anchored >= 0]), np.flatnonzero(anchored < 0)
    open_columns = np.setdiff1d(np.arange(n_clusters), fixed)
    centers = unit_rows(np.random.default_rng(seed).standard_normal((n_clusters, points.shape[1])))
    along = 0.0
    for k in fixed:
        centers[k] = unit_rows(points[anchored == k].sum(axis=0, keepdims=True))[0]
        along += float(np.sum(points[anchored == k] @ centers[k]))
    joinable = prior is not None and fixed.size and prior[free][:, fixed].nnz > 0
    heads = centers[fixed] if joinable else centers[:0]
    pool = np.vstack([heads, points[free]])
    wanted = len(heads) + len(open_columns)
    if not len(free) or not wanted:
        return centers, along / max(len(points) - len(free), 1)
    label = group(pool, min(wanted, len(pool)), method, seed)
    taken = set(label[: len(heads)].tolist())
    member = label[len(heads) :]
    sizes = np.bincount(member, minlength=label.max() + 1)
    groups = [int(g) for g in np.argsort(-sizes, kind="stable") if int(g) not in taken and sizes[g]]
    groups = groups[: len(open_columns)]
    columns = _match_columns(groups, member, free, open_columns, prior)
    counted = len(points) - len(free)
    for g, k in zip(groups, columns, strict=True):
        rows = points[free[member == g]]
        centers[k] = unit_rows(rows.sum(axis=0, keepdims=True))[0]
        along += float(np.sum(rows @ centers[k]))
        counted += len(rows)
    return centers, along / max(counted, 1)


def _anchored(prior: sp.csr_array | None, n: int) -> Index:
    """The cluster in which each code is anchored, or -1."""
    cluster = np.full(n, -1, dtype=np.intp)
    if prior is not None:
        entry = prior.tocoo()
        strong = entry.data >= _ANCHORED
        # Of two halves, the lower-numbered cluster is taken.
        cluster[entry.coords[0][strong][::-1]] = entry.coords[1][strong][::-1]
    return cluster


def group(points: Array, count: int, method: str, seed: int) -> Index:
    """Labels (n,) of the rows of (n, d) unit points in `count` groups; the methods of `start_clusters`.

    Above 8,000 rows, average linkage gives way to spherical k-means: it keeps all pairwise distances.

    Raises:
        ValueError: an unknown method.
    """
    if method not in ("average", "k-means", "spherical"):
        raise ValueError(f"a start is 'average', 'k-means' or 'spherical', not {method!r}")
    if count == len(points):
        return np.arange(count)
    if method == "average" and len(points) <= _MOST_FOR_LINKAGE:
        model = AgglomerativeClustering(count, metric="cosine", linkage="average")
        return np.asarray(model.fit_predict(points), dtype=np.intp)
    # In an order of their own, so that the random choices do not depend on how the codes are numbered.
    order = np.argsort(points[:, 0], kind="stable")
    label = np.empty(len(points), dtype=np.intp)
    label[order] = _k_means(points[order], count, seed, spherical=method != "k-means")
    return label


def _k_means(points: Array, count: int, seed: int, *, spherical: bool) -> Index:
    if not spherical:
        return np.asarray(KMeans(count, n_init=3, random_state=seed).fit_predict(points), dtype=np.intp)
    if len(points) * count > _LARGE:
        # k-means++ passes over all codes for each center.
        chosen = np.random.default_rng(seed).choice(len(points), count, replace=False)
        centers, sweeps = points[np.sort(chosen)], _FEW_SWEEPS
    else:
        centers, sweeps = kmeans_plusplus(points, count, random_state=seed)[0], _SWEEPS
    label = _nearest(points, centers)
    for _ in range(sweeps):
        centers = np.zeros_like(centers)
        np.add.at(centers, label, points)
        new = _nearest(points, unit_rows(centers))
        if np.array_equal(new, label):
            break
        label = new
    return label


def _nearest(points: Array, centers: Array) -> Index:
    """The center of greatest inner product, a block of codes at a time: all products at once could fill the memory."""
    step = max(1, _BLOCK // len(centers))
    parts = [np.argmax(points[low : low + step] @ centers.T, axis=1) for low in range(0, len(points), step)]
    return np.concatenate(parts)


def _match_columns(
    groups: list[int], member: Index, free: Index, columns: Index, prior: sp.csr_array | None
) -> Index:
    """One open cluster for each group, to the greatest prior probability of the groups' members."""
    if prior is None or not groups:
        return columns[: len(groups)]
    place = {g: row for row, g in enumerate(groups)}
    chosen = np.isin(member, groups)
    row = np.array([place[int(g)] for g in member[chosen]], dtype=np.intp)
    pick = sp.csr_array((np.ones(len(row)), (row, np.arange(len(row)))), shape=(len(groups), len(row)))
    log_prior = np.log(np.maximum(prior[free[chosen]][:, columns].toarray(), 1e-6))
    best = linear_sum_assignment(pick @ log_prior, maximize=True)[1]
    return np.asarray(columns[np.asarray(best)], dtype=np.intp)
