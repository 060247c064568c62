"""The study file and its rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.setup import EXAMPLE_STUDY
from protocol.errors import StudyError
from protocol.study import load_study, study_differences
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
