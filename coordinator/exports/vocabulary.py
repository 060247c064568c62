"""Concepts of the OMOP vocabularies for the codes of one map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from coordinator.knowledge.systems import Systems, canonical, curies
from coordinator.knowledge.tables import batches
from coordinator.naming import one_line
from protocol.errors import DataError, UsageError

_COLUMNS: Final = ("concept_id", "concept_name", "vocabulary_id", "concept_code")
_MORE: Final = ("domain_id", "standard_concept", "valid_end_date", "invalid_reason")


@dataclass(frozen=True)
class Concept:
    """One row of CONCEPT.

    Attributes:
        standard: it may be a target: `standard_concept` is S.
        invalid: D (deleted), U (updated) or "".
        valid_end: its last day, YYYY-MM-DD; "" where the table has none.
    """

    concept_id: int
    name: str
    domain: str
    vocabulary: str
    standard: bool
    invalid: str = ""
    valid_end: str = ""


@dataclass(frozen=True)
class Vocabulary:
    """CURIE in its canonical spelling -> concept."""

    concepts: dict[str, Concept]

    def get(self, curie: str) -> Concept | None:
        """The concept of a code, in either spelling of ICD; None where the vocabulary has none."""
        return self.concepts.get(canonical(curie)) if curie else None

    def name(self, curie: str) -> str:
        """The concept's name, or ""."""
        found = self.get(curie)
        return found.name if found else ""


def read_vocabulary(folder: Path, systems: Systems, codes: Collection[str]) -> Vocabulary:
    """The concepts of these codes from a folder as Athena delivers it.

    Invalid concepts count too, their reason is kept. Of two concepts of one code the valid one is taken, then the one with the
    smaller id.

    Raises:
        UsageError: the folder has no CONCEPT.csv.
        DataError: that is no such table.
    """
    path = _concept_file(folder)
    wanted = pa.array(sorted({canonical(code) for code in codes}), pa.string())
    found: dict[str, Concept] = {}
    for batch in batches(path, _COLUMNS, Counter(), delimiter="\t", quote="", optional=_MORE):
        piece, code = _of_systems(batch, systems)
        kept = pc.is_in(code, wanted)
        for curie, row in zip(code.filter(kept).to_pylist(), piece.filter(kept).to_pylist(), strict=True):
            concept = _concept(row, path)
            other = found.get(curie)
            if other is None or (concept.invalid, concept.concept_id) < (other.invalid, other.concept_id):
                found[curie] = concept
    return Vocabulary(found)


def read_concepts(folder: Path, systems: Systems, ids: Collection[int]) -> dict[int, tuple[str, Concept]]:
    """Concept id -> CURIE in its canonical spelling, and concept; ids of other systems than the study's are left out.

    Raises:
        UsageError, DataError: as `read_vocabulary`.
    """
    path = _concept_file(folder)
    wanted = pa.array(sorted(str(number) for number in set(ids)), pa.string())
    found: dict[int, tuple[str, Concept]] = {}
    for batch in batches(path, _COLUMNS, Counter(), delimiter="\t", quote="", optional=_MORE):
        named = batch.filter(pc.is_in(pc.utf8_trim_whitespace(batch["concept_id"]), wanted))
        if not named.num_rows:
            continue
        piece, code = _of_systems(named, systems)
        for curie, row in zip(code.to_pylist(), piece.to_pylist(), strict=True):
            if curie is not None:
                concept = _concept(row, path)
                found[concept.concept_id] = curie, concept
    return found


def _concept_file(folder: Path) -> Path:
    path = folder / "CONCEPT.csv"
    if not path.is_file():
        raise UsageError(
            f"There is no CONCEPT.csv in {folder}",
            do="Name a folder of vocabularies as athena.ohdsi.org delivers them",
        )
    return path


def _of_systems(batch: pa.RecordBatch, systems: Systems) -> tuple[pa.RecordBatch, pa.Array]:
    """The rows of the study's systems, and their CURIEs."""
    names = pc.unique(batch["vocabulary_id"]).to_pylist()
    known = pa.array([n for n in names if systems.resolve(n) is not None], pa.string())
    piece = batch.filter(pc.is_in(batch["vocabulary_id"], known))
    return piece, curies(piece["vocabulary_id"], piece["concept_code"], systems)


def _concept(row: dict[str, str], path: Path) -> Concept:
    try:
        number = int(row["concept_id"])
    except ValueError:
        raise DataError(
            f"The concept id {row['concept_id'][:40]!r} in {path} is no number",
            do="Download the vocabularies again from athena.ohdsi.org",
        ) from None
    invalid, end = row["invalid_reason"].strip(), row["valid_end_date"].strip()
    return Concept(
        concept_id=number,
        name=one_line(row["concept_name"]),
        domain=one_line(row["domain_id"]),
        vocabulary=one_line(row["vocabulary_id"]),
        standard=row["standard_concept"].strip() == "S",
        invalid="" if invalid == r"\N" else invalid[:1],
        valid_end=f"{end[:4]}-{end[4:6]}-{end[6:]}" if len(end) == 8 and end.isdigit() else end[:10],
    )
