"""What differs between two releases, and how far vectors moved."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.release import Release
from site_agent.difference import aligned_cosines, difference
from tests.synthetic import release

CODES = [f"ICD10CM:A{i:02d}" for i in range(60)]


def matrix(rows: int = 60, dims: int = 4, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((rows, dims)).astype(np.float32)


def rotation(dims: int, seed: int) -> np.ndarray[Any, Any]:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dims, dims)))[0]


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 30), dims=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_a_rotation_moves_nothing(rows: int, dims: int, seed: int) -> None:
    before = matrix(rows, dims, seed).astype(np.float64)
    np.testing.assert_allclose(aligned_cosines(before, before @ rotation(dims, seed)), 1.0, atol=1e-9)


def test_one_row_that_moved_is_found() -> None:
    before = matrix(40, 6)
    after = before @ rotation(6, 1)
    after[7] = -after[7]
    cosines = aligned_cosines(before, after)
    assert int(np.argmin(cosines)) == 7
    assert cosines[7] < 0
    assert np.delete(cosines, 7).min() > 0.95


def test_widths_may_differ_and_rows_may_be_zero() -> None:
    before = np.zeros((4, 2), np.float32)
    before[:3] = matrix(3, 2)
    after = np.pad(before, ((0, 0), (0, 3)))
    np.testing.assert_allclose(aligned_cosines(before, after), 1.0, atol=1e-6)
    after[0] = 0
    assert aligned_cosines(before, after)[0] == 0


def test_the_first_release() -> None:
    found = difference(None, release("north", CODES, matrix()), sizes=(0, 9))
    assert found.first
    assert found.codes_added == tuple(CODES)
    assert "first release" in found.short()


def test_the_same_release() -> None:
    one = release("north", CODES, matrix())
    found = difference(one, one, sizes=(9, 9))
    assert found.same
    assert not found.statistics
    assert "byte for byte" in found.short()


@pytest.fixture
def two() -> tuple[Release, Release]:
    after = np.vstack([matrix()[2:], matrix(1, seed=5)]).astype(np.float32)
    after[3] = -after[3]
    before = release("north", CODES, matrix(), anchors={CODES[2]: "ICD10CM:X", CODES[0]: "ICD10CM:Y"})
    codes = [*CODES[2:], "ICD10CM:Z99"]
    new = release("north", codes, after, anchors={CODES[2]: "ICD10CM:Q"}, sequence=2, previous="a" * 64)
    new.arrays["code-patients"][0] = 35
    update = {
        "agent_version": "9",
        "policy": new.manifest.policy.model_copy(update={"min_code_patients": 30}),
    }
    return before, Release(new.manifest.model_copy(update=update), new.arrays)


def test_everything_that_changed(two: tuple[Release, Release]) -> None:
    found = difference(*two, sizes=(10, 11))
    assert not found.first
    assert not found.same
    assert found.codes_added == ("ICD10CM:Z99",)
    assert found.codes_removed == tuple(CODES[:2])
    assert found.patients == {CODES[2]: (20, 35)}
    assert found.anchors_added == (f"{CODES[2]} = ICD10CM:Q",)
    assert found.anchors_removed == (f"{CODES[0]} = ICD10CM:Y", f"{CODES[2]} = ICD10CM:X")
    assert found.statistics == {"codes_seen": (60, 59), "codes_released": (60, 59)}
    assert found.rules == {"min_code_patients": (20, 30), "agent_version": ("0", "9")}
    (moved,) = found.moved
    assert (moved.view, moved.dims, moved.codes) == ("cooccurrence", (4, 4), 58)
    assert moved.far[0][0] == CODES[5]
    assert found.as_json()["sequence"] == (1, 2)
    assert "1 codes more, 2 fewer, 1 patient counts changed, 1 anchors more, 2 fewer" in found.short()
