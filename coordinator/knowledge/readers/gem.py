"""General Equivalence Mappings of CMS and NCHS: which ICD-9-CM and ICD-10-CM codes translate to each other."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from coordinator.knowledge.assertions import SIMILAR, raw_table
from coordinator.knowledge.readers.base import Source
from coordinator.knowledge.systems import Systems
from coordinator.knowledge.tables import OTHER_WIDTH, table, text_lines
from protocol.errors import DataError

APPROXIMATE = 0.7
"""Weight of an entry whose flag says that the two codes mean nearly the same; exact ones have 1."""

NO_TARGET = "a code without a target"
COMBINATION = "a code that needs several targets at once"


class Gem(Source):
    """GEM entries as similar pairs.

    The five flags of an entry are: approximate, no target, combination, scenario, choice list. An entry of a
    combination translates only together with others, so neither of its codes is similar to the other: it is left out.
    Several entries of one code without that flag are alternatives, and each is a pair.

    Source: CMS, General Equivalence Mappings: Documentation and User's Guide, 2018.
    """

    kind: Literal["gem"]
    source: str = Field(alias="from", description="The study's prefix of the first column's codes.")
    target: str = Field(alias="to", description="The study's prefix of the second column's codes.")

    def take(self, systems: Systems, skipped: Counter[str]) -> tuple[pa.Table, str]:
        """See `Source.take`."""
        first = next(text_lines(self.path), "")
        one, other, flags = self._csv(first, skipped) if "," in first else self._text(skipped)
        flags = pc.utf8_trim_whitespace(flags)
        formed = pc.match_substring_regex(flags, "^[01][01][01][0-9][0-9]$")
        if not len(flags) or not pc.any(formed).as_py():
            raise DataError(
                f"The file {self.path} holds no General Equivalence Mappings",
                why="an entry is a code, its target and five flags, such as 25000 E119 10000",
                do="Take the text file of CMS, or a CSV with a column flags",
            )
        skipped["flags that are not five digits"] += len(flags) - int(pc.sum(formed).as_py())
        no_target = pc.equal(pc.utf8_slice_codeunits(flags, 1, 2), "1")
        combined = pc.equal(pc.utf8_slice_codeunits(flags, 2, 3), "1")
        skipped[NO_TARGET] += int(pc.sum(pc.and_(formed, no_target)).as_py())
        skipped[COMBINATION] += int(pc.sum(pc.and_(formed, pc.and_not(combined, no_target))).as_py())
        kept = pc.and_not(formed, pc.or_(no_target, combined))
        approximate = pc.equal(pc.utf8_slice_codeunits(flags, 0, 1), "1").filter(kept)
        raw = raw_table(
            system_1=self.source,
            code_1=one.filter(kept),
            system_2=self.target,
            code_2=other.filter(kept),
            relation=SIMILAR,
            weight=pc.if_else(approximate, APPROXIMATE, 1.0),
        )
        return raw, ""

    def _csv(self, first: str, skipped: Counter[str]) -> tuple[pa.Array, pa.Array, pa.Array]:
        names = [name.strip().strip('"') for name in first.split(",")]
        found = table(self.path, [*names[:2], "flags"], skipped)
        one, other, flags = (found.column(i).combine_chunks() for i in range(3))
        return one, other, flags

    def _text(self, skipped: Counter[str]) -> tuple[pa.Array, pa.Array, pa.Array]:
        rows = [cells for line in text_lines(self.path) if (cells := line.split())]
        good = [cells for cells in rows if len(cells) == 3]
        skipped[OTHER_WIDTH] += len(rows) - len(good)
        one, other, flags = (pa.array([cells[i] for cells in good], pa.string()) for i in range(3))
        return one, other, flags
