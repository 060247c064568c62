"""The contract of event sources, for every form of files."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime, time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from site_agent.sections import Data, Domain
from site_agent.sources import EventSource
from site_agent.sources.fhir import FhirFolder
from site_agent.sources.meds import MedsFolder
from site_agent.sources.triplets import TripletFile
from tests.source_contract import CHECKS, SYSTEMS, BadRows, Check, Form, Row, check_name

URIS = {prefix: uri for uri, prefix in SYSTEMS.items()}


def csv_file(folder: Path, rows: Sequence[Row], bad_rows: BadRows) -> tuple[EventSource, Data]:
    path = folder / "events.csv"
    with path.open("w", newline="") as stream:
        lines = csv.writer(stream)
        lines.writerow(["date", "description", "patient", "code", "system"])
        lines.writerows([r.date, r.description, r.patient, r.code, r.system] for r in rows)
    data = Data(events=path.name, system="LOCAL", bad_rows=bad_rows)
    return TripletFile(path, data), data


def csv_gz_file(folder: Path, rows: Sequence[Row], bad_rows: BadRows) -> tuple[EventSource, Data]:
    source, data = csv_file(folder, rows, bad_rows)
    path = folder / "events.csv.gz"
    path.write_bytes(gzip.compress(Path(source.name).read_bytes()))
    return TripletFile(path, data), data


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    names = ("patient", "date", "code", "system", "description")
    return {name: [getattr(r, name) for r in rows] for name in names}


def parquet_file(folder: Path, rows: Sequence[Row], bad_rows: BadRows) -> tuple[EventSource, Data]:
    path = folder / "events.parquet"
    pq.write_table(pa.table(_columns(rows)), path, row_group_size=7)
    data = Data(events=path.name, system="LOCAL", bad_rows=bad_rows)
    return TripletFile(path, data), data


def parquet_of_texts(folder: Path, rows: Sequence[Row], bad_rows: BadRows) -> tuple[EventSource, Data]:
    """What data frames write: everything a category."""
    path = folder / "events.parquet"
    texts = {k: [None if v is None else str(v) for v in column] for k, column in _columns(rows).items()}
    pq.write_table(
        pa.table({k: pa.array(v, pa.string()).dictionary_encode() for k, v in texts.items()}), path
    )
    data = Data(events=path.name, system="LOCAL", bad_rows=bad_rows)
    return TripletFile(path, data), data


def meds_folder(folder: Path, rows: Sequence[Row], bad_rows: BadRows) -> tuple[EventSource, Data]:
    shutil.rmtree(folder / "data", ignore_errors=True)
    for name, part in {"train/0": rows[::2], "train/1": rows[1::2], "held_out/0": []}.items():
        path = folder / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        schema = pa.schema(
            [
                ("subject_id", pa.int64()),
                ("time", pa.timestamp("us")),
                ("code", pa.string()),
                ("numeric_value", pa.float32()),
            ]
        )
        codes = [None if r.code is None else f"{r.system}//{r.code}" for r in part]
        times = [None if r.date is None else datetime.combine(r.date, time(23, 59)) for r in part]
        values = [[r.patient for r in part], times, codes, [None] * len(part)]
        pq.write_table(
            pa.table([pa.array(v, f.type) for v, f in zip(values, schema, strict=True)], schema), path
        )
    (folder / "metadata").mkdir(exist_ok=True)
    texts = {f"{r.system}//{r.code}": r.description for r in rows}
    pq.write_table(
        pa.table({"code": list(texts), "description": list(texts.values())}),
        folder / "metadata" / "codes.parquet",
    )
    data = Data(
        kind="meds", events=".", system="LOCAL", systems={p: p for p in SYSTEMS.values()}, bad_rows=bad_rows
    )
    return MedsFolder(folder, data), data


def _resource(row: Row) -> tuple[str, dict[str, Any]]:
    concept = {"coding": [{"system": URIS[row.system], "code": row.code, "display": row.description}]}
    when = None if row.date is None else f"{row.date}T08:00:00+02:00"
    subject = {} if row.patient is None else {"reference": f"Patient/{row.patient}"}
    forms: dict[Domain, tuple[str, dict[str, Any]]] = {
        "condition": ("Condition", {"code": concept, "onsetDateTime": when}),
        "drug": ("MedicationRequest", {"medicationCodeableConcept": concept, "authoredOn": when}),
        "measurement": ("Observation", {"code": concept, "effectiveDateTime": when}),
        "observation": ("Observation", {"code": concept, "effectivePeriod": {"start": when}}),
        "procedure": ("Procedure", {"code": concept, "performedDateTime": when}),
    }
    kind, fields = forms[row.domain]
    return kind, {"resourceType": kind, "subject": subject, **fields}


def fhir_folder(folder: Path, rows: Sequence[Row], bad_rows: BadRows) -> tuple[EventSource, Data]:
    for old in folder.glob("*.ndjson*"):
        old.unlink()
    lines: dict[str, list[str]] = {}
    for row in rows:
        kind, resource = _resource(row)
        lines.setdefault(kind, []).append(json.dumps(resource))
    for kind, texts in lines.items():
        text = "\n".join(texts).encode()
        if kind == "Observation":
            (folder / "Observation.000.ndjson.gz").write_bytes(gzip.compress(text, mtime=0))
        else:
            (folder / f"{kind}.ndjson").write_bytes(text)
    data = Data(kind="fhir", events=".", system="LOCAL", systems=dict(SYSTEMS), bad_rows=bad_rows)
    return FhirFolder(folder, data), data


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


FORMS: dict[str, Callable[..., tuple[EventSource, Data]]] = {
    "csv": csv_file,
    "csv.gz": csv_gz_file,
    "parquet": parquet_file,
    "parquet of texts": parquet_of_texts,
    "meds": meds_folder,
    "fhir": fhir_folder,
}


@pytest.mark.parametrize("check", CHECKS, ids=check_name)
@pytest.mark.parametrize("form", FORMS)
def test_contract(form: str, check: Check, tmp_path: Path) -> None:
    check(Form(FORMS[form], remove=_remove), tmp_path)
