"""Events from a MEDS 0.4 folder: `data/**/*.parquet` and, for descriptions, `metadata/codes.parquet`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from protocol.errors import DataError
from site_agent.sections import Data
from site_agent.sources import Reading
from site_agent.sources.files import files_digest

BATCH_ROWS = 1 << 20
STATIC = "static row of MEDS (no time)"


@dataclass(frozen=True)
class MedsFolder:
    """A data set in the Medical Event Data Standard.

    A code such as `ICD10CM/E11.9` or `LAB//51274//mg` belongs to the system that `data.systems` gives for the longest
    part of it that ends before a slash, here `ICD10CM` or `LAB`; the rest, `E11.9` or `51274//mg`, is the code. So
    `"DIAGNOSIS//ICD//10" = "ICD10CM"` works too. Without such an entry the whole text is a code of `data.system`.

    Rows without a time are static (sex, race): no events, and counted as `STATIC`.

    Attributes:
        path: the folder that holds `data` and `metadata`.
        data: the code systems.
    """

    path: Path
    data: Data

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def fingerprint(self) -> str:
        """Digest of the names, sizes and times of all files that are read.

        Raises:
            DataError: there is no such folder, or no data in it.
        """
        return files_digest(self.path, [*self._files(), *self._code_file()])

    def batches(self, reading: Reading) -> Iterator[pa.Table]:
        """The timed rows, file by file.

        Raises:
            DataError: no folder, no rows, a missing column, a column of another type, or a file that is no Parquet.
        """
        files = self._files()
        texts = self._descriptions()
        sizes = [f.stat().st_size for f in files]
        done, rows = 0, 0
        for path, size in zip(files, sizes, strict=True):
            within = 0
            try:
                _check(path, pq.read_schema(path))
                with pq.ParquetFile(path, read_dictionary=["code"]) as file:
                    total = max(1, file.metadata.num_rows)
                    for part in file.iter_batches(BATCH_ROWS, columns=["subject_id", "time", "code"]):
                        within += len(part)
                        timed = part.filter(part.column("time").is_valid())
                        reading.skip(STATIC, len(part) - len(timed))
                        yield self._table(timed, texts)
                        reading.progress("reading events", (done + size * within / total) / sum(sizes))
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(path, error) from None
            done, rows = done + size, rows + within
        if rows == 0:
            raise DataError(f"The MEDS folder {self.path} has no rows", do="Export the events again")

    def ancestors(self) -> Mapping[str, tuple[str, ...]] | None:
        """None: the parent codes of MEDS are not read."""
        return None

    def _files(self) -> list[Path]:
        folder = self.path / "data"
        files = sorted(folder.rglob("*.parquet"))
        if not files:
            raise DataError(
                f"There are no MEDS data in {self.path}",
                why="a MEDS folder holds data/**/*.parquet"
                if folder.is_dir()
                else f"there is no folder {folder}",
                do="Correct data.events in site.toml: it names the folder that holds data and metadata",
            )
        return files

    def _code_file(self) -> list[Path]:
        path = self.path / "metadata" / "codes.parquet"
        return [path] if path.is_file() else []

    def _descriptions(self) -> dict[str, str]:
        """Code, as the data write it -> its text."""
        for path in self._code_file():
            try:
                with pq.ParquetFile(path) as file:
                    if not {"code", "description"} <= set(file.schema_arrow.names):
                        return {}
                    table = file.read(columns=["code", "description"])
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(path, error) from None
            pairs = zip(table["code"].to_pylist(), table["description"].to_pylist(), strict=True)
            return {str(code): str(text) for code, text in pairs if code and text}
        return {}

    def _table(self, part: pa.RecordBatch, texts: Mapping[str, str]) -> pa.Table:
        code = part.column("code")
        values = code.dictionary.to_pylist()
        parts = [self._split(v) for v in values]

        def column(found: list[str | None]) -> pa.Array:
            return pa.DictionaryArray.from_arrays(code.indices, pa.array(found, pa.string()))

        columns = {
            "patient": part.column("subject_id"),
            "date": part.column("time"),
            "code": column([c for _, c in parts]),
            "system": column([s for s, _ in parts]),
        }
        if texts:
            columns["description"] = column([texts.get(v) for v in values])
        return pa.table(columns)

    def _split(self, code: str | None) -> tuple[str | None, str | None]:
        """The key of `data.systems` and the rest of the code; no key where none fits."""
        if code is None:
            return None, None
        end = len(code)
        while (end := code.rfind("/", 0, end)) > 0:
            prefix = code[:end].rstrip("/")
            if prefix in self.data.systems:
                return prefix, code[len(prefix) :].removeprefix("/").removeprefix("/")
        return None, code


def _check(path: Path, schema: pa.Schema) -> None:
    """Raise a DataError where the file is not of the standard."""
    tests = {
        "subject_id": ("an integer", pa.types.is_integer),
        "time": ("a timestamp", pa.types.is_temporal),
        "code": ("text", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)),
    }
    for name, (kind, test) in tests.items():
        if name not in schema.names:
            raise DataError(
                f"The MEDS file {path} has no column {name!r}",
                why=f"its columns are {', '.join(map(repr, schema.names[:12]))}",
                do='Export the data as MEDS 0.4, or read them with kind = "triplets" and data.columns',
            )
        found = schema.field(name).type
        if pa.types.is_dictionary(found):
            found = found.value_type
        if not test(found):
            raise DataError(
                f"Column {name!r} of the MEDS file {path} is {found}",
                why=f"MEDS has {kind} there",
                do='Export the data as MEDS 0.4, or read them with kind = "triplets" and data.columns',
            )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"The MEDS file {path} cannot be read",
        why=str(error).splitlines()[0][:200],
        do="Write it again as Parquet",
    )
