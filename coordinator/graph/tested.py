"""`related.parquet`, `related.csv` and `structure.parquet` of `coordinator graph build`: the schema is its documentation."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.exports.cells import csv_bytes
from coordinator.graph.edges import Significance
from coordinator.graph.pooled import PooledGraph
from coordinator.graph.structure import ABOUT, STRUCTURE, structure_table
from protocol.errors import UsageError
from protocol.files import write_atomic
from protocol.inference import PairTests

TABLES: Final = ("related.parquet", "related.csv")


def _field(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": meaning})


def _of_test(prefix: str, which: str) -> list[pa.Field]:
    unseen = "null: no site shows the pair"
    return [
        _field(f"{prefix}log_ratio", pa.float64(), f"log(count / expected) {which}; {unseen}", nullable=True),
        _field(f"{prefix}error", pa.float64(), f"standard error of `{prefix}log_ratio`", nullable=True),
        _field(f"{prefix}z", pa.float64(), "distance from the null in standard errors", nullable=True),
        _field(f"{prefix}p", pa.float64(), "one-sided; 1: no site shows the pair"),
        _field(f"{prefix}q", pa.float64(), "least false discovery rate at which the pair is found"),
    ]


SCHEMA: Final = pa.schema(
    [
        _field("left", pa.string(), "one code of the pair, a CURIE; it sorts before `right`"),
        _field("right", pa.string(), "the other code"),
        _field("count", pa.int64(), "pairs of events, of the sites that show the pair"),
        _field("expected", pa.float64(), "pairs that the sites with a part in it expect without a relation"),
        *_of_test("", "by the test that decides: smoothed and shrunk, or that of the pair itself"),
        *_of_test("alone_", "of the pair by itself"),
    ]
)
"""All tested pairs, sorted by `q`, then `p`, then the codes."""


def tests_table(graph: PooledGraph) -> pa.Table:
    """All tested pairs; the study's digest, the sums and the test stand in the table's metadata."""
    one, other = graph.alone.row, graph.alone.column
    left, right = np.minimum(one, other), np.maximum(one, other)
    order = np.lexsort((right, left, graph.decisive.p, graph.q))
    codes = pa.array(graph.codes, pa.string())
    columns = [
        codes.take(pa.array(left[order])),
        codes.take(pa.array(right[order])),
        pa.array(graph.alone.count[order], pa.int64()),
        pa.array(graph.alone.expected[order]),
        *_columns(graph.decisive, graph.q, order),
        *_columns(graph.alone, graph.alone_q, order),
    ]
    return pa.table(columns, schema=SCHEMA.with_metadata({ABOUT: json.dumps(_about(graph)).encode()}))


def _about(graph: PooledGraph) -> dict[str, object]:
    return {"study": graph.study, "sums": graph.sums, "sites": graph.sites, "test": graph.test}


def _columns(tests: PairTests, q: npt.NDArray[np.float64], order: npt.NDArray[Any]) -> list[pa.Array]:
    seen = np.isfinite(tests.error)
    known = (np.where(seen, x, np.nan)[order] for x in (tests.log_ratio, tests.error, tests.z))
    return [
        *(pa.array(np.where(np.isfinite(x), x, np.nan), pa.float64(), from_pandas=True) for x in known),
        pa.array(tests.p[order]),
        pa.array(q[order]),
    ]


def write_tests(folder: Path, graph: PooledGraph, table: pa.Table) -> tuple[Path, ...]:
    """Write the files, readable by this user only: they hold pooled counts; files of these names are replaced.

    Args:
        folder: made if it is not there.
        graph: whose structure is written, where it was smoothed.
        table: its `tests_table`.

    Raises:
        UsageError: the folder cannot be written to.
    """
    rows = zip(*(c.to_pylist() for c in table.columns), strict=True)
    files = dict(zip(TABLES, (_parquet(table), csv_bytes(table.column_names, rows)), strict=True))
    structure = Path(STRUCTURE).name
    if graph.structure is not None:
        files[structure] = _parquet(structure_table(graph.codes, graph.structure, _about(graph)))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One of earlier sums does not go with these tests.
        (folder / structure).unlink(missing_ok=True)
        for name, data in files.items():
            write_atomic(folder / name, data)
    except OSError as error:
        raise UsageError(
            f"The tests cannot be written to {folder}",
            why=str(error.strerror or error),
            do="Name another folder",
        ) from None
    return tuple(folder / name for name in files)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def read_tests(path: Path, codes: Sequence[str], study: str) -> Significance:
    """p- and q-values of the pairs of which both codes are among the given ones.

    The q-values stay those of all tests: which codes a release has does not depend on what the tests found.

    Args:
        path: of `related.parquet`.
        codes: of a release; a pair's place is its row here.
        study: digest of the study.

    Raises:
        UsageError: there is no such table, or it is of another study.
    """
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[ABOUT])
        columns = [table.column(c).to_numpy() for c in ("left", "right", "p", "q")]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise UsageError(
            f"The tests of association {path} cannot be read",
            why=str(error)[:200],
            do="Make them with coordinator graph build, or clear graph_tests in coordinator.toml",
        ) from None
    if about.get("study") != study:
        raise UsageError(
            f"The tests of association {path} are of another study",
            do="Make them anew with coordinator graph build, or clear graph_tests in coordinator.toml",
        )
    place = {code: i for i, code in enumerate(codes)}
    left, right = (np.array([place.get(c, -1) for c in column], np.intp) for column in columns[:2])
    here = (left >= 0) & (right >= 0)
    return Significance(np.stack([left, right], axis=1)[here], columns[2][here], columns[3][here])
