"""Calibration on hidden anchors: what is hidden, what is learnt, and when nothing can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from coordinator.calibration import LEAST, UNKNOWN, calibrate
from coordinator.mapping import Mapping, MappingSet
from protocol.release import VerifiedRelease
from tests.synthetic import release, unit_rows, verified

N = 200
LOCAL = [f"SOUTH:{i:03d}" for i in range(N)]
STANDARD = [f"ICD10CM:{i:03d}" for i in range(N)]


def releases(n_anchors: int) -> list[VerifiedRelease]:
    anchors = dict(zip(LOCAL[:n_anchors], STANDARD, strict=False))
    rows = unit_rows(np.random.default_rng(0), N, 3)
    return [
        verified(release("south", LOCAL, rows, anchors=anchors)),
        verified(release("north", STANDARD, rows)),
    ]


class Oracle:
    """A stand-in for the fit: right with a probability that grows with the cosine that it reports."""

    def __init__(self, slope: float) -> None:
        self.slope, self.seen = slope, []

    def __call__(self, given: Sequence[VerifiedRelease]) -> MappingSet:
        rng = np.random.default_rng(len(self.seen))
        kept = {given[0].manifest.codes[a.row] for a in given[0].manifest.anchors}
        self.seen.append(kept)
        rows = []
        for i, code in enumerate(LOCAL):
            cosine = float(rng.random())
            right = rng.random() < 1 / (1 + np.exp(-self.slope * (cosine - 0.5)))
            rows.append(
                Mapping(
                    code=code,
                    sites=("south",),
                    cluster=i,
                    posterior=1.0,
                    probability=0.0,
                    anchored=code in kept,
                    given=code in kept,
                    standard_code=STANDARD[i] if right else STANDARD[i - 1],
                    strength=cosine,
                    similarity=cosine,
                    candidates=(),
                    evidence=(),
                    name="",
                    category="condition",
                    kinship=None,
                )
            )
        return MappingSet(tuple(rows), np.zeros((N, 3), np.float32))


def test_each_anchor_is_hidden_once() -> None:
    oracle = Oracle(8.0)
    found = calibrate(releases(150), oracle, standard="ICD10CM")
    assert found.n == 150
    hidden = [set(LOCAL[:150]) - kept for kept in oracle.seen]
    assert sorted(code for fold in hidden for code in fold) == LOCAL[:150]


def test_the_curve_is_learnt() -> None:
    found = calibrate(releases(200), Oracle(8.0), standard="ICD10CM")
    assert found.probability(0.9) > 0.8
    assert found.probability(0.1) < 0.2
    assert found.probability(0.5) == pytest.approx(0.5, abs=0.15)


def test_a_strength_that_says_nothing_gives_the_share() -> None:
    found = calibrate(releases(200), Oracle(-8.0), standard="ICD10CM")
    assert found.below == found.above == 0.0
    assert found.probability(0.9) == pytest.approx(found.right)


def test_too_few_anchors() -> None:
    assert calibrate(releases(LEAST - 1), Oracle(8.0), standard="ICD10CM") == UNKNOWN
