"""Which codes are related: tests on pooled, additive statistics, with the false discovery rate controlled.

H0 of a pair: log(C / E) <= log(1 + delta), where E is the sum of what sites expect from their margins without the diagonal.

- `entrywise`: each pair by itself, from sums over patients; one round.
- `smooth` and `smoothed`: the whitened matrix of log ratios, low-rank; the variance from random blocks of patients; two rounds.

Derivations, assumptions and what was measured: docs/explanation/knowledge-graph.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import linalg, sparse, stats
from scipy.sparse import linalg as sparse_linalg

from protocol.eigen import leading_eigenpairs
from protocol.errors import FitError
from protocol.inference.additive import EntrySums, HalfCounts, Smoothing, whitened
from protocol.pair_index import Floats, Int64s, PairIndex

MAX_RANK = 256
"""Eigenpairs that are kept at most: a smoother of more would tell the sites more, and cost more, than it gains."""
_DENSE = 1500  # codes up to which all eigenvalues are computed
_FIRST = 16  # eigenpairs that are asked for first


@dataclass(frozen=True, eq=False)
class PairTests:
    """One row for each tested pair.

    Attributes:
        row: (m,) the more common code.
        column: (m,) the other one.
        count: (m,) pooled count.
        expected: (m,) count expected without association.
        log_ratio: (m,) log(count / expected), -inf for a count of 0; by the smoothed test, the shrunk and smoothed one.
        error: (m,) its standard error.
        z: (m,) distance from the null in standard errors.
        p: (m,) one-sided; 1 for a pair that no site shows.
    """

    row: Int64s
    column: Int64s
    count: Int64s
    expected: Floats
    log_ratio: Floats
    error: Floats
    z: Floats
    p: Floats

    def q(self, method: Literal["bh", "by"] = "bh") -> Floats:
        """(m,) the least false discovery rate at which each pair is found, all tested pairs being the family.

        Args:
            method: "bh" holds for independent or positively dependent tests, "by" for any.

        Source: Benjamini and Hochberg 1995; Benjamini and Yekutieli 2001.
        """
        return np.asarray(stats.false_discovery_control(self.p, method=method))


def entrywise(sums: EntrySums, pairs: PairIndex, *, delta: float = 0.0, minimum: float = 10.0) -> PairTests:
    """Test each pair by itself.

    The influences of the patients on log(C / E) sum to 0, and their squares to the estimate of its variance:

        phi^i = c / C - e / E,    sum of phi^2 = sum c c / C^2 - 2 sum c e / (C E) + sum e e / E^2

    The statistic is the distance on the scale of cube roots, 3 (1 - exp(-(log ratio - null) / 3)) / error: to second order its
    skewness is 0 for Poisson counts and negative for every compound of them, where the plain ratio's upper tail is heavy.

    Args:
        sums: of the sites.
        pairs: tested pairs.
        delta: relations weaker than this excess over the expected count are not looked for.
        minimum: pairs of which the sites expect fewer have p = 1; by expectation, never by what was observed.
    """
    count, expected = sums.counts.astype(np.float64), sums.expected
    seen = (count > 0) & (expected >= minimum)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = sums.squares / count**2 - 2.0 * sums.cross / (count * expected) + sums.drift / expected**2
        seen &= variance > 0  # rounding can take it below
        log_ratio = np.log(count / expected)
        error = np.sqrt(np.maximum(variance, 0.0))
        z = 3.0 * (1.0 - np.exp(-(log_ratio - np.log1p(delta)) / 3.0)) / error
    z, error = np.where(seen, z, -np.inf), np.where(seen, error, np.inf)
    return PairTests(*pairs.codes(), sums.counts, expected, log_ratio, error, z, stats.norm.sf(z))


def smooth(
    halves: HalfCounts, pairs: PairIndex, *, minimum: float = 10.0, max_rank: int = MAX_RANK
) -> Smoothing:
    """The smoother of the second round, from the pooled counts of two half-samples.

    Noise in Z = sqrt(E) log((C + 1/2) / (E + 1/2)) has about the same variance everywhere. The largest eigenvalue of half
    the difference of the half-samples, |(Z_1 - Z_2) / 2|, is then where noise ends in Z itself.

    Args:
        halves: pooled.
        pairs: tested pairs.
        minimum: pairs of which the sites expect fewer have no part in it.
        max_rank: most eigenpairs.

    Raises:
        FitError: no eigenvalue stands out of the noise.
    """
    expected = np.where(halves.expected[2] >= minimum, halves.expected[2], 0.0)
    weight = np.sqrt(expected)
    apart = whitened(halves.counts[0], halves.expected[0], weight)
    apart -= whitened(halves.counts[1], halves.expected[1], weight)
    threshold = _norm(pairs, apart / 2.0)
    counts = halves.counts.sum(axis=0)
    values, vectors = _above(pairs, whitened(counts, expected, weight), threshold, max_rank)
    kept = values > threshold
    if not kept.any():
        raise FitError(
            "No structure of relations stands out of the noise",
            why=f"the largest eigenvalue is {values[0]:.3g}, that of noise {threshold:.3g}",
            do="Test with more data, or each pair by itself",
        )
    return Smoothing(counts, expected, vectors[:, kept], values[kept], threshold)


def smoothed(
    smoothing: Smoothing, pairs: PairIndex, variance: Floats, freedom: int, *, delta: float = 0.0
) -> PairTests:
    """Test each pair by the smoothed log ratio, against Student's t.

    Args:
        smoothing: what the sites were sent.
        pairs: its tested pairs.
        variance: (m,) sum of the sites' block sums.
        freedom: sum of the sites' degrees of freedom, blocks less one.
        delta: relations weaker than this excess over the expected count are not looked for.
    """
    expected = smoothing.expected
    weight = np.sqrt(expected)
    left = smoothing.vectors * smoothing.shrunk()
    value = np.empty(pairs.size)
    for first, stop, last in pairs.tiles():
        tile = left[first:stop] @ smoothing.vectors[first + 1 : last].T
        for i, part, columns in pairs.rows(first, stop):
            value[part] = tile[i - first, columns.start - first - 1 : columns.stop - first - 1]
    null = whitened((1.0 + delta) * expected, expected, weight)
    seen = (smoothing.counts > 0) & (expected > 0) & (variance > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(seen, np.sqrt(variance) / weight, np.inf)
        z = np.where(seen, (value - null) / np.sqrt(variance), -np.inf)
        log_ratio = np.where(seen, value / weight, 0.0)
    return PairTests(*pairs.codes(), smoothing.counts, expected, log_ratio, error, z, stats.t.sf(z, freedom))


def _norm(pairs: PairIndex, values: Floats) -> float:
    """The largest eigenvalue in magnitude of the symmetric matrix with these values at tested pairs."""
    p = pairs.order.size
    if p <= _DENSE:
        return float(np.abs(linalg.eigvalsh(_dense(pairs, values))).max())
    matrix = _symmetric(pairs, values)
    start = np.random.default_rng(0).standard_normal(p)
    return float(np.abs(sparse_linalg.eigsh(matrix, k=1, which="LM", v0=start, return_eigenvectors=False))[0])


def _above(pairs: PairIndex, values: Floats, threshold: float, most: int) -> tuple[Floats, Floats]:
    """The eigenpairs above a threshold and some below, falling; `most` at most.

    Those in the noise lie close together and converge slowly: few are asked for first.
    """
    k = _FIRST
    while True:
        found, vectors = _leading(pairs, values, min(k, most))
        if found[-1] <= threshold or found.size < k or k >= most:
            return found, vectors
        k *= 2


def _leading(pairs: PairIndex, values: Floats, k: int) -> tuple[Floats, Floats]:
    """The k largest eigenvalues, falling, and their vectors, each with its entry of largest magnitude positive."""
    p = pairs.order.size
    if p <= _DENSE:
        rising, all_vectors = linalg.eigh(_dense(pairs, values))
        found, vectors = rising[::-1][:k], all_vectors[:, ::-1][:, :k]
    else:
        found, single = leading_eigenpairs(_symmetric(pairs, values), k)
        vectors = np.asarray(linalg.qr(single.astype(np.float64), mode="economic")[0])
    signs = np.sign(vectors[np.argmax(np.abs(vectors), axis=0), np.arange(found.size)])
    return np.asarray(found, np.float64), np.asarray(vectors * signs, np.float64)


def _dense(pairs: PairIndex, values: Floats) -> Floats:
    dense = np.zeros((pairs.order.size, pairs.order.size))
    dense[pairs.ranks()] = values
    return dense + dense.T


def _symmetric(pairs: PairIndex, values: Floats) -> sparse.csr_array[Any, tuple[int, int]]:
    p = pairs.order.size
    columns = np.concatenate(
        [np.arange(i + 1, w, dtype=np.int32) for i, w in enumerate(pairs.width.tolist())]
    )
    upper = sparse.csr_array((values, columns, pairs.offset.astype(np.int32)), shape=(p, p))
    return sparse.csr_array(upper + upper.T)
