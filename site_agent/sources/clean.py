"""Raw rows of any source in; coded events, a code book and counted reasons for what was left out, out.

What is a usable row is decided here alone, so that every source is judged alike:

- A patient is an integer, kept as it is, or a text, which becomes a number (`patient_number`).
- A date is a date, a timestamp or a text that begins with YYYY-MM-DD, from 1900 on and not in the future. Its day is that
  of the clock on the wall: a timestamp with a time zone counts on the day it has in that zone, and a text on the day it
  shows, whatever offset follows.
- A code is a text of its code system. Spaces around it and Unicode forms make no difference (`protocol.vocabulary.curie`);
  commas, colons, quotes and bars in it are kept; control characters, newlines among them, are refused.
- A code system is one that `data.systems` translates, or else already a prefix; `data.system` where a row names none.

A row with several faults is counted once, under the first of `_FAULTS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from protocol.errors import DataError
from protocol.vocabulary import MAX_CODE_LENGTH
from site_agent.sections import Data
from site_agent.sources import Events, EventSource, Progress, Reading, silent
from site_agent.sources.codebook import CONTROL, NO_CODE, NO_SYSTEM, TOO_LONG, CodeBook, GrowingCodeBook
from site_agent.sources.columns import (
    EARLIEST,
    EPOCH,
    NO_DATE,
    NOT_A_DATE,
    PARTIAL,
    Flags,
    Int32s,
    Int64s,
    days_of,
    is_missing,
    optional,
    patients_of,
)


class CodedRows(NamedTuple):
    """Usable rows of one batch, in its order.

    Attributes:
        patient: (m,) int64.
        day: (m,) int32, days since 1970-01-01.
        code: (m,) int32, rows of the code book in order of first sight.
    """

    patient: Int64s
    day: Int32s
    code: Int32s


class Cleaner:
    """Checks and codes the batches of one source, one after the other.

    Args:
        data: the code systems, and whether bad rows stop the reading or are counted.
        today: dates after this day are refused.
        rollup: CURIE -> the CURIEs to count instead; an event becomes one event of each.
        name: what messages call the source.
    """

    def __init__(
        self,
        data: Data,
        today: date,
        rollup: Mapping[str, tuple[str, ...]] | None = None,
        *,
        name: str = "the data",
    ) -> None:
        if rollup is None and (data.rollup.file or data.rollup.concept_ancestor):
            raise ValueError("the configuration asks for a roll-up, but none was given")
        self.name = name
        self.rows = 0
        """Rows that were looked at."""
        self.kept = 0
        """Events that came of them."""
        self._data = data
        self._book = GrowingCodeBook(data, rollup)
        self._first_day, self._last_day = (EARLIEST - EPOCH).days, (today - EPOCH).days
        self._faults = (
            "no patient",
            "no code",
            "code system not known (not in data.systems)",
            f"code longer than {MAX_CODE_LENGTH} characters",
            "code with a control character",
            "no date",
            "not a date (YYYY-MM-DD)",
            "not a full date (a year or a month)",
            f"date before {EARLIEST}",
            f"date in the future (after {today})",
        )
        self._bad: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._skipped: Counter[str] = Counter()

    @property
    def stopping(self) -> bool:
        """Whether a bad row was met that `finish` will raise; `add` then only counts and gives no more rows."""
        return bool(self._bad) and self._data.bad_rows == "stop"

    def add(self, batch: pa.Table) -> CodedRows:
        """Check and code one batch; see `site_agent.sources.EventSource.batches` for its columns.

        Raises:
            DataError: a column holds values of a kind that cannot be patients, dates or codes.
        """
        try:
            patient, no_patient = patients_of(batch.column("patient"))
            day = days_of(batch.column("date"))
            slot = self._book.slots(batch.column("code"), optional(batch, "system"))
        except pa.ArrowException as error:
            raise DataError(
                f"Rows of {self.name} cannot be read",
                why=str(error).splitlines()[0][:200],
                do="Patients are integers or text, dates are dates or text, codes are text",
            ) from None
        keep = self._sound(batch, no_patient, day, slot)
        self.rows += len(batch)
        if self.stopping:
            return CodedRows(patient[:0], day[:0], slot[:0])
        if keep is not None:
            patient, day, slot = patient[keep], day[keep], slot[keep]
        self._book.describe(batch, keep, slot)
        code, source_row = self._book.rolled_up(slot)
        if source_row is not None:
            patient, day = patient[source_row], day[source_row]
        unmapped = self._book.unmapped(slot)
        if unmapped:
            self._skipped["no target in the roll-up"] += unmapped
        self.kept += len(code)
        return CodedRows(patient, day, code)

    def finish(self, skipped: Mapping[str, int] | None = None) -> CodeBook:
        """The code book of all batches; `skipped` are the rows that the source left out itself.

        Raises:
            DataError: rows cannot be used and data.bad_rows is "stop" (every reason, its count and its first row are
                named), or no row is left.
        """
        if self.stopping:
            total = sum(self._bad.values())
            raise DataError(
                f"{total:,} of {self.rows:,} rows of {self.name} cannot be used",
                why="; ".join(
                    f"{_count(n)}: {reason}, {self._first[reason]}" for reason, n in self._bad.items()
                ),
                do='Correct the data, or set data.bad_rows = "skip" in site.toml to leave such rows out and count them',
            )
        left_out = Counter(skipped or {}) + self._bad + self._skipped
        if not self.kept:
            raise DataError(
                f"No row of {self.name} can be used",
                why="; ".join(f"{_count(n)}: {reason}" for reason, n in left_out.items())
                or "there are no rows",
                do="Correct the data, their column names or the configuration",
            )
        codes, position, descriptions = self._book.finish()
        return CodeBook(codes, position, descriptions, dict(left_out))

    def _sound(self, batch: pa.Table, no_patient: Flags | None, day: Int32s, slot: Int32s) -> Flags | None:
        """Which rows can be used, None if all; those that cannot are counted."""
        if not len(batch) or (
            no_patient is None
            and slot.min() >= 0
            and day.min() >= self._first_day
            and day.max() <= self._last_day
        ):
            return None
        tests: Sequence[Flags | None] = (
            no_patient,
            slot == NO_CODE,
            slot == NO_SYSTEM,
            slot == TOO_LONG,
            slot == CONTROL,
            day == NO_DATE,
            day == NOT_A_DATE,
            day == PARTIAL,
            day < self._first_day,
            day > self._last_day,
        )
        columns = ("patient", "code", "system", "code", "code", *["date"] * 5)
        keep = np.ones(len(batch), dtype=bool)
        for reason, column, test in zip(self._faults, columns, tests, strict=True):
            if test is None:
                continue
            bad = test & keep
            count = int(np.count_nonzero(bad))
            if count:
                self._bad[reason] += count
                if reason not in self._first:
                    row = int(bad.argmax())
                    self._first[reason] = (
                        f"the first is data row {self.rows + row + 1:,}{_shown(batch, column, row)}"
                    )
                keep &= ~bad
        return keep


def collect(
    source: EventSource,
    data: Data,
    *,
    today: date | None = None,
    rollup: Mapping[str, tuple[str, ...]] | None = None,
    progress: Progress = silent,
) -> Events:
    """Read, check and code a whole source in memory: for small data; `site_agent.staging` is for large ones.

    Raises:
        DataError: the source cannot be read, or as `Cleaner.finish` says.
    """
    cleaner = Cleaner(data, today or datetime.now(UTC).date(), rollup, name=source.name)
    reading = Reading(progress)
    parts = [cleaner.add(batch) for batch in source.batches(reading)]
    book = cleaner.finish(reading.skipped)
    return Events(
        patient=np.concatenate([p.patient for p in parts]),
        day=np.concatenate([p.day for p in parts]),
        code=book.position[np.concatenate([p.code for p in parts])],
        codes=book.codes,
        descriptions=book.descriptions,
        skipped=book.skipped,
    )


def _count(n: int) -> str:
    return f"{n:,} row{'' if n == 1 else 's'}"


def _shown(batch: pa.Table, column: str, row: int) -> str:
    value = batch.column(column)[row].as_py() if column in batch.column_names else None
    text = "" if value is None else str(value)
    if is_missing(text):
        return ""
    return f": {text[:40]!r}" + (f" ... of {len(text)} characters" if len(text) > 40 else "")
