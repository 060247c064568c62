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
        ({"policy": GOOD.manifest.policy.model_copy(update={"sticky_patients": 5})}, "looser floors"),
        ({"policy": GOOD.manifest.policy.model_copy(update={"min_changed_patients": 5})}, "looser floors"),
        ({"policy": GOOD.manifest.policy.model_copy(update={"small_site_patients": 0})}, "looser floors"),
        (
            {"policy": GOOD.manifest.policy.model_copy(update={"small_site_pair_patients": 11})},
            "looser floors",
        ),
        ({"statistics": GOOD.manifest.statistics.model_copy(update={"patients": 2_000})}, "of a larger site"),
        ({"descriptions": ("Cholera", "")}, "the study allows none"),
    ],
)
def test_rules_of_the_study(update: dict[str, Any], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        verify(changed(**update))


def test_a_small_site_with_the_floor_of_small_sites_is_taken() -> None:
    policy = GOOD.manifest.policy.at(1_000)
    assert policy.min_pair_patients == 25
    verify(changed(policy=policy, statistics=GOOD.manifest.statistics.model_copy(update={"patients": 1_000})))


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


NAMES = study(privacy={"names": True})


def verify_named(*texts: str, counted: int | None = None) -> object:
    """Intake of a release with these descriptions, under a study that allows them."""
    good = release("north", CODES, unit_rows(np.random.default_rng(0), 2, 2), spec=NAMES)
    told = sum(map(bool, texts)) if counted is None else counted
    update = {
        "descriptions": texts,
        "statistics": good.manifest.statistics.model_copy(update={"names_released": told}),
    }
    m = good.manifest.model_copy(update=update)
    head = header(
        SITE, HUB, content=m.digest, policy_digest=m.policy.digest, study_digest=NAMES.digest, sequence=1
    )
    return verify_release(head, Release(m, good.arrays), study=NAMES, expected=FIRST)


def test_descriptions_where_the_study_allows_them() -> None:
    for texts in ((), ("", ""), ("Cholera", ""), ("Cholera", "Ménière’s disease")):
        verify_named(*texts)


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[2J", "a\u202eb", "a\u200bb", "a\0", "a\ue000"])
def test_descriptions_hold_no_control_characters(text: str) -> None:
    with pytest.raises(ProtocolError, match="control characters"):
        verify_named("Cholera", text)


def test_one_description_for_each_code_and_all_counted() -> None:
    with pytest.raises(ProtocolError, match="not one description for each code"):
        verify_named("Cholera")
    with pytest.raises(ProtocolError, match="miscounts its descriptions"):
        verify_named("Cholera", "", counted=2)
    with pytest.raises(ProtocolError, match="miscounts its descriptions"):
        verify_named(counted=1)
