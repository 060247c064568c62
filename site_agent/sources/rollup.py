"""Roll-up: codes counted as coarser ones, by a mapping file or by a hierarchy that the source knows."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from protocol.errors import DataError
from protocol.vocabulary import curie, split_curie
from site_agent.sections import Data
from site_agent.sources import EventSource


def read_rollup(path: Path) -> dict[str, tuple[str, ...]]:
    """CURIE -> the CURIEs to count instead, from a CSV file with the columns code and target.

    A code with several targets has a line for each of them. Other columns are ignored.

    Raises:
        DataError: no file, no such column, or a line without a code or a target; the line is named.
    """
    targets: dict[str, list[str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = [c for c in ("code", "target") if c not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"The roll-up file {path} has no column {' and no column '.join(map(repr, missing))}",
                    why=f"its columns are {', '.join(map(repr, (reader.fieldnames or ())[:12])) or 'none'}",
                    do="Give it the columns code and target",
                )
            for row in reader:
                code = _cell(path, reader.line_num, "code", row["code"])
                target = _cell(path, reader.line_num, "target", row["target"])
                targets.setdefault(code, []).append(target)
    except FileNotFoundError:
        raise DataError(
            f"There is no roll-up file {path}", do="Correct data.rollup.file in site.toml"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"The roll-up file {path} cannot be read", why=str(error), do="Write it as UTF-8 CSV"
        ) from None
    if not targets:
        raise DataError(f"The roll-up file {path} has no lines", do="Give it lines of code,target")
    return {code: tuple(dict.fromkeys(found)) for code, found in targets.items()}


def rollup_of(data: Data, source: EventSource, file: Path | None) -> dict[str, tuple[str, ...]] | None:
    """The roll-up that a site's configuration asks for; None if it asks for none.

    Args:
        data: its `rollup` says which.
        source: asked for its hierarchy if `data.rollup.concept_ancestor` is set.
        file: `data.rollup.file` as a path that can be opened. Its lines go before the hierarchy's.

    Raises:
        DataError: the file cannot be used, or the source knows no hierarchy.
    """
    found: dict[str, tuple[str, ...]] = {}
    if data.rollup.concept_ancestor:
        ancestors: Mapping[str, tuple[str, ...]] | None = source.ancestors()
        if ancestors is None:
            raise DataError(
                f"{source.name} knows no hierarchy of codes",
                do="Unset data.rollup.concept_ancestor in site.toml, or name a mapping with data.rollup.file",
            )
        found.update(ancestors)
    if data.rollup.file and file is not None:
        found.update(read_rollup(file))
    return found if data.rollup.concept_ancestor or data.rollup.file else None


def _cell(path: Path, line: int, column: str, value: str | None) -> str:
    text = (value or "").strip()
    if not text:
        raise DataError(
            f"Line {line} of the roll-up file {path} has no {column}",
            do="Remove the line; what becomes of codes without a target is data.rollup.unmapped in site.toml",
        )
    try:
        return curie(*split_curie(text))
    except DataError as error:
        raise DataError(
            f"Line {line} of the roll-up file {path} is wrong in column {column!r}",
            why=error.what,
            do="Write both as PREFIX:code, for example ICD10CM:E11.9",
        ) from None
