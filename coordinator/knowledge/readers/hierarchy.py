"""Hierarchies: a table of codes and their parents, and the one that ICD codes carry in their digits."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import pyarrow as pa
from pydantic import Field

from coordinator.knowledge.assertions import IS_A, raw_table
from coordinator.knowledge.readers.base import Source
from coordinator.knowledge.systems import Systems, fold, is_icd
from coordinator.knowledge.tables import table
from protocol.errors import UsageError


class Hierarchy(Source):
    """A row for each code and each of its parents; rows without a parent are roots."""

    kind: Literal["hierarchy"]
    system: str = Field(description="The study's prefix of the codes and their parents.")
    code_column: str = Field("code", description="The column of codes.")
    parent_column: str = Field("parent", description="The column of parents.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="The sign between cells.")

    def take(self, systems: Systems, skipped: Counter[str]) -> tuple[pa.Table, str]:
        """See `Source.take`."""
        found = table(self.path, [self.code_column, self.parent_column], skipped, delimiter=self.delimiter)
        pairs = zip(found[self.code_column].to_pylist(), found[self.parent_column].to_pylist(), strict=True)
        rows = [(code, parent) for code, parent in pairs if parent.strip()]
        skipped["a code without a parent"] += found.num_rows - len(rows)
        raw = raw_table(
            system_1=self.system,
            code_1=[code for code, _ in rows],
            system_2=self.system,
            code_2=[parent for _, parent in rows],
            relation=IS_A,
        )
        return raw, ""


class IcdDigits(Source):
    """ICD diagnoses: the parent of a code is the code without its last digit, up to the category.

    E11.321 -> E11.32 -> E11.3 -> E11. The placeholder X of ICD-10-CM is no level of its own: T36.0X1A -> T36.0X1 -> T36.0.
    Categories are roots: chapters and blocks would make cousins of codes that share little.
    """

    kind: Literal["icd"]
    system: str = Field(description="The study's prefix of the codes: ICD-9-CM or ICD-10 diagnoses.")
    code_column: str = Field("code", description="The column of codes, with or without dots.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="The sign between cells.")

    def take(self, systems: Systems, skipped: Counter[str]) -> tuple[pa.Table, str]:
        """See `Source.take`."""
        if not is_icd(self.system):
            raise UsageError(
                f"The source {self.name} is of kind icd, but {self.system} is not ICD9CM, ICD10CM or ICD10",
                why="only their diagnoses carry the hierarchy in their digits",
                do="Use kind hierarchy with a table of codes and parents",
            )
        found = table(self.path, [self.code_column], skipped, delimiter=self.delimiter)
        nine = fold(self.system).startswith("icd9")
        links: dict[str, str] = {}
        for cell in found[self.code_column].to_pylist():
            code = cell.strip().replace(".", "").upper()
            while (parent := icd_parent(code, nine=nine)) and code not in links:
                links[code] = parent
                code = parent
        raw = raw_table(
            system_1=self.system,
            code_1=list(links),
            system_2=self.system,
            code_2=list(links.values()),
            relation=IS_A,
        )
        return raw, ""


def icd_parent(code: str, *, nine: bool) -> str:
    """The next broader ICD code, both without dots; empty for a category.

    Args:
        code: capital letters and digits.
        nine: ICD-9-CM, whose external causes have categories of four signs, as E812.
    """
    least = 4 if nine and code.startswith("E") else 3
    if len(code) <= least:
        return ""
    shorter = code[:-1]
    while not nine and len(shorter) > least and shorter.endswith("X"):
        shorter = shorter[:-1]
    return shorter
