"""The calibration curve against known cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, norm

from coordinator.scoring.curve import (
    Bin,
    calibration_curve,
    calibration_error,
    calibration_interval,
    debiased_calibration_error,
    debiased_squared_error,
    wilson,
)


def drawn(rng: np.random.Generator, m: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and outcomes that are right less often by `shift`."""
    p = rng.uniform(0.2, 0.95, m)
    return p, rng.random(m) < p - shift


@pytest.mark.parametrize(
    ("right", "n", "ends"),
    # Newcombe 1998, table I, method 3.
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_intervals_are_those_of_the_literature(right: int, n: int, ends: tuple[float, float]) -> None:
    assert wilson(right, n) == pytest.approx(ends, abs=5e-5)
    assert wilson(n - right, n) == pytest.approx((1 - ends[1], 1 - ends[0]), abs=5e-5)


def test_a_known_gap() -> None:
    p, right = np.full(1000, 0.8), np.arange(1000) < 600
    (only,) = calibration_curve(p, right)
    assert (only.n, only.stated, only.right) == (1000, pytest.approx(0.8), 0.6)
    assert calibration_error([only]) == pytest.approx(0.2)
    assert debiased_calibration_error([only]) == pytest.approx(0.2, abs=1e-9)
    assert debiased_squared_error([only]) == pytest.approx(0.04 - 0.24 / 999)


def test_equal_probabilities_are_one_bin_in_any_order() -> None:
    rng = np.random.default_rng(0)
    p = rng.choice([0.1, 0.5, 0.9], 600)
    right = rng.random(600) < p
    order = rng.permutation(600)
    curve = calibration_curve(p, right, bins=10)
    assert [b.stated for b in curve] == pytest.approx([0.1, 0.5, 0.9])
    turned = calibration_curve(p[order], right[order], bins=10)
    assert [(b.n, b.right) for b in turned] == [(b.n, b.right) for b in curve]


def test_bins_hold_about_equally_many() -> None:
    p, right = drawn(np.random.default_rng(1), 1000)
    sizes = [b.n for b in calibration_curve(p, right, bins=10)]
    assert sum(sizes) == 1000
    assert set(sizes) == {100}


@pytest.mark.parametrize(("truth", "stated"), [(0.7, 0.7), (0.9, 0.6), (0.05, 0.3)])
def test_the_squared_error_is_unbiased(truth: float, stated: float) -> None:
    n = 12
    k = np.arange(n + 1)
    values = [debiased_squared_error([Bin(n, stated, j / n, 0.0, 1.0)]) for j in k]
    assert binom.pmf(k, n, truth) @ values == pytest.approx((truth - stated) ** 2)


def test_the_bias_is_that_of_resampling() -> None:
    """Kumar, Liang and Ma resample each bin's share from a normal; here is their expectation."""
    rng = np.random.default_rng(2)
    p, right = drawn(rng, 400, shift=0.05)
    curve = calibration_curve(p, right, bins=8)
    share = np.array([b.right for b in curve])
    error = np.sqrt(share * (1 - share) / [b.n for b in curve])
    weight = np.array([b.n for b in curve]) / 400
    again = norm.rvs(share, error, size=(200_000, len(curve)), random_state=rng)
    plug_in = calibration_error(curve)
    resampled = 2 * plug_in - float((np.abs(again - [b.stated for b in curve]) @ weight).mean())
    assert debiased_calibration_error(curve) == pytest.approx(max(resampled, 0.0), abs=5e-4)


def test_what_is_calibrated_is_shown_so_and_what_is_not_is_not() -> None:
    rng = np.random.default_rng(3)
    fair, plain, off = [], [], []
    for _ in range(60):
        curve = calibration_curve(*drawn(rng, 500))
        fair.append(debiased_calibration_error(curve))
        plain.append(calibration_error(curve))
        off.append(debiased_calibration_error(calibration_curve(*drawn(rng, 500, shift=0.15))))
    assert np.mean(plain) > 0.05  # although nothing is wrong
    # With g ~ N(0, s^2) the mean of 2|g| - E|N(g, s^2)| is 2 - sqrt 2 times that of |g|.
    assert np.mean(fair) / np.mean(plain) == pytest.approx(2 - np.sqrt(2), abs=0.05)
    assert np.mean(off) == pytest.approx(0.15, abs=0.02)


@pytest.mark.parametrize(
    ("p", "right"), [([], []), ([0.5], [True, False]), ([1.2], [True]), ([np.nan], [True])]
)
def test_what_is_no_sample_is_refused(p: list[float], right: list[bool]) -> None:
    with pytest.raises(ValueError, match=r"go with|outside"):
        calibration_curve(p, right)


def test_the_interval_of_the_error_holds_it() -> None:
    """Twenty samples of a gap of .1: the interval misses it once in twenty times, on average."""
    held = 0
    for seed in range(20):
        p, right = drawn(np.random.default_rng(seed), 2000, shift=0.1)
        low, high = calibration_interval(p, right, draws=200)
        held += low <= 0.1 <= high
    assert held >= 17


def test_what_is_calibrated_has_an_interval_that_begins_near_zero() -> None:
    lows = [calibration_interval(*drawn(np.random.default_rng(s), 2000), draws=100)[0] for s in range(10)]
    assert np.mean(lows) < 0.01


def test_groups_that_share_their_error_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(10), 300)
    p = rng.uniform(0.2, 0.8, 3000)
    right = rng.random(3000) < p + rng.normal(0, 0.1, 10)[group]
    alone, together = (
        calibration_interval(p, right, draws=300),
        calibration_interval(p, right, groups=group, draws=300),
    )
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])
    assert together == calibration_interval(p, right, groups=group, draws=300)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="go with"):
        calibration_interval([0.5], [])
