"""How often is a mapping like this one right? Learnt from anchors that were hidden from the fit.

A cluster's posterior is the model's own certainty and far too sure where clusters are small. Anchors are
mappings whose answer is known: hide a fifth of them, fit, and see which of the hidden codes were mapped to
their standard code. Over five such folds this gives pairs of (strength of the mapping, right or not), to which a
logistic curve is fitted (Platt 1999). It speaks for codes like the anchored ones: where sites anchor their easy
codes only, it is too hopeful for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from coordinator.mapping import MappingSet
from protocol.messages import Anchor
from protocol.release import VerifiedRelease

FOLDS = 5
LEAST = 50
"""Hidden anchors below which no curve is fitted."""


@dataclass(frozen=True)
class Calibration:
    """P(right | strength) = 1 / (1 + exp(-(intercept + slope strength))), strength as in `candidates.Ranking`.

    Attributes:
        n: hidden anchors that it was learnt from; 0 where there were too few.
        right: share of them that were mapped to their standard code.
    """

    intercept: float
    slope: float
    n: int
    right: float

    def probability(self, strength: float) -> float:
        """Probability that a mapping of this strength is right; 0.5 where nothing was learnt."""
        return float(1.0 / (1.0 + np.exp(-(self.intercept + self.slope * strength))))


UNKNOWN = Calibration(0.0, 0.0, 0, 0.0)


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
    for f in range(FOLDS):
        hidden = [pair for pair, k in zip(given, fold, strict=True) if k == f]
        rows = {row.code: row for row in fit(_without(releases, hidden)).rows}
        for s, anchor in hidden:
            row = rows[releases[s].manifest.codes[anchor.row]]
            # Another site's anchor for the same public code may still stand: then nothing was hidden.
            if row.standard_code and not row.anchored:
                strength.append(row.strength)
                right.append(row.standard_code == anchor.standard)
    return _curve(np.array(strength), np.array(right, dtype=bool))


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


def _curve(strength: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]) -> Calibration:
    """The logistic curve; a constant where all were right or all wrong."""
    n = len(right)
    if n < LEAST:
        return UNKNOWN
    share = float(right.mean())
    if share in {0.0, 1.0}:
        # Laplace's rule: never quite 0 or 1.
        odds = (right.sum() + 1) / (n - right.sum() + 1)
        return Calibration(float(np.log(odds)), 0.0, n, share)
    model = LogisticRegression(C=10.0).fit(strength[:, None], right)
    slope = float(model.coef_[0, 0])
    if slope < 0.0:
        # More strength does not speak against a mapping; what looks so is chance.
        return Calibration(float(np.log(share / (1 - share))), 0.0, n, share)
    return Calibration(float(model.intercept_[0]), slope, n, share)
