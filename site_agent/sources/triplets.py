"""Events from a CSV or Parquet file with the columns patient, date, code [, system, description]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from protocol.errors import DataError
from protocol.vocabulary import curie
from site_agent.config import Columns, Data
from site_agent.sources import Events, Progress, silent

_MISSING = {"", "nan", "NaN", "NULL", "null", "None", "<NA>"}
"""What spreadsheets and data frames write for "no value"; a code never looks like this."""

_EARLIEST = date(1900, 1, 1)


@dataclass(frozen=True)
class TripletFile:
    """One file of (patient, date, code) rows.

    Attributes:
        path: a `.csv`, `.csv.gz` or `.parquet` file; CSV is UTF-8 with a header line.
        data: names of the columns, the default code system, and what to do with bad rows.
        today: dates after this day are refused.
    """

    path: Path
    data: Data
    today: date = field(default_factory=lambda: datetime.now(UTC).date())

    def read(self, progress: Progress = silent) -> Events:
        """Read, check and code all rows.

        Raises:
            DataError: no file, no rows, a missing column, or (with bad_rows = "stop") a row that cannot be used.
        """
        progress("reading events", 0.0)
        table = self._table()
        progress("checking rows", 0.4)
        columns = self.data.columns
        patients = _Column(_dictionary(table, columns.patient))
        dates = _Column(_dictionary(table, columns.date))
        codes = _Column(_dictionary(table, columns.code))
        days, bad_dates = self._days(dates.values)
        bad = _BadRows(self.path, self.data.bad_rows)
        bad.add("no patient", patients.missing(), patients)
        bad.add("no code", codes.missing(), codes)
        bad.add("no date", dates.missing(), dates)
        for reason, values in bad_dates.items():
            bad.add(reason, np.isin(dates.index, values), dates)
        keep = bad.keep(len(table))
        if not keep.any():
            raise DataError(
                f"No row of {self.path} can be used",
                why=bad.summary(),
                do="Correct the file or its column names",
            )
        progress("coding events", 0.7)
        names, rows, descriptions = self._codes(table, codes, keep)
        progress("coding events", 1.0)
        return Events(
            patient=patients.index[keep].astype(np.int64),
            day=days[dates.index[keep]],
            code=rows,
            codes=names,
            descriptions=descriptions,
            skipped=bad.counts,
        )

    def _table(self) -> pa.Table:
        columns = self.data.columns
        wanted = [columns.patient, columns.date, columns.code]
        if not self.path.exists():
            raise DataError(f"There is no event file {self.path}", do="Correct data.events in site.toml")
        if self.path.stat().st_size == 0:
            raise DataError(f"The event file {self.path} is empty", do="Export the events again")
        try:
            table = _read_parquet(self.path) if self.path.suffix == ".parquet" else _read_csv(self.path)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OSError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0][:200]
            raise DataError(
                f"The event file {self.path} cannot be read",
                why=reason,
                do="Write it as UTF-8 CSV with a header line, or as Parquet",
            ) from None
        missing = [c for c in wanted if c not in table.column_names]
        if missing:
            raise DataError(
                f"The event file {self.path} has no column {' and no column '.join(map(repr, missing))}",
                why=f"its columns are {', '.join(map(repr, table.column_names[:12]))}",
                do="Rename them, or set data.columns in site.toml",
            )
        if table.num_rows == 0:
            raise DataError(
                f"The event file {self.path} has a header but no rows", do="Export the events again"
            )
        return table.select([c for c in _names(columns) if c in table.column_names])

    def _days(self, values: list[Any]) -> tuple[np.ndarray[Any, np.dtype[np.int32]], dict[str, list[int]]]:
        """Days since 1970 for each distinct date value, and the positions of those that are no usable date."""
        days = np.zeros(len(values), dtype=np.int32)
        bad: dict[str, list[int]] = {}
        for i, value in enumerate(values):
            day = _parse_date(value)
            if day is None:
                if not _is_missing(value):
                    bad.setdefault("not a date (YYYY-MM-DD)", []).append(i)
            elif day > self.today:
                bad.setdefault(f"date in the future (after {self.today})", []).append(i)
            elif day < _EARLIEST:
                bad.setdefault(f"date before {_EARLIEST}", []).append(i)
            else:
                days[i] = (day - date(1970, 1, 1)).days
        return days, bad

    def _codes(
        self, table: pa.Table, codes: _Column, keep: Any
    ) -> tuple[tuple[str, ...], Any, Mapping[str, str]]:
        """CURIEs in order of text, each kept row's index into them, and the first description of each."""
        columns = self.data.columns
        kept = np.flatnonzero(keep)
        present = [c for c in (columns.system, columns.description) if c in table.column_names]
        extra = {name: _Column(_dictionary(table, name)) for name in present}
        systems, texts = extra.get(columns.system), extra.get(columns.description)
        pair = codes.index[kept]
        if systems is not None:
            pair = pair * len(systems.values) + systems.index[kept]
        _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
        curies = []
        for row in kept[first]:
            prefix = systems.at(row) if systems is not None else None
            curies.append(
                curie(self.data.system if _is_missing(prefix) else str(prefix).strip(), str(codes.at(row)))
            )
        # Two spellings of one code (spaces, Unicode forms) become one code here.
        names = tuple(sorted(set(curies)))
        position = {name: i for i, name in enumerate(names)}
        descriptions: dict[str, str] = {}
        for name, row in zip(curies, kept[first], strict=True):
            if texts is not None and not _is_missing(texts.at(row)):
                descriptions.setdefault(name, str(texts.at(row)))
        return names, np.array([position[c] for c in curies], dtype=np.int32)[inverse], descriptions


class _Column:
    """A column as distinct values and an index into them; missing values have their own entry."""

    def __init__(self, column: pa.DictionaryArray) -> None:
        self.values: list[Any] = column.dictionary.to_pylist()
        index = column.indices.fill_null(len(self.values)).to_numpy(zero_copy_only=False)
        self.values.append(None)
        self.index = index.astype(np.int64)

    def missing(self) -> Any:
        absent = [i for i, v in enumerate(self.values) if _is_missing(v)]
        return np.isin(self.index, absent)

    def at(self, row: int) -> Any:
        """The value in a row; None where there is none."""
        return self.values[self.index[row]]


class _BadRows:
    """Rows that cannot be used, by reason; stops at once or counts."""

    def __init__(self, path: Path, mode: str) -> None:
        self.path, self.mode = path, mode
        self.counts: dict[str, int] = {}
        self._masks: list[Any] = []

    def add(self, reason: str, mask: Any, column: _Column) -> None:
        count = int(mask.sum())
        if not count:
            return
        first = int(np.flatnonzero(mask)[0])
        value = column.values[column.index[first]]
        shown = "" if _is_missing(value) else f": {str(value)[:40]!r}"
        if self.mode == "stop":
            raise DataError(
                f"{count} row{'s' if count > 1 else ''} of {self.path} cannot be used: {reason}",
                why=f"the first is data row {first + 1}{shown}",
                do='Correct the file, or set data.bad_rows = "skip" in site.toml to leave such rows out and count them',
            )
        self.counts[reason] = count
        self._masks.append(mask)

    def keep(self, n: int) -> Any:
        keep = np.ones(n, dtype=bool)
        for mask in self._masks:
            keep &= ~mask
        return keep

    def summary(self) -> str:
        return "; ".join(f"{count} rows: {reason}" for reason, count in self.counts.items())


def _names(columns: Columns) -> list[str]:
    return [columns.patient, columns.date, columns.code, columns.system, columns.description]


def _read_csv(path: Path) -> pa.Table:
    # Everything as text: a code 0010 must not become the number 10.
    with pa_csv.open_csv(path) as probe:
        names = probe.schema.names
    return pa_csv.read_csv(
        path,
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )


def _read_parquet(path: Path) -> pa.Table:
    # A file of zero bytes or of another format raises ArrowInvalid here.
    return pq.ParquetFile(path).read()


def _dictionary(table: pa.Table, name: str) -> pa.DictionaryArray:
    column = table.column(name).combine_chunks()
    if pa.types.is_dictionary(column.type):
        return column
    if pa.types.is_timestamp(column.type):
        column = pc.cast(column, pa.date32(), safe=False)
    return pc.dictionary_encode(column)


def _is_missing(value: Any) -> bool:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return True
    return isinstance(value, str) and value.strip() in _MISSING


def _parse_date(value: Any) -> date | None:
    """A date, or a text that begins with YYYY-MM-DD and goes on with nothing or a time."""
    if isinstance(value, datetime):
        return value.date()
    if isinstance(value, date):
        return value
    if not isinstance(value, str):
        return None
    text = value.strip()
    if len(text) > 10 and text[10] not in " T":
        return None
    try:
        return date.fromisoformat(text[:10]) if len(text) >= 10 else None
    except ValueError:
        return None
