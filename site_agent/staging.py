"""A source's events, checked and coded, in files by blocks of patients: what counting reads, however large the data.

Rows go to one of `PARTITIONS` files by a hash of their patient, so that each file holds all events of its patients and
the files are random blocks of patients, whatever the numbers look like. The files and the list of codes stay until they
are removed: a run that was killed while counting finds them again and need not read the source.

    rows-000.bin ...   16 bytes a row: patient int64, day int32, code int32 in order of first sight, little-endian
    staged.json        written last; without it the rows are the rest of a reading that did not end
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import DataError
from protocol.files import write_atomic
from site_agent.blocks import Int32s, Int64s, by_patient, numbered, partition_of, scatter
from site_agent.sections import Data
from site_agent.sources import Description, EventSource, Progress, Reading, silent
from site_agent.sources.clean import Cleaner, CodedRows
from site_agent.sources.codebook import CodeBook

PARTITIONS = 128
_RULES = 1  # changes whenever the same data and configuration are to be read anew
_ROW = np.dtype([("patient", "<i8"), ("day", "<i4"), ("code", "<i4")])
_RESERVE = 64 << 20  # bytes that are left free on the disk
_ROW_COPIES = 3  # of the rows at hand while they are brought in order for writing
_LARGEST_FLUSH = 1 << 22  # rows; more would not make the writes any faster


@dataclass(frozen=True, eq=False)
class Staged:
    """A site's events on the disk.

    Attributes:
        folder: where the files are; only this user may read it.
        codes: CURIEs in order of text.
        descriptions: CURIE -> text; local ones never leave the site.
        skipped: reason -> number of rows that were left out for it.
        rows: events in each partition.
        position: (k,) int32, for each code number in the files its row of `codes`.
        digest: of everything that decides what the files hold.
    """

    folder: Path
    codes: tuple[str, ...]
    descriptions: Mapping[str, Description]
    skipped: Mapping[str, int]
    rows: tuple[int, ...]
    position: Int32s
    digest: str

    @property
    def n_rows(self) -> int:
        """Events in all partitions."""
        return sum(self.rows)

    @property
    def partitions(self) -> int:
        """How many partitions there are; some may be empty."""
        return len(self.rows)

    def partition(self, i: int) -> tuple[Int64s, Int32s, Int32s]:
        """All events of the patients of one partition, sorted by patient, day and code.

        Takes about 64 bytes of memory a row while it sorts; a row is 16 bytes in the end.

        Returns:
            patient (m,) int64, day (m,) int32 since 1970-01-01, code (m,) int32 as rows of `codes`.

        Raises:
            DataError: the file is gone or was changed.
        """
        rows = self._read(i)
        patient = np.ascontiguousarray(rows["patient"])
        number, distinct = numbered(patient)
        by_id = np.argsort(distinct)
        rank = np.empty(len(distinct), dtype=np.int32)
        rank[by_id] = np.arange(len(distinct), dtype=np.int32)
        bounds, day, code = by_patient(rank[number], len(distinct), rows["day"], self.position[rows["code"]])
        return np.repeat(distinct[by_id], np.diff(bounds)), day, code

    def arrived(self, i: int) -> tuple[Int64s, Int32s]:
        """Patients and days of a partition's rows in the order in which they came.

        Raises:
            DataError: the file is gone or was changed.
        """
        rows = self._read(i)
        return np.ascontiguousarray(rows["patient"]), np.ascontiguousarray(rows["day"])

    def _read(self, i: int) -> npt.NDArray[Any]:
        path = _rows_file(self.folder, i)
        try:
            rows = np.fromfile(path, dtype=_ROW) if self.rows[i] else np.empty(0, dtype=_ROW)
        except OSError as error:
            raise DataError(f"The staged events {path} cannot be read", why=str(error), do=_ANEW) from None
        if len(rows) != self.rows[i]:
            raise DataError(
                f"The staged events {path} hold {len(rows):,} rows, {self.rows[i]:,} were written", do=_ANEW
            )
        return rows

    def remove(self) -> None:
        """Remove the files, and the folder if nothing else is in it."""
        _clear(self.folder)


_ANEW = "Run the command again: the events are then read anew"


def stage(
    source: EventSource,
    data: Data,
    folder: Path,
    *,
    memory: int,
    rollup: Mapping[str, tuple[str, ...]] | None = None,
    progress: Progress = silent,
    today: date | None = None,
) -> Staged:
    """Read a source into partition files, or find those of an earlier run again.

    Files of an earlier run are taken if the source's fingerprint, the configuration of the data and the roll-up are
    the same; otherwise they are removed.

    Args:
        source: the events.
        data: its configuration.
        folder: made if it is not there; of the files in it only those named in this module are touched.
        memory: bytes that rows waiting to be written may take; the batch that the source yields comes on top.
        rollup: as `site_agent.sources.rollup.rollup_of` gives it.
        progress: told the rows so far and the rows a second.
        today: dates after this day are refused.

    Raises:
        DataError: the source cannot be read, its rows cannot be used, it changed while it was read, or the disk is full.
            Nothing is left in the folder then.
    """
    before = source.fingerprint()
    wanted = _digest(before, data, rollup)
    found = _load(folder, wanted)
    if found is not None:
        progress("the events are read already", 1.0)
        return found
    cleaner = Cleaner(data, today or datetime.now(UTC).date(), rollup, name=source.name)
    with _disk_errors(folder):
        _clear(folder)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    try:
        book, rows = _read(source, cleaner, folder, memory, progress)
        _check_unchanged(source, before)
        with _disk_errors(folder):
            _save(folder, book, rows, wanted)
    except BaseException:
        _clear(folder)
        raise
    return Staged(folder, book.codes, book.descriptions, book.skipped, rows, book.position, wanted)


def _check_unchanged(source: EventSource, before: str) -> None:
    if source.fingerprint() != before:
        raise DataError(
            f"{source.name} changed while the events were read",
            do="Run the command again when nothing writes to it, or on a copy",
        )


def _read(
    source: EventSource, cleaner: Cleaner, folder: Path, memory: int, progress: Progress
) -> tuple[CodeBook, tuple[int, ...]]:
    """Write all usable rows; the code book and the rows of each partition."""
    start = time.monotonic()

    def told(step: str, share: float) -> None:
        rate = cleaner.rows / max(time.monotonic() - start, 1e-9)
        progress(f"{step}: {cleaner.rows:,} rows, {rate:,.0f} rows a second", share)

    reading = Reading(told)
    limit = min(max(memory // (_ROW_COPIES * _ROW.itemsize), 1), _LARGEST_FLUSH)
    rows = np.zeros(PARTITIONS, dtype=np.int64)
    waiting: list[CodedRows] = []
    n_waiting = 0
    for batch in source.batches(reading):
        coded = cleaner.add(batch)
        # A batch may be larger than what may wait.
        for first in range(0, len(coded.code), limit):
            last = first + limit
            part = CodedRows(coded.patient[first:last], coded.day[first:last], coded.code[first:last])
            if n_waiting + len(part.code) > limit:
                rows += _write(waiting, folder)
                waiting, n_waiting = [], 0
            waiting.append(part)
            n_waiting += len(part.code)
    book = cleaner.finish(reading.skipped)
    rows += _write(waiting, folder)
    told("reading events", 1.0)
    return book, tuple(rows.tolist())


def _write(waiting: list[CodedRows], folder: Path) -> Int64s:
    """Append rows to the files of their partitions; (PARTITIONS,) rows for each."""
    which = [partition_of(part.patient, PARTITIONS) for part in waiting]
    counts = sum(
        (np.bincount(w, minlength=PARTITIONS) for w in which), start=np.zeros(PARTITIONS, dtype=np.int64)
    )
    ends = np.cumsum(counts)
    place = ends - counts
    out = np.empty(ends[-1], dtype=_ROW)
    for part, w in zip(waiting, which, strict=True):
        scatter(part.patient, part.day, part.code, w, place, out["patient"], out["day"], out["code"])
    with _disk_errors(folder):
        free = shutil.disk_usage(folder).free
        if free < out.nbytes + _RESERVE:
            raise OSError(errno.ENOSPC, f"{free >> 20:,} MiB are free")
        for i in np.flatnonzero(counts):
            _append(_rows_file(folder, int(i)), out[ends[i] - counts[i] : ends[i]])
    return counts


def _append(path: Path, rows: npt.NDArray[Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        left = rows.data.cast("B")
        while left:
            left = left[os.write(descriptor, left) :]
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise DataError(
            f"The disk of {folder} is full" if full else f"Events cannot be staged in {folder}",
            why=str(error.strerror or error),
            do="Free space: the events take 16 bytes a row there" if full else "Correct its permissions",
        ) from None


def _save(folder: Path, book: CodeBook, rows: tuple[int, ...], digest: str) -> None:
    content = {
        "digest": digest,
        "codes": book.codes,
        "position": book.position.tolist(),
        "descriptions": {code: [d.text, d.public] for code, d in book.descriptions.items()},
        "skipped": dict(book.skipped),
        "rows": rows,
    }
    write_atomic(folder / "staged.json", json.dumps(content, ensure_ascii=False))


def _load(folder: Path, digest: str) -> Staged | None:
    """What an earlier run left, if it is whole and of the same data."""
    try:
        content = json.loads((folder / "staged.json").read_bytes())
        if content["digest"] != digest:
            return None
        staged = Staged(
            folder=folder,
            codes=tuple(content["codes"]),
            descriptions={
                c: Description(text, public) for c, (text, public) in content["descriptions"].items()
            },
            skipped=content["skipped"],
            rows=tuple(content["rows"]),
            position=np.array(content["position"], dtype=np.int32),
            digest=digest,
        )
        # Rows are not forced to the disk: after a power cut a file may be shorter than what was written.
        sizes = [_rows_file(folder, i).stat().st_size if n else 0 for i, n in enumerate(staged.rows)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return staged if sizes == [n * _ROW.itemsize for n in staged.rows] else None


def _digest(fingerprint: str, data: Data, rollup: Mapping[str, tuple[str, ...]] | None) -> str:
    """Of everything that decides what the files hold, except the day on which they were made."""
    parts = [
        _RULES,
        PARTITIONS,
        fingerprint,
        data.model_dump(mode="json", exclude={"anchors", "terminology"}),
        None if rollup is None else sorted(rollup.items()),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _rows_file(folder: Path, i: int) -> Path:
    return folder / f"rows-{i:03}.bin"


def _clear(folder: Path) -> None:
    """Remove what this module writes, the description of the rows first."""
    if not folder.is_dir():
        return
    for path in [folder / "staged.json", *folder.glob("rows-[0-9][0-9][0-9].bin"), *folder.glob(".part-*")]:
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
