"""Notes as rows of patient, date and text: from a CSV or Parquet file, or from a table of the database that has the events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from protocol.errors import DataError, UsageError
from site_agent.config import Home
from site_agent.sections import Data, NoteColumns, Notes
from site_agent.sources.databases import connect
from site_agent.sources.databases.url import parse_url
from site_agent.sources.tables import DAY, LABEL, Tables, import_ibis

_ROWS = 4096
"""Of Parquet; a note may have a hundred kilobytes."""
_READ = pa_csv.ReadOptions(block_size=4 << 20)
_PARSE = pa_csv.ParseOptions(newlines_in_values=True)
_WANTED = ("patient", "date", "text")


class NoteSource(Protocol):
    """Anything that notes are read from."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def batches(self) -> Iterator[pa.Table]:
        """Tables with the columns patient, date and text, in any order of rows.

        Raises:
            DataError: the notes are not there, or not as they need to be.
        """
        ...


def open_notes(home: Home) -> NoteSource:
    """The source that `[notes]` of site.toml names; nothing is read yet.

    Raises:
        UsageError: it names none, or a table of data that are no database.
    """
    told, data = home.config.notes, home.config.data
    if told.file:
        return NoteFile(home.path(told.file), told.columns)
    if told.table:
        if not data.database:
            raise UsageError(
                "notes.table names a table, and this site's events come from no database",
                do="Set notes.file in site.toml",
            )
        return NoteTable(data, told)
    raise UsageError(
        "This site's configuration names no notes",
        do="Set file, or table, in [notes] of site.toml; see docs/how-to/join-notes.md",
    )


@dataclass(frozen=True)
class NoteFile:
    """A `.csv`, `.csv.gz` (UTF-8 with a header line) or `.parquet` file."""

    path: Path
    columns: NoteColumns

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def batches(self) -> Iterator[pa.Table]:
        """See `NoteSource.batches`."""
        if not self.path.is_file():
            raise DataError(f"There is no file of notes {self.path}", do="Correct notes.file in site.toml")
        try:
            yield from self._parquet() if self.path.suffix == ".parquet" else self._csv()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"The notes {self.path} cannot be read",
                why=str(error).splitlines()[0][:200],
                do="Write them as UTF-8 CSV with a header line, or as Parquet",
            ) from None

    def _names(self, present: list[str]) -> list[str]:
        wanted = [self.columns.patient, self.columns.date, self.columns.text]
        missing = [c for c in wanted if c not in present]
        if missing:
            raise DataError(
                f"The notes {self.path} have no column {' and no column '.join(map(repr, missing))}",
                why=f"their columns are {', '.join(map(repr, present[:12]))}",
                do="Rename them, or set notes.columns in site.toml",
            )
        return wanted

    def _parquet(self) -> Iterator[pa.Table]:
        with pq.ParquetFile(self.path) as file:
            names = self._names(file.schema_arrow.names)
            for part in file.iter_batches(_ROWS, columns=names):
                yield pa.Table.from_batches([part]).select(names).rename_columns(_WANTED)

    def _csv(self) -> Iterator[pa.Table]:
        with pa.input_stream(self.path, compression="detect") as stream, pa_csv.open_csv(stream) as probe:
            names = self._names(probe.schema.names)
        convert = pa_csv.ConvertOptions(
            include_columns=names,
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=False,
        )
        with (
            pa.input_stream(self.path, compression="detect") as stream,
            pa_csv.open_csv(stream, _READ, _PARSE, convert) as reader,
        ):
            for part in reader:
                yield pa.Table.from_batches([part]).rename_columns(_WANTED)


@dataclass(frozen=True)
class NoteTable:
    """A table of the site's database, in `data.schema`."""

    data: Data
    notes: Notes

    @property
    def name(self) -> str:
        """The table and the database, whose address holds no password."""
        url = parse_url(self.data.database)
        return f"{self.notes.table} of {url.scheme}://{url.netloc}{url.path}"

    def batches(self) -> Iterator[pa.Table]:
        """See `NoteSource.batches`."""
        columns, name = self.notes.columns, self.name
        import_ibis()  # said before a server is asked
        with connect(parse_url(self.data.database), name) as database:
            tables = Tables(database, self.data, (), name)
            needs = {columns.patient: LABEL, columns.date: DAY, columns.text: frozenset({"text"})}
            bound = tables.bind(self.notes.table, needs)
            day: Any = bound.columns[columns.date.lower()]
            value = bound.table[day.name]
            chosen = {
                "patient": bound.key(columns.patient),
                "date": value if day.kind == "text" else value.cast("date"),
                "text": bound.label(columns.text),
            }
            yield from tables.stream(bound.table.select(**chosen))
