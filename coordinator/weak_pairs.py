"""Weak pairs: codes of several sites that probably mean the same, found without a licence and without a label.

Anchors say which local code is which standard code. Where they are few, the sites' coordinates hang on little, and
every code is misplaced. Here matches that look sure are used as weak anchors, the sites are aligned again through
them, and so on: bootstrapping as in unsupervised translation (Artetxe, Labaka and Agirre 2018), with the matching
canonical correlation model of Haghighi, Liang, Berg-Kirkpatrick and Klein (2008) for any number of sites.

    x_i^s = B_s u_i + e_s,  u_i ~ N(0, I),  e_s ~ N(0, Psi_s)

is fitted to rows joined by anchors and weak pairs (the M-step). Weak pairs are the mutual best cells of a matching in
which no code is used twice, softened by entropy (`soft_matching`), that are likely enough (the E-step, hard). A weak
pair helps to find loadings and noise and nothing else: the two codes keep rows of their own, so that a wrong pair
does not make them one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from coordinator.model import alignment
from coordinator.model.factor import Array, Index, Source, compress
from coordinator.model.noise import fit_noise, whitened

_SWEEPS = 40
_MATCHING_SWEEPS = 20


@dataclass(frozen=True, eq=False)
class Latent:
    """What the sources say of each row's latent vector: p(x_i | u) is proportional to exp(h_i'u - u'A_i u / 2).

    Attributes:
        evidence: (n, d) h_i = sum_s B_s' Psi_s^-1 x_i^s over the sources that hold row i.
        gram: (P, d, d) A_i = sum_s B_s' Psi_s^-1 B_s, by distinct pattern of presence.
        pattern: (n,) the pattern of each row.
        parts: for each source the rows that it speaks for and (k, d) its own part of their evidence.
        noise: for each source the variance that is left beside its loadings, whitened.
        bound: log likelihood of the noise model after each sweep.
        warnings: of the alignment, in words.
    """

    evidence: Array
    gram: Array
    pattern: Index
    parts: tuple[tuple[Index, Array], ...]
    noise: tuple[float, ...]
    bound: tuple[float, ...]
    warnings: tuple[str, ...]

    def vectors(self, shrinkage: float = 3.0) -> Array:
        """(n, d) unit rows, the directions of (t I + A_i)^-1 h_i with t = shrinkage d."""
        dim = self.evidence.shape[1]
        cover = np.linalg.inv(self.gram + shrinkage * dim * np.eye(dim))
        return alignment.unit_rows(np.einsum("ne,ned->nd", self.evidence, cover[self.pattern]))


def latent(
    sources: Sequence[Source],
    joined: Index,
    dim: int,
    speaks: Sequence[NDArray[np.bool_]] | None = None,
) -> Latent:
    """Fit loadings and noise to joined rows, and read every row's evidence off its own sources.

    Args:
        sources: connected through the joined rows.
        joined: (n,) from 0, equal for rows that count as one code while loadings and noise are learnt.
        dim: d, below every source's number of columns.
        speaks: for each source, which of its rows say where their codes lie, as for `fit_two_stage`; all without it.

    Raises:
        FitError: the joined rows do not connect the sources, or these span fewer than d dimensions.

    Law: what is returned for a row depends on the rows joined with it through loadings and noise only.
    """
    merged = [_merged(source, joined) for source in sources]
    views = [compress(source) for source in merged]
    n_joined = int(joined.max()) + 1
    alignment.check_connected(views, n_joined)
    aligned = alignment.align(views, n_joined, dim)
    start = alignment.filled_svd(views, aligned, dim)
    model = fit_noise(views, alignment.unit_rows(start), sweeps=_SWEEPS)
    held = np.zeros((len(joined), len(sources)), dtype=bool)
    evidence, grams = np.zeros((len(joined), dim)), np.zeros((len(sources), dim, dim))
    levels, parts = [], []
    for s, (source, one, view, precision) in enumerate(
        zip(sources, merged, views, model.precision, strict=True)
    ):
        mean = model.embedding[view.codes]
        white = whitened(view.scores, precision)
        second = mean.T @ mean + 1e-6 * len(mean) * np.eye(dim)
        loading = np.linalg.solve(second, mean.T @ white).T
        rest = white - mean @ loading.T
        level = float(np.sum(rest**2)) / max((len(rest) - dim) * rest.shape[1], 1)
        levels.append(level)
        axes = np.linalg.lstsq(one.matrix, view.scores, rcond=None)[0]
        grams[s] = loading.T @ loading / level
        said = slice(None) if speaks is None else speaks[s]
        rows, own = source.codes[said], whitened(source.matrix[said] @ axes, precision) @ loading / level
        parts.append((rows, own))
        evidence[rows] += own
        held[rows, s] = True
    distinct, pattern = np.unique(held, axis=0, return_inverse=True)
    gram = np.tensordot(distinct.astype(np.float64), grams, axes=1)
    return Latent(
        evidence,
        np.asarray(gram),
        pattern.reshape(-1),
        tuple(parts),
        tuple(levels),
        model.bound,
        tuple(aligned.warnings),
    )


def same_meaning(found: Latent, one: Index, other: Index) -> Array:
    """Log likelihood ratio of one shared latent vector against two, for each of `one` with each of `other`.

    h_i'V h_j + h_i'(V - V_i) h_i / 2 + h_j'(V - V_j) h_j / 2 + (log|V| - log|V_i| - log|V_j|) / 2 with
    V = (I + A_i + A_j)^-1 and V_i = (I + A_i)^-1.

    Returns:
        (len(one), len(other)).

    Source: Prince and Elder 2007 (probabilistic linear discriminant analysis).
    """
    unit = np.eye(found.evidence.shape[1])
    ratio = np.empty((len(one), len(other)))
    for a in np.unique(found.pattern[one]):
        for b in np.unique(found.pattern[other]):
            i, j = np.flatnonzero(found.pattern[one] == a), np.flatnonzero(found.pattern[other] == b)
            x, y = found.evidence[one[i]], found.evidence[other[j]]
            both = np.linalg.inv(unit + found.gram[a] + found.gram[b])
            first, second = np.linalg.inv(unit + found.gram[a]), np.linalg.inv(unit + found.gram[b])
            level = sum(sign * np.linalg.slogdet(m)[1] for sign, m in ((1, both), (-1, first), (-1, second)))
            block = x @ both @ y.T + level / 2
            block += np.einsum("nd,de,ne->n", x, both - first, x)[:, None] / 2
            block += np.einsum("nd,de,ne->n", y, both - second, y)[None] / 2
            ratio[np.ix_(i, j)] = block
    return ratio


def meaning_by_source(
    found: Latent, one: Index, other: Index, at: NDArray[np.intp], allowed: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """`same_meaning` by the sources that speak for the candidates.

    With h_j = sum_s h_j^s, source s says h_i'V h_j^s + h_j'(V - V_j) h_j^s / 2 of row i and candidate j, and what is left,
    h_i'(V - V_i) h_i / 2 + (log|V| - log|V_i| - log|V_j|) / 2, hangs on which sources hold the candidate alone.

    Args:
        found: evidence of every row.
        one: (n,) rows.
        other: (m,) rows of candidates.
        at: (n, k) the candidates to tell of, columns of `same_meaning`.
        allowed: (n, m) the candidates to average over.

    Returns:
        (n, k, S + 1) parts, the last for what is left; and (n, S + 1) their means over each row's allowed candidates.

    Law: the parts of a pair add up to its `same_meaning`.
    """
    unit, n_parts = np.eye(found.evidence.shape[1]), len(found.parts)
    parts, total = np.zeros((*at.shape, n_parts + 1)), np.zeros((len(one), n_parts + 1))
    own = [_rows_of(part, other) for part in found.parts]
    for a in np.unique(found.pattern[one]):
        i = np.flatnonzero(found.pattern[one] == a)
        x, first = found.evidence[one[i]], np.linalg.inv(unit + found.gram[a])
        for b in np.unique(found.pattern[other]):
            j = np.flatnonzero(found.pattern[other] == b)
            y, second = found.evidence[other[j]], np.linalg.inv(unit + found.gram[b])
            both = np.linalg.inv(unit + found.gram[a] + found.gram[b])
            place = np.full(len(other), -1)
            place[j] = np.arange(len(j))
            row, slot = np.nonzero(place[at[i]] >= 0)
            column, counted = place[at[i]][row, slot], allowed[np.ix_(i, j)]
            level = sum(sign * np.linalg.slogdet(m)[1] for sign, m in ((1, both), (-1, first), (-1, second)))
            left = np.einsum("nd,de,ne->n", x, both - first, x) / 2 + level / 2
            parts[i[row], slot, n_parts] = left[row]
            total[i, n_parts] += left * counted.sum(axis=1)
            near, spread = x @ both, y @ (both - second) / 2
            for s, (held, evidence) in enumerate(own):
                if not held[j].any():
                    continue
                said = near @ evidence[j].T + np.einsum("md,md->m", spread, evidence[j])[None]
                parts[i[row], slot, s] = said[row, column]
                total[i, s] += np.sum(said, axis=1, where=counted)
    return parts, total / np.maximum(allowed.sum(axis=1, keepdims=True), 1)


def _rows_of(part: tuple[Index, Array], rows: Index) -> tuple[NDArray[np.bool_], Array]:
    """(m,) which of these rows a source speaks for, and (m, d) its evidence for them, zeros for others."""
    codes, evidence = part
    order = np.argsort(codes)
    at = np.minimum(np.searchsorted(codes[order], rows), max(len(codes) - 1, 0))
    held = codes[order][at] == rows if len(codes) else np.zeros(len(rows), dtype=bool)
    found = np.zeros((len(rows), evidence.shape[1]))
    found[held] = evidence[order][at[held]]
    return held, found


def soft_matching(score: Array, slack: float = 3.0) -> Array:
    """Match probabilities in which no row and no column is used more than once.

    P_ij = exp(score_ij + a_i + b_j) with sum_j P_ij <= 1 and sum_i P_ij <= 1: a dummy partner of score `slack`
    takes the rest of each.

    Args:
        score: (n, m) log odds that i and j are one.
        slack: what a match must be worth.

    Source: Sinkhorn and Knopp 1967; Cuturi 2013.
    """
    top = max(float(score.max(initial=slack)), slack)
    kernel, dummy = np.exp(score - top), float(np.exp(slack - top))
    column = np.ones(score.shape[1])
    row = np.ones(score.shape[0])
    for _ in range(_MATCHING_SWEEPS):
        row = 1.0 / (kernel @ column + dummy)
        column = 1.0 / (kernel.T @ row + dummy)
    return np.asarray(row[:, None] * kernel * column)


def mutual_matches(probability: Array, least: float) -> NDArray[np.intp]:
    """(k, 2) cells that are the greatest of their row and of their column, and at least `least`.

    Law: no row and no column comes twice, and transposing the matrix turns the pairs round.
    """
    if not probability.size:
        return np.empty((0, 2), dtype=np.intp)
    best = probability.argmax(axis=1)
    row = np.arange(len(probability))
    value = probability[row, best]
    kept = (probability.argmax(axis=0)[best] == row) & (value >= least)
    return np.stack([row[kept], best[kept]], axis=1)


def lexical_matches(
    one: NDArray[np.floating], other: NDArray[np.floating], least: float = 0.5
) -> NDArray[np.intp]:
    """(k, 2) codes whose descriptions are each other's nearest with a cosine of at least `least`.

    Args:
        one: (n, p) vectors of descriptions; a row of zeros has none.
        other: (m, p), by the same encoder.
        least: of the cosine.
    """
    cosine = alignment.unit_rows(one.astype(np.float64)) @ alignment.unit_rows(other.astype(np.float64)).T
    return mutual_matches(cosine, max(least, 1e-9))


def graph_matching(one: Array, other: Array, score: Array, iterations: int = 30) -> Array:
    """Scores that also ask whether a code's neighbours match its partner's neighbours; no common coordinates needed.

    P maximises tr(K P L P') + <score, P> over soft matchings by damped conditional gradient, with K and L the centred
    cosines within the two sites; what is returned is score + the standardised gradient K P L, with a weight that
    grows from 1 to 3.

    Args:
        one: (n, p) rows of a site.
        other: (m, q) rows of another.
        score: (n, m) what is known of the pairs.
        iterations: steps, each of weight one half.

    Source: Vogelstein et al. 2015 (FAQ); Gold and Rangarajan 1996.
    """
    first, second = (_centred_cosines(matrix) for matrix in (one, other))
    slack = -2.0
    matching = soft_matching(score, slack)
    found = score
    for step in range(iterations):
        gradient = first @ matching @ second
        gradient = (gradient - gradient.mean()) / max(float(gradient.std()), 1e-12)
        found = score + (1.0 + 2.0 * step / iterations) * gradient
        matching = (matching + soft_matching(found, slack)) / 2
    return np.asarray(found)


def _centred_cosines(matrix: Array) -> Array:
    points = alignment.unit_rows(matrix)
    cosine = points @ points.T
    np.fill_diagonal(cosine, 0.0)
    return np.asarray(cosine - cosine.mean())


def join(n_rows: int, pairs: NDArray[np.intp]) -> Index:
    """(n_rows,) numbers from 0, equal for rows that a chain of pairs connects."""
    graph = sp.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n_rows, n_rows))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.intp)


def _merged(source: Source, joined: Index) -> Source:
    rows, place, count = np.unique(joined[source.codes], return_inverse=True, return_counts=True)
    mean = np.zeros((len(rows), source.matrix.shape[1]))
    np.add.at(mean, place, source.matrix)
    return Source(source.name, rows.astype(np.intp), mean / count[:, None])
