"""OHDSI Usagi's own file, as its Save writes it and its Open reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from coordinator.exports.cells import guarded
from coordinator.exports.table import Entry, PublishedMap, evidence_line
from coordinator.exports.vocabulary import Concept, Vocabulary
from coordinator.reviewed import Reviewed
from coordinator.version import NAME

COLUMNS = (
    "sourceCode", "sourceName", "sourceFrequency", "sourceAutoAssignedConceptIds", "ADD_INFO:codeSystem",
    "ADD_INFO:standardCode", "ADD_INFO:predicate", "ADD_INFO:anchored", "ADD_INFO:alternatives", "matchScore",
    "mappingStatus", "equivalence", "statusSetBy", "statusSetOn", "conceptId", "conceptName", "domainId", "mappingType",
    "comment", "createdBy", "createdOn", "assignedReviewer",
)  # fmt: skip
ANCHOR = "site anchor"
EQUIVALENCE: Final = {
    "": "EQUIVALENT",
    "exact": "EQUAL",
    "broad": "WIDER",
    "narrow": "NARROWER",
    "close": "INEXACT",
}
"""Relation of an accepted target -> Usagi's word."""
_NO_FREQUENCY = -1
_UNMAPPED = Concept(0, "Unmapped", "", "", standard=False)


def write_usagi(published: PublishedMap, vocabulary: Vocabulary) -> bytes:
    """One row a code; what a site gave or a reviewer accepted is APPROVED, what was found is UNCHECKED and UNREVIEWED.

    A standard code that is no concept, no valid one or no standard one of OMOP is INVALID_TARGET, and so is one that reviewers
    rejected: `statusSetBy` tells the two apart. Codes of which they are unsure, or disagree on, are FLAGGED. A code with an
    accepted target has that target's concept; `matchScore` is the probability of the model's own, `ADD_INFO:standardCode`.

    Source: Usagi, WriteCodeMappingsToFile and ReadCodeMappingsFromFile.
    """
    lines = [_line(COLUMNS)]
    for cells in _rows(published, vocabulary):
        lines.append(_line(cells))  # noqa: PERF401 - one comprehension would hide the dialect
    return ("\n".join(lines) + "\n").encode()


def _rows(published: PublishedMap, vocabulary: Vocabulary) -> Iterator[list[str]]:
    created = int(published.manifest.created.timestamp() * 1000)
    before = ("", "")
    for e in published.mappings:
        name = e.name or vocabulary.name(e.code) or e.code
        # Usagi takes neighbouring rows of one code and name for two targets of one code.
        if (e.local, name) == before:
            name = f"{name} ({e.system})"
        before = (e.local, name)
        said = _said(published.reviews.get(e.code, ()), e.standard_code)
        concept = vocabulary.get(said.target if said and said.verdict == "accept" else e.standard_code)
        target = concept or _UNMAPPED
        status, equivalence = _status(e, concept) if said is None else _judged(said, concept)
        by = ", ".join(said.reviewed_by) if said else ANCHOR if status == "APPROVED" else ""
        when = int(said.decided.timestamp() * 1000) if said else created
        yield [
            guarded(e.local),
            guarded(name),
            str(_NO_FREQUENCY),
            "",
            guarded(e.system),
            guarded(e.standard_code),
            e.predicate or "",
            "true" if e.anchored else "false",
            json.dumps(list(e.alternatives), ensure_ascii=False),
            str(e.confidence),
            status,
            equivalence,
            guarded(by),
            str(when if by else 0),
            str(target.concept_id),
            guarded(target.name),
            guarded(target.domain),
            "MAPS_TO",
            guarded(evidence_line(e)),
            ANCHOR if e.anchored else NAME,
            str(created),
            "",
        ]


def _said(reviews: Sequence[Reviewed], target: str) -> Reviewed | None:
    """What decides the status: an accepted target, or else what was said of the model's own."""
    accepted = [r for r in reviews if r.settled and r.verdict == "accept"]
    doubted = [r for r in reviews if not r.settled]
    return next(iter([*accepted, *(r for r in reviews if r.settled and r.target == target), *doubted]), None)


def _judged(said: Reviewed, concept: Concept | None) -> tuple[str, str]:
    if not said.settled:
        return "FLAGGED", "UNREVIEWED"
    if said.verdict == "reject":
        return "INVALID_TARGET", "UNREVIEWED"
    if not said.target:
        return "APPROVED", "UNMATCHED"
    if concept is None or concept.invalid or not concept.standard:
        return "INVALID_TARGET", "UNREVIEWED"
    return "APPROVED", EQUIVALENCE[said.relation]


def _status(e: Entry, concept: Concept | None) -> tuple[str, str]:
    """`mappingStatus` and `equivalence`."""
    if not e.standard_code:
        return "UNCHECKED", "UNMATCHED"
    if concept is None or concept.invalid or not concept.standard:
        return "INVALID_TARGET", "UNREVIEWED"
    return ("APPROVED", "EQUIVALENT") if e.anchored else ("UNCHECKED", "UNREVIEWED")


def _line(cells: list[str] | tuple[str, ...]) -> str:
    """Usagi's dialect: a backslash before quotes and backslashes, and no line break inside a cell."""
    return ",".join(_cell(c) for c in cells)


def _cell(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "").replace("\n", "\\n")
    return f'"{escaped}"' if '"' in text or "," in text else escaped
