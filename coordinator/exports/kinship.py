"""Is a mapping's target broader or narrower than the code? From the hierarchy of the OMOP vocabularies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from coordinator.exports.table import PublishedMap
from coordinator.exports.vocabulary import Vocabulary
from coordinator.knowledge.tables import batches
from coordinator.mapping import Kinship

Pair = tuple[int, int]


def with_kinship(published: PublishedMap, vocabulary: Vocabulary, folder: Path) -> PublishedMap:
    """The map with `kinship` as the hierarchy has it, where both codes are concepts; elsewhere it stays as released.

    A code's own standard concepts are itself, if it is one, and those that it `Maps to`. A target that is none of them is
    the code's ancestor (descendant) if it is that of one of them. Without CONCEPT_ANCESTOR.csv nothing is known.

    Source: OMOP CDM 5.4, CONCEPT_ANCESTOR, which is transitive.
    """
    if not (folder / "CONCEPT_ANCESTOR.csv").is_file():
        return published
    pairs: dict[str, Pair] = {}
    own: dict[int, set[int]] = defaultdict(set)
    for e in published.mappings:
        source, target = vocabulary.get(e.code), vocabulary.get(e.standard_code)
        if source is not None and target is not None:
            pairs[e.code] = source.concept_id, target.concept_id
            if source.standard:
                own[source.concept_id].add(source.concept_id)
    for one, other in _maps_to(folder, {source for source, _ in pairs.values()}):
        own[one].add(other)
    asked = {p for p in pairs.values() if p[1] not in own[p[0]]}
    standard = {s for source, _ in asked for s in own[source]}
    above = _ancestors(folder, standard, {target for _, target in asked})

    def kinship(pair: Pair) -> Kinship | None:
        source, target = pair
        if any((target, s) in above for s in own[source]):
            return "ancestor"
        return "descendant" if any((s, target) in above for s in own[source]) else None

    found = {pair: kinship(pair) for pair in asked}
    entries = (
        replace(e, kinship=found.get(pairs[e.code])) if e.code in pairs else e for e in published.entries
    )
    return replace(published, entries=tuple(entries))


def _maps_to(folder: Path, sources: set[int]) -> Iterator[Pair]:
    path, wanted = folder / "CONCEPT_RELATIONSHIP.csv", _texts(sources)
    if not path.is_file():
        return
    columns = ["concept_id_1", "concept_id_2", "relationship_id"]
    for batch in _tabs(path, columns, optional=["invalid_reason"]):
        kept = pc.and_(pc.is_in(batch["concept_id_1"], wanted), pc.equal(batch["relationship_id"], "Maps to"))
        kept = pc.and_(kept, pc.is_in(batch["invalid_reason"], pa.array(["", r"\N"])))
        yield from _pairs(batch.filter(kept), "concept_id_1", "concept_id_2")


def _ancestors(folder: Path, one: set[int], other: set[int]) -> set[Pair]:
    """(ancestor, descendant) of all pairs between the two sets."""
    first, second = _texts(one), _texts(other)
    found: set[Pair] = set()
    for batch in _tabs(
        folder / "CONCEPT_ANCESTOR.csv", ["ancestor_concept_id", "descendant_concept_id"], optional=()
    ):
        up, down = batch["ancestor_concept_id"], batch["descendant_concept_id"]
        kept = pc.or_(
            pc.and_(pc.is_in(up, first), pc.is_in(down, second)),
            pc.and_(pc.is_in(up, second), pc.is_in(down, first)),
        )
        found.update(_pairs(batch.filter(kept), "ancestor_concept_id", "descendant_concept_id"))
    return found


def _tabs(path: Path, columns: list[str], *, optional: Iterable[str]) -> Iterator[pa.RecordBatch]:
    return batches(path, columns, Counter(), delimiter="\t", quote="", optional=tuple(optional))


def _pairs(batch: pa.RecordBatch, one: str, other: str) -> Iterator[Pair]:
    # Wanted ids are numbers; what stands beside them in a damaged row may not be.
    for a, b in zip(batch[one].to_pylist(), batch[other].to_pylist(), strict=True):
        if a.isdecimal() and b.isdecimal():
            yield int(a), int(b)


def _texts(numbers: set[int]) -> pa.Array:
    return pa.array([str(n) for n in sorted(numbers)], pa.string())
