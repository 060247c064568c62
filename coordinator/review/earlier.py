"""Earlier maps in files of Usagi, SSSOM and SOURCE_TO_CONCEPT_MAP: what each row says, or why it says nothing here."""

from __future__ import annotations

import csv
import io
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Final, Literal

from sssom_pydantic import SemanticMapping
from sssom_pydantic.io import ParseError, read_iterable

from coordinator.exports.cells import guarded, unguarded
from coordinator.exports.usagi import ANCHOR
from coordinator.exports.vocabulary import Concept, read_concepts
from coordinator.knowledge.systems import Systems
from coordinator.review.record import MAX_COMMENT, Relation, Verdict
from coordinator.version import NAME
from protocol.errors import DataError, FederationError, UsageError
from protocol.vocabulary import curie

Form = Literal["usagi", "sssom", "stcm"]
FORMS: Final[tuple[Form, ...]] = ("usagi", "sssom", "stcm")
MAX_BYTES: Final = 512 << 20

_RELATION: Final[Mapping[str, Relation]] = {
    "EQUAL": "exact",
    "EQUIVALENT": "",
    "WIDER": "broad",
    "NARROWER": "narrow",
    "INEXACT": "close",
    "UNREVIEWED": "",
    "": "",
}
_PREDICATES: Final[Mapping[str, Relation]] = {
    "skos:exactMatch": "exact",
    "owl:equivalentClass": "exact",
    "owl:sameAs": "exact",
    "skos:closeMatch": "close",
    "oboInOwl:hasDbXref": "",
    "oboinowl:hasDbXref": "",
    "skos:broadMatch": "broad",
    "skos:narrowMatch": "narrow",
}
_TURNED: Final[Mapping[Relation, Relation]] = {"broad": "narrow", "narrow": "broad"}
_BY_PEOPLE: Final = {"semapv:ManualMappingCuration", "semapv:MappingReview"}
_OWN_EVIDENCE: Final = re.compile(r"cluster \d+; held by .*; evidence .*", re.DOTALL)
_NO_TERM: Final = "sssom:NoTermFound"


@dataclass(frozen=True)
class Row:
    """What one line says.

    Attributes:
        line: in the file, from 1.
        code: CURIE of the study.
        target: CURIE; "" for "no standard code is right".
        verdict: "" for a note.
        relation: of an accepted target to the code.
        comment: the file's own, and who said so.
    """

    line: int
    code: str
    target: str
    verdict: Verdict | Literal[""]
    relation: Relation = ""
    comment: str = ""


@dataclass(frozen=True)
class Left:
    """A line that is not taken.

    Attributes:
        line: in the file, from 1.
        code: as the file has it, its first 80 characters.
        reason: in words.
    """

    line: int
    code: str
    reason: str


@dataclass(frozen=True)
class _Raw:
    """A line before its codes are looked up."""

    line: int
    system: str
    code: str
    target: int | tuple[str, str] | None  # a concept id, a system and a code, or no standard code
    verdict: Verdict | Literal[""]
    relation: Relation = ""
    comment: str = ""


def read_earlier(
    path: Path, form: Form, systems: Systems, *, vocabulary: Path | None = None, system: str = ""
) -> tuple[list[Row], list[Left]]:
    """Read a file of an earlier map; every line with cells is in one of the two lists.

    Args:
        path: the file.
        form: usagi: APPROVED is accept, INVALID_TARGET that somebody set is reject, FLAGGED is unsure. sssom: what people
            curated or reviewed; with predicate modifier Not it is reject, with `sssom:NoTermFound` no standard code. stcm: each
            valid row is accept; one with an invalid reason, or past its last day, is a note.
        systems: of the study.
        vocabulary: folder of the OMOP vocabularies, which turn concept ids into codes.
        system: prefix of the source codes, for files that do not name it.

    Raises:
        UsageError: no such file or system, or no vocabulary for concept ids.
        DataError: the file is not of this form.
    """
    raw, left = {"usagi": _usagi, "sssom": _sssom, "stcm": _stcm}[form](path, system)
    ids = {r.target for r in raw if isinstance(r.target, int)}
    if ids and vocabulary is None:
        raise UsageError(
            f"The file {path} names targets by concept ids",
            why="the study's codes are no concept ids",
            do="Name the folder that Athena delivered with --vocabulary",
        )
    concepts = read_concepts(vocabulary, systems, ids) if ids and vocabulary else {}
    rows: list[Row] = []
    for line in raw:
        try:
            rows.append(_resolved(line, systems, concepts))
        except _UnusableError as reason:
            left.append(Left(line.line, line.code[:80], str(reason)))
    return rows, sorted(left, key=lambda found: found.line)


class _UnusableError(Exception):
    """Why a line says nothing here."""


def _resolved(raw: _Raw, systems: Systems, concepts: Mapping[int, tuple[str, Concept]]) -> Row:
    code = _curie(raw.system, raw.code, systems)
    if raw.target is None:
        target, verdict = "", raw.verdict
    elif isinstance(raw.target, int):
        if raw.target not in concepts:
            raise _UnusableError(
                f"concept {raw.target} is not in the vocabulary, or of no code system of the study"
            )
        (target, concept), verdict = concepts[raw.target], raw.verdict
        if verdict == "accept" and concept.invalid:
            raise _UnusableError(f"concept {raw.target} is invalid ({concept.invalid}) in the vocabulary")
    else:
        target, verdict = _curie(*raw.target, systems), raw.verdict
    comment = raw.comment if len(raw.comment) <= MAX_COMMENT else raw.comment[: MAX_COMMENT - 6] + " [cut]"
    return Row(raw.line, code, target, verdict, raw.relation, comment)


def _curie(system: str, code: str, systems: Systems) -> str:
    prefix = systems.resolve(system)
    if prefix is None:
        raise _UnusableError(f"the study has no code system {system[:40]!r}")
    try:
        return curie(prefix, code)
    except DataError as error:
        raise _UnusableError(str(error)) from None


# --- Tables --------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"The file {path} is larger than {MAX_BYTES >> 20} MiB", do="Import it in parts")
        data = path.read_bytes()
    except OSError:
        raise UsageError(f"There is no file {path}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"The file {path} is not UTF-8 in line {line}", do="Save it as UTF-8 and import it again"
        ) from None


def _table(
    path: Path, text: str, needed: Sequence[str], *, escape: str | None = None
) -> tuple[list[tuple[int, dict[str, str]]], list[Left]]:
    """Rows by column name, whose case does not count, with the line on which each begins; and rows of another width."""
    csv.field_size_limit(MAX_BYTES)
    first = text.partition("\n")[0]
    delimiter = max(",\t;", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, escapechar=escape)
    rows: list[tuple[int, dict[str, str]]] = []
    left: list[Left] = []
    try:
        names = [name.strip().casefold() for name in next(reader, [])]
        lacking = [name for name in needed if name.casefold() not in names]
        if lacking:
            raise DataError(
                f"The file {path} has no column {lacking[0]!r}",
                why=f"its first line has {', '.join(names)[:200]}",
                do="Name the format that it is in with --format",
            )
        before = reader.line_num
        for cells in reader:
            line, before = before + 1, reader.line_num
            if not any(cells):
                continue
            if len(cells) != len(names):
                left.append(Left(line, cells[0][:80], f"it has {len(cells)} cells, the header {len(names)}"))
                continue
            rows.append((line, dict(zip(names, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"The file {path} cannot be read in line {reader.line_num}", why=str(error)) from None
    return rows, left


def _lines(
    rows: Sequence[tuple[int, dict[str, str]]],
    left: list[Left],
    say: Callable[[int, dict[str, str]], _Raw],
    code: str,
) -> Iterator[_Raw]:
    for line, cells in rows:
        try:
            yield say(line, cells)
        except _UnusableError as reason:
            left.append(Left(line, cells.get(code, "")[:80], str(reason)))


def _unguarded(cell: str) -> str:
    """Without the apostrophe that `guarded` puts before a formula; one that belongs to the text stays."""
    plain = unguarded(cell)
    return plain if guarded(plain) == cell else cell


def _number(text: str) -> int:
    try:
        return int(text.strip() or 0)
    except ValueError:
        raise _UnusableError(f"the concept id {text[:40]!r} is no number") from None


def _named_system(path: Path, cells: Mapping[str, str], column: str, system: str) -> str:
    found = cells.get(column, "").strip()
    if not (system or found):
        raise UsageError(
            f"The file {path} does not say which code system its codes are of", do="Name it with --system"
        )
    return system or found


# --- Usagi ---------------------------------------------------------------------------------------------


def _usagi(path: Path, system: str) -> tuple[list[_Raw], list[Left]]:
    """Usagi's own file; `statusSetBy` tells a person from Usagi and from this program.

    Source: Usagi, ReadCodeMappingsFromFile.
    """
    # Usagi writes a line break as a backslash and n, which the csv module would make an n.
    text = re.sub(r"\\(.)", lambda m: "\x1f" if m[1] == "n" else m[0], _text(path))
    needed = ("sourceCode", "mappingStatus", "conceptId")
    rows, left = _table(path, text, needed, escape="\\")

    def say(line: int, cells: dict[str, str]) -> _Raw:
        plain = {k: _unguarded(v.replace("\x1f", "\n")).strip() for k, v in cells.items()}
        status, by = plain["mappingstatus"].upper(), plain.get("statussetby", "")
        if status in {"UNCHECKED", "AUTO_MAPPED", "AUTO_MAPPED_TO_1", ""}:
            raise _UnusableError(f"{status or 'no status'}: nobody has decided")
        if status not in {"APPROVED", "FLAGGED", "INVALID_TARGET"}:
            raise _UnusableError(f"{status[:40]!r} is no status of Usagi")
        if by in {ANCHOR, NAME} or (status == "INVALID_TARGET" and not by):
            raise _UnusableError(f"{status}: set by a program or a site, not by a reviewer")
        concept, equal = _number(plain["conceptid"]), plain.get("equivalence", "").upper()
        if equal not in {*_RELATION, "UNMATCHED"}:
            raise _UnusableError(f"{equal[:40]!r} is no equivalence of Usagi")
        verdict: Verdict = {"APPROVED": "accept", "FLAGGED": "unsure"}.get(status, "reject")  # type: ignore[assignment]
        none = not concept or equal == "UNMATCHED"
        if none and verdict == "reject":
            raise _UnusableError("INVALID_TARGET without a target")
        comment = "" if _OWN_EVIDENCE.fullmatch(plain.get("comment", "")) else plain.get("comment", "")
        said = f"set by {by} in Usagi" if by else ""
        return _Raw(
            line,
            _named_system(path, plain, "add_info:codesystem", system),
            plain["sourcecode"],
            None if none else concept,
            verdict,
            _RELATION[equal] if verdict == "accept" and not none else "",
            "; ".join(part for part in (comment, said) if part),
        )

    return list(_lines(rows, left, say, "sourcecode")), left


# --- SOURCE_TO_CONCEPT_MAP -----------------------------------------------------------------------------


def _stcm(path: Path, system: str) -> tuple[list[_Raw], list[Left]]:
    """OMOP CDM 5.4, SOURCE_TO_CONCEPT_MAP."""
    rows, left = _table(path, _text(path), ("source_code", "target_concept_id"))
    today = date.today().isoformat()

    def say(line: int, cells: dict[str, str]) -> _Raw:
        concept = _number(cells["target_concept_id"])
        if not concept:
            raise _UnusableError("target 0: it is not mapped")
        invalid, end = cells.get("invalid_reason", "").strip().upper(), _day(cells.get("valid_end_date", ""))
        if invalid in {"\\N", "NULL"}:
            invalid = ""
        over = end if end and end < today else ""
        note = f"invalid reason {invalid[:1]}" if invalid else f"valid until {over}" if over else ""
        name = _named_system(path, cells, "source_vocabulary_id", system)
        verdict: Verdict | Literal[""] = "" if note else "accept"
        comment = f"an earlier map had this target, {note}" if note else ""
        return _Raw(line, name, _unguarded(cells["source_code"]), concept, verdict, "", comment)

    return list(_lines(rows, left, say, "source_code")), left


def _day(text: str) -> str:
    """YYYY-MM-DD of a date with or without signs; "" for anything else."""
    digits = re.sub(r"\D", "", text)[:8]
    return f"{digits[:4]}-{digits[4:6]}-{digits[6:]}" if len(digits) == 8 else ""


# --- SSSOM ---------------------------------------------------------------------------------------------


def _sssom(path: Path, _system: str) -> tuple[list[_Raw], list[Left]]:
    """SSSOM 1.0 TSV, by sssom-pydantic."""
    text = _text(path)
    starts = [
        n for n, line in enumerate(text.splitlines(), start=1) if line.strip() and not line.startswith("#")
    ]
    raw: list[_Raw] = []
    left: list[Left] = []
    try:
        with read_iterable(io.StringIO(text)) as found:
            for line, mapping in zip(starts[1:], found.mappings, strict=False):
                if isinstance(mapping, ParseError):
                    left.append(Left(line, "", f"it does not follow SSSOM: {_first_line(mapping.exception)}"))
                    continue
                try:
                    raw.append(_sssom_row(line, mapping))
                except _UnusableError as reason:
                    left.append(Left(line, mapping.subject.curie[:80], str(reason)))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"The file {path} is no SSSOM mapping set",
            why=f"{type(error).__name__}: {_first_line(error)}",
            do="Check it with sssom-pydantic's lint",
        ) from None
    return raw, left


def _sssom_row(line: int, mapping: SemanticMapping) -> _Raw:
    tool = mapping.mapping_tool.name if mapping.mapping_tool else None
    if mapping.justification.curie not in _BY_PEOPLE and not mapping.reviewers:
        raise _UnusableError(f"{mapping.justification.curie}: nobody has decided")
    if tool == NAME and not mapping.reviewers and mapping.justification.curie != "semapv:MappingReview":
        raise _UnusableError("an anchor of a site, not a reviewer's word")
    who = ", ".join(r.curie for r in (mapping.reviewers or mapping.authors or ()))
    sure = f"confidence {mapping.confidence:g}" if mapping.confidence is not None else ""
    comment = "; ".join(p for p in (mapping.comment or "", f"said by {who}" if who else "", sure) if p)
    subject, target = mapping.subject, mapping.object
    code = urllib.parse.unquote(subject.identifier)
    if target.curie == _NO_TERM:
        if mapping.predicate_modifier:
            raise _UnusableError("a denial that no term was found says nothing")
        return _Raw(line, subject.prefix, code, None, "accept", "", comment)
    relation = _PREDICATES.get(mapping.predicate.curie)
    if relation is None:
        raise _UnusableError(f"the predicate {mapping.predicate.curie} maps no code to a target")
    if mapping.predicate_modifier and relation in {"broad", "narrow"}:
        raise _UnusableError(f"not {mapping.predicate.curie}: the target may be right in another way")
    verdict: Verdict = "reject" if mapping.predicate_modifier else "accept"
    other = (target.prefix, urllib.parse.unquote(target.identifier))
    return _Raw(line, subject.prefix, code, other, verdict, "" if verdict == "reject" else relation, comment)


def turned(row: Row) -> Row:
    """The same said from the target's side, for mapping sets whose subjects are the standard codes."""
    return replace(row, code=row.target, target=row.code, relation=_TURNED.get(row.relation, row.relation))


def _first_line(error: object) -> str:
    text = str(error.args[0] if isinstance(error, FederationError) else error)
    return text.splitlines()[0][:200] if text else type(error).__name__
