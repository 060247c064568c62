"""Intake: each way in which a release is not what it must be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coordinator.intake import Expected, verify_release
from protocol.errors import EnvelopeError, ProtocolError, StudyError
from protocol.release import Release
from tests.synthetic import header, keys, release, study, unit_rows

SITE, HUB = keys("site"), keys("hub")
CODES = ["ICD10CM:A00", "ICD9CM:001"]
GOOD = release(
    "north", CODES, unit_rows(np.random.default_rng(0), 2, 2), anchors={"ICD9CM:001": "ICD10CM:A00"}
)
FIRST = Expected("north", "r1", 0, "", SITE.public().digest)


def verify(found: Release = GOOD, expected: Expected = FIRST, **head: Any) -> object:
    m = found.manifest
    values = {
        "content": m.digest,
        "sequence": m.sequence,
        "previous": m.previous,
        "policy_digest": m.policy.digest,
        "study_digest": study().digest,
    }
    return verify_release(header(SITE, HUB, **(values | head)), found, study=study(), expected=expected)


def test_good() -> None:
    found = verify()
    assert found.manifest == GOOD.manifest  # type: ignore[attr-defined]


def test_the_same_release_again_is_acknowledged_again() -> None:
    verify(expected=Expected("north", "r1", 1, GOOD.manifest.digest, SITE.public().digest))


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        (Expected("north", "r1", 1, "f" * 64, SITE.public().digest), "stale"),
        (Expected("north", "r1", 2, "f" * 64, SITE.public().digest), "stale"),
        (Expected("north", "r2", 0, "", SITE.public().digest), "not one of site north for round r2"),
        (Expected("lake", "r1", 0, "", SITE.public().digest), "not one of site lake"),
        (Expected("north", "r1", 0, "", HUB.public().digest), "not one of site north"),
    ],
)
def test_place_in_the_sequence(expected: Expected, reason: str) -> None:
    with pytest.raises(EnvelopeError, match=reason):
        verify(expected=expected)


def test_a_gap_in_the_sequence() -> None:
    later = release("north", CODES, unit_rows(np.random.default_rng(0), 2, 2), sequence=3, previous="f" * 64)
    with pytest.raises(EnvelopeError, match="does not follow"):
        verify(later)


def test_another_study() -> None:
    other = release(
        "north", CODES, unit_rows(np.random.default_rng(0), 2, 2), spec=study(counting={"window_days": 7})
    )
    with pytest.raises(StudyError, match="another study"):
        verify(other)


@pytest.mark.parametrize("field", ["content", "policy_digest"])
def test_header_and_manifest_must_agree(field: str) -> None:
    with pytest.raises(EnvelopeError, match="do not agree"):
        verify(**{field: "e" * 64})


def changed(**update: Any) -> Release:
    return Release(GOOD.manifest.model_copy(update=update), GOOD.arrays)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ({"policy": GOOD.manifest.policy.model_copy(update={"min_pair_patients": 5})}, "looser floors"),
        ({"policy": GOOD.manifest.policy.model_copy(update={"max_dim": 512})}, "looser floors"),
        ({"codes": ("SOUTH:x", "ICD9CM:001")}, "local to another site"),
        ({"codes": ("ICD10CM: A00", "ICD9CM:001")}, "plain form"),
        ({"codes": ("nocolon", "ICD9CM:001")}, "malformed"),
        ({"codes": ("ICD10CM:A\u202e00", "ICD9CM:001")}, "malformed"),
        ({"codes": ("ICD10CM:A00",)}, "miscounts"),
    ],
)
def test_rules_of_the_study(update: dict[str, Any], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        verify(changed(**update))


def test_an_unknown_code_system() -> None:
    with pytest.raises(StudyError, match="not in study"):
        verify(changed(codes=("LOINC:1", "ICD9CM:001")))


def test_anchors_name_standard_codes_only() -> None:
    bad = release(
        "north", CODES, unit_rows(np.random.default_rng(0), 2, 2), anchors={"ICD9CM:001": "ICD9CM:002"}
    )
    with pytest.raises(ProtocolError, match="anchors a code"):
        verify(bad)


def test_counts_below_the_own_floor() -> None:
    arrays = {**GOOD.arrays, "code-patients": np.array([20, 5])}
    with pytest.raises(ProtocolError, match="fewer patients"):
        verify(Release(GOOD.manifest, arrays))
