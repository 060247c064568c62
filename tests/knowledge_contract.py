"""What every reader of knowledge must do, whatever its format.

A test of a reader says how its format writes things (`Form`) and runs `CHECKS` on it.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from coordinator.knowledge.assertions import (
    ASSERTIONS,
    ITSELF,
    NO_CODE,
    OWN_PARENT,
    TWICE,
    Assertions,
    is_relation,
)
from coordinator.knowledge.readers import AnySource, Source
from coordinator.knowledge.systems import Systems
from protocol.errors import DataError
from protocol.vocabulary import split_curie

SYSTEMS = Systems(
    {
        "ICD10CM": "condition",
        "ICD9CM": "condition",
        "SNOMED": "condition",
        "RXNORM": "drug",
        "PHECODE": "condition",
    }
)

Row = tuple[str, str, str, bool]


@dataclass(frozen=True)
class Form:
    """How a format writes things.

    Attributes:
        settings: fields of the source, `kind` among them.
        files: name of each file -> its content; one file for formats that are one.
        rows: (code_1, code_2, relation, label) of these files.
        main: the file that the checks spoil.
        twice: a line of the main file that stands in it already.
        itself: a line about one code and itself.
        unknown: a line with a code system that the study does not have, if the format can say so.
        bad_code: a line with a code that holds a control character.
        wrong_header: the main file with a column renamed or another delimiter.
    """

    settings: Mapping[str, Any]
    files: Mapping[str, str]
    rows: frozenset[Row]
    main: str
    twice: str = ""
    itself: str = ""
    unknown: str = ""
    bad_code: str = ""
    wrong_header: tuple[str, str] = ("", "")

    @property
    def line(self) -> str:
        """The main file's last line."""
        return self.files[self.main].rstrip("\n").rpartition("\n")[2]

    def source(self, folder: Path, files: Mapping[str, str | bytes] | None = None) -> Source:
        """Write the files, and the source that reads them."""
        folder.mkdir(exist_ok=True)
        for name, content in (files or self.files).items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        path = folder if len(self.files) > 1 else folder / self.main
        table = {"name": "told", "path": str(path), **self.settings}
        return TypeAdapter(AnySource).validate_python(table)

    def read(self, folder: Path, **changed: str | bytes) -> Assertions:
        """Read the files, the main one replaced by `main`."""
        files = dict(self.files) | ({self.main: changed["main"]} if "main" in changed else {})
        return self.source(folder, files).read(SYSTEMS)

    def with_line(self, line: str) -> str:
        """The main file with one more line."""
        return self.files[self.main].rstrip("\n") + "\n" + line + "\n"


def _rows(found: Assertions) -> frozenset[Row]:
    return frozenset((a.code_1, a.code_2, a.relation, a.label) for a in found)


def says_what_the_file_says(form: Form, folder: Path) -> None:
    found = form.read(folder)
    assert _rows(found) == form.rows
    assert len(found) == len(form.rows)


def rows_are_well_formed(form: Form, folder: Path) -> None:
    found = form.read(folder)
    assert found.table.schema == ASSERTIONS
    for row in found:
        assert split_curie(row.code_1) != split_curie(row.code_2)
        assert is_relation(row.relation)
        assert 0.0 < row.weight <= 1.0
        assert row.source.startswith("told")


def reads_the_same_again(form: Form, folder: Path) -> None:
    one, other = form.read(folder), form.read(folder)
    assert one.table.equals(other.table)
    assert one.skipped == other.skipped


def the_weight_of_the_source_counts(form: Form, folder: Path) -> None:
    whole = form.read(folder)
    half = form.source(folder).model_copy(update={"weight": 0.5}).read(SYSTEMS)
    assert [r.weight for r in half] == pytest.approx([0.5 * r.weight for r in whole])


def the_version_that_a_user_gives_stands(form: Form, folder: Path) -> None:
    found = form.source(folder).model_copy(update={"version": "2026"}).read(SYSTEMS)
    assert {row.version for row in found} == {"2026"}


def a_row_twice_is_counted(form: Form, folder: Path) -> None:
    if not form.twice:
        pytest.skip("the format cannot say it")
    found = form.read(folder, main=form.with_line(form.twice))
    assert _rows(found) == form.rows
    assert found.skipped.get(TWICE, 0) == form.read(folder).skipped.get(TWICE, 0) + 1


def a_code_with_itself_is_counted(form: Form, folder: Path) -> None:
    if not form.itself:
        pytest.skip("the format cannot say it")
    found = form.read(folder, main=form.with_line(form.itself))
    assert _rows(found) == form.rows
    assert found.skipped.get(ITSELF, 0) + found.skipped.get(OWN_PARENT, 0) == 1


def an_unknown_system_keeps_its_name(form: Form, folder: Path) -> None:
    if not form.unknown:
        pytest.skip("the format cannot say it")
    found = form.read(folder, main=form.with_line(form.unknown))
    added = _rows(found) - form.rows
    assert len(added) == 1
    assert {c.partition(":")[0] for row in added for c in row[:2]} - SYSTEMS.category.keys()


def a_code_with_a_control_character_is_counted(form: Form, folder: Path) -> None:
    if not form.bad_code:
        pytest.skip("the format cannot say it")
    found = form.read(folder, main=form.with_line(form.bad_code))
    assert _rows(found) == form.rows
    assert found.skipped[NO_CODE] == 1


def a_missing_file_is_named(form: Form, folder: Path) -> None:
    source = form.source(folder)
    (folder / form.main).unlink()
    with pytest.raises(DataError, match="There is no knowledge file"):
        source.read(SYSTEMS)


def an_empty_file_is_refused(form: Form, folder: Path) -> None:
    with pytest.raises(DataError):
        form.read(folder, main="")


def text_that_is_not_utf8_is_refused(form: Form, folder: Path) -> None:
    spoiled = form.files[form.main].rstrip("\n").encode() + b"\n\xe9" + form.line.encode() + b"\n"
    with pytest.raises(DataError, match="not text in UTF-8"):
        form.read(folder, main=spoiled)


def a_wrong_header_is_refused(form: Form, folder: Path) -> None:
    content = form.files[form.main]
    old, new = form.wrong_header
    assert old in content
    with pytest.raises(DataError) as caught:
        form.read(folder, main=content.replace(old, new))
    assert caught.value.why
    assert caught.value.do


def a_binary_file_is_refused(form: Form, folder: Path) -> None:
    with pytest.raises(DataError):
        form.read(folder, main=gzip.compress(b"x" * 1000)[:40] + b"\x00\xff\xfe" * 50)


Check = Callable[[Form, Path], None]
CHECKS: tuple[Check, ...] = (
    says_what_the_file_says,
    rows_are_well_formed,
    reads_the_same_again,
    the_weight_of_the_source_counts,
    the_version_that_a_user_gives_stands,
    a_row_twice_is_counted,
    a_code_with_itself_is_counted,
    an_unknown_system_keeps_its_name,
    a_code_with_a_control_character_is_counted,
    a_missing_file_is_named,
    an_empty_file_is_refused,
    text_that_is_not_utf8_is_refused,
    a_wrong_header_is_refused,
    a_binary_file_is_refused,
)
