"""What the numbers of a map are called on the pages."""

from __future__ import annotations

from typing import Final

from coordinator.exports.table import Entry
from coordinator.web.models import Judgement

CLUES: Final = {
    "latent": "What it occurs with",
    "support": "How many patients",
    "profile": "Place among its site's codes",
    "text": "Name",
    "known": "Known pairs",
}
"""A clue's short name -> how it is called; a clue that is not listed has its own name."""

VERDICTS: Final = {"accept": "accepted", "reject": "rejected", "unsure": "unsure"}

PREDICATES: Final = {
    "skos:exactMatch": "the same meaning",
    "skos:closeMatch": "nearly the same meaning",
    "skos:broadMatch": "the standard code is broader",
    "skos:narrowMatch": "the standard code is narrower",
    "skos:relatedMatch": "related",
}

STATES: Final = {
    "open": "waiting for a decision",
    "accepted": "accepted",
    "rejected": "rejected",
    "unsure": "unsure",
    "conflict": "reviewers disagree",
}


def most_probable(entry: Entry) -> str:
    """How likely a mapping is right, in words."""
    if not entry.standard_code:
        return "No standard code was found"
    if entry.given:
        return "Given by a site" if entry.anchored else "A standard code itself"
    for at_least, said in (
        (0.9, "Very likely right"),
        (0.7, "Probably right"),
        (0.5, "More likely right than wrong"),
        (0.2, "More likely wrong than right"),
    ):
        if entry.probability >= at_least:
            return said
    return "Very likely wrong"


def level(entry: Entry) -> str:
    """A class for colour and sign: given, high, middle, low or none."""
    if not entry.standard_code:
        return "none"
    if entry.given:
        return "given"
    return "high" if entry.probability >= 0.9 else "middle" if entry.probability >= 0.5 else "low"


def clue(name: str) -> str:
    """What a clue is called."""
    return CLUES.get(name, name.replace("_", " ").capitalize())


FOUND_IN: Final = {
    "code": "Found by code",
    "name": "Found by name",
    "synonym": "Found by a synonym’s name",
}
"""Where a text was found -> a heading."""


def did(record: Judgement) -> str:
    """What a record says that somebody did."""
    if record.kind in {"decide", "import", "adjudicate"}:
        said = {"accept": "accepted", "reject": "rejected", "unsure": "is unsure of"}.get(
            record.verdict, "noted"
        )
        return {"adjudicate": f"adjudicated: {said}", "import": f"{said} (imported)"}.get(record.kind, said)
    return {"comment": "commented", "assign": "assigned it", "undo": "took back"}.get(
        record.kind, record.kind
    )
