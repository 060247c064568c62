"""How coded rows and pair counts travel between Spark's tasks.

Rows travel in pieces: 16 bytes a row (patient int64, day int32, code int32, little-endian) joined to one binary value, so
that Spark moves one value for thousands of rows. The cells of pair counts travel by spans, ranges of rows of the
matrix that hold at most `SPAN_CELLS` cells or one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from site_agent.cooccurrence import PairCounts

SPAN_CELLS = 1 << 16
"""Cells of the largest span that has more than one row."""
_BATCH_BYTES = 32 << 20

ROW = np.dtype([("patient", "<i8"), ("day", "<i4"), ("code", "<i4")])
ARRAYS = {
    "filled": np.int64,
    "cell": np.int32,
    "pairs": np.int64,
    "patients": np.int64,
    "code_patients": np.int64,
}
TALLIES = ("n_patients", "n_events", "capped")
"""What a row of counts has beside its span: arrays as bytes, and numbers."""

Rows = npt.NDArray[Any]


def span_cuts(n_codes: int, most: int = SPAN_CELLS) -> npt.NDArray[np.int64]:
    """(s + 1,) rows between which an upper triangle has at most `most` cells, or one row."""
    cuts, cells = [0], 0
    for row in range(n_codes):
        if row > cuts[-1] and cells + n_codes - row > most:
            cuts.append(row)
            cells = 0
        cells += n_codes - row
    return np.array([*cuts, n_codes], np.int64)


def unpacked(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `COUNTS` or `SUMS` with arrays in place of bytes."""
    return {**row, **{name: np.frombuffer(row[name], kind) for name, kind in ARRAYS.items()}}


def spans_of(counts: PairCounts, spans: npt.NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """The counts by span, without spans of codes that no one has; the first one carries the tallies."""
    pointer = np.asarray(counts.events.indptr, np.int64)
    filled = np.diff(pointer)
    has = np.add.reduceat(counts.code_patients, spans[:-1]) > 0
    has[0] = True
    tallies = np.zeros((len(has), 3), np.int64)
    tallies[0] = counts.n_patients, counts.n_events, counts.capped_patients
    chosen = np.flatnonzero(has)
    size = np.cumsum((pointer[spans[1:]] - pointer[spans[:-1]])[chosen] * 20)
    for first, stop in _cut(size, _BATCH_BYTES):
        here = chosen[first:stop]
        low, high = spans[here], spans[here + 1]
        cells = (pointer[low], pointer[high])
        columns = {
            "span": pa.array(here, pa.int32()),
            "filled": _ranges(filled, low, high),
            "cell": _ranges(counts.events.indices.astype(np.int32, copy=False), *cells),
            "pairs": _ranges(counts.events.data, *cells),
            "patients": _ranges(counts.pair_patients.data, *cells),
            "code_patients": _ranges(counts.code_patients, low, high),
        }
        columns |= {name: pa.array(tallies[here, i]) for i, name in enumerate(TALLIES)}
        yield pa.record_batch(columns)


def _cut(size: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of about `most` of what `size` cumulates."""
    first, before = 0, 0
    while first < len(size):
        stop = max(first + 1, int(np.searchsorted(size, before + most, side="right")))
        yield first, stop
        first, before = stop, int(size[stop - 1])


def _ranges(array: npt.NDArray[Any], low: npt.NDArray[Any], high: npt.NDArray[Any]) -> pa.Array:
    return pa.array([array[a:b].tobytes() for a, b in zip(low, high, strict=True)], pa.binary())


def slices(rows: npt.NDArray[Any], bounds: npt.NDArray[Any]) -> pa.Array:
    """Contiguous slices as binary values that share the array's memory."""
    offsets = (np.asarray(bounds) * rows.itemsize).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(rows)]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def pack(patient: Rows, day: Rows, code: Rows) -> Rows:
    """(m,) rows of `ROW` from three columns."""
    rows = np.empty(len(patient), ROW)
    rows["patient"], rows["day"], rows["code"] = patient, day, code
    return rows
