"""`graph/edges.parquet`: the schema is its documentation."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from coordinator.graph.edges import DIRECT, KIN, RELATIONS, Edges
from protocol.errors import ProtocolError

EDGES: Final = "graph/edges.parquet"


def _field(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": meaning})


SCHEMA: Final = pa.schema(
    [
        _field("left", pa.string(), "one code of the pair, a CURIE; it sorts before `right`"),
        _field("right", pa.string(), "the other code"),
        _field(
            "weight",
            pa.float64(),
            "mean of the two regression weights; 0: not selected; null: one family, so never offered",
            nullable=True,
        ),
        _field("sign", pa.int8(), "1 or -1: of the weight, else of the cosine; 0: neither leans anywhere"),
        _field("cosine", pa.float32(), "of the two codes' vectors"),
        _field("p", pa.float64(), "one-sided p-value; null: the pair was not tested", nullable=True),
        _field(
            "q",
            pa.float64(),
            "least false-discovery rate at which the pair is found; null: not tested",
            nullable=True,
        ),
        _field(
            "relation",
            pa.string(),
            "direct: selected by a regression; indirect: significant only; family: significant, not offered",
        ),
        _field("ends", pa.int8(), "how many of the two codes' regressions selected the pair: 0, 1 or 2"),
    ]
)
"""Rows are sorted by `left`, then `right`; a pair comes once."""


def edges_table(edges: Edges) -> pa.Table:
    """The edges as they are published."""
    names = pa.array(edges.codes, pa.string())
    columns = [
        names.take(pa.array(edges.left)),
        names.take(pa.array(edges.right)),
        _nullable(edges.weight),
        pa.array(edges.sign, pa.int8()),
        pa.array(edges.cosine, pa.float32()),
        _nullable(edges.p),
        _nullable(edges.q),
        pa.array(edges.relation.tolist(), pa.string()),
        pa.array(edges.ends, pa.int8()),
    ]
    return pa.table(columns, schema=SCHEMA)


def read_edges(table: pa.Table, codes: tuple[str, ...] | None = None) -> Edges:
    """The edges of a table.

    Args:
        table: of `edges_table`.
        codes: all codes of the graph, sorted; those of the table's pairs if None.

    Raises:
        ProtocolError: the table is of another form, or has a code that is not among `codes`.
    """
    if not table.schema.equals(SCHEMA):
        raise ProtocolError(
            "The table of edges has another form than this software writes",
            why=f"its columns are {', '.join(table.column_names)}",
            do="Read it with the software that wrote the release",
        )
    left, right = (table[name].to_pylist() for name in ("left", "right"))
    known = tuple(sorted({*left, *right})) if codes is None else codes
    place = {code: i for i, code in enumerate(known)}
    relation = np.array(table["relation"].to_pylist(), dtype=str)
    ends = table["ends"].to_numpy().astype(np.int8)
    sound = np.isin(relation, RELATIONS) & ((relation == DIRECT) == (ends > 0))
    if (
        not sound.all()
        or not {*left, *right} <= place.keys()
        or any(a >= b for a, b in zip(left, right, strict=True))
    ):
        raise ProtocolError(
            "The table of edges contradicts itself",
            why="a pair is out of order, of a code that the release does not have, or of an unknown relation",
            do="Get the release again",
        )
    return Edges(
        known,
        np.array([place[c] for c in left], dtype=np.intp),
        np.array([place[c] for c in right], dtype=np.intp),
        _plain(table["weight"]),
        table["sign"].to_numpy().astype(np.int8),
        table["cosine"].to_numpy().astype(np.float64),
        _plain(table["p"]),
        _plain(table["q"]),
        ends,
        # A direct pair was offered, so that it is of no family.
        relation == KIN,
    )


def _nullable(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)


def _plain(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.to_numpy(), dtype=np.float64)
