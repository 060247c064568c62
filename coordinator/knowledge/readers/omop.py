"""The OMOP vocabularies as Athena delivers them: a folder of tab-separated tables, millions of rows each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from coordinator.knowledge.assertions import IS_A, RAW, RELATED, SAME_AS, raw_table
from coordinator.knowledge.readers.base import Source
from coordinator.knowledge.readers.functional import OMOP_KINDS
from coordinator.knowledge.systems import Systems
from coordinator.knowledge.tables import batches
from protocol.errors import DataError

_TABS: Final = {"delimiter": "\t", "quote": ""}
NOT_A_NUMBER: Final = "a concept id that is no number"
INVALID: Final = "marked invalid"


class Omop(Source):
    """CONCEPT, CONCEPT_RELATIONSHIP and, if it is there, CONCEPT_ANCESTOR.

    `Maps to` is same-as, functional relationships are related, and the hierarchy is CONCEPT_ANCESTOR's pairs one level
    apart; without that table, `Is a`. Only concepts of the study's code systems, and of `through`, are kept: memory
    grows with these.

    Source: OHDSI, OMOP CDM 5.4, vocabulary tables.
    """

    kind: Literal["omop"]
    through: tuple[str, ...] = Field(
        (), description="More vocabularies whose concepts are ancestors, as ATC."
    )
    related: dict[str, str] = Field(
        default_factory=dict, description="More relationship_ids -> kinds of relatedness."
    )
    shared_depth: int = Field(
        2, ge=0, description="Kinship counts through ancestors at least this many steps below a root."
    )

    def files(self) -> tuple[Path, ...]:
        """See `Source.files`."""
        ancestor = self.path / "CONCEPT_ANCESTOR.csv"
        tables = (self.path / "CONCEPT.csv", self.path / "CONCEPT_RELATIONSHIP.csv")
        return (*tables, ancestor) if ancestor.is_file() else tables

    def take(self, systems: Systems, skipped: Counter[str]) -> tuple[pa.Table, str]:
        """See `Source.take`."""
        concept, relationship, *ancestor = self.files()
        known = self._concepts(concept, systems, skipped)
        kinds = {"Maps to": SAME_AS} | {k: RELATED + v for k, v in (OMOP_KINDS | self.related).items()}
        if not ancestor:
            kinds["Is a"] = IS_A
        parts = [RAW.empty_table(), *self._relationships(relationship, known, kinds, skipped)]
        for path in ancestor:
            parts += self._ancestors(path, known, skipped)
        return pa.concat_tables(parts), ""

    def _concepts(self, path: Path, systems: Systems, skipped: Counter[str]) -> _Concepts:
        ids, names, codes = [], [], []
        wanted = set(self.through)
        columns = ["concept_id", "vocabulary_id", "concept_code"]
        for batch in batches(path, columns, skipped, **_TABS, optional=["invalid_reason"]):
            vocabularies = pc.unique(batch["vocabulary_id"]).to_pylist()
            kept = [v for v in vocabularies if v in wanted or systems.resolve(v) is not None]
            piece = batch.filter(pc.is_in(batch["vocabulary_id"], pa.array(kept, pa.string())))
            number, good = _whole(piece["concept_id"])
            skipped[NOT_A_NUMBER] += int(np.sum(~good))
            ids.append(number[good])
            piece = piece.filter(pa.array(good))
            names.append(piece["vocabulary_id"])
            codes.append(piece["concept_code"])
        number = np.concatenate(ids) if ids else np.empty(0, np.int64)
        if not len(number):
            raise DataError(
                f"The vocabulary in {path.parent} holds no code of the study's code systems",
                why=f"the study has {', '.join(sorted(systems.category))}",
                do="Download these vocabularies from Athena, or name theirs in the source's systems",
            )
        order = np.argsort(number, kind="stable")
        at = pa.array(order)
        return _Concepts(number[order], pa.concat_arrays(names).take(at), pa.concat_arrays(codes).take(at))

    def _relationships(
        self, path: Path, known: _Concepts, kinds: dict[str, str], skipped: Counter[str]
    ) -> list[pa.Table]:
        found = []
        kind_names = pa.array(list(kinds), pa.string())
        relations = pa.array(list(kinds.values()), pa.string())
        columns = ["concept_id_1", "concept_id_2", "relationship_id"]
        for batch in batches(path, columns, skipped, **_TABS, optional=["invalid_reason"]):
            piece = batch.filter(pc.is_in(batch["relationship_id"], kind_names))
            # A concept that is its own standard maps to itself: that says nothing, and is no fault.
            piece = piece.filter(pc.not_equal(piece["concept_id_1"], piece["concept_id_2"]))
            valid = pc.is_in(piece["invalid_reason"], pa.array(["", r"\N"]))
            skipped[INVALID] += piece.num_rows - int(pc.sum(valid).as_py() or 0)
            piece = piece.filter(valid)
            relation = relations.take(pc.index_in(piece["relationship_id"], kind_names))
            found += known.rows(piece["concept_id_1"], piece["concept_id_2"], relation, skipped)
        return found

    def _ancestors(self, path: Path, known: _Concepts, skipped: Counter[str]) -> list[pa.Table]:
        found = []
        columns = ["ancestor_concept_id", "descendant_concept_id", "min_levels_of_separation"]
        for batch in batches(path, columns, skipped, **_TABS):
            piece = batch.filter(pc.equal(batch["min_levels_of_separation"], "1"))
            relation = pa.repeat(IS_A, piece.num_rows)
            found += known.rows(
                piece["descendant_concept_id"], piece["ancestor_concept_id"], relation, skipped
            )
        return found


class _Concepts:
    """Sorted concept ids with their vocabularies and codes."""

    def __init__(self, ids: NDArray[np.int64], names: pa.Array, codes: pa.Array) -> None:
        self.ids, self.names, self.codes = ids, names, codes

    def rows(
        self, one: pa.Array, other: pa.Array, relation: pa.Array, skipped: Counter[str]
    ) -> list[pa.Table]:
        """Rows of `RAW` for pairs of concepts that are both known."""
        places, kept = [], np.ones(len(one), dtype=bool)
        numbers_good = np.ones(len(one), dtype=bool)
        for column in (one, other):
            number, good = _whole(column)
            place = np.minimum(np.searchsorted(self.ids, number), len(self.ids) - 1)
            numbers_good &= good
            kept &= good & (self.ids[place] == number)
            places.append(place)
        skipped[NOT_A_NUMBER] += int(np.sum(~numbers_good))
        if not kept.any():
            return []
        first, second = (pa.array(place[kept]) for place in places)
        raw = raw_table(
            system_1=self.names.take(first),
            code_1=self.codes.take(first),
            system_2=self.names.take(second),
            code_2=self.codes.take(second),
            relation=relation.filter(pa.array(kept)),
        )
        return [raw]


def _whole(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Numbers of a column of text, and where it holds one."""
    text = pc.utf8_trim_whitespace(column)
    good = pc.match_substring_regex(text, r"^[0-9]{1,18}$")
    number = pc.if_else(good, text, "0").cast(pa.int64())
    return number.to_numpy(zero_copy_only=False), good.to_numpy(zero_copy_only=False)
