"""Calibration on hidden anchors: what is hidden, what is learnt, and when nothing can be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.calibration import LEAST, UNKNOWN, Calibration, calibrate, calibration_from, learn
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


# --- The curve -----------------------------------------------------------------------------------------


def sampled(rng: np.random.Generator, n: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Strengths, and outcomes of which a share `reach` at most is right: some codes have no right target."""
    strength = rng.normal(0, 3, n)
    return strength, rng.random(n) < reach / (1 + np.exp(-strength))


def test_a_model_that_is_too_sure_of_what_is_right_is_not_believed() -> None:
    """One slope for both ends would state .9 and more for mappings of which four in five are right."""
    strength, right = sampled(np.random.default_rng(0), 20_000, reach=0.8)
    found = learn(strength, right, np.arange(20_000) % 5)
    assert found.below > 2 * found.above
    stated = found.probabilities(np.array([-4.0, 0.0, 4.0]))
    assert stated == pytest.approx([0.8 * x for x in (0.018, 0.5, 0.982)], abs=0.05)
    assert found.error < 0.02


def test_a_logistic_truth_is_found_by_equal_slopes() -> None:
    strength, right = sampled(np.random.default_rng(1), 20_000, reach=1.0)
    found = learn(strength, right, np.arange(20_000) % 5)
    assert (found.intercept, found.below, found.above) == pytest.approx((0, 1, 1), abs=0.2)


def test_the_error_is_judged_out_of_fold() -> None:
    """Fifty anchors and noise: the curve fits them better than it would others, and says so."""
    errors = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        strength, right = sampled(rng, 60, reach=1.0)
        found = learn(strength, right, np.arange(60) % 5)
        errors.append(found.error)
        assert found.error_low <= found.error_high
        assert sum(b.n for b in found.curve) == 60
    assert 0.0 < np.mean(errors) < 0.15


def test_a_calibration_comes_back_from_json() -> None:
    strength, right = sampled(np.random.default_rng(2), 200, reach=0.9)
    for found in (learn(strength, right, np.arange(200) % 5), UNKNOWN):
        assert calibration_from(json.loads(json.dumps(asdict(found)))) == found


@given(
    st.floats(-5, 5), st.floats(0, 3), st.floats(0, 3), st.lists(st.floats(-60, 60), min_size=2, max_size=20)
)
def test_law_more_strength_is_never_less_probable(
    c: float, a: float, b: float, strengths: list[float]
) -> None:
    stated = Calibration(c, a, b, 100, 0.5).probabilities(np.sort(strengths))
    assert (np.diff(stated) >= 0).all()
    assert ((stated >= 0) & (stated <= 1)).all()
