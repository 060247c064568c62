"""How good a fit is against known truth: embedding, clusters, retrieval, pairs, and how sure one can be of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import gammaln
from scipy.stats import rankdata
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


def rotation(found: Array, truth: Array) -> Array:
    """The orthogonal O that minimises |found O - truth|_F (orthogonal Procrustes).

    Args:
        found: (n, d).
        truth: (n, d).

    Source: Schoenemann 1966.
    """
    left, _, right = np.linalg.svd(found.T @ truth)
    return np.asarray(left @ right)


def accuracy(found: Array, truth: Array, turn: Array | None = None) -> float:
    """Accuracy of an embedding: 1 - |found O - truth|_F / |truth|_F.

    Args:
        found: (n, d).
        truth: (n, d).
        turn: O; the best orthogonal one if left out.

    Laws: at most 1; rotating or reflecting `found` changes nothing where O is the best one.
    Source: SMILE, section 4.
    """
    turned = found @ (rotation(found, truth) if turn is None else turn)
    return float(1.0 - np.linalg.norm(turned - truth) / np.linalg.norm(truth))


def center_accuracy(found: Array, truth: Array, turn: Array) -> float:
    """Accuracy of cluster centers, after each true one is matched with a found one.

    The one-to-one matching has the greatest sum of cosines. A true center that none is left for counts as if
    the zero vector had been found.

    Args:
        found: (k, d) unit rows, in any order.
        truth: (K, d) unit rows.
        turn: the rotation that aligns the codes' embeddings (`rotation`).

    Law: the order of centers on either side changes nothing.
    """
    turned = found @ turn
    row, column = linear_sum_assignment(turned @ truth.T, maximize=True)
    placed = np.zeros_like(truth)
    placed[column] = turned[row]
    return accuracy(placed, truth, np.eye(truth.shape[1]))


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


def chance_mrr(n_candidates: int, n_right: Sequence[int]) -> float:
    """Mean reciprocal rank of a random ranking, exactly: sum over r of P(best rank = r) / r.

    P(best rank >= r) = C(c - r + 1, t) / C(c, t).

    Args:
        n_candidates: c.
        n_right: t, the number of right candidates of each query.
    """
    r = np.arange(1, n_candidates + 2, dtype=np.float64)
    expected = {}
    for t in set(n_right):
        left = n_candidates - r + 1.0 - t
        log_reach = gammaln(left + t + 1.0) - gammaln(np.maximum(left, 0.0) + 1.0)
        log_reach -= gammaln(n_candidates + 1.0) - gammaln(n_candidates - t + 1.0)
        reach = np.where(left < 0.0, 0.0, np.exp(np.where(left < 0.0, 0.0, log_reach)))
        expected[t] = float(np.sum((reach[:-1] - reach[1:]) / r[:-1]))
    return float(np.mean([expected[t] for t in n_right]))


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Chance that a positive pair scores above a negative one, ties counted half.

    Args:
        positive: (m,) scores.
        negative: (k,) scores.

    Laws: an increasing transformation of all scores changes nothing; exchanging the two gives 1 - AUC.
    Source: Mann and Whitney 1947; Hanley and McNeil 1982.
    """
    return float(placements(positive, negative)[0].mean())


def placements(positive: ArrayLike, negative: ArrayLike) -> tuple[Array, Array]:
    """Share of negatives below each positive, and of positives above each negative, ties counted half.

    The mean of either is the AUC, and s^2(first) / m + s^2(second) / k its variance.

    Args:
        positive: (m,) scores.
        negative: (k,) scores.

    Raises:
        ValueError: there are no positives or no negatives.

    Source: DeLong, DeLong and Clarke-Pearson 1988.
    """
    x, y = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    if not x.size or not y.size:
        raise ValueError(f"{x.size} positives and {y.size} negatives have no AUC")
    rank = rankdata(np.r_[x, y])
    of_positive = (rank[: x.size] - rankdata(x)) / y.size
    of_negative = 1.0 - (rank[x.size :] - rankdata(y)) / x.size
    return np.asarray(of_positive), np.asarray(of_negative)


def rank_correlation(one: ArrayLike, other: ArrayLike) -> float:
    """Spearman's rank correlation; nan where either side is constant.

    Law: an increasing transformation of either side changes nothing.
    """
    x, y = (rankdata(np.asarray(v, dtype=np.float64)) for v in (one, other))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 0.0 else float("nan")


@dataclass(frozen=True)
class Interval:
    """A figure, its standard error, and the ends of its interval."""

    value: float
    error: float
    low: float
    high: float


def mean_interval(values: ArrayLike, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of independent values with its standard error and `bootstrap_interval`."""
    estimate = mean_and_error(values)
    return Interval(
        estimate.mean, estimate.error, *bootstrap_interval(values, level=level, draws=1000, seed=seed)
    )


def auc_interval(
    positive: ArrayLike, negative: ArrayLike, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> Interval:
    """AUC with DeLong's standard error, and a percentile interval that resamples positives and negatives.

    The interval is that of the AUC's linear part: its placements are resampled instead of being computed
    anew for each draw. Pairs count as independent; where many share a code, it is too narrow.

    Raises:
        ValueError: as `placements`.
    """
    sides = placements(positive, negative)
    value = float(sides[0].mean())
    variance = sum(float(side.var(ddof=1)) / side.size if side.size > 1 else float("nan") for side in sides)
    rng = np.random.default_rng(seed)
    means = np.full(draws, -value)
    for side in sides:
        means += [side[rng.integers(side.size, size=side.size)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(value, float(np.sqrt(variance)), max(float(low), 0.0), min(float(high), 1.0))


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    n: int,
    *,
    level: float = 0.95,
    draws: int = 500,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of any figure over n independent units.

    Args:
        statistic: the figure for given units, by their numbers; a number may come several times.
        n: number of units.
        level: coverage.
        draws: number of bootstrap samples.
        seed: of the resampling.

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(n, size=n)) for _ in range(draws)])
    low, high = np.nanquantile(values, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(statistic(np.arange(n)), float(np.nanstd(values)), float(low), float(high))


def random_halves(
    statistic: Callable[[NDArray[np.intp]], float],
    n: int,
    *,
    level: float = 0.95,
    draws: int = 100,
    seed: int = 0,
) -> Interval:
    """Interval of a figure over n units that must not be drawn twice, from halves without replacement.

    For a mean the variance over such halves is that of the whole sample, s^2 / n. A figure of agreement
    between two partitions cannot be bootstrapped as usual: a code that is drawn twice agrees with itself.
    The halves' deviations from their mean are laid around the figure of the whole sample.

    Args:
        statistic: the figure for given units, by their numbers in increasing order.
        n: number of units.
        level: coverage.
        draws: number of halves.
        seed: of the halves.

    Source: Politis and Romano 1994.
    """
    rng = np.random.default_rng(seed)
    values = np.array([statistic(np.sort(rng.choice(n, n // 2, replace=False))) for _ in range(draws)])
    low, high = np.quantile(values - values.mean(), [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    value = statistic(np.arange(n))
    return Interval(value, float(values.std()), value + float(low), value + float(high))


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
