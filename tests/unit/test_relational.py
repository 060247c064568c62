"""The relational adapter: names in any case, types, i2b2 and PCORnet, and bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from site_agent.sections import Data
from site_agent.sources import Reading
from site_agent.sources.clean import collect
from site_agent.sources.i2b2 import I2b2Source
from site_agent.sources.pcornet import PCORNET_TABLES, PcornetSource
from site_agent.sources.relational import CodeColumn, RelationalSource, TableMap
from tests.source_contract import CHECKS, BadRows, Check, Form, Row, check_name

TODAY = date(2026, 1, 1)


def duckdb_file(path: Path, tables: Mapping[str, pa.Table], schema: str = "main") -> str:
    """Write tables as they are into a DuckDB file, in place of those that are there; its URL."""
    with duckdb.connect(str(path)) as connection:
        place = f'"{path.stem}"."{schema}"'
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {place}")
        for name, table in tables.items():
            connection.register("incoming", table)
            connection.execute(f'CREATE OR REPLACE TABLE {place}."{name}" AS SELECT * FROM incoming')
            connection.unregister("incoming")
    return f"duckdb://{path}"


def plain(table: pa.Table) -> list[tuple[Any, ...]]:
    """Rows of raw batches as tuples."""
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def raw(source: RelationalSource, reading: Reading | None = None) -> list[tuple[Any, ...]]:
    return plain(pa.concat_tables(source.batches(reading or Reading())))


VISITS = (TableMap("visits", "patient", ("day", "entered"), (CodeColumn("code"),)),)


def visits(path: Path, **columns: Any) -> RelationalSource:
    """A source of one table `visits`; columns are Arrow arrays or lists."""
    url = duckdb_file(path / "visits.duckdb", {"visits": pa.table(columns)})
    return RelationalSource(Data(kind="omop", database=url, system="LOCAL"), VISITS)


def test_case_of_tables_and_columns_does_not_matter(tmp_path: Path) -> None:
    tables = {
        "OBSERVATION_FACT": pa.table(
            {
                "PATIENT_NUM": [1],
                "START_DATE": [date(2020, 1, 2)],
                "Concept_Cd": ["ICD9:250.00"],
                "MODIFIER_CD": ["@"],
            }
        ),
        "Concept_Dimension": pa.table({"CONCEPT_CD": ["ICD9:250.00"], "NAME_CHAR": ["Diabetes"]}),
    }
    data = Data(
        kind="i2b2",
        database=duckdb_file(tmp_path / "x", tables, schema="DEMO"),
        schema="demo",
        system="LOCAL",
    )
    assert raw(I2b2Source(data)) == [(1, date(2020, 1, 2), "250.00", "ICD9", "Diabetes", False)]


@pytest.mark.parametrize(
    ("patients", "expected"),
    [
        (pa.array([1, None], pa.int32()), [1, None]),
        (pa.array(["a", None]), ["a", None]),
        (pa.array(["a", None]).dictionary_encode(), ["a", None]),
        (pa.array(["a", None], pa.large_string()), ["a", None]),
        (pa.array([Decimal(12), None], pa.decimal128(38, 0)), [12, None]),
    ],
)
def test_patients_are_whole_numbers_or_text(tmp_path: Path, patients: pa.Array, expected: list[Any]) -> None:
    source = visits(tmp_path, patient=patients, day=[date(2020, 1, 1)] * 2, code=["x", "y"])
    (batch,) = source.batches(Reading())
    assert batch["patient"].to_pylist() == expected
    assert batch.schema.field("patient").type in (pa.int64(), pa.string())


def test_the_first_date_that_is_not_null_counts(tmp_path: Path) -> None:
    source = visits(
        tmp_path,
        patient=[1, 2, 3],
        day=pa.array([None, date(2020, 1, 2), None], pa.date32()),
        entered=pa.array([datetime(2021, 3, 4, 23, 59), datetime(2021, 3, 4), None], pa.timestamp("us")),
        code=["x"] * 3,
    )
    assert [row[1] for row in raw(source)] == [date(2021, 3, 4), date(2020, 1, 2), None]


def test_dates_written_as_text_stay_text(tmp_path: Path) -> None:
    source = visits(
        tmp_path, patient=[1, 2], day=["2020-01-02", "soon"], entered=[date(2020, 1, 1)] * 2, code=["x"] * 2
    )
    assert [row[1] for row in raw(source)] == ["2020-01-02", "soon"]


def test_codes_may_be_numbers(tmp_path: Path) -> None:
    source = visits(tmp_path, patient=[1, 2], day=[date(2020, 1, 1)] * 2, code=[860975, None])
    assert [row[2] for row in raw(source)] == ["860975", None]


def test_progress_grows_to_one(tmp_path: Path) -> None:
    shares: list[float] = []
    source = visits(tmp_path, patient=[1] * 9, day=[date(2020, 1, 1)] * 9, code=["x"] * 9)
    list(source.batches(Reading(progress=lambda _step, share: shares.append(share))))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def i2b2_tables(rows: Sequence[tuple[int | None, Any, str | None, str]]) -> dict[str, pa.Table]:
    patient, day, code, modifier = (list(column) for column in zip(*rows, strict=True))
    fact = {
        "patient_num": pa.array(patient, pa.int64()),
        "start_date": pa.array(day, pa.timestamp("us")),
        "concept_cd": pa.array(code, pa.string()),
        "modifier_cd": pa.array(modifier, pa.string()),
    }
    names = {
        "concept_cd": ["ICD10:E11.9", "ICD10:E11.9", "LAB:a:b"],
        "name_char": ["Type 2", "A shorter path", "Ratio a:b"],
    }
    return {"observation_fact": pa.table(fact), "concept_dimension": pa.table(names)}


def test_i2b2_codes_are_split_and_modifiers_counted(tmp_path: Path) -> None:
    noon = datetime(2020, 1, 1, 12)
    rows = [
        (1, noon, "ICD10:E11.9", "@"),
        (1, noon, "ICD10:E11.9", "DOSE"),
        (1, noon, "LAB:a:b", " @ "),
        (2, None, "homegrown", "@"),
        (3, noon, None, "@"),
    ]
    data = Data(kind="i2b2", database=duckdb_file(tmp_path / "x", i2b2_tables(rows)), system="LOCAL")
    reading = Reading()
    day = noon.date()
    # A concept with several paths has several texts: always the same one is taken.
    assert raw(I2b2Source(data), reading) == [
        (1, day, "E11.9", "ICD10", "A shorter path", False),
        (1, day, "a:b", "LAB", "Ratio a:b", False),
        (2, None, "homegrown", None, None, False),
        (3, day, None, None, None, False),
    ]
    assert reading.skipped == {"i2b2 modifier of another row": 1}


_DAY = date(2020, 5, 6)


def pcornet_tables(**tables: Sequence[tuple[Any, ...]]) -> dict[str, pa.Table]:
    """PCORnet tables in upper case; each row is patient, dates, code and, where there is one, its type."""
    made = {}
    for mapped in PCORNET_TABLES:
        names = [mapped.patient, *mapped.dates, mapped.codes[0].column]
        names += [mapped.codes[0].system_column] if mapped.codes[0].system_column else []
        rows = tables.get(mapped.table, ())
        kinds = [pa.string(), *[pa.date32()] * len(mapped.dates), pa.string(), pa.string()]
        made[mapped.table.upper()] = pa.table(
            {n.upper(): pa.array([r[i] for r in rows], kinds[i]) for i, n in enumerate(names)}
        )
    return made


def test_pcornet_types_name_the_code_systems(tmp_path: Path) -> None:
    tables = pcornet_tables(
        diagnosis=[
            ("p", _DAY, None, "250.00", "09"),
            ("p", None, _DAY, "E11.9", "10"),
            ("p", _DAY, None, "44054006", "SM"),
            ("p", _DAY, None, "HOUSE", "OT"),
            ("p", _DAY, None, "Q", None),
            ("p", _DAY, None, "R", "ZZ"),
        ],
        procedures=[
            ("p", _DAY, "99213", "CH"),
            ("p", _DAY, "J1815", "CH"),
            ("p", _DAY, "0001F", "ch"),
            ("p", _DAY, "0DTJ4ZZ", "10"),
        ],
        prescribing=[("p", _DAY, "860975"), ("p", _DAY, None)],
        lab_result_cm=[("p", None, _DAY, "4548-4")],
    )
    data = Data(kind="pcornet", database=duckdb_file(tmp_path / "x", tables), system="LOCAL")
    found = raw(PcornetSource(data))
    assert {row[:2] for row in found} == {("p", _DAY)}
    assert [(system, code) for _, _, code, system, _, _ in found] == [
        ("ICD9CM", "250.00"),
        ("ICD10CM", "E11.9"),
        ("SNOMEDCT", "44054006"),
        (None, "HOUSE"),
        (None, "Q"),
        ("ZZ", "R"),
        ("CPT", "99213"),
        ("HCPCS", "J1815"),
        ("CPT", "0001F"),
        ("ICD10PCS", "0DTJ4ZZ"),
        ("RXNORM", "860975"),
        ("RXNORM", None),
        ("LOINC", "4548-4"),
    ]


def _make_i2b2(folder: Path, rows: Sequence[Row], bad_rows: BadRows) -> tuple[I2b2Source, Data]:
    facts = [
        (r.patient, r.date and datetime(r.date.year, r.date.month, r.date.day), _cell(r), "@") for r in rows
    ]
    tables = i2b2_tables(facts)
    known = sorted({(_cell(r), r.description) for r in rows if r.code})
    tables["concept_dimension"] = pa.table(
        {"concept_cd": [k[0] for k in known], "name_char": [k[1] for k in known]}
    )
    data = Data(
        kind="i2b2", database=duckdb_file(folder / "i2b2.duckdb", tables), system="LOCAL", bad_rows=bad_rows
    )
    return I2b2Source(data), data


def _cell(row: Row) -> str | None:
    return None if row.code is None else f"{row.system}:{row.code}"


_SIGNS = {"ICD10CM": "10", "ICD10PCS": "10", "SNOMED": "SM"}
_PLACES = {
    "condition": "diagnosis",
    "observation": "diagnosis",
    "procedure": "procedures",
    "drug": "prescribing",
}


def _make_pcornet(folder: Path, rows: Sequence[Row], bad_rows: BadRows) -> tuple[PcornetSource, Data]:
    tables: dict[str, list[tuple[Any, ...]]] = {}
    for r in rows:
        place = _PLACES.get(r.domain, "lab_result_cm")
        dates = (r.date,) if place in {"procedures", "prescribing"} else (None, r.date)
        patient = None if r.patient is None else str(r.patient)
        tables.setdefault(place, []).append((patient, *dates, r.code, _SIGNS.get(r.system)))
    url = duckdb_file(folder / "pcornet.duckdb", pcornet_tables(**tables))
    data = Data(
        kind="pcornet", database=url, system="LOCAL", systems={"SNOMEDCT": "SNOMED"}, bad_rows=bad_rows
    )
    return PcornetSource(data), data


def _unlink(folder: Path) -> None:
    for file in folder.glob("*.duckdb"):
        file.unlink()


FORMS = {"i2b2": Form(_make_i2b2, _unlink), "pcornet": Form(_make_pcornet, _unlink, describes=False)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("check", CHECKS, ids=check_name)
def test_contract(check: Check, form: str, tmp_path: Path) -> None:
    check(FORMS[form], tmp_path)


def test_bad_rows_of_a_database_are_counted_by_reason(tmp_path: Path) -> None:
    source = visits(
        tmp_path,
        patient=[1, None, 3, 4],
        day=[date(2020, 1, 1), date(2020, 1, 1), None, date(2020, 1, 1)],
        code=["x", "x", "x", None],
    )
    data = Data(kind="omop", database="duckdb:///x", system="LOCAL", bad_rows="skip")
    assert collect(source, data, today=TODAY).skipped == {"no patient": 1, "no date": 1, "no code": 1}
