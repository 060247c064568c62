"""The union vocabulary: shared rows, contradictions, and sites that nothing links."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.union import build_union, sources
from protocol.errors import FitError
from protocol.release import VerifiedRelease
from tests.synthetic import release, unit_rows, verified


def site(name: str, codes: list[str], anchors: dict[str, str] | None = None) -> VerifiedRelease:
    return verified(
        release(name, codes, unit_rows(np.random.default_rng(len(codes)), len(codes), 3), anchors=anchors)
    )


def test_codes_anchors_and_rows() -> None:
    releases = [
        site("north", ["ICD10CM:A", "ICD10CM:B"]),
        site("lake", ["ICD9CM:1", "ICD9CM:2", "ICD10CM:B"], {"ICD9CM:1": "ICD10CM:A"}),
        site("south", ["SOUTH:x", "SOUTH:y"], {"SOUTH:x": "ICD10CM:A", "SOUTH:y": "ICD10CM:Z"}),
    ]
    union = build_union(releases, standard="ICD10CM")
    row = dict(zip(union.codes, union.row.tolist(), strict=True))
    assert row["ICD10CM:A"] == row["ICD9CM:1"] == row["SOUTH:x"]
    assert len({row["ICD10CM:A"], row["ICD10CM:B"], row["ICD9CM:2"], row["SOUTH:y"]}) == union.n_rows == 4
    # Z was released by nobody, but names what y is anchored to.
    assert union.standard == {
        row["ICD10CM:A"]: "ICD10CM:A",
        row["ICD10CM:B"]: "ICD10CM:B",
        row["SOUTH:y"]: "ICD10CM:Z",
    }
    held = dict(zip(union.codes, union.holds.tolist(), strict=True))
    assert held["ICD10CM:B"] == [True, True, False]
    assert union.anchored.sum() == 3


def test_codes_of_a_site_that_share_a_row_are_averaged() -> None:
    lake = site("lake", ["ICD9CM:1", "ICD9CM:2"], {"ICD9CM:1": "ICD10CM:A", "ICD9CM:2": "ICD10CM:A"})
    north = site("north", ["ICD10CM:A"])
    union = build_union([lake, north], standard="ICD10CM")
    first, second = sources([lake, north], union)
    np.testing.assert_allclose(first.matrix, lake.views()[0].matrix.mean(axis=0, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(first.codes, second.codes)


def test_contradicting_anchors_are_left_out_and_reported() -> None:
    releases = [
        site("north", ["ICD10CM:A", "ICD10CM:B", "ICD9CM:1"], {"ICD9CM:1": "ICD10CM:A"}),
        site("lake", ["ICD10CM:A", "ICD9CM:1"], {"ICD9CM:1": "ICD10CM:B"}),
    ]
    union = build_union(releases, standard="ICD10CM")
    assert union.n_rows == 3
    assert not union.anchored.any()
    assert "ICD9CM:1" in union.warnings[0]


@pytest.mark.parametrize("linked", [True, False])
def test_sites_without_a_link_are_named(linked: bool) -> None:
    anchors = {"SOUTH:x": "ICD10CM:A"} if linked else None
    releases = [
        site("north", ["ICD10CM:A", "ICD10CM:B"]),
        site("lake", ["ICD10CM:A"]),
        site("south", ["SOUTH:x"], anchors),
    ]
    if linked:
        build_union(releases, standard="ICD10CM")
        return
    with pytest.raises(FitError, match=r"links south with the other sites.*anchors\.csv"):
        build_union(releases, standard="ICD10CM")


def test_three_strangers_are_all_named() -> None:
    releases = [site("north", ["ICD10CM:A"]), site("lake", ["ICD9CM:1"]), site("south", ["SOUTH:x"])]
    with pytest.raises(FitError, match="north; lake; south"):
        build_union(releases, standard="ICD10CM")
