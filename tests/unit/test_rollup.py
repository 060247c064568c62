"""Roll-up files and hierarchies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import DataError
from site_agent.sections import Data, RollUp
from site_agent.sources.rollup import read_rollup, rollup_of
from site_agent.sources.triplets import TripletFile


def written(folder: Path, text: str) -> Path:
    path = folder / "rollup.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_targets_in_order_each_once(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "\ufefftarget,note,code\nPHE:250.2,x,ICD10CM:E11.9\nPHE:250,,ICD10CM:E11.9 \n"
        'PHE:250.2,,ICD10CM:E11.9\n"T:a,b",,L:A\u0308:1\n',
    )
    assert read_rollup(path) == {"ICD10CM:E11.9": ("PHE:250.2", "PHE:250"), "L:\u00c4:1": ("T:a,b",)}


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("", ["no column 'code' and no column 'target'"]),
        ("code,to\nA:1,B:1\n", ["no column 'target'", "'code', 'to'"]),
        ("code,target\n", ["has no lines"]),
        ("code,target\nA:1,B:1\nA:2,\n", ["Line 3", "no target", "unmapped"]),
        ("code,target\nA:1\n", ["Line 2", "no target"]),
        ("code,target\n ,B:1\n", ["Line 2", "no code"]),
        ("code,target\nE11.9,B:1\n", ["Line 2", "column 'code'", "'E11.9' is not of the form"]),
        ("code,target\nA:1,B:\n", ["Line 2", "column 'target'"]),
        ('code,target\nA:1,"B:x\ny"\n', ["Line 3", "control character"]),
    ],
)
def test_bad_files(tmp_path: Path, text: str, reasons: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read_rollup(written(tmp_path, text))
    for reason in reasons:
        assert reason in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no roll-up file"):
        read_rollup(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("code,target\nA:\xe4,B:1\n".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read"):
        read_rollup(tmp_path / "latin.csv")


@dataclass(frozen=True)
class Hierarchy(TripletFile):
    """A source that knows what stands for what."""

    found: Mapping[str, tuple[str, ...]] | None = None

    def ancestors(self) -> Mapping[str, tuple[str, ...]] | None:
        return self.found


def data(**rollup: Any) -> Data:
    return Data(kind="omop", database="duckdb:///x", system="L", rollup=RollUp(**rollup))


def test_a_file_goes_before_the_hierarchy(tmp_path: Path) -> None:
    path = written(tmp_path, "code,target\nA:1,B:9\n")
    source = Hierarchy(tmp_path, data(), {"A:1": ("B:1",), "A:2": ("B:2",)})
    assert rollup_of(data(), source, None) is None
    assert rollup_of(data(file="rollup.csv"), source, path) == {"A:1": ("B:9",)}
    both = rollup_of(data(file="rollup.csv", concept_ancestor=True), source, path)
    assert both == {"A:1": ("B:9",), "A:2": ("B:2",)}


def test_a_source_without_a_hierarchy_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="knows no hierarchy"):
        rollup_of(data(concept_ancestor=True), Hierarchy(tmp_path, data()), None)
