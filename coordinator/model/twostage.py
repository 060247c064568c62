"""SMILE in two stages: latent factors first, then von Mises-Fisher synonym clusters of their posterior means.

Where most codes are held by one source and clusters have two or three members, the joint fit pulls each code
towards a mean that the code itself dominates, and its posterior is sure of everything. Here u_i is estimated from
its own sources alone, clusters are found by average linkage, and a code's membership is judged by the other members:

1. whitened sources x~_i^s = B_s u_i + e, e ~ N(0, I): u_i = (t I + sum_s B_s'B_s)^-1 sum_s B_s'x~_i^s, to unit length,
   the sums over the sources that speak for code i: where a source only ties frames together, it does not move u_i;
2. average-linkage clusters of the u_i by cosine; mu_k their mean directions, kappa as in `fit_concentration`;
3. P(z_i = k) proportional to vMF(u_i; direction of S_k, kappa_k), with S_k the sum of cluster k's other members and
   A_d(kappa_k) = A_d(kappa) A_d(kappa |S_k|): the density of a new member when the mean is known from those
   members only (derived). A cluster without other members has the uniform density.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from coordinator.model import alignment, clusters, vmf
from coordinator.model.choose import choose_clusters
from coordinator.model.factor import Array, Index, Source, View, compress, patterns
from coordinator.model.fit import SmileFit
from coordinator.model.noise import fit_noise, whitened

_SHRINKAGE = 3.0  # t in units of d: how far noisy directions are pulled to zero
_KEPT = 1e-4  # responsibilities below this are dropped, and the rest normalised again
_BLOCK = 2_000  # codes whose responsibilities are formed at once


def fit_two_stage(
    sources: Sequence[Source],
    *,
    n_codes: int,
    n_clusters: int | None,
    dim: int,
    categories: Index | None = None,
    candidates: Mapping[int, Sequence[int]] | None = None,
    speaks: Sequence[npt.NDArray[np.bool_]] | None = None,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> SmileFit:
    """Fit SMILE in two stages.

    Args:
        sources: connected through shared codes.
        n_codes: n, the size of the union vocabulary.
        n_clusters: K; with None each category's number is chosen (`choose.choose_clusters`), and no cluster then
            holds codes of two categories.
        dim: d >= 2, below every source's number of columns.
        categories: (n,) category of each code, for the choice; one for all without it.
        candidates: the numbers of clusters to choose from, by category.
        speaks: for each source, which of its rows say where their codes lie; the others only help to find the
            source's loadings and noise. By default all. Some source must speak for every code.
        seed: of the clustering above 8,000 codes, where it is spherical k-means.
        progress: told the step and the share done.

    Returns:
        The fit; `history` is the noise model's log likelihood, `relatedness` is zero.

    Raises:
        FitError: the sources cannot be aligned.

    Laws: the fit does not depend on the rotation of a source's columns, nor on the order of codes and sources,
    up to a common rotation.
    """
    return cluster_means(
        first_stage(sources, n_codes=n_codes, dim=dim, speaks=speaks, progress=progress),
        n_clusters=n_clusters,
        categories=categories,
        candidates=candidates,
        seed=seed,
        progress=progress,
    )


class Means(NamedTuple):
    """What stage 1 found.

    Attributes:
        embedding: (n, d) unit rows u_i.
        noise: for each source the variance that is left in it, whitened.
        bound: the noise model's log likelihood after each sweep.
        warnings: of the alignment, in words.
    """

    embedding: Array
    noise: tuple[float, ...]
    bound: tuple[float, ...]
    warnings: tuple[str, ...]


def first_stage(
    sources: Sequence[Source],
    *,
    n_codes: int,
    dim: int,
    speaks: Sequence[npt.NDArray[np.bool_]] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Means:
    """Stage 1: each code's latent mean from its own sources; arguments and errors as for `fit_two_stage`."""
    tell = progress or (lambda _step, _share: None)
    views = [compress(source) for source in sources]
    alignment.check_connected(views, n_codes)
    tell("aligning the sites", 0.1)
    aligned = alignment.align(views, n_codes, dim)
    start = alignment.unit_rows(alignment.filled_svd(views, aligned, dim))
    tell("separating signal from each site's noise", 0.3)
    noise = fit_noise(views, start)
    white = [
        View(v.name, v.codes, whitened(v.scores, p), v.columns)
        for v, p in zip(views, noise.precision, strict=True)
    ]
    embedding, rest = latent_means(white, noise.embedding, speaks)
    return Means(embedding, rest, noise.bound, aligned.warnings)


def cluster_means(
    means: Means,
    *,
    n_clusters: int | None,
    categories: Index | None = None,
    candidates: Mapping[int, Sequence[int]] | None = None,
    joins: Index | None = None,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> SmileFit:
    """Stages 2 and 3: clusters of latent means, and each code's membership judged by the other members.

    Args:
        means: of stage 1.
        n_clusters: as for `fit_two_stage`.
        categories: as for `fit_two_stage`.
        candidates: as for `fit_two_stage`.
        joins: (n,) the row whose cluster each row joins, where something else than the means says so; itself elsewhere.
            Without `n_clusters` the clusters are these alone. Clusters that it empties are dropped.
        seed: as for `fit_two_stage`.
        progress: as for `fit_two_stage`.
    """
    tell = progress or (lambda _step, _share: None)
    embedding = means.embedding
    n, dim = embedding.shape
    tell("grouping synonyms", 0.6)
    if n_clusters is not None:
        labels = clusters.group(embedding, n_clusters, "average", seed)
    elif joins is not None:
        labels = np.arange(n)
    else:
        kinds = np.zeros(n, dtype=np.intp) if categories is None else categories
        labels = _grouped_by_category(embedding, kinds, candidates, seed)
    if joins is not None:
        labels = np.unique(labels[joins], return_inverse=True)[1].reshape(-1).astype(np.intp)
    if n_clusters is None or joins is not None:
        n_clusters = int(labels.max()) + 1
    centers = np.zeros((n_clusters, dim))
    np.add.at(centers, labels, embedding)
    centers = alignment.unit_rows(centers)
    along = float(np.sum(embedding * centers[labels]))
    # With a cluster for nearly every code, nothing is left to learn the concentration from.
    fitted = min(len(np.unique(labels)), clusters.MOST_MEANS * n)
    kappa = clusters.fit_concentration(along, n, dim, fitted)
    tell("judging each code by the others", 0.9)
    responsibilities, posterior = membership(embedding, labels, n_clusters, kappa)
    return SmileFit(
        embedding=embedding,
        centers=centers,
        labels=labels,
        posterior=posterior,
        kappa=kappa,
        relatedness=np.zeros((dim, dim)),
        history=means.bound,
        noise=means.noise,
        responsibilities=responsibilities,
        warnings=means.warnings,
    )


def _grouped_by_category(
    embedding: Array, categories: Index, candidates: Mapping[int, Sequence[int]] | None, seed: int
) -> Index:
    labels = np.empty(len(embedding), dtype=np.intp)
    taken = 0
    for choice in choose_clusters(embedding, categories, candidates=candidates, seed=seed):
        rows = np.flatnonzero(categories == choice.category)
        labels[rows] = taken + clusters.group(embedding[rows], choice.n_clusters, "average", seed)
        taken += choice.n_clusters
    return labels


def latent_means(
    views: Sequence[View], start: Array, speaks: Sequence[npt.NDArray[np.bool_]] | None = None
) -> tuple[Array, tuple[float, ...]]:
    """Stage 1: unit rows u_i from whitened views, and the noise variance that is left in each.

    Args:
        views: sources with white noise.
        start: (n, d) embedding that the loadings are regressed on.
        speaks: for each view, which of its rows count as evidence of their codes; all without it.

    Law: given the loadings, u_i does not depend on a row that does not speak.
    """
    n, dim = start.shape
    points = alignment.unit_rows(start)
    if speaks is None:
        speaks = [np.ones(len(view.codes), dtype=bool) for view in views]
    heard = [View(v.name, v.codes[m], v.scores[m], v.columns) for v, m in zip(views, speaks, strict=True)]
    present, which = patterns(heard, n)
    gram = np.zeros((len(present), dim, dim))
    evidence = np.zeros((n, dim))
    rest = []
    for s, (view, said) in enumerate(zip(views, heard, strict=True)):
        own = points[view.codes]
        loading = np.linalg.lstsq(own, view.scores, rcond=None)[0].T
        variance = _noise_left(view.scores - own @ loading.T, dim)
        rest.append(variance)
        gram += present[:, s][:, None, None] * (loading.T @ loading / variance)
        evidence[said.codes] += said.scores @ loading / variance
    cover = np.linalg.inv(gram + _SHRINKAGE * dim * np.eye(dim))
    means = np.einsum("ne,ned->nd", evidence, cover[which])
    return alignment.unit_rows(means), tuple(rest)


def _noise_left(residual: Array, dim: int) -> float:
    """Noise variance of a whitened source after its loadings were fitted; 1, as whitened, where these fit all of it."""
    rows, columns = residual.shape
    return float(np.sum(residual**2)) / ((rows - dim) * columns) if rows > dim else 1.0


def membership(embedding: Array, labels: Index, n_clusters: int, kappa: float) -> tuple[sp.csr_array, Array]:
    """Stage 3: responsibilities with a code's own vote taken out, and each code's probability of its own cluster.

    Law: a code's row does not depend on which cluster the code itself was put into, but for the clusters' members.
    """
    n, dim = embedding.shape
    sums = np.zeros((n_clusters, dim))
    np.add.at(sums, labels, embedding)
    size = np.bincount(labels, minlength=n_clusters)
    posterior = np.empty(n)
    blocks = []
    for low in range(0, n, _BLOCK):
        rows = slice(low, min(low + _BLOCK, n))
        u, own = embedding[rows], labels[rows]
        dots, length = u @ sums.T, np.broadcast_to(np.linalg.norm(sums, axis=1), (len(u), n_clusters)).copy()
        index = np.arange(len(u))
        others = sums[own] - u
        dots[index, own] = np.sum(u * others, axis=1)
        length[index, own] = np.where(size[own] > 1, np.linalg.norm(others, axis=1), 0.0)
        score = _predictive(dim, kappa, dots, length)
        score = np.exp(score - score.max(axis=1, keepdims=True))
        score /= score.sum(axis=1, keepdims=True)
        posterior[rows] = score[index, own]
        score[score < _KEPT] = 0.0
        blocks.append(sp.csr_array(score / score.sum(axis=1, keepdims=True)))
    return sp.csr_array(sp.vstack(blocks, format="csr")), posterior


def _predictive(dim: int, kappa: float, dots: Array, length: Array) -> Array:
    """Log density of a new member given u'S and |S|; uniform where |S| = 0."""
    distinct, inverse = np.unique(np.round(length, 3), return_inverse=True)
    resultant = vmf.mean_resultant(dim, np.array([kappa]))[0] * vmf.mean_resultant(dim, kappa * distinct)
    tight = np.array([vmf.concentration(dim, float(r)) if r > 0 else 0.0 for r in resultant])
    level = vmf.log_normalizer(dim, np.maximum(tight, 1e-6))
    inverse = inverse.reshape(length.shape)
    cosine = dots / np.where(length > 0.0, length, 1.0)
    return np.asarray(level[inverse] + tight[inverse] * cosine)
