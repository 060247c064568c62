"""What a build did, for people (Markdown) and machines (JSON)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

SHOWN: Final = 50
"""Contradictions that the report lists; contradictions.parquet has all."""


@dataclass(frozen=True)
class SourceReport:
    """One source.

    Attributes:
        name: of the source.
        kind: of its format.
        version: that the file states, or the user.
        licence: what a user must have agreed to, or empty.
        rows: assertions that were read.
        relations: relation -> assertions.
        pairs: `similar`, `not similar`, `related:KIND` ... -> pairs of the study's codes.
        skipped: reason -> rows or pairs that were left out.
        unknown: prefix that the study does not have -> codes of it.
        notes: sentences.
    """

    name: str
    kind: str
    version: str
    licence: str
    rows: int
    relations: Mapping[str, int]
    pairs: Mapping[str, int]
    skipped: Mapping[str, int]
    unknown: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A whole build.

    Attributes:
        sources: in the order of the knowledge file.
        pairs: kind and label -> pairs after merging.
        codes: prefix -> codes in at least one pair.
        contradictions: pairs on which sources disagree; they are in no other count.
        shown: the first of them, in words.
    """

    sources: tuple[SourceReport, ...]
    pairs: Mapping[str, int]
    codes: Mapping[str, int]
    contradictions: int
    shown: tuple[str, ...]

    def as_json(self) -> str:
        """One JSON document."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    def as_markdown(self) -> str:
        """The same for people."""
        lines = [
            "# Knowledge",
            "",
            *_table("pairs", self.pairs),
            *_table("codes with a pair, by system", self.codes),
        ]
        for s in self.sources:
            version = f", version {s.version}" if s.version else ""
            lines += [f"## {s.name}", "", f"{s.kind}{version}: {s.rows:,} assertions."]
            lines += [f"Licence: {s.licence}."] if s.licence else []
            lines += ["", *(f"{note}." for note in s.notes), *([""] if s.notes else [])]
            lines += _table("read", s.relations) + _table("pairs", s.pairs) + _table("left out", s.skipped)
            lines += _table("codes of systems that the study does not have", s.unknown)
        lines += [
            "## Contradictions",
            "",
            f"{self.contradictions:,} pairs on which sources disagree are left out.",
        ]
        if self.shown:
            lines += ["", *(f"- {line}" for line in self.shown)]
        if self.contradictions > len(self.shown):
            lines += ["- ... and the others in contradictions.parquet"]
        return "\n".join(lines) + "\n"


def count_pairs(table: pa.Table) -> dict[str, int]:
    """How many pairs of each kind and label."""
    found = table.group_by(["kind", "label"]).aggregate([([], "count_all")]).to_pylist()
    named = {row["kind"] if row["label"] else f"not {row['kind']}": row["count_all"] for row in found}
    return dict(sorted(named.items()))


def count_codes(table: pa.Table) -> dict[str, int]:
    """How many codes of each system are in a pair."""
    codes = pc.unique(pa.chunked_array([*table["code_1"].chunks, *table["code_2"].chunks], pa.string()))
    counted = pc.value_counts(pc.replace_substring_regex(codes, "(?s):.*", "")).to_pylist()
    return {c["values"]: c["counts"] for c in sorted(counted, key=lambda c: str(c["values"]))}


def describe_contradictions(table: pa.Table) -> tuple[str, ...]:
    """The first contradictory pairs, each with who says what."""
    rows: dict[tuple[str, str, str], dict[bool, Any]] = {}
    for row in table.slice(0, 2 * SHOWN).to_pylist():
        rows.setdefault((row["code_1"], row["code_2"], row["kind"]), {})[row["label"]] = row["sources"]
    return tuple(
        f"{one} and {other}: {kind} says {', '.join(by[True])}; not says {', '.join(by[False])}"
        for (one, other, kind), by in rows.items()
    )


def _table(title: str, counts: Mapping[str, int]) -> list[str]:
    if not counts:
        return []
    return [f"| {title} | number |", "|---|---|", *(f"| {name} | {n:,} |" for name, n in counts.items()), ""]
