"""The site's patients table: birth, sex and death of each patient, from a CSV or Parquet file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from protocol.errors import DataError
from site_agent.cohort.files import NO_DAY
from site_agent.notes.identifiers import known_words
from site_agent.sources.columns import days_of, distinct, is_missing, optional, patients_of

Int32s = npt.NDArray[np.int32]
_COLUMNS = ("patient", "birth", "sex", "death")
_MOST_SEXES = 20
_IDENTIFYING = (
    "name first_name last_name middle_name maiden_name given_name family_name firstname lastname given family surname "
    "address street address_1 address_2 city zip postcode phone telephone mobile email e_mail mrn ssn account"
)
IDENTIFYING = frozenset(_IDENTIFYING.split())
"""Columns of the patients table whose words are taken out of the patient's notes, if the configuration names none."""


@dataclass(frozen=True, eq=False)
class People:
    """What the table says of n patients.

    Attributes:
        birth: (n,) days since 1970-01-01; NO_DAY where it is not known.
        death: (n,) the same.
        sex: (n,) places in `sexes`; -1 where it is not known.
        sexes: as the table writes them.
    """

    birth: Int32s
    death: Int32s
    sex: npt.NDArray[np.int8]
    sexes: tuple[str, ...]


def nobody_known(n: int) -> People:
    """Of n patients nothing is known."""
    nothing = np.full(n, NO_DAY, dtype=np.int32)
    return People(nothing, nothing, np.full(n, -1, dtype=np.int8), ())


def read_people(path: Path, patients: npt.NDArray[np.int64]) -> People:
    """The rows of these patients; others are passed over.

    Args:
        path: `.csv`, `.csv.gz` or `.parquet` with the column patient, and any of birth, sex, death. Dates begin with
            YYYY-MM-DD; patients are written as in the events.
        patients: (n,) numbers.

    Raises:
        DataError: no such file or column, a date that is none, or a patient with two different rows.
    """
    table = _read(path)
    number, missing = patients_of(table["patient"])
    order = np.argsort(patients)
    place = np.minimum(np.searchsorted(patients, number, sorter=order), max(len(patients) - 1, 0))
    known = (patients[order[place]] == number) if len(patients) else np.zeros(len(number), dtype=bool)
    if missing is not None:
        known &= ~missing
    row = order[place[known]]
    n = len(patients)
    days = {}
    for name in ("birth", "death"):
        days[name] = np.full(n, NO_DAY, dtype=np.int32)
        column = optional(table, name)
        if column is not None:
            _fill(path, name, days[name], row, _days(path, name, column)[known], NO_DAY)
    sex, sexes = np.full(n, -1, dtype=np.int8), tuple[str, ...]()
    column = optional(table, "sex")
    if column is not None:
        place_of, sexes = _sexes(path, column)
        _fill(path, "sex", sex, row, place_of[known], -1)
    return People(days["birth"], days["death"], sex, sexes)


def _sexes(path: Path, column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int8], tuple[str, ...]]:
    texts, index = distinct(column)
    named = [None if t is None or is_missing(t) else t.strip() for t in texts]
    sexes = tuple(sorted({t for t in named if t is not None}))
    if len(sexes) > _MOST_SEXES:
        raise DataError(
            f"The column sex of {path} has {len(sexes):,} values", do="Give it a word or letter for each sex"
        )
    number = np.array([-1 if t is None else sexes.index(t) for t in named], dtype=np.int8)
    return number[index], sexes


def _fill(
    path: Path, name: str, target: npt.NDArray[Any], row: npt.NDArray[np.intp], values: Any, none: int
) -> None:
    said = values != none
    row, values = row[said], values[said]
    target[row] = values
    if (target[row] != values).any():
        raise DataError(
            f"The patients table {path} gives a patient more than one {name}",
            do="Give each patient one row, or the same values in each",
        )


def _days(path: Path, name: str, column: pa.ChunkedArray) -> Int32s:
    days = days_of(column)
    marks = (days < NO_DAY + 3) & (days != NO_DAY)
    if marks.any():
        raise DataError(
            f"Data row {int(marks.argmax()) + 1:,} of the patients table {path} has no date in {name}",
            why=f"it is {str(column[int(marks.argmax())].as_py())[:20]!r}",
            do="Write dates as YYYY-MM-DD, and leave unknown ones empty",
        )
    return days


def known_of(path: Path, columns: tuple[str, ...]) -> dict[int, frozenset[str]]:
    """Number of a patient -> words by which the table's own columns (names, address, numbers) are found in a note.

    Args:
        path: as `read_people`.
        columns: whose words count; if there are none, those of the table that are called as `IDENTIFYING`.

    Raises:
        DataError: as `read_people`; or the table has no such column.
    """
    table = _read(path, None)
    usual = tuple(c for c in table.column_names if c.casefold() in IDENTIFYING)
    missing = [c for c in columns if c not in table.column_names]
    if missing:
        raise DataError(
            f"The patients table {path} has no column {missing[0]!r}",
            do="Correct notes.identifiers in site.toml",
        )
    number, absent = patients_of(table["patient"])
    values = [table[c].cast(pa.string()).to_pylist() for c in columns or usual]
    found: dict[int, frozenset[str]] = {}
    for i, row in enumerate(zip(*values, strict=True)):
        if absent is None or not absent[i]:
            key = int(number[i])
            found[key] = found.get(key, frozenset()) | known_words(v for v in row if v)
    return found


def _read(path: Path, columns: tuple[str, ...] | None = _COLUMNS) -> pa.Table:
    if not path.is_file():
        raise DataError(f"There is no patients table {path}", do="Correct cohort.patients in site.toml")
    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                table = file.read(columns=names if columns is None else [c for c in columns if c in names])
        else:
            with pa.input_stream(path, compression="detect") as stream, pa_csv.open_csv(stream) as probe:
                names = probe.schema.names
            options = pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=names if columns is None else [c for c in columns if c in names],
                strings_can_be_null=False,
            )
            table = pa_csv.read_csv(path, convert_options=options)
        if "patient" not in table.column_names:
            raise DataError(
                f"The patients table {path} has no column patient",
                do="Name its columns patient, birth, sex, death; only patient is required",
            )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The patients table {path} cannot be read",
            why=str(error).splitlines()[0][:200],
            do="Write it as UTF-8 CSV with a header line, or as Parquet",
        ) from None
    return table
