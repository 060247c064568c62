"""`edges.parquet` and `edges.csv` of `site-agent graph`: the schema is its documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from protocol.errors import UsageError
from protocol.files import write_atomic
from site_agent.codelist import csv_bytes, parquet_bytes
from site_agent.graph import SiteGraph

EDGES: Final = ("edges.parquet", "edges.csv")


def _field(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": meaning})


SCHEMA: Final = pa.schema(
    [
        _field("left", pa.string(), "one code of the pair, a CURIE; it sorts before `right`"),
        _field("right", pa.string(), "the other code"),
        _field("left_name", pa.string(), "what the site calls it; empty if it has no name"),
        _field("right_name", pa.string(), "the same of the other code"),
        _field("count", pa.int64(), "pairs of events; 0 where the site's floors withhold them"),
        _field("expected", pa.float64(), "pairs expected without a relation; 0 where the site takes no part"),
        _field(
            "log_ratio",
            pa.float64(),
            "log(count / expected) by the deciding test, smoothed and shrunk where there is a smoother; null: withheld",
            nullable=True,
        ),
        _field("error", pa.float64(), "standard error of `log_ratio`; null: withheld", nullable=True),
        _field("p", pa.float64(), "one-sided, by the deciding test; 1: withheld"),
        _field(
            "q", pa.float64(), "least false discovery rate at which the pair is found; by the deciding test"
        ),
        _field("alone_log_ratio", pa.float64(), "the pair's own log(count / expected)", nullable=True),
        _field("alone_error", pa.float64(), "its standard error", nullable=True),
        _field("alone_p", pa.float64(), "p of the pair by itself"),
        _field("alone_q", pa.float64(), "q of the pairs by themselves"),
    ]
)
"""Rows are sorted by `q`, then `p`, then the codes; a pair comes once."""


def graph_table(graph: SiteGraph, *, fdr: float) -> pa.Table:
    """The pairs that are found by the deciding test; all tested pairs for a rate of 1."""
    found = np.flatnonzero(graph.q <= fdr)
    one, other = graph.alone.row[found], graph.alone.column[found]
    left, right = np.minimum(one, other), np.maximum(one, other)
    test, alone = graph.decisive, graph.alone
    order = np.lexsort((right, left, test.p[found], graph.q[found]))
    rows, left, right = found[order], left[order], right[order]
    codes, names = pa.array(graph.codes, pa.string()), pa.array(graph.names, pa.string())
    columns = [
        codes.take(pa.array(left)),
        codes.take(pa.array(right)),
        names.take(pa.array(left)),
        names.take(pa.array(right)),
        pa.array(test.count[rows], pa.int64()),
        pa.array(test.expected[rows]),
        *_known(test.log_ratio[rows], test.error[rows]),
        pa.array(test.p[rows]),
        pa.array(graph.q[rows]),
        *_known(alone.log_ratio[rows], alone.error[rows]),
        pa.array(alone.p[rows]),
        pa.array(graph.alone_q[rows]),
    ]
    return pa.table(columns, schema=SCHEMA)


def write_graph(folder: Path, table: pa.Table) -> tuple[Path, ...]:
    """Write both files, which only this user may read; files of these names are replaced.

    Raises:
        UsageError: the folder cannot be written to.
    """
    paths = tuple(folder / name for name in EDGES)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, data in zip(paths, (parquet_bytes(table), csv_bytes(table)), strict=True):
            write_atomic(path, data)
    except OSError as error:
        raise UsageError(
            f"The graph cannot be written to {folder}",
            why=str(error.strerror or error),
            do="Name another folder",
        ) from None
    return paths


def _known(*columns: npt.NDArray[Any]) -> tuple[pa.Array, ...]:
    """Null where a pair has no finite error: it was withheld, or never came."""
    known = np.isfinite(columns[-1])
    return tuple(pa.array(np.where(known, c, np.nan), pa.float64(), from_pandas=True) for c in columns)
