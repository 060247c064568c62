"""Area under the precision-recall curve, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def average_precision(positive: Flags, score: Floats) -> float:
    """sum_t (R_t - R_(t-1)) P_t over the distinct scores t, falling; R recall, P precision.

    Args:
        positive: (n,) at least one of them.
        score: (n,) higher for what is more likely.

    Raises:
        ValueError: nothing is positive.

    Law: only the order of scores matters; equal scores for all give the share of the positive.
    """
    if not positive.any():
        raise ValueError("no precision without a positive")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(positive[order])
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    gained = np.diff(hits[ends], prepend=0)
    return float(np.sum(gained * hits[ends] / (ends + 1)) / hits[-1])


def intervals(
    positive: Flags, scores: Mapping[str, Floats], against: str, *, repeats: int = 500, seed: int = 0
) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """The area of each method, and that of `against` less each other's; the same bootstrap samples of patients for all.

    Args:
        positive: (n,) outcomes.
        scores: method -> (n,).
        against: the method of interest.
        repeats: bootstrap samples.
        seed: of them.
    """
    rng = np.random.default_rng(seed)
    n = len(positive)
    draws = [rng.integers(n, size=n) for _ in range(repeats)]
    draws = [draw for draw in draws if positive[draw].any()]
    sampled = {
        name: np.array([average_precision(positive[d], s[d]) for d in draws]) for name, s in scores.items()
    }
    value = {name: average_precision(positive, s) for name, s in scores.items()}

    def interval(point: float, drawn: Floats) -> Interval:
        low, high = np.quantile(drawn, [0.025, 0.975])
        return Interval(point, float(low), float(high))

    areas = {name: interval(value[name], sampled[name]) for name in scores}
    gains = {
        name: interval(value[against] - value[name], sampled[against] - sampled[name])
        for name in scores
        if name != against
    }
    return areas, gains
