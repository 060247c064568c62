"""Does a vector tell its site? The audit of an alignment, before and after.

Of every code that several sites hold there is one vector a site. A recogniser learns from some codes which site a vector is
of, and is asked about others. What it finds by chance is learnt from the same data with the sites permuted within each code:
if the site leaves no trace, its vectors of one code are exchangeable, so this null is exact, and which sites hold a code cannot
be mistaken for a trace.

Three kinds of vector are asked about: `released`, each site's own, cut to the narrowest site's columns; `aligned`, the same
brought into the shared space by a ridge regression on the fit's vectors, learnt from other codes than those it is applied to;
and `published`, the fit's vectors of codes that one site holds, in clusters with codes of other sites.

The recogniser is a discriminant by penalised least squares, linear or in a Gaussian kernel. Unlike a logistic regression it
needs one factorisation a fold for any number of permutations. The linear one misses what lies in spread rather than in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import threadpool_limits

from coordinator.recogniser.scores import Array, correlation
from coordinator.recogniser.sums import unit_tables
from coordinator.recogniser.verdict import Audit, Recognised

if TYPE_CHECKING:
    from coordinator.model import Source
    from coordinator.model.factor import Index

LEAST_GROUPS: Final = 30
"""Codes below which nothing is said."""
MOST_VECTORS: Final = 1_500
"""Beyond this many vectors codes are drawn at random; a fold's matrices then take some ten megabytes."""
PERMUTATIONS: Final = 199
_FOLDS: Final = 5
_RIDGE: Final = {"linear": 1.0, "kernel": 0.1}
"""Penalty as a share of the kernel's mean diagonal."""
_RIDGE_ALIGNED: Final = 0.01


def audit_alignment(
    own: Sequence[Source], embedding: Array, labels: Index, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> Audit:
    """The audit of a fit.

    Args:
        own: one source a site: its co-occurrence view.
        embedding: (n_rows, d) of the fit.
        labels: (n_rows,) the fit's clusters.
        seed: of folds, permutations and, where codes are many, of the choice.
        permutations: behind the null.
    """
    if len(own) < 2:
        return Audit()
    rng = np.random.default_rng(seed)
    holds = np.zeros((len(embedding), len(own)), dtype=bool)
    for s, source in enumerate(own):
        holds[source.codes, s] = True
    lines: list[Recognised] = []
    with threadpool_limits(1, user_api="blas"):
        shared = _chosen(np.flatnonzero(holds.sum(axis=1) > 1), holds, rng)
        for kind, tables in (
            ("released", unit_tables([source.matrix for source in own])),
            ("aligned", _aligned(own, embedding, rng)),
        ):
            kept = [np.isin(source.codes, shared) for source in own]
            vectors = np.concatenate([t[k] for t, k in zip(tables, kept, strict=True)])
            group = np.concatenate([source.codes[k] for source, k in zip(own, kept, strict=True)])
            lines += _lines(
                kind,
                vectors,
                np.repeat(np.arange(len(own)), [k.sum() for k in kept]),
                group,
                seed,
                permutations,
            )
        rows, site, cluster = _single(holds, labels, rng)
        lines += _lines("published", embedding[rows], site, cluster, seed, permutations)
    return Audit(tuple(lines))


def recognise_site(
    vectors: Array,
    site: Index,
    group: Index,
    *,
    recogniser: str,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> tuple[float, Array]:
    """Matthews' correlation of true and said site, groups cross-validated, and the same for permuted sites.

    Args:
        vectors: (n, d).
        site: (n,) 0..S-1.
        group: (n,) what the vectors are of; a group is learnt from or asked about, never both.
        recogniser: `linear` or `kernel` (Gaussian, of standardised columns, bandwidth sqrt(d / 2)).
        seed: of folds and permutations.
        permutations: P, of the sites within groups.

    Returns:
        the correlation, and (P,) of the null.

    Law: adding a multiple of the group's own mean to all its vectors cannot make the null unfair: sites stay exchangeable.
    """
    rng = np.random.default_rng(seed)
    _, number = np.unique(group, return_inverse=True)
    fold = (rng.permutation(int(number.max()) + 1) % _FOLDS)[number]
    n_sites = int(site.max()) + 1
    every = np.stack([site, *(_permuted(site, number, rng) for _ in range(permutations))])
    said = np.zeros_like(every)
    for k in range(_FOLDS):
        learn, ask = fold != k, fold == k
        if not ask.any():
            continue
        weights = _smoother(vectors[learn], vectors[ask], recogniser)
        wanted = np.eye(n_sites)[every[:, learn]]
        mean = wanted.mean(axis=1, keepdims=True)
        flat = (wanted - mean).transpose(1, 0, 2).reshape(int(learn.sum()), -1)
        scores = (weights @ flat).reshape(-1, len(every), n_sites).transpose(1, 0, 2) + mean
        said[:, ask] = scores.argmax(axis=2)
    found = np.array([correlation(true, one, n_sites) for true, one in zip(every, said, strict=True)])
    return float(found[0]), found[1:]


def _lines(
    kind: str, vectors: Array, site: Index, group: Index, seed: int, permutations: int
) -> list[Recognised]:
    groups = len(np.unique(group))
    if groups < LEAST_GROUPS:
        return []
    lines = []
    for recogniser in _RIDGE:
        mcc, null = recognise_site(
            vectors, site, group, recogniser=recogniser, seed=seed, permutations=permutations
        )
        limit = float(np.quantile(null, 0.95))
        lines.append(Recognised(kind, recogniser, mcc, float(null.mean()), limit, groups, len(vectors)))
    return lines


def _smoother(learn: Array, ask: Array, recogniser: str) -> Array:
    """(n_ask, n_learn) K(ask, learn) (K(learn, learn) + r I)^-1, columns standardised by what is learnt from."""
    mean, scale = learn.mean(axis=0), learn.std(axis=0) + 1e-9
    a, b = (learn - mean) / scale, (ask - mean) / scale
    width = a.shape[1]
    inner, across = a @ a.T / width, b @ a.T / width
    if recogniser == "kernel":
        square_a, square_b = np.square(a).sum(axis=1) / width, np.square(b).sum(axis=1) / width
        across = np.exp(2 * across - square_b[:, None] - square_a)
        inner = np.exp(2 * inner - square_a[:, None] - square_a)
    inner[np.diag_indices(len(inner))] += _RIDGE[recogniser] * float(np.trace(inner)) / len(inner)
    return np.asarray(cho_solve(cho_factor(inner), across.T).T)


def _permuted(site: Index, number: Index, rng: np.random.Generator) -> Index:
    """The sites permuted within groups."""
    result = np.empty_like(site)
    result[np.argsort(number, kind="stable")] = site[np.lexsort((rng.random(len(site)), number))]
    return result


def _aligned(own: Sequence[Source], embedding: Array, rng: np.random.Generator) -> tuple[Array, ...]:
    """Each site's vectors brought into the shared space by what its other codes say, at unit length."""
    fold = rng.integers(_FOLDS, size=len(embedding))
    found = []
    for source in own:
        x = source.matrix / np.maximum(np.linalg.norm(source.matrix, axis=1, keepdims=True), 1e-12)
        moved = np.zeros((len(x), embedding.shape[1]))
        for k in range(_FOLDS):
            learn = fold[source.codes] != k
            a, target = x[learn], embedding[source.codes[learn]]
            penalty = _RIDGE_ALIGNED * max(len(a), 1) / a.shape[1] * np.eye(a.shape[1])
            moved[~learn] = x[~learn] @ np.linalg.solve(a.T @ a + penalty, a.T @ target)
        found.append(moved)
    return unit_tables(found)


def _chosen(rows: Index, holds: NDArray[np.bool_], rng: np.random.Generator) -> Index:
    """Rows with `MOST_VECTORS` vectors at most."""
    order = rng.permutation(rows)
    return np.sort(order[np.cumsum(holds[order].sum(axis=1)) <= MOST_VECTORS])


def _single(holds: NDArray[np.bool_], labels: Index, rng: np.random.Generator) -> tuple[Index, Index, Index]:
    """Rows that one site holds in clusters with such rows of other sites; their site and cluster."""
    rows = np.flatnonzero(holds.sum(axis=1) == 1)
    site, cluster = holds[rows].argmax(axis=1), np.asarray(labels)[rows]
    seen = np.zeros((int(np.max(labels)) + 1, holds.shape[1]), dtype=bool)
    seen[cluster, site] = True
    order = rng.permutation(np.flatnonzero(seen.sum(axis=1) > 1))
    size = np.bincount(cluster, minlength=len(seen))
    kept = np.isin(cluster, order[np.cumsum(size[order]) <= MOST_VECTORS])
    return rows[kept], site[kept], cluster[kept]
