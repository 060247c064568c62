"""Results of an experiment on the disk: one Parquet file that grows replication by replication, and its summary."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.evaluation import Estimate, mean_and_error
from coordinator.simulation.experiment import SETTINGS, Design, Job, Results, Row, designs, rows
from coordinator.simulation.methods import METHODS, SMILE, Measured
from protocol.errors import UsageError
from protocol.files import write_atomic

RESULTS, SUMMARY = "results.parquet", "summary.csv"
FIGURES: Final[Mapping[str, str]] = {
    "ami": "AMI, non-anchor clusters",
    "accuracy_u": "accuracy of U",
    "accuracy_centers": "accuracy of centers",
}
"""The columns that a figure shows, in words."""

_NUMBERS: Final = (*FIGURES, "kappa", "seconds")
_DESIGN = b"design"
_TYPES: Final[Mapping[str, pa.DataType]] = {"int": pa.int32(), "float": pa.float64(), "str": pa.string()}
_SCHEMA: Final = pa.schema([(f.name, _TYPES[str(f.type)]) for f in fields(Row)])


class ResultFile:
    """`results.parquet` of a folder: what is measured so far, for one common design.

    Attributes:
        results: by replication and method.
    """

    def __init__(self, folder: Path, base: Design, settings: Sequence[int]) -> None:
        """Open the results of a folder, or begin them.

        Raises:
            UsageError: the folder holds another experiment, or cannot be read or written.
        """
        self.path, self.base = folder / RESULTS, base
        self.results: Results = {}
        self.settings = set(settings)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._load(pq.read_table(self.path))
        except (OSError, pa.ArrowException) as error:
            raise UsageError(
                f"The results {self.path} cannot be used",
                why=str(error).splitlines()[0],
                do="Name another folder with --output, or remove the file",
            ) from None

    def _load(self, table: pa.Table) -> None:
        written = (table.schema.metadata or {}).get(_DESIGN)
        if written is None or table.column_names != _SCHEMA.names:
            raise UsageError(f"{self.path} was not written by this command", do="Name another folder")
        if json.loads(written) != asdict(self.base):
            raise UsageError(
                f"The folder {self.path.parent} holds another experiment",
                why=f"its design is {written.decode()}",
                do="Run with the same options to go on with it, or name another folder",
            )
        place = {(s, value): d for s in SETTINGS for value, d in designs(s, self.base)}
        names = [f.name for f in fields(Measured)]
        for row in table.to_pylist():
            self.settings.add(row["setting"])
            job = Job(place[row["setting"], row["value"]], row["seed"])
            values: dict[str, Any] = {
                name: float("nan") if row[name] is None else row[name] for name in names
            }
            self.results[job, row["method"]] = Measured(**values)

    def missing(self, jobs: Sequence[Job], methods: Sequence[str]) -> list[tuple[Job, tuple[str, ...]]]:
        """Replications that are not complete, with the methods that they lack."""
        lacking = [(job, tuple(m for m in methods if (job, m) not in self.results)) for job in jobs]
        return [entry for entry in lacking if entry[1]]

    def add(self, job: Job, measured: Sequence[Measured]) -> None:
        """Add a replication and write the file again, whole: it is never half a file."""
        self.results.update({(job, found.method): found for found in measured})
        records = [asdict(row) for row in rows(self.results, sorted(self.settings), self.base)]
        columns = [pa.array([r[f.name] for r in records], f.type, from_pandas=True) for f in _SCHEMA]
        table = pa.Table.from_arrays(columns, schema=_SCHEMA)
        table = table.replace_schema_metadata({_DESIGN: json.dumps(asdict(self.base)).encode()})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_atomic(self.path, buffer.getvalue(), mode=0o644)


@dataclass(frozen=True)
class Line:
    """Mean and standard error of one method at one value of a setting.

    Attributes:
        setting: its number.
        parameter: what varies.
        value: its value.
        method: the method.
        replications: rows with figures.
        failed: rows with an error.
        figures: by column, over replications.
        lead: of SMILE over this method by column, paired by seed; empty for SMILE and where it did not run.
    """

    setting: int
    parameter: str
    value: float
    method: str
    replications: int
    failed: int
    figures: Mapping[str, Estimate]
    lead: Mapping[str, Estimate]

    @classmethod
    def of(cls, found: Sequence[Row], smile: Mapping[int, Row]) -> Self:
        """From the rows of one method at one value, and SMILE's there by seed."""
        good = [row for row in found if not row.error]
        pairs = [(smile[row.seed], row) for row in good if row.seed in smile and row.method != SMILE]
        return cls(
            found[0].setting,
            found[0].parameter,
            found[0].value,
            found[0].method,
            len(good),
            len(found) - len(good),
            {c: _estimate([getattr(row, c) for row in good]) for c in _NUMBERS},
            {c: _estimate([getattr(a, c) - getattr(b, c) for a, b in pairs]) for c in FIGURES if pairs},
        )


def summarise(found: Sequence[Row]) -> list[Line]:
    """One line for each setting, value and method, in the order of the rows' settings and of `METHODS`."""
    grouped: dict[tuple[int, float, str], list[Row]] = {}
    for row in found:
        grouped.setdefault((row.setting, row.value, row.method), []).append(row)
    order = {method: place for place, method in enumerate(METHODS)}
    lines = []
    for (setting, value, _), group in sorted(grouped.items(), key=lambda e: (*e[0][:2], order[e[0][2]])):
        ours = grouped.get((setting, value, SMILE), [])
        lines.append(Line.of(group, {row.seed: row for row in ours if not row.error}))
    return lines


def as_records(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Flat rows for CSV and JSON; None where there is no number."""
    records = []
    for line in lines:
        record: dict[str, Any] = {
            name: getattr(line, name)
            for name in ("setting", "parameter", "value", "method", "replications", "failed")
        }
        for column in _NUMBERS:
            record |= _pair(column, line.figures[column])
        for column in FIGURES:
            record |= _pair(f"smile_lead_{column}", line.lead.get(column, _estimate([])))
        records.append(record)
    return records


def write_summary(folder: Path, lines: Sequence[Line]) -> Path:
    """`summary.csv`: the lines as a table."""
    records = as_records(lines)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_atomic(folder / SUMMARY, text.getvalue(), mode=0o644)
    return folder / SUMMARY


def _pair(column: str, estimate: Estimate) -> dict[str, float | None]:
    return {f"{column}{end}": _plain(x) for end, x in (("", estimate.mean), ("_se", estimate.error))}


def _plain(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None


def _estimate(values: Sequence[float]) -> Estimate:
    finite = [v for v in values if np.isfinite(v)]
    return mean_and_error(finite) if finite else Estimate(float("nan"), float("nan"))
