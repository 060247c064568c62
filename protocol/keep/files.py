"""`ontology.csv`: the is-a links of public codes, the same file at every party."""

from __future__ import annotations

import csv
from pathlib import Path

from protocol.canonical import file_digest
from protocol.errors import DataError, StudyError
from protocol.vocabulary import curie, split_curie

FILE = "ontology.csv"
_COLUMNS = ("code", "parent")


def read_ontology(path: Path, *, digest: str = "") -> list[tuple[str, str]]:
    """The links of a CSV file with the columns code and parent, both CURIEs; a code without a parent is a root.

    A code with several parents has a line for each of them. Other columns are ignored.

    Args:
        path: the file.
        digest: SHA-256 that the study names; not compared if empty.

    Returns:
        (code, parent); the parent is empty where the cell is.

    Raises:
        DataError: there is no such file, it is not CSV, lacks a column, or a line names no code; the line is named.
        StudyError: it is another file than the study's.
    """
    try:
        if digest and file_digest(path) != digest:
            raise StudyError(
                f"The ontology {path} is not the one that the study names",
                why=f"its SHA-256 is not {digest}",
                do=f"Get {FILE} again from the coordinator",
            )
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return _links(csv.DictReader(stream), path)
    except FileNotFoundError:
        raise DataError(
            f"There is no ontology file {path}",
            do=f"Get {FILE} from the coordinator, and put it beside the study file; or set policy.ontology = false at the site",
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"The ontology file {path} cannot be read", why=str(error), do="Write it as UTF-8 CSV"
        ) from None


def _links(reader: csv.DictReader[str], path: Path) -> list[tuple[str, str]]:
    missing = [c for c in _COLUMNS if c not in (reader.fieldnames or ())]
    if missing:
        raise DataError(
            f"The ontology file {path} has no column {missing[0]}",
            why=f"its columns are {', '.join(map(repr, (reader.fieldnames or ())[:12])) or 'none'}",
            do="Give it the columns code and parent",
        )
    return [
        (_cell(path, reader.line_num, row["code"]), _cell(path, reader.line_num, row["parent"], empty=True))
        for row in reader
    ]


def _cell(path: Path, line: int, value: str | None, *, empty: bool = False) -> str:
    text = (value or "").strip()
    if not text and empty:
        return ""
    try:
        return curie(*split_curie(text))
    except DataError as error:
        raise DataError(
            f"Line {line} of the ontology file {path} names no code",
            why=error.what,
            do="Write codes and parents as PREFIX:code, for example ICD10CM:E11.9",
        ) from None
