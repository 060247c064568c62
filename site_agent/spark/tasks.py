"""What runs on Spark's workers. Each class is a function of a partition's Arrow batches, for `mapInArrow`.

Rows travel in pieces and counts by spans (`site_agent.spark.layout`).

    CodeTable       raw rows of a table       -> coded rows, names of codes, descriptions, findings     (CODED)
    Scatter         coded rows                -> coded rows by bucket of patients                       (PIECES)
    CountPatients   coded rows of a bucket    -> counts of its patients by span                         (COUNTS)
    AddCounts       counts of a span          -> their sum, small cells withheld                        (SUMS)
    FingerprintPatients  coded rows of a bucket -> fingerprints of its patients' events                 (HASHES)
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from protocol.errors import DataError, FederationError
from site_agent.blocks import partition_of
from site_agent.changes import Keys, patient_fingerprints
from site_agent.cooccurrence import count_pairs
from site_agent.cooccurrence.counts import sum_same_rows
from site_agent.sections import Data
from site_agent.sources import Reading
from site_agent.sources.clean import CodedRows
from site_agent.sources.databases.base import joined
from site_agent.sources.decoder import Decoder, events_of, only_events
from site_agent.sources.tablemap import Only
from site_agent.sources.tables import plain
from site_agent.spark.cleaning import PartCleaner
from site_agent.spark.layout import ARRAYS, ROW, TALLIES, pack, slices, spans_of, unpacked

SCATTER_ROWS = 1_000_000
"""Rows that are dealt out to buckets at a time."""
PIECE_ROWS = 4_096
"""Rows of the largest piece."""
GROUP_ROWS = 2_000_000
"""Rows of whole patients that are counted at a time; one patient may have more."""
BUCKET_ROWS = 250_000
"""Rows of the patients that are dealt out together, on average."""
COUNT_MEMORY = 256 << 20
"""Bytes that counting takes beside rows and result."""
BATCH_PIECES = 64
"""Spark's rows in an Arrow batch where each is a piece: at most 90 MB."""

CODE, ROWS, DESCRIPTION, FINDINGS = range(4)
CODED = "kind int, number int, text string, detail string, packed binary"
"""CODE: text; its number in the partition is its place. ROWS: packed, with the partition's numbers; their CODE rows came before.
DESCRIPTION: text is the code, detail its text, number 1 if it is a local one. FINDINGS: number is the partition, text JSON."""
PIECES = "bucket int, packed binary"
COUNTS = (
    "span int, filled binary, cell binary, pairs binary, patients binary, code_patients binary, "
    "n_patients bigint, n_events bigint, capped bigint"
)
SUMS = f"{COUNTS}, withheld_cells bigint, withheld_events bigint"
HASHES = "whole binary, days binary"

_CODED = pa.schema(
    [
        ("kind", pa.int32()),
        ("number", pa.int32()),
        ("text", pa.string()),
        ("detail", pa.string()),
        ("packed", pa.binary()),
    ]
)

Batches = Iterator[pa.RecordBatch]
Rows = npt.NDArray[Any]


def version() -> str:
    """The version of this package where this runs; "" if it came as a bare file."""
    try:
        return importlib.metadata.version("smile-federation")
    except importlib.metadata.PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class CodeTable:
    """Cleans and codes the rows of one table.

    Attributes:
        table: its name, for messages.
        order: its place among the tables.
        schema: the raw columns as `RelationalSource` has them.
        decoders: of its code columns.
        only: which rows are events, if not all.
        data: the configuration.
        today: later dates are refused.
        rollup: CURIE -> the CURIEs to count instead.
    """

    table: str
    order: int
    schema: pa.Schema
    decoders: tuple[Decoder, ...]
    only: Only | None
    data: Data
    today: date
    rollup: Mapping[str, tuple[str, ...]] | None

    def __call__(self, batches: Batches) -> Batches:
        """Batches of `CODED`; a wrong configuration or column ends the partition and is told in its findings."""
        cleaner, reading, read = (
            PartCleaner(self.data, self.today, self.rollup, name=self.table),
            Reading(),
            0,
        )
        numbers = _Numbers(cleaner)
        error: FederationError | None = None
        try:
            for raw in joined(batches):
                read += len(raw)
                rows = only_events(plain(raw, self.schema), self.only, reading)
                if len(rows):
                    yield from numbers.coded(cleaner.add(events_of(rows, self.decoders)))
        except FederationError as caught:
            error = caught
        found = cleaner.descriptions()
        if found:
            yield _coded(
                DESCRIPTION,
                len(found),
                number=[int(not d.public) for d in found.values()],
                text=list(found),
                detail=[d.text for d in found.values()],
            )
        told = {
            "order": self.order,
            "read": read,
            "findings": cleaner.findings(self.table),
            "skipped": reading.skipped,
            "error": error and [error.what, error.why, error.do],
            "version": version(),
        }
        yield _coded(FINDINGS, 1, number=[_partition()], text=[json.dumps(told)])


class _Numbers:
    """A partition's own numbers of the codes that have events, told before the first row with them."""

    def __init__(self, cleaner: PartCleaner) -> None:
        self._cleaner = cleaner
        self._names: list[str] = []  # the cleaner's numbers -> CURIE
        self._own = np.empty(0, np.int32)  # the cleaner's numbers -> own ones, -1 if none yet
        self._count = 0

    def coded(self, rows: CodedRows) -> Batches:
        self._names += self._cleaner.names(len(self._names))
        self._own = np.concatenate([self._own, np.full(len(self._names) - len(self._own), -1, np.int32)])
        used = np.bincount(rows.code, minlength=len(self._own)) > 0
        new = np.flatnonzero(used & (self._own < 0))
        if len(new):
            self._own[new] = np.arange(self._count, self._count + len(new), dtype=np.int32)
            self._count += len(new)
            yield _coded(CODE, len(new), text=[self._names[i] for i in new])
        if len(rows.code):
            packed = pack(rows.patient, rows.day, self._own[rows.code])
            ends = np.append(np.arange(0, len(packed), PIECE_ROWS), len(packed))
            yield _coded(ROWS, len(ends) - 1, packed=slices(packed, ends))


@dataclass(frozen=True)
class Scatter:
    """Numbers the codes of all partitions alike and deals rows out by patient.

    Attributes:
        codes: all CURIEs, in order of text.
        buckets: how many blocks of patients.
    """

    codes: pa.Array
    buckets: int

    def __call__(self, batches: Batches) -> Batches:
        """Batches of `PIECES`."""
        numbers = np.empty(0, np.int32)
        waiting: list[Rows] = []
        for batch in batches:
            # Codes are told before their rows, and so never in a later batch.
            numbers = np.concatenate([numbers, self._numbers(_of_kind(batch, CODE, "text"))])
            for piece in _of_kind(batch, ROWS, "packed"):
                rows = np.frombuffer(piece.as_buffer(), ROW).copy()
                rows["code"] = numbers[rows["code"]]
                waiting.append(rows)
            if sum(map(len, waiting)) >= SCATTER_ROWS:
                yield self._dealt(waiting)
                waiting = []
        if waiting:
            yield self._dealt(waiting)

    def _numbers(self, names: pa.Array) -> npt.NDArray[np.int32]:
        found = pc.index_in(names, value_set=self.codes)
        if found.null_count:
            raise DataError(
                "A table changed while its events were counted",
                why="a part that a lost worker had read has other codes when it is read again",
                do="Run again when no one loads data",
            )
        numbers: npt.NDArray[np.int32] = found.to_numpy(zero_copy_only=False).astype(np.int32)
        return numbers

    def _dealt(self, waiting: Sequence[Rows]) -> pa.RecordBatch:
        rows = np.concatenate(waiting)
        bucket = partition_of(np.ascontiguousarray(rows["patient"]), self.buckets)
        order = np.argsort(bucket, kind="stable")
        rows, bucket = rows[order], bucket[order]
        starts = np.flatnonzero(np.diff(bucket, prepend=-1))
        ends = np.append(starts[1:], len(rows))
        cuts = [c for a, b in zip(starts, ends, strict=True) for c in range(a, b, PIECE_ROWS)]
        pieces = slices(rows, np.append(cuts, len(rows)))
        return pa.record_batch([pa.array(bucket[cuts]), pieces], names=["bucket", "packed"])


@dataclass(frozen=True)
class CountPatients:
    """Counts whole patients, one group of buckets after the other.

    Attributes:
        n_codes: how many codes there are.
        window_days: as `count_pairs` takes it.
        max_events: a patient counts with this many.
        spans: (s + 1,) rows of the matrix between which the spans lie.
        group_rows: rows that are counted at a time.
    """

    n_codes: int
    window_days: int | None
    max_events: int
    spans: npt.NDArray[np.int64]
    group_rows: int = GROUP_ROWS

    def __call__(self, batches: Batches) -> Batches:
        """Batches of `COUNTS`; those that come are in order of their buckets."""
        for rows in _whole_patients(batches, self.group_rows):
            yield from self._counted(rows)

    def _counted(self, rows: Rows) -> Batches:
        counts = count_pairs(
            rows["patient"],
            rows["day"],
            rows["code"],
            self.n_codes,
            window_days=self.window_days,
            max_events_per_patient=self.max_events,
            threads=1,
            memory=COUNT_MEMORY,
        )
        return spans_of(counts, self.spans)


@dataclass(frozen=True)
class FingerprintPatients:
    """Fingerprints of whole patients, one group of buckets after the other.

    Attributes:
        keys: of codes and days.
        max_events: so many of a patient's latest events count.
        group_rows: rows that are sorted at a time.
    """

    keys: Keys
    max_events: int
    group_rows: int = GROUP_ROWS

    def __call__(self, batches: Batches) -> Batches:
        """Batches of `HASHES`; those that come are in order of their buckets."""
        for rows in _whole_patients(batches, self.group_rows):
            ordered = rows[np.lexsort((rows["code"], rows["day"], rows["patient"]))]
            patient, day, code = (np.ascontiguousarray(ordered[n]) for n in ("patient", "day", "code"))
            hashes = patient_fingerprints(patient, day, code, self.keys, self.max_events)
            yield pa.record_batch([pa.array([h.tobytes()]) for h in hashes], names=["whole", "days"])


@dataclass(frozen=True)
class Floor:
    """Which cells are withheld.

    Attributes:
        patients: cells that fewer distinct patients have in all are left out and tallied.
        exact: but for these, row * n + column, increasing; None if there are none.
    """

    patients: int
    exact: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True)
class AddCounts:
    """Adds the counts of all groups of patients, span by span.

    Attributes:
        n_codes: how many codes there are.
        spans: as `CountPatients` has them.
        floor: which cells are withheld.
    """

    n_codes: int
    spans: npt.NDArray[np.int64]
    floor: Floor

    def __call__(self, batches: Batches) -> Batches:
        """Batches of `SUMS`; those that come are in order of their spans."""
        rows = (row for batch in batches for row in batch.to_pylist())
        for span, parts in groupby(rows, key=lambda row: row["span"]):
            yield self._sum(span, [unpacked(part) for part in parts], int(self.spans[span]))

    def _sum(self, span: int, parts: Sequence[Mapping[str, Any]], first: int) -> pa.RecordBatch:
        pointers, offset = [], 0
        for part in parts:
            pointers.append(np.concatenate([[0], np.cumsum(part["filled"])]) + offset)
            offset = int(pointers[-1][-1])
        cell, pairs, patients = (
            np.concatenate([part[name] for part in parts]) for name in ("cell", "pairs", "patients")
        )
        exact = self.floor.exact
        filled, cells, below, below_events = sum_same_rows(
            np.stack(pointers),
            (cell, pairs, patients),
            first,
            self.n_codes,
            self.floor.patients if exact is None else 0,
        )
        if exact is not None:
            filled, cells, below, below_events = self._withheld(filled, cells, first, exact)
        code_patients = np.sum([part["code_patients"] for part in parts], axis=0)
        arrays = (filled, *cells, code_patients)
        columns = {"span": pa.array([span], pa.int32())}
        columns |= {n: pa.array([a.tobytes()]) for n, a in zip(ARRAYS, arrays, strict=True)}
        columns |= {n: pa.array([sum(part[n] for part in parts)]) for n in TALLIES}
        columns |= {"withheld_cells": pa.array([below]), "withheld_events": pa.array([below_events])}
        return pa.record_batch(columns)

    def _withheld(
        self,
        filled: npt.NDArray[np.int64],
        cells: tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64]],
        first: int,
        exact: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.int64], tuple[Any, Any, Any], int, int]:
        """Sums without cells below the floor but for the exact ones, as `sum_same_rows` gives them."""
        column, pairs, patients = cells
        row = np.repeat(np.arange(len(filled)), filled)
        key = (row + first) * self.n_codes + column
        stays = (patients >= self.floor.patients) | np.isin(key, exact)
        kept = (column[stays], pairs[stays], patients[stays])
        filled = np.bincount(row[stays], minlength=len(filled)).astype(np.int64)
        return filled, kept, int((~stays).sum()), int(pairs[~stays].sum())


def _whole_patients(batches: Batches, most: int) -> Iterator[Rows]:
    """The rows of groups of buckets, about `most` at a time; each bucket holds whole patients."""
    waiting: list[Rows] = []
    n_waiting = 0
    for _, pieces in groupby(_pieces(batches), key=lambda piece: piece[0]):
        bucket = [rows for _, rows in pieces]
        size = sum(map(len, bucket))
        if waiting and n_waiting + size > most:
            rows, waiting, n_waiting = np.concatenate(waiting), [], 0
            yield rows
        waiting += bucket
        n_waiting += size
    if waiting:
        yield np.concatenate(waiting)


def _pieces(batches: Batches) -> Iterator[tuple[int, Rows]]:
    for batch in batches:
        for bucket, piece in zip(batch.column("bucket").to_pylist(), batch.column("packed"), strict=True):
            yield bucket, np.frombuffer(piece.as_buffer(), ROW)


def _of_kind(batch: pa.RecordBatch, kind: int, name: str) -> pa.Array:
    return batch.column(name).filter(pc.equal(batch.column("kind"), kind))


def _coded(kind: int, n: int, **columns: Any) -> pa.RecordBatch:
    made = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type) for f in _CODED]
    made[0] = pa.array(np.full(n, kind, np.int32))
    return pa.record_batch(made, schema=_CODED)


def _partition() -> int:
    from pyspark import TaskContext  # noqa: PLC0415 (an optional extra)

    context = TaskContext.get()
    return context.partitionId() if context else 0
