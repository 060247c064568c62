"""Notes on their way to vectors: without what the rules take for identifiers, in one file, by patient and day.

The file is SQLite, a tree by patient, day and digest: notes come in any order and go out in one, within a few megabytes of
memory. It lies in the site's work folder, for this user alone, and is removed at the end. Raw texts are never written.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from protocol.errors import DataError
from protocol.text import has_word
from site_agent.notes.cleaning import normalised
from site_agent.notes.identifiers import remove_identifiers
from site_agent.notes.reading import NoteSource
from site_agent.sources import Progress, silent
from site_agent.sources.columns import NO_DATE, days_of, patients_of

Known = Callable[[int], Collection[str]]
"""A patient's number -> the words of the patient's own record."""


class StagedNotes:
    """Notes of known patients within the days, freed of identifiers.

    Attributes:
        read: rows of the source.
        outside: rows of other patients, other days, or without any of patient, date and text.
        undated: of these, rows whose date is none.
        removed: kind of identifier -> places.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.read = self.outside = self.undated = 0
        self.removed: Counter[str] = Counter()

    def patients(self) -> Iterator[tuple[int, list[str]]]:
        """(row of the patient, texts by day), by row."""
        rows = self._connection.execute("SELECT row, text FROM notes ORDER BY row, day, digest")
        for row, notes in groupby(rows, key=lambda r: r[0]):
            yield int(row), [str(text) for _, text in notes]

    def count(self) -> int:
        """How many notes there are; of equal ones of one day there is one."""
        return int(self._connection.execute("SELECT count(*) FROM notes").fetchone()[0])

    def _take(self, batch: pa.Table, rows_of: dict[int, int], days: tuple[int, int], known: Known) -> None:
        numbers, missing = patients_of(batch["patient"])
        day = days_of(batch["date"])
        low, high = days
        texts = batch["text"]
        self.read += len(batch)
        dated = (day != NO_DATE) & (day > NO_DATE + 2)
        self.undated += int((~dated).sum())
        inside = dated & (day >= low) & (day <= high)
        if missing is not None:
            inside &= ~missing
        kept: list[tuple[Any, ...]] = []
        for i in np.flatnonzero(inside):
            row = rows_of.get(int(numbers[i]))
            text = texts[int(i)].as_py()
            if row is None or text is None or not has_word(text):
                continue
            plain = remove_identifiers(normalised(text), known(int(numbers[i])), self.removed)
            key = blake2b(plain.encode(), digest_size=16).digest()
            kept.append((row, int(day[i]), key, plain))
        self.outside += len(batch) - len(kept)
        with self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO notes VALUES (?, ?, ?, ?)", kept)


@contextmanager
def staged_notes(
    source: NoteSource,
    path: Path,
    rows_of: dict[int, int],
    days: tuple[int, int],
    known: Known = lambda _: (),
    progress: Progress = silent,
) -> Iterator[StagedNotes]:
    """Read a source; the file is removed when the block ends.

    Args:
        source: of the notes.
        path: where the file may be.
        rows_of: number of a patient -> row of the build.
        days: first and last day, since 1970-01-01.
        known: words that are taken out of a patient's notes.
        progress: told how many notes were read.

    Raises:
        DataError: the notes cannot be read, or hold nothing of these patients and days.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = sqlite3.connect(path, isolation_level="DEFERRED")
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE notes (row INTEGER, day INTEGER, digest BLOB, text TEXT, PRIMARY KEY (row, day, digest)) WITHOUT ROWID"
        )
        staged = StagedNotes(connection)
        for batch in source.batches():
            progress(f"reading notes: {staged.read:,}", 0.0)
            try:
                staged._take(batch, rows_of, days, known)
            except pa.ArrowException as error:
                raise DataError(
                    f"The notes {source.name} cannot be used",
                    why=str(error).splitlines()[0][:200],
                    do="Write patient and text as text, and dates as YYYY-MM-DD",
                ) from None
        if staged.read == staged.outside:
            raise DataError(
                f"The notes {source.name} hold nothing of the build's patients within its days",
                why=f"of {staged.read:,} rows {staged.undated:,} have no date",
                do="Write patients as in the events, and dates as YYYY-MM-DD",
            )
        yield staged
    finally:
        connection.close()
        path.unlink(missing_ok=True)
