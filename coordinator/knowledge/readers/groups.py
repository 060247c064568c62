"""Tables of codes and their groups: PheCode maps, CCS, and any other grouping."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from coordinator.knowledge.assertions import IS_A, raw_table
from coordinator.knowledge.readers.base import Source
from coordinator.knowledge.systems import Systems
from coordinator.knowledge.tables import table


class Groups(Source):
    """Each code `is-a` its group, so that the codes of one group are siblings, and similar.

    A hierarchy of the groups themselves is another source, of kind `hierarchy`.
    """

    kind: Literal["groups"]
    group_system: str = Field("PHECODE", description="Prefix of the groups: PHECODE, CCS, ...")
    system: str = Field("", description="The study's prefix of the codes; empty where a column says it.")
    code_column: str = Field("code", description="The column of codes.")
    group_column: str = Field("group", description="The column of groups.")
    system_column: str = Field("", description="The column that says each code's system.")
    quote: Literal['"', "'"] = Field('"', description="The sign around cells; CCS files have '.")
    delimiter: str = Field(",", min_length=1, max_length=1, description="The sign between cells.")
    kin_weight: float = Field(0.5, gt=0.0, le=1.0, description="Weight of pairs of one group.")

    @model_validator(mode="after")
    def _one_system(self) -> Groups:
        if bool(self.system) == bool(self.system_column):
            raise ValueError("set either system or system_column")
        return self

    def take(self, systems: Systems, skipped: Counter[str]) -> tuple[pa.Table, str]:
        """See `Source.take`."""
        columns = [self.code_column, self.group_column, *([self.system_column] if self.system_column else [])]
        found = table(self.path, columns, skipped, quote=self.quote, delimiter=self.delimiter)
        grouped = pc.not_equal(pc.utf8_trim_whitespace(found[self.group_column]), "")
        skipped["a code without a group"] += found.num_rows - int(pc.sum(grouped).as_py() or 0)
        found = found.filter(grouped)
        raw = raw_table(
            system_1=pc.utf8_trim_whitespace(found[self.system_column])
            if self.system_column
            else self.system,
            code_1=found[self.code_column],
            system_2=self.group_system,
            code_2=found[self.group_column],
            relation=IS_A,
        )
        return raw, ""
