"""The one form into which every reader brings its file: rows that say how two codes relate, and who says so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from coordinator.knowledge.systems import Systems, curies

SIMILAR: Final = "similar"
SAME_AS: Final = "same-as"
IS_A: Final = "is-a"
RELATED: Final = "related:"

_RELATION: Final = re.compile(r"similar|same-as|is-a|related:[a-z0-9][a-z0-9-]{0,60}")

NO_CODE: Final = "no valid code"
ITSELF: Final = "a code with itself"
OWN_PARENT: Final = "a code that is its own parent"
TWICE: Final = "listed more than once"

RAW: Final = pa.schema(
    [
        ("system_1", pa.string()),
        ("code_1", pa.string()),
        ("system_2", pa.string()),
        ("code_2", pa.string()),
        ("relation", pa.string()),
        ("label", pa.bool_()),
        ("weight", pa.float64()),
        ("source", pa.string()),
    ]
)
"""What a reader takes from its file: systems and codes as the file writes them."""

ASSERTIONS: Final = pa.schema(
    [
        ("code_1", pa.string()),
        ("code_2", pa.string()),
        ("relation", pa.string()),
        ("label", pa.bool_()),
        ("weight", pa.float64()),
        ("source", pa.string()),
    ]
)


@dataclass(frozen=True)
class Assertion:
    """One source's word on two codes.

    Attributes:
        code_1: CURIE; in `is-a` the narrower code.
        code_2: CURIE; in `is-a` the broader one, its parent.
        relation: similar, same-as, is-a, or related:KIND such as related:treats.
        label: whether the relation holds; False where the source says that it does not.
        weight: in (0, 1], how sure the source is.
        source: its name.
        version: of the source.
    """

    code_1: str
    code_2: str
    relation: str
    label: bool
    weight: float
    source: str
    version: str


@dataclass(frozen=True, eq=False)
class Assertions:
    """All rows of one knowledge source.

    Attributes:
        table: of schema `ASSERTIONS`, no row twice, no code with itself.
        version: of the source.
        skipped: reason -> rows that were left out for it.
    """

    table: pa.Table
    version: str
    skipped: Mapping[str, int]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Assertion]:
        for row in self.table.to_pylist():
            yield Assertion(**row, version=self.version)


def raw_table(**columns: object) -> pa.Table:
    """Columns of schema `RAW`; one value stands for a whole column, and label, weight and source may be left out."""
    given = {"label": True, "weight": 1.0, "source": "", **columns}
    n = next(len(v) for v in given.values() if not isinstance(v, str | bool | float))  # type: ignore[arg-type]
    whole = {
        name: pa.repeat(pa.scalar(value, RAW.field(name).type), n)
        if isinstance(value, str | bool | float)
        else value
        for name, value in given.items()
    }
    arrays = [whole[name] for name in RAW.names]
    plain = [a.combine_chunks() if isinstance(a, pa.ChunkedArray) else a for a in arrays]
    return pa.table(
        [
            a.cast(f.type) if isinstance(a, pa.Array) else pa.array(a, f.type)
            for a, f in zip(plain, RAW, strict=True)
        ],
        schema=RAW,
    )


def is_relation(text: str) -> bool:
    """Whether a word names a relation."""
    return _RELATION.fullmatch(text) is not None


def assemble(
    raw: pa.Table, systems: Systems, *, name: str, version: str, skipped: Counter[str], weight: float = 1.0
) -> Assertions:
    """CURIEs and one row a statement, from what a reader took.

    Args:
        raw: of schema `RAW`; rows without a source are the source's own.
        systems: how the study calls the file's code systems.
        name: of the source.
        version: of the source.
        skipped: what the reader left out; the rows that are left out here are added to it.
        weight: of the source, which its rows' weights are multiplied by.
    """
    raw = raw.combine_chunks()
    column = {f: _flat(raw.column(f)) for f in RAW.names}
    own = pc.equal(column["source"], "")
    table = pa.table(
        {
            "code_1": curies(column["system_1"], column["code_1"], systems),
            "code_2": curies(column["system_2"], column["code_2"], systems),
            "relation": column["relation"],
            "label": column["label"],
            "weight": pc.multiply(column["weight"], weight),
            "source": pc.if_else(own, name, pc.binary_join_element_wise(name, column["source"], "/")),
        },
        schema=ASSERTIONS,
    )
    valid = pc.and_(pc.is_valid(table["code_1"]), pc.is_valid(table["code_2"]))
    skipped[NO_CODE] += table.num_rows - int(pc.sum(valid).as_py() or 0)
    table = table.filter(valid)
    itself = pc.equal(table["code_1"], table["code_2"])
    parent = pc.and_(itself, pc.equal(table["relation"], IS_A))
    skipped[OWN_PARENT] += int(pc.sum(parent).as_py() or 0)
    skipped[ITSELF] += int(pc.sum(pc.and_not(itself, parent)).as_py() or 0)
    table = table.filter(pc.invert(itself))
    keys = [f for f in ASSERTIONS.names if f != "weight"]
    single = table.group_by(keys).aggregate([("weight", "max")]).rename_columns([*keys, "weight"])
    skipped[TWICE] += table.num_rows - single.num_rows
    single = single.select(ASSERTIONS.names).sort_by([(f, "ascending") for f in keys]).cast(ASSERTIONS)
    return Assertions(single.combine_chunks(), version, {k: v for k, v in sorted(skipped.items()) if v})


def _flat(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
