"""OMOP CDM 5.5 CONCEPT_RELATIONSHIP_METADATA."""

from __future__ import annotations

from typing import Final

from coordinator.exports.cells import csv_bytes
from coordinator.exports.predicates import Predicate
from coordinator.exports.table import Entry, PublishedMap
from coordinator.exports.vocabulary import Vocabulary

COLUMNS = (
    "concept_id_1", "concept_id_2", "relationship_id", "relationship_predicate_id", "relationship_group", "mapping_source",
    "confidence", "mapping_tool", "mapper", "reviewer",
)  # fmt: skip
MAPS_TO = "Maps to"
_PREDICATES: Final = {Predicate.EXACT: "eq", Predicate.BROAD: "up", Predicate.NARROW: "down"}
_BY_HAND, _BY_TOOL = "MM_U", "AM-tool_U"
_SOURCE = 50


def write_crm(published: PublishedMap, vocabulary: Vocabulary) -> bytes:
    """One row a pair of concepts, by their ids.

    The table joins concepts, so a code that is none has no row. Of codes that are one concept with one target, that with
    the greater confidence speaks. `relationship_predicate_id` is `eq`, `up` or `down`, else empty; `mapping_tool` is
    `MM_U` (a site gave it) or `AM-tool_U` (found), both unreviewed.

    Source: OHDSI, DDL and values of CONCEPT_RELATIONSHIP_METADATA.
    """
    best: dict[tuple[int, int], Entry] = {}
    for e in published.mappings:
        one, other = vocabulary.get(e.code), vocabulary.get(e.standard_code)
        if one is None or other is None:
            continue
        pair = (one.concept_id, other.concept_id)
        if pair not in best or (e.anchored, e.probability) > (best[pair].anchored, best[pair].probability):
            best[pair] = e
    version = f" v{published.manifest.version}"
    mapping_source = published.study.id[: _SOURCE - len(version)] + version
    return csv_bytes(COLUMNS, ([*pair, *_about(e, mapping_source)] for pair, e in sorted(best.items())))


def _about(e: Entry, mapping_source: str) -> list[str | float | None]:
    known = _PREDICATES.get(e.predicate) if e.predicate else None
    tool = _BY_HAND if e.anchored else _BY_TOOL
    return [MAPS_TO, known, None, mapping_source, e.confidence, tool, None, None]
