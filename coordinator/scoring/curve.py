"""Is a probability of .9 right nine times in ten? The calibration curve of mappings, and its error without the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Mappings of about the same probability.

    Attributes:
        n: how many.
        stated: their mean probability.
        right: share of them that are right.
        low, high: ends of Wilson's interval of that share.
    """

    n: int
    stated: float
    right: float
    low: float
    high: float


def calibration_curve(
    probability: ArrayLike, right: ArrayLike, *, bins: int = 15, level: float = 0.95
) -> tuple[Bin, ...]:
    """Bins of about equally many mappings, by probability; equal probabilities are never parted.

    Args:
        probability: (m,) that each mapping is right.
        right: (m,) whether it is.
        bins: at most this many; fewer where probabilities are equal.
        level: coverage of each bin's interval.

    Raises:
        ValueError: there is no mapping, the numbers of both differ, or a probability is outside [0, 1].

    Law: the order of mappings changes nothing.
    """
    p, hit = _checked(probability, right)
    return tuple(
        Bin(int(n), float(stated), float(share), *wilson(round(float(share * n)), int(n), level=level))
        for n, stated, share in zip(*_binned(p, hit, bins), strict=True)
    )


def wilson(right: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    (s + z^2/2n -+ z sqrt(s(1-s)/n + z^2/4n^2)) / (1 + z^2/n), with s = right / n.

    Source: Wilson 1927.
    """
    z = float(norm.ppf(0.5 + level / 2.0))
    share, spread = right / n, z * z / n
    middle = share + spread / 2.0
    half = z * float(np.sqrt(share * (1.0 - share) / n + spread / (4.0 * n)))
    return max((middle - half) / (1.0 + spread), 0.0), min((middle + half) / (1.0 + spread), 1.0)


def calibration_error(curve: Sequence[Bin]) -> float:
    """Plug-in expected calibration error: sum of n_j / m |right_j - stated_j|. Too large: chance counts as error.

    Source: Naeini, Cooper and Hauskrecht 2015.
    """
    weight, gap, _ = _parts(curve)
    return float(weight @ np.abs(gap))


def debiased_calibration_error(curve: Sequence[Bin]) -> float:
    """Expected calibration error less what chance adds to it, not below 0.

    With g_j = right_j - stated_j and s_j^2 = right_j (1 - right_j) / n_j the bias of |g_j| is taken as that of a normal
    variable, E|N(g_j, s_j^2)| - |g_j|.

    Source: Kumar, Liang and Ma 2019, whose resamples are replaced by their expectation, the mean of the folded normal.
    """
    weight, gap, error = _parts(curve)
    return _debiased(weight, gap, error)


def calibration_interval(
    probability: ArrayLike,
    right: ArrayLike,
    *,
    bins: int = 15,
    groups: ArrayLike | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the debiased error over mappings, or whole groups of them, drawn with replacement.

    A draw's gaps hold chance twice, that of the data and that of the draw: both are taken off.

    Args:
        probability: (m,) that each mapping is right.
        right: (m,) whether it is.
        bins: as for `calibration_curve`.
        groups: (m,) labels; mappings of one group share what chance did to their curve, and are drawn together.
        draws: how many.
        level: coverage.
        seed: of the draws.

    Raises:
        ValueError: as for `calibration_curve`.

    Source: Efron and Tibshirani 1993, chapters 8 (groups) and 13 (percentiles).
    """
    p, hit = _checked(probability, right)
    rng = np.random.default_rng(seed)
    places: list[NDArray[np.intp]] | None = None
    if groups is not None:
        labels = np.asarray(groups)
        places = [np.flatnonzero(labels == g) for g in np.unique(labels)]
    found = []
    for _ in range(draws):
        if places is None:
            rows = rng.integers(0, len(p), len(p))
        else:
            rows = np.concatenate([places[g] for g in rng.integers(0, len(places), len(places))])
        weight, gap, error = _gaps(*_binned(p[rows], hit[rows], bins))
        found.append(_debiased(weight, gap, np.sqrt(2.0) * error))
    low, high = np.quantile(found, [0.5 - level / 2.0, 0.5 + level / 2.0])
    return float(low), float(high)


def _debiased(weight: Array, gap: Array, error: Array) -> float:
    size = np.abs(gap)
    safe = np.where(error > 0.0, error, 1.0)
    z = size / safe
    folded = safe * np.sqrt(2.0 / np.pi) * np.exp(-0.5 * z * z) + size * (1.0 - 2.0 * norm.cdf(-z))
    bias = np.where(error > 0.0, folded - size, 0.0)
    return max(float(weight @ (size - bias)), 0.0)


def debiased_squared_error(curve: Sequence[Bin]) -> float:
    """Squared calibration error, sum of n_j / m (g_j^2 - right_j (1 - right_j) / (n_j - 1)); may be below 0.

    Bins of one mapping are left out, having no variance.

    Law: for fixed bins its expectation is sum of n_j / m (P_j - stated_j)^2, P_j the true share.
    Source: Kumar, Liang and Ma 2019, definition of the debiased estimator.
    """
    kept = [b for b in curve if b.n > 1]
    weight, gap, _ = _parts(kept)
    variance = np.array([b.right * (1.0 - b.right) / (b.n - 1) for b in kept])
    return float(weight @ (gap**2 - variance))


def _parts(curve: Sequence[Bin]) -> tuple[Array, Array, Array]:
    """Weights, gaps and standard errors of the bins."""
    n = np.array([b.n for b in curve], dtype=np.float64)
    return _gaps(n, np.array([b.stated for b in curve]), np.array([b.right for b in curve]))


def _checked(probability: ArrayLike, right: ArrayLike) -> tuple[Array, Array]:
    p, hit = np.asarray(probability, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if not p.size or p.shape != hit.shape:
        raise ValueError(f"{p.size} probabilities go with {hit.size} outcomes")
    if not (np.all(p >= 0.0) and np.all(p <= 1.0)):
        raise ValueError("a probability is outside [0, 1]")
    return p, hit


def _binned(p: Array, hit: Array, bins: int) -> tuple[Array, Array, Array]:
    """Size, mean probability and share of right ones of each bin, by probability."""
    edges = np.unique(np.quantile(p, np.arange(1, bins) / bins, method="inverted_cdf"))
    place = np.searchsorted(edges, p, side="left")
    n = np.bincount(place).astype(np.float64)
    used = n > 0
    stated, right = np.bincount(place, weights=p), np.bincount(place, weights=hit)
    return n[used], stated[used] / n[used], right[used] / n[used]


def _gaps(n: Array, stated: Array, right: Array) -> tuple[Array, Array, Array]:
    return n / max(n.sum(), 1.0), right - stated, np.sqrt(right * (1.0 - right) / n)
