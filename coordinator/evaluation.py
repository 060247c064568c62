"""How good a fit is against known truth: clusters, retrieval, and how sure one can be of the figure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln
from sklearn.metrics import adjusted_mutual_info_score

Array = NDArray[np.float64]

_BLOCK = 1 << 22  # cosines held at once


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        """For example `.893 ± .004`."""
        return f"{self.mean:.3f} ± {self.error:.3f}"


def ami(labels_true: ArrayLike, labels_pred: ArrayLike) -> float:
    """Adjusted mutual information of two partitions: 1 for the same one, 0 expected by chance.

    Law: renaming clusters on either side changes nothing.
    Source: Vinh, Epps and Bailey 2010, arithmetic normaliser.
    """
    return float(adjusted_mutual_info_score(np.asarray(labels_true), np.asarray(labels_pred)))


def ranks(
    query_vectors: Array, candidate_vectors: Array, truth: Sequence[Collection[int] | int]
) -> NDArray[np.int64]:
    """Rank, from 1, of each query's best right candidate by cosine.

    A candidate with exactly the same cosine as a right one counts as ranked before it, so that a method
    that gives all candidates one score does not look perfect.

    Args:
        query_vectors: (m, d).
        candidate_vectors: (c, d).
        truth: for each query the position of the right candidate, or a non-empty collection of them.

    Returns:
        (m,) between 1 and c.

    Raises:
        ValueError: numbers of queries and truths differ, or a query without a right candidate.
    """
    right = [{entry} if isinstance(entry, int | np.integer) else set(entry) for entry in truth]
    if len(right) != len(query_vectors):
        raise ValueError(f"{len(query_vectors)} queries go with {len(right)} truths")
    if not all(right):
        raise ValueError("every query needs at least one right candidate")
    query, candidates = _unit(query_vectors), _unit(candidate_vectors)
    found = np.empty(len(right), dtype=np.int64)
    step = max(1, _BLOCK // max(1, len(candidates)))
    for low in range(0, len(right), step):
        cosine = query[low : low + step] @ candidates.T
        for row, positions in enumerate(right[low : low + step]):
            chosen = np.fromiter(positions, dtype=np.intp)
            best = cosine[row, chosen].max()
            wrong = np.delete(cosine[row], chosen)
            found[low + row] = 1 + int(np.sum(wrong >= best))
    return found


def hits_at_k(
    query_vectors: Array,
    candidate_vectors: Array,
    truth: Sequence[Collection[int] | int],
    ks: Sequence[int] = (1, 5, 10, 20),
) -> dict[int, float]:
    """Share of queries with a right candidate among the k nearest by cosine, for each k.

    Args:
        query_vectors: (m, d).
        candidate_vectors: (c, d).
        truth: as for `ranks`.
        ks: the cut-offs.

    Raises:
        ValueError: as `ranks`.
    """
    found = ranks(query_vectors, candidate_vectors, truth)
    return {k: float(np.mean(found <= k)) for k in ks}


def mrr(query_vectors: Array, candidate_vectors: Array, truth: Sequence[Collection[int] | int]) -> float:
    """Mean reciprocal rank of the best right candidate.

    Raises:
        ValueError: as `ranks`.
    """
    return float(np.mean(1.0 / ranks(query_vectors, candidate_vectors, truth)))


def chance_hits(
    n_candidates: int, n_right: Sequence[int], ks: Sequence[int] = (1, 5, 10, 20)
) -> dict[int, float]:
    """What a random ranking is expected to hit, exactly: the mean of 1 - C(c - t, k) / C(c, k).

    Args:
        n_candidates: c.
        n_right: t, the number of right candidates of each query.
        ks: the cut-offs.
    """
    t = np.asarray(n_right, dtype=np.float64)
    expected = {}
    for k in ks:
        take = min(k, n_candidates)
        left = n_candidates - t - take
        safe = np.maximum(left, 0.0)
        log_miss = (
            gammaln(n_candidates - t + 1.0)
            - gammaln(safe + 1.0)
            - gammaln(n_candidates + 1.0)
            + gammaln(n_candidates - take + 1.0)
        )
        expected[k] = float(np.mean(1.0 - np.where(left < 0.0, 0.0, np.exp(log_miss))))
    return expected


def bootstrap_interval(
    values: ArrayLike, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean.

    Args:
        values: (m,) one value a query, for instance a hit as 0 or 1.
        level: coverage.
        draws: number of bootstrap samples.
        seed: of the resampling.

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    x = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [x[rng.integers(x.size, size=x.size)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def mean_and_error(values: ArrayLike) -> Estimate:
    """Mean and standard error of independent replications; the error of a single one is unknown (nan)."""
    x = np.asarray(values, dtype=np.float64)
    error = float(x.std(ddof=1) / np.sqrt(x.size)) if x.size > 1 else float("nan")
    return Estimate(float(x.mean()), error)


def _unit(vectors: Array) -> Array:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0.0, length, 1.0))
