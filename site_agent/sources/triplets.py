"""Events from a CSV or Parquet file with the columns patient, date, code [, system, description]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from protocol.errors import DataError
from site_agent.sections import Data
from site_agent.sources import Reading

BATCH_ROWS = 1 << 20
_READ = pa_csv.ReadOptions(block_size=4 << 20)
_PARSE = pa_csv.ParseOptions(newlines_in_values=True)  # a quoted description may have several lines


@dataclass(frozen=True)
class TripletFile:
    """One file of (patient, date, code) rows.

    Attributes:
        path: a `.csv`, `.csv.gz` or `.parquet` file; CSV is UTF-8 with a header line.
        data: names of the columns.
    """

    path: Path
    data: Data

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def fingerprint(self) -> str:
        """Name, size and time of the file.

        Raises:
            DataError: there is no such file, or it is empty.
        """
        try:
            found = self.path.stat()
        except OSError:
            raise DataError(
                f"There is no event file {self.path}", do="Correct data.events in site.toml"
            ) from None
        if not self.path.is_file():
            raise DataError(f"The event file {self.path} is no file", do="Correct data.events in site.toml")
        if found.st_size == 0:
            raise DataError(f"The event file {self.path} is empty", do="Export the events again")
        return f"{self.path.name} {found.st_size} {found.st_mtime_ns}"

    def batches(self, reading: Reading) -> Iterator[pa.Table]:
        """The rows in the file's order; texts of a CSV file stay texts, so that 0010 is not the number 10.

        Raises:
            DataError: no file, no rows, a missing column, or it cannot be parsed.
        """
        self.fingerprint()
        rows = 0
        try:
            for batch in self._parquet(reading) if self.path.suffix == ".parquet" else self._csv(reading):
                rows += len(batch)
                yield batch
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0][:200]
            raise DataError(
                f"The event file {self.path} cannot be read",
                why=reason,
                do="Write it as UTF-8 CSV with a header line, or as Parquet",
            ) from None
        if rows == 0:
            raise DataError(
                f"The event file {self.path} has a header but no rows", do="Export the events again"
            )

    def ancestors(self) -> Mapping[str, tuple[str, ...]] | None:
        """None: a file knows no hierarchy."""
        return None

    def _columns(self, present: list[str]) -> dict[str, str]:
        """The interface's name -> the file's, of the columns that the file has."""
        columns = self.data.columns
        wanted = {"patient": columns.patient, "date": columns.date, "code": columns.code}
        optional = {"system": columns.system, "description": columns.description}
        missing = [c for c in wanted.values() if c not in present]
        if missing:
            raise DataError(
                f"The event file {self.path} has no column {' and no column '.join(map(repr, missing))}",
                why=f"its columns are {', '.join(map(repr, present[:12]))}",
                do="Rename them, or set data.columns in site.toml",
            )
        found = wanted | {k: c for k, c in optional.items() if c in present}
        twice = [c for c, n in Counter(present).items() if n > 1 and c in found.values()]
        if twice:
            raise DataError(
                f"The event file {self.path} has more than one column {twice[0]!r}", do="Rename one of them"
            )
        return found

    def _parquet(self, reading: Reading) -> Iterator[pa.Table]:
        # A file of zero bytes or of another format raises ArrowInvalid here.
        with pq.ParquetFile(self.path) as probe:
            schema = probe.schema_arrow
        found = self._columns(schema.names)
        # Few distinct values, and the file has them as a dictionary already.
        coded = [
            c for k, c in found.items() if k not in {"patient", "date"} and _is_text(schema.field(c).type)
        ]
        with pq.ParquetFile(self.path, read_dictionary=coded) as file:
            done, total = 0, max(1, file.metadata.num_rows)
            for part in file.iter_batches(BATCH_ROWS, columns=list(found.values())):
                done += len(part)
                yield _named(pa.Table.from_batches([part]), found)
                reading.progress("reading events", done / total)

    def _csv(self, reading: Reading) -> Iterator[pa.Table]:
        size = self.path.stat().st_size
        with _opened(self.path) as (_, stream), pa_csv.open_csv(stream) as probe:
            found = self._columns(probe.schema.names)
        convert = pa_csv.ConvertOptions(
            include_columns=list(found.values()),
            column_types=dict.fromkeys(found.values(), pa.string()),
            strings_can_be_null=False,
        )
        with _opened(self.path) as (raw, stream), pa_csv.open_csv(stream, _READ, _PARSE, convert) as reader:
            for part in reader:
                yield _named(pa.Table.from_batches([part]), found)
                reading.progress("reading events", min(1.0, raw.tell() / size))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Any]]:
    """The file, whose position tells how far the reading is, and a stream of its text."""
    with path.open("rb") as raw:
        yield raw, pa.CompressedInputStream(raw, "gzip") if path.suffix == ".gz" else raw


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _named(table: pa.Table, found: Mapping[str, str]) -> pa.Table:
    return table.select(list(found.values())).rename_columns(list(found))
