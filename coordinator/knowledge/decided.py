"""What people settled, beside what knowledge files say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from coordinator.knowledge.assertions import SIMILAR
from coordinator.knowledge.build import Build
from coordinator.knowledge.merge import PAIRS
from coordinator.settled import Settled

SOURCE: Final = "review"
"""Who says so, where a pair names its sources."""
WEIGHT: Final = 1.0


def settled_pairs(settled: Settled) -> pa.Table:
    """The decisions as pairs of schema `merge.PAIRS`; "no standard code" is none."""
    said = [(c, t, True) for c, t in settled.accepted.items() if t] + [
        (c, t, False) for c, t in settled.wrong
    ]
    rows: list[dict[str, Any]] = [
        {
            "code_1": min(code, target),
            "code_2": max(code, target),
            "kind": SIMILAR,
            "label": label,
            "weight": WEIGHT,
            "sources": [SOURCE],
        }
        for code, target, label in sorted(said)
    ]
    return pa.Table.from_pylist(rows, schema=PAIRS)


def with_settled(knowledge: Build | None, settled: Settled) -> Build | None:
    """Knowledge and decisions together; where the two speak of one pair, people are heard."""
    if not settled:
        return knowledge
    mine = settled_pairs(settled)
    if knowledge is None:
        return Build(mine, {})
    theirs = knowledge.pairs
    key, own = (pc.binary_join_element_wise(t["code_1"], t["code_2"], "\n") for t in (theirs, mine))
    again = pc.and_(pc.equal(theirs["kind"], SIMILAR), pc.is_in(key, own.combine_chunks()))
    return replace(
        knowledge, pairs=pa.concat_tables([theirs.filter(pc.invert(again)), mine]).combine_chunks()
    )
