"""Words and numbers as the report shows them."""

from __future__ import annotations

import math
import unicodedata
from typing import Final

_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_MARKS: Final = frozenset({"Mn", "Me"})
_MOST_MARKS: Final = 4


def safe_text(text: object, limit: int = 120) -> str:
    """Text of another party, fit to be shown: one line, no invisible characters, at most `limit` long.

    Controls, direction overrides, zero-width and unassigned characters go; a pile of combining marks is
    cut; a first character that a spreadsheet would take for a formula is preceded by an apostrophe, since
    readers copy tables. Markup is not escaped here: that is the template's part.
    """
    raw = str(text)
    kept: list[str] = []
    marks = 0
    for character in raw[: 8 * limit]:
        category = unicodedata.category(character)
        marks = marks + 1 if category in _MARKS else 0
        if character.isspace():
            kept.append(" ")
        elif category not in _INVISIBLE and marks <= _MOST_MARKS:
            kept.append(character)
    plain = " ".join("".join(kept).split())
    if plain[:1] in {"=", "+", "-", "@"}:
        plain = "'" + plain
    if len(plain) > limit or len(raw) > 8 * limit:
        plain = plain[: limit - 1].rstrip() + "…"
    return plain


def share(value: float | None) -> str:
    """A share (0..1) as a percentage; what is not quite nothing or all is not rounded to it."""
    if value is None or not math.isfinite(value):
        return "not stated"
    if 0 < value < 0.005:
        return "<1 %"
    if 0.995 <= value < 1:
        return ">99 %"
    return f"{100 * value:.0f} %"
