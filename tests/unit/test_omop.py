"""OMOP: the same events from DuckDB, PostgreSQL and Spark, bit for bit."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from site_agent.sections import Data, RollUp
from site_agent.sources import Description, Events, Reading
from site_agent.sources.clean import collect
from site_agent.sources.omop import OMOP_TABLES, OmopSource
from tests import postgres as pg
from tests import spark as sp
from tests.postgres import postgres  # noqa: F401 (a fixture)
from tests.source_contract import (
    CHECKS,
    BadRows,
    Check,
    Form,
    Row,
    check_name,
    reads_the_same_events,
    says_when_the_data_are_not_there,
)
from tests.spark import spark  # noqa: F401 (a fixture)
from tests.unit.test_relational import duckdb_file, plain

TODAY = date(2026, 1, 1)
EUNOMIA = Path(__file__).parents[2].parent / "shared" / "data" / "eunomia_synthea27nj" / "Synthea27Nj_5.4.zip"
CONCEPT = pa.schema(
    [
        ("concept_id", pa.int64()),
        ("concept_name", pa.string()),
        ("vocabulary_id", pa.string()),
        ("concept_class_id", pa.string()),
        ("concept_code", pa.string()),
    ]
)
ANCESTOR = pa.schema([("ancestor_concept_id", pa.int64()), ("descendant_concept_id", pa.int64())])
BACKENDS = ("duckdb", "postgresql", "spark")

Tables = Mapping[str, pa.Table]
Load = Callable[[Tables], str]


@pytest.fixture(params=BACKENDS)
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Load]:
    """Writes tables into a database of each kind and gives its URL; the schema is `cdm`."""
    yield from _loader(request, request.param, tmp_path)


def _loader(request: pytest.FixtureRequest, kind: str, folder: Path) -> Iterator[Load]:
    if kind == "duckdb":
        yield lambda tables: duckdb_file(folder / "cdm.duckdb", tables, schema="cdm")
    elif kind == "spark":
        session = request.getfixturevalue("spark")
        yield lambda tables: sp.load(session, tables, "cdm") or sp.URL
        session.sql("DROP DATABASE IF EXISTS cdm CASCADE")
    else:
        server = request.getfixturevalue("postgres")
        with server.database("omop") as url, server.connect("omop") as connection:
            yield lambda tables: pg.load(connection, tables, "cdm") or url


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMILE_DATABASE_PASSWORD", pg.PASSWORD)


def omop(url: str, **settings: Any) -> Data:
    return Data(
        kind="omop", database=url, system="LOCAL", **{"schema": "cdm", "bad_rows": "skip", **settings}
    )


def read(data: Data) -> Events:
    return collect(OmopSource(data), data, today=TODAY)


def same(a: Events, b: Events) -> None:
    """Equal to the last bit, but for the order of rows."""
    assert a.codes == b.codes
    assert a.descriptions == b.descriptions
    assert a.skipped == b.skipped
    for x, y in zip(_in_order(a), _in_order(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def _in_order(events: Events) -> tuple[Any, Any, Any]:
    order = np.lexsort((events.code, events.day, events.patient))
    return events.patient[order], events.day[order], events.code[order]


def eunomia() -> Tables:
    """Five event tables, concept and concept_ancestor of 28 synthetic persons, in CDM 5.4."""
    if not EUNOMIA.exists():
        pytest.skip(f"no {EUNOMIA.name} in the shared data")
    names = [m.table for m in OMOP_TABLES]
    tables: dict[str, pa.Table] = {}
    with zipfile.ZipFile(EUNOMIA) as archive:
        for name in (*names, "concept", "concept_ancestor"):
            with archive.open(f"{name.upper()}.csv") as file:
                header = file.readline().decode().strip().split(",")
            kinds = {
                c: pa.int64() for c in header if c.endswith("_concept_id") or c in {"concept_id", "person_id"}
            }
            kinds |= {c: pa.date32() for c in header if c.endswith("_date")}
            kinds |= {c: pa.timestamp("us") for c in header if c.endswith("_datetime")}
            texts = {c: kinds.get(c, pa.string()) for c in header}
            with archive.open(f"{name.upper()}.csv") as file:
                options = pa_csv.ConvertOptions(
                    column_types=texts, strings_can_be_null=True, null_values=[""]
                )
                tables[name] = pa_csv.read_csv(file, convert_options=options)
    return tables


def generated(persons: int = 2000, seed: int = 7) -> Tables:
    """An OMOP database with what real ones hold: no concept, no date, times, no code, commas, quotes, line ends."""
    rng = np.random.default_rng(seed)
    concepts = [
        (i, f'Concept "{i}", é', ("SNOMED", "LOINC", "RxNorm")[i % 3], f"{i:05d}-X") for i in range(1, 301)
    ]
    concept = pa.table(
        [
            *([row[k] for row in concepts] for k in (0, 1, 2)),
            ["Clinical"] * 300,
            [row[3] for row in concepts],
        ],
        schema=CONCEPT,
    )
    locals_ = ["L,1", 'L"2', "L3\nx", "", "  ", None, "péri", " L4 ", "NULL", "a:b"]
    tables: dict[str, pa.Table] = {"concept": concept, "concept_ancestor": ANCESTOR.empty_table()}
    for mapped in OMOP_TABLES:
        n = persons * 6
        ids = rng.integers(0, 305, n)  # 0 is no concept, from 301 on the table concept lacks them
        days = [date(2010, 1, 1) + timedelta(days=int(d)) for d in rng.integers(0, 4000, n)]
        dates: list[Any] = [None if rng.random() < 0.01 else d for d in days]
        kind: pa.DataType = pa.date32()
        if mapped.table == "measurement":
            kind = pa.timestamp("us")
            hours = rng.integers(0, 86400, n)
            dates = [
                d and datetime(d.year, d.month, d.day) + timedelta(seconds=int(h))
                for d, h in zip(dates, hours, strict=True)
            ]
        columns = {
            "person_id": pa.array(rng.integers(1, persons + 1, n), pa.int64(), mask=rng.random(n) < 0.005),
            mapped.dates[0]: pa.array(dates, kind),
            mapped.codes[0].column: pa.array(ids, pa.int32(), mask=rng.random(n) < 0.02),
            mapped.codes[1].column: pa.array(
                [locals_[i] for i in rng.integers(0, len(locals_), n)], pa.string()
            ),
        }
        tables[mapped.table] = pa.table(columns)
    return tables


def test_real_data_give_the_same_events_everywhere(load: Load, tmp_path: Path) -> None:
    tables = eunomia()
    expected = read(omop(duckdb_file(tmp_path / "other.duckdb", tables, schema="cdm")))
    same(read(omop(load(tables))), expected)
    assert len(expected.code) == sum(len(tables[m.table]) for m in OMOP_TABLES) == 21_141
    assert expected.descriptions["LOINC:29463-7"] == Description("Body weight", public=True)


def test_generated_data_give_the_same_events_everywhere(load: Load, tmp_path: Path) -> None:
    tables = generated()
    here = omop(duckdb_file(tmp_path / "other.duckdb", tables, schema="cdm"))
    there = omop(load(tables))
    expected = read(here)
    same(read(there), expected)
    assert OmopSource(there).fingerprint() == OmopSource(here).fingerprint()
    # What has no concept keeps the code that the hospital's own system wrote.
    assert {"LOCAL:L,1", 'LOCAL:L"2', "LOCAL:péri", "LOCAL:L4", "LOCAL:a:b"} <= set(expected.codes)
    assert expected.skipped["code with a control character"] > 0
    total = sum(len(tables[m.table]) for m in OMOP_TABLES)
    assert len(expected.code) + sum(expected.skipped.values()) == total


def test_raw_rows_are_what_the_tables_say(load: Load) -> None:
    tables = generated(200)
    data = omop(load(tables))
    concepts = {
        i: (s, c, n)
        for i, n, s, _, c in zip(*(tables["concept"][k].to_pylist() for k in range(5)), strict=True)
    }
    expected = []
    for mapped in OMOP_TABLES:
        for person, day, concept, local in zip(*tables[mapped.table].to_pydict().values(), strict=True):
            system, code, name = concepts.get(concept, (None, local, None))
            when = day.date() if isinstance(day, datetime) else day
            expected.append((person, when, code, system, name, concept in concepts))
    found = plain(pa.concat_tables(OmopSource(data).batches(Reading())))
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def test_domains_choose_tables(load: Load) -> None:
    tables = {name: t for name, t in generated(50).items() if name in {"concept", "drug_exposure"}}
    data = omop(load(tables), domains=("drug",))
    assert sum(map(len, OmopSource(data).batches(Reading()))) == len(tables["drug_exposure"])


def _pharmacy() -> Tables:
    """Two ingredients, two products of them, a product of both, a class above all, and a drug without any."""
    names = (
        "metformin",
        "sitagliptin",
        "Metformin 500",
        "Sitagliptin 50",
        "Combination",
        "Antidiabetics",
        "Tea",
    )
    kinds = ("Ingredient", "Ingredient", *["Clinical Drug"] * 3, "ATC 4th", "Clinical Drug")
    concept = pa.table(
        [range(1, 8), names, ["RxNorm"] * 7, kinds, [str(i) for i in range(1, 8)]], schema=CONCEPT
    )
    above = [(1, 1), (1, 3), (2, 2), (2, 4), (1, 5), (2, 5), (3, 3), *((6, i) for i in range(1, 6))]
    drugs = pa.table(
        {
            "person_id": pa.array(range(1, 7), pa.int64()),
            "drug_exposure_start_date": pa.array([date(2020, 1, 1)] * 6),
            "drug_concept_id": pa.array([1, 3, 5, 7, 0, 4], pa.int64()),
            "drug_source_value": pa.array(["x"] * 6),
        }
    )
    ancestor = pa.table(list(zip(*above, strict=True)), schema=ANCESTOR)
    return {"drug_exposure": drugs, "concept": concept, "concept_ancestor": ancestor}


def test_products_roll_up_to_their_ingredients(load: Load) -> None:
    data = omop(
        load(_pharmacy()),
        domains=("drug",),
        systems={"RxNorm": "RXNORM"},
        rollup=RollUp(concept_ancestor=True),
    )
    assert OmopSource(data).ancestors() == {
        "RXNORM:1": ("RXNORM:1",),
        "RXNORM:3": ("RXNORM:1",),
        "RXNORM:4": ("RXNORM:2",),
        "RXNORM:5": ("RXNORM:1", "RXNORM:2"),
    }


def test_a_concept_of_a_chosen_class_stands_for_itself(tmp_path: Path) -> None:
    rollup = RollUp(concept_ancestor=True, classes=("Ingredient", "ATC 4th"))
    data = omop(duckdb_file(tmp_path / "x", _pharmacy(), schema="cdm"), domains=("drug",), rollup=rollup)
    found = OmopSource(data).ancestors()
    assert found is not None
    assert found["RxNorm:1"] == ("RxNorm:1",)
    assert found["RxNorm:3"] == ("RxNorm:1", "RxNorm:6")


def test_no_roll_up_unless_asked(tmp_path: Path) -> None:
    data = omop(duckdb_file(tmp_path / "x", _pharmacy(), schema="cdm"), domains=("drug",))
    assert OmopSource(data).ancestors() is None


def test_vocabularies_may_lie_in_another_schema(tmp_path: Path) -> None:
    tables = dict(_pharmacy())
    events = {"drug_exposure": tables.pop("drug_exposure")}
    duckdb_file(tmp_path / "x", events, schema="cdm")
    url = duckdb_file(tmp_path / "x", tables, schema="voc")
    data = omop(url, domains=("drug",), vocabulary_schema="voc", rollup=RollUp(concept_ancestor=True))
    assert len(OmopSource(data).ancestors() or ()) == 4
    (batch,) = OmopSource(data).batches(Reading())
    assert "Metformin 500" in batch["description"].to_pylist()


def contract_tables(rows: Sequence[Row]) -> Tables:
    known = sorted({(r.system, r.code, r.description) for r in rows if r.code and r.code.strip()})
    number = {(system, code): i for i, (system, code, _) in enumerate(known, start=1)}
    systems, codes, names = ([k[i] for k in known] for i in range(3))
    concept = pa.table([list(number.values()), names, systems, ["x"] * len(known), codes], schema=CONCEPT)
    tables: dict[str, pa.Table] = {"concept": concept}
    for mapped in OMOP_TABLES:
        mine = [r for r in rows if r.domain == mapped.domain]
        tables[mapped.table] = pa.table(
            {
                "person_id": pa.array([r.patient for r in mine], pa.int64()),
                mapped.dates[0]: pa.array([r.date for r in mine], pa.date32()),
                mapped.codes[0].column: pa.array(
                    [number.get((r.system, r.code or ""), 0) for r in mine], pa.int64()
                ),
                mapped.codes[1].column: pa.array([r.code for r in mine], pa.string()),
            }
        )
    return tables


@pytest.mark.parametrize("check", CHECKS, ids=check_name)
@pytest.mark.parametrize("load", ["duckdb", "postgresql"], indirect=True)
def test_contract(check: Check, load: Load, tmp_path: Path) -> None:
    _check(check, load, tmp_path)


@pytest.mark.parametrize("check", [reads_the_same_events, says_when_the_data_are_not_there], ids=check_name)
@pytest.mark.parametrize("load", ["spark"], indirect=True)
def test_contract_on_spark(check: Check, load: Load, tmp_path: Path) -> None:
    """Those checks that no other backend stands for: each read starts some twenty Spark jobs."""
    _check(check, load, tmp_path)


def _check(check: Check, load: Load, folder: Path) -> None:
    def make(_folder: Path, rows: Sequence[Row], bad_rows: BadRows) -> tuple[OmopSource, Data]:
        data = omop(load(contract_tables(rows)), bad_rows=bad_rows)
        return OmopSource(data), data

    def remove(_folder: Path) -> None:
        load({"concept": pa.table({"nothing": pa.array([1], pa.int64())})})

    check(Form(make, remove), folder)
