"""OMOP CDM SOURCE_TO_CONCEPT_MAP."""

from __future__ import annotations

from coordinator.exports.cells import csv_bytes
from coordinator.exports.table import Entry, PublishedMap
from coordinator.exports.vocabulary import Vocabulary

COLUMNS = (
    "source_code", "source_concept_id", "source_vocabulary_id", "source_code_description", "target_concept_id",
    "target_vocabulary_id", "valid_start_date", "valid_end_date", "invalid_reason",
)  # fmt: skip
START, END = "1970-01-01", "2099-12-31"
NO_VOCABULARY = "None"
_DESCRIPTION = 255


def write_stcm(published: PublishedMap, vocabulary: Vocabulary) -> bytes:
    """One row a code; a code without a standard code, or whose standard code is no concept, has target 0.

    A target that the vocabulary marks invalid passes its reason and its last day on to the mapping.

    Source: OMOP CDM 5.4, SOURCE_TO_CONCEPT_MAP; vocabulary `None` of concept 0 as in Athena's CONCEPT.
    """
    return csv_bytes(COLUMNS, (_row(e, published.study.standard, vocabulary) for e in published.mappings))


def _row(e: Entry, standard: str, vocabulary: Vocabulary) -> list[str | int]:
    source, target = vocabulary.get(e.code), vocabulary.get(e.standard_code)
    return [
        e.local,
        source.concept_id if source else 0,
        e.system,
        (e.name or vocabulary.name(e.code))[:_DESCRIPTION],
        target.concept_id if target else 0,
        target.vocabulary if target else standard if e.standard_code else NO_VOCABULARY,
        START,
        target.valid_end if target and target.invalid and target.valid_end else END,
        target.invalid if target else "",
    ]
