"""Text of others inside Markdown: shown as it is, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from coordinator.report.text import safe_text

_SPECIAL: Final = re.compile(r"([\\`*_\[\]|~$@#]|:(?=//))")
_NUMBER: Final = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")
_HTML: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_WWW: Final = re.compile(r"(?i)\b(www)\.")


def escaped(text: object, limit: int = 500) -> str:
    """One line of text without markup, HTML or links, for CommonMark and GitHub's Markdown.

    Law: rendered, it has no element, and its text is that of `safe_text`.
    Source: CommonMark 0.31, section 2.4; GFM autolinks.
    """
    marked = _NUMBER.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", safe_text(text, limit)))
    marked = "".join(_HTML.get(c, c) for c in marked)
    return _WWW.sub(r"\1\\.", marked)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table; texts are escaped, numbers grouped."""
    lines = [_row(header), _row(["---"] * len(header))]
    return [*lines, *(_row([_cell(value) for value in row]) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escaped(value)
