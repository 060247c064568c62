"""The study file and its rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.setup import EXAMPLE_STUDY
from protocol.errors import StudyError
from protocol.study import load_study, parse_study, study_differences
from protocol.version import PROTOCOL
from tests.synthetic import study


def test_example_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(EXAMPLE_STUDY)
    assert load_study(path).sites == ("north", "lake", "south")


def test_digest_follows_content_not_layout(tmp_path: Path) -> None:
    one, two = tmp_path / "1.toml", tmp_path / "2.toml"
    one.write_text(EXAMPLE_STUDY)
    two.write_text("# another comment\n" + EXAMPLE_STUDY.replace("window_days = 30", "window_days=30"))
    assert load_study(one).digest == load_study(two).digest
    two.write_text(EXAMPLE_STUDY.replace("window_days = 30", "window_days = 31"))
    assert load_study(one).digest != load_study(two).digest
    assert study_differences(load_study(one), load_study(two)) == ["counting.window_days: 30 here, 31 there"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"privacy": {"min_pair_patients": 5}}, "need public_data"),
        ({"sites": ["a", "a", "b"]}, "listed twice"),
        ({"sites": ["Not Allowed"]}, "sites.0"),
        ({"standard": "LOINC"}, "not among the code systems"),
        ({"standard": "SOUTH"}, "local to one site"),
        ({"code_systems": [{"prefix": "ICD10CM", "local_to": "nowhere"}]}, "which is no site"),
        ({"colour": "blue"}, "colour"),
        ({"counting": {"window_days": -1}}, "counting.window_days"),
    ],
)
def test_rules(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(StudyError, match=reason):
        study(**changes)


def test_lower_floors_need_public_data() -> None:
    assert study(privacy={"min_pair_patients": 1, "public_data": True}).privacy.min_pair_patients == 1


def test_every_broken_rule_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('id = "Bad Id"\nsites = []\n')
    with pytest.raises(StudyError) as caught:
        load_study(path)
    for field in ("id", "sites", "standard", "code_systems"):
        assert field in str(caught.value)


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no study file"):
        load_study(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("id = ")
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path / "bad.toml")


def test_a_default_stays_what_it_was_within_a_protocol_number() -> None:
    """Studies are hashed without what is at its default: another default would be another study of the same digest."""
    then = json.loads(
        (Path(__file__).parents[1] / "vectors" / "study" / f"defaults-{PROTOCOL}.json").read_text()
    )
    now = parse_study({k: then[k] for k in ("id", "sites", "standard", "code_systems")}, "here").model_dump(
        mode="json"
    )

    def check(before: object, after: object, where: str) -> None:
        if isinstance(before, dict):
            assert isinstance(after, dict)
            for key, value in before.items():
                check(value, after[key], f"{where}.{key}")
        else:
            assert before == after, f"{where} needs another protocol number, or its old default"

    check(then, now, "study")


def test_law_a_field_that_is_stated_at_its_default_changes_no_digest() -> None:
    short = {"id": "s", "sites": ["a", "b", "c"], "standard": "X", "code_systems": [{"prefix": "X"}]}
    long = parse_study(short, "here").model_dump(mode="json")
    assert parse_study(long, "there").digest == parse_study(short, "here").digest
    assert parse_study(parse_study(long, "there").stated, "sent") == parse_study(short, "here")
    assert parse_study({**short, "minimum_sites": 2}, "x").digest != parse_study(short, "here").digest
