"""How often is a mapping like this one right? Learnt from anchors that were hidden from the fit.

A cluster's posterior is the model's own certainty and far too sure where clusters are small. Anchors are
mappings whose answer is known: hide a fifth of them, fit, and see which of the hidden codes were mapped to
their standard code. Over five such folds this gives pairs of (strength of the mapping, right or not), to which a
curve is fitted, by beta calibration (Kull, Silva Filho and Flach 2017). It speaks for codes like the anchored ones: where
sites anchor their easy codes only, it is too hopeful for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from coordinator.mapping import MappingSet
from coordinator.scoring.curve import (
    Array,
    Bin,
    calibration_curve,
    calibration_interval,
    debiased_calibration_error,
)
from protocol.messages import Anchor
from protocol.release import VerifiedRelease

FOLDS = 5
LEAST = 50
"""Hidden anchors below which no curve is fitted."""
_RIDGE = 0.1  # on the slopes: with few anchors one of both would run away
_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """P(right | strength s) = 1 / (1 + exp(-(intercept + below ln p(s) - above ln(1 - p(s))))), p(s) = 1 / (1 + exp(-s)).

    With below = above this is Platt's logistic curve in s. Two slopes, since a model that tells well what is wrong may be too
    sure of what is right: some codes have no right target at all.

    Attributes:
        intercept: of the log odds.
        below: slope where the strength is far below 0; not negative.
        above: slope where it is far above 0; not negative.
        n: hidden anchors that it was learnt from; 0 where there were too few.
        right: share of them that were mapped to their standard code.
        error: debiased expected calibration error over the hidden anchors, each judged by a curve that was learnt without its
            fold; None where nothing was learnt.
        error_low: end of its 95 % interval.
        error_high: the other end.
        curve: the same hidden anchors by the probability that they were given.
    """

    intercept: float
    below: float
    above: float
    n: int
    right: float
    error: float | None = None
    error_low: float | None = None
    error_high: float | None = None
    curve: tuple[Bin, ...] = ()

    def probability(self, strength: float) -> float:
        """Probability that a mapping of this strength is right; 0.5 where nothing was learnt.

        Law: a greater strength never gives a smaller probability.
        """
        return float(self.probabilities(np.array([strength]))[0])

    def probabilities(self, strength: Array) -> Array:
        """The same for (m,) strengths."""
        odds = self.intercept + _features(strength) @ np.array([self.below, self.above])
        return np.asarray(expit(odds), dtype=np.float64)


UNKNOWN = Calibration(0.0, 0.0, 0.0, 0, 0.0)


def calibration_from(facts: Mapping[str, Any]) -> Calibration:
    """The calibration whose `asdict` these are, as JSON gives it back."""
    return Calibration(**{**facts, "curve": tuple(Bin(**b) for b in facts["curve"])})


def calibrate(
    releases: Sequence[VerifiedRelease],
    fit: Callable[[Sequence[VerifiedRelease]], MappingSet],
    *,
    standard: str,
    seed: int = 0,
) -> Calibration:
    """Hide anchors fold by fold, fit the rest, and learn from what became of the hidden ones.

    Args:
        releases: as they were verified.
        fit: maps releases to mappings; called once a fold.
        standard: prefix of the standard system, whose own codes need no anchor.
        seed: of the folds.
    """
    given = [
        (s, anchor)
        for s, release in enumerate(releases)
        for anchor in release.manifest.anchors
        if not release.manifest.codes[anchor.row].startswith(f"{standard}:")
    ]
    if len(given) < LEAST:
        return UNKNOWN
    fold = np.random.default_rng(seed).permutation(len(given)) % FOLDS
    strength: list[float] = []
    right: list[bool] = []
    part: list[int] = []
    for f in range(FOLDS):
        hidden = [pair for pair, k in zip(given, fold, strict=True) if k == f]
        rows = {row.code: row for row in fit(_without(releases, hidden)).rows}
        for s, anchor in hidden:
            row = rows[releases[s].manifest.codes[anchor.row]]
            # Another site's anchor for the same public code may still stand: then nothing was hidden.
            if row.standard_code and not row.anchored:
                strength.append(row.strength)
                right.append(row.standard_code == anchor.standard)
                part.append(f)
    return learn(np.array(strength), np.array(right, dtype=bool), np.array(part))


def learn(strength: Array, right: NDArray[np.bool_], fold: NDArray[np.intp]) -> Calibration:
    """The curve of hidden anchors, and how far it is off where it was not fitted.

    Args:
        strength: (n,) of their mappings.
        right: (n,) whether they were right.
        fold: (n,) in which each was hidden.
    """
    found = _curve(strength, right)
    if not found.n:
        return found
    stated = np.empty(len(right))
    for f in np.unique(fold):
        stated[fold == f] = _curve(strength[fold != f], right[fold != f], least=1).probabilities(
            strength[fold == f]
        )
    curve = calibration_curve(stated, right, bins=_BINS)
    low, high = calibration_interval(stated, right, bins=_BINS)
    return replace(
        found, error=debiased_calibration_error(curve), error_low=low, error_high=high, curve=curve
    )


def _without(
    releases: Sequence[VerifiedRelease], hidden: Sequence[tuple[int, Anchor]]
) -> tuple[VerifiedRelease, ...]:
    """The releases less some of their anchors."""
    found = []
    for s, release in enumerate(releases):
        gone = {anchor for own, anchor in hidden if own == s}
        kept = tuple(a for a in release.manifest.anchors if a not in gone)
        found.append(replace(release, manifest=release.manifest.model_copy(update={"anchors": kept})))
    return tuple(found)


def _curve(strength: Array, right: NDArray[np.bool_], *, least: int = LEAST) -> Calibration:
    """The curve alone; a constant where all were right or all wrong."""
    n = len(right)
    if n < least:
        return UNKNOWN
    share = float(right.mean())
    if share in {0.0, 1.0}:
        # Laplace's rule: never quite 0 or 1.
        odds = (right.sum() + 1) / (n - right.sum() + 1)
        return Calibration(float(np.log(odds)), 0.0, 0.0, n, share)
    features, sign = np.column_stack([np.ones(n), _features(strength)]), np.where(right, 1.0, -1.0)

    def loss(w: Array) -> tuple[float, Array]:
        margin = sign * (features @ w)
        ridge = _RIDGE * np.array([0.0, w[1], w[2]])
        value = float(np.logaddexp(0.0, -margin).sum() + 0.5 * (ridge @ w))
        return value, -features.T @ (sign * expit(-margin)) + ridge

    start = np.array([np.log(share / (1 - share)), 0.5, 0.5])
    # More strength does not speak against a mapping; what looks so is chance.
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(None, None), (0, None), (0, None)])
    return Calibration(float(found.x[0]), float(found.x[1]), float(found.x[2]), n, share)


def _features(strength: Array) -> Array:
    """(m, 2): ln p and -ln(1 - p), with p the logistic function of the strength."""
    return np.column_stack([-np.logaddexp(0.0, -strength), np.logaddexp(0.0, strength)])
