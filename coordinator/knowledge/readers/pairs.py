"""Plain tables of pairs, for what experts have judged and what no other format holds."""

from __future__ import annotations

from collections import Counter
from typing import Final, Literal

import pyarrow as pa
from pydantic import Field

from coordinator.knowledge.assertions import NO_CODE, is_relation, raw_table
from coordinator.knowledge.readers.base import Source
from coordinator.knowledge.systems import Systems
from coordinator.knowledge.tables import table

_LABELS: Final = {"1": True, "true": True, "yes": True, "": True, "0": False, "false": False, "no": False}


class Pairs(Source):
    """CSV with the columns code_1, code_2 (both PREFIX:code), relation, and as they wish label and source.

    A relation is similar, same-as, is-a, or related with its kind: `related:treats`. A label is 1 or 0.
    """

    kind: Literal["pairs"]
    delimiter: str = Field(",", min_length=1, max_length=1, description="The sign between cells.")

    def take(self, systems: Systems, skipped: Counter[str]) -> tuple[pa.Table, str]:
        """See `Source.take`."""
        found = table(
            self.path,
            ["code_1", "code_2", "relation"],
            skipped,
            delimiter=self.delimiter,
            optional=["label", "source"],
        )
        rows = []
        for row in found.to_pylist():
            relation = row["relation"].strip().casefold()
            relation = "related:related" if relation == "related" else relation
            one, other = (row[name].partition(":") for name in ("code_1", "code_2"))
            label = _LABELS.get(row["label"].strip().casefold())
            if not (one[1] and other[1]):
                skipped[NO_CODE] += 1
            elif not is_relation(relation):
                skipped["a relation that is none of similar, same-as, is-a, related:KIND"] += 1
            elif label is None:
                skipped["a label that is neither 1 nor 0"] += 1
            else:
                rows.append(
                    (
                        one[0].strip(),
                        one[2],
                        other[0].strip(),
                        other[2],
                        relation,
                        label,
                        row["source"].strip(),
                    )
                )
        columns = list(zip(*rows, strict=True)) or [()] * 7
        names = ("system_1", "code_1", "system_2", "code_2", "relation", "label", "source")
        return raw_table(**{name: list(c) for name, c in zip(names, columns, strict=True)}), ""
