"""Cells of text tables: no spreadsheet takes one for a formula, and every one can be had back as it was."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

_FORMULA: Final = frozenset("=+-@＝＋－＠")
_ALSO: Final = frozenset("\t\r\n'")

Cell = str | int | float | bool | None


def guarded(text: str) -> str:
    """The text, behind an apostrophe if a spreadsheet might take it for a formula or if it begins with one itself.

    Law: `unguarded(guarded(text)) == text`.
    Source: OWASP, CSV injection; full-width signs and leading blanks are guarded too.
    """
    return "'" + text if text[:1] in _ALSO or text.lstrip()[:1] in _FORMULA else text


def unguarded(cell: str) -> str:
    """The text of a guarded cell: less its first apostrophe, if it begins with one."""
    return cell.removeprefix("'")


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> bytes:
    """CSV of RFC 4180 in UTF-8, lines ended by LF; texts guarded, None empty, booleans `true` and `false`."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_plain(cell) for cell in row] for row in rows)
    return sink.getvalue().encode()


def _plain(cell: Cell) -> str | int | float:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return guarded(cell) if isinstance(cell, str) else cell
