"""Broken twins of a database: each a clear error, without a traceback's worth of noise and without a credential."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pyarrow as pa
import pytest

from protocol.errors import DataError, FederationError, UsageError
from site_agent.sections import Data, RollUp
from site_agent.sources import Reading
from site_agent.sources.omop import OmopSource
from site_agent.sources.relational import BATCH_ROWS, RelationalSource
from tests import postgres as pg
from tests import spark as sp
from tests.postgres import Server, postgres  # noqa: F401 (a fixture)
from tests.spark import spark  # noqa: F401 (a fixture)
from tests.unit.test_omop import ANCESTOR, CONCEPT, Tables, generated, omop
from tests.unit.test_relational import VISITS, duckdb_file, visits

SECRET = "s3cr3t-of-the-hospital"
DAY = date(2020, 1, 1)


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMILE_DATABASE_PASSWORD", pg.PASSWORD)


@pytest.fixture
def server_database(postgres: Server) -> Iterator[tuple[str, Any]]:  # noqa: F811 (the fixture)
    """URL of an empty database, and the administrator's connection to it."""
    with postgres.database("broken") as url, postgres.connect("broken") as connection:
        yield url, connection


def refused(source: Callable[[], RelationalSource], *parts: str) -> FederationError:
    """The error of reading the source; it says these parts and no secret."""
    with pytest.raises(FederationError) as caught:
        list(source().batches(Reading()))
    text = str(caught.value)
    for part in parts:
        assert part in text
    assert caught.value.do
    for secret in (SECRET, pg.PASSWORD):
        assert secret not in text
    assert "Traceback" not in text
    assert "\n" not in text
    # What the library said is no part of what is shown.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def drugs(**settings: Any) -> dict[str, Any]:
    return {"domains": ("drug",), **settings}


def drug_tables(rows: int = 3) -> dict[str, pa.Table]:
    events = {
        "person_id": pa.array(range(rows), pa.int64()),
        "drug_exposure_start_date": pa.array([DAY] * rows),
        "drug_concept_id": pa.array([1] * rows, pa.int64()),
        "drug_source_value": pa.array(["x"] * rows),
    }
    concept = pa.table([[1], ["Tea"], ["RxNorm"], ["Ingredient"], ["1"]], schema=CONCEPT)
    return {"drug_exposure": pa.table(events), "concept": concept}


# What is not there


@pytest.mark.parametrize("gone", ["drug_exposure", "concept"])
def test_missing_table(tmp_path: Path, gone: str) -> None:
    tables = drug_tables()
    del tables[gone]
    url = duckdb_file(tmp_path / "x", tables, schema="cdm")
    refused(
        lambda: OmopSource(omop(url, **drugs())),
        f"schema cdm of {url}",
        f"has no table {gone}",
        "data.schema",
    )


@pytest.mark.parametrize(
    "column", ["person_id", "drug_exposure_start_date", "drug_concept_id", "drug_source_value"]
)
def test_missing_column(tmp_path: Path, column: str) -> None:
    tables = drug_tables()
    tables["drug_exposure"] = tables["drug_exposure"].drop_columns([column])
    url = duckdb_file(tmp_path / "x", tables, schema="cdm")
    refused(
        lambda: OmopSource(omop(url, **drugs())),
        "cdm.drug_exposure",
        f"no column {column}",
        "its columns are",
    )


def test_missing_table_of_ancestors_and_empty_one(tmp_path: Path) -> None:
    settings = drugs(rollup=RollUp(concept_ancestor=True))
    url = duckdb_file(tmp_path / "x", drug_tables(), schema="cdm")
    with pytest.raises(DataError, match="has no table concept_ancestor"):
        OmopSource(omop(url, **settings)).ancestors()
    duckdb_file(tmp_path / "x", {"concept_ancestor": ANCESTOR.empty_table()}, schema="cdm")
    with pytest.raises(DataError, match=r"concept_ancestor of .* is empty"):
        OmopSource(omop(url, **settings)).ancestors()


def test_missing_schema(tmp_path: Path) -> None:
    url = duckdb_file(tmp_path / "x", drug_tables(), schema="cdm")
    refused(lambda: OmopSource(omop(url, **drugs(schema="nope"))), "schema nope", "its tables are none")


def test_missing_file(tmp_path: Path) -> None:
    refused(lambda: OmopSource(omop(f"duckdb://{tmp_path}/none.duckdb")), "no database file", "none.duckdb")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello" * 5000)
    refused(lambda: OmopSource(omop(f"duckdb://{tmp_path}/x")), "cannot be opened", "not a valid DuckDB")


def test_a_file_is_never_written(tmp_path: Path) -> None:
    url = duckdb_file(tmp_path / "x", drug_tables(), schema="cdm")
    before = (tmp_path / "x").read_bytes()
    (tmp_path / "x").chmod(0o444)
    assert sum(map(len, OmopSource(omop(url, **drugs())).batches(Reading()))) == 3
    assert (tmp_path / "x").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_view_on_a_file_that_is_gone(tmp_path: Path) -> None:
    url = duckdb_file(tmp_path / "x.duckdb", drug_tables(), schema="main")
    with duckdb.connect(str(tmp_path / "x.duckdb")) as connection:
        connection.execute(f"COPY drug_exposure TO '{tmp_path}/d.parquet'")
        connection.execute("DROP TABLE drug_exposure")
        connection.execute(f"CREATE VIEW drug_exposure AS SELECT * FROM '{tmp_path}/d.parquet'")
    source = OmopSource(omop(url, **drugs(schema="")))
    assert sum(map(len, source.batches(Reading()))) == 3
    (tmp_path / "d.parquet").unlink()
    refused(lambda: source, "cannot be read", "d.parquet")


# Wrong types


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("day", pa.array([20200101]), "a date is needed"),
        ("day", pa.array([1.5]), "a date is needed"),
        ("day", pa.array([True]), "a date is needed"),
        ("patient", pa.array([1.0]), "a whole number or text is needed"),
        ("patient", pa.array([DAY]), "a whole number or text is needed"),
        ("code", pa.array([250.1]), "a whole number or text is needed"),
        ("code", pa.array([["a", "b"]]), "a whole number or text is needed"),
    ],
)
def test_wrong_types(tmp_path: Path, name: str, values: pa.Array, word: str) -> None:
    columns: dict[str, Any] = {"patient": [1], "day": [DAY], "code": ["x"], name: values}
    refused(
        lambda: visits(tmp_path, **columns), f"column {name}", "visits", "is of type", word, "Make a view"
    )


def test_concept_ids_as_text(tmp_path: Path) -> None:
    tables = drug_tables()
    tables["concept"] = tables["concept"].set_column(0, "concept_id", pa.array(["1"]))
    url = duckdb_file(tmp_path / "x", tables, schema="cdm")
    refused(
        lambda: OmopSource(omop(url, **drugs())),
        "column concept_id",
        "cdm.concept",
        "a whole number is needed",
    )


def test_times_with_a_zone(tmp_path: Path, server_database: tuple[str, Any]) -> None:
    zoned = pa.array([datetime(2020, 1, 1, tzinfo=UTC)], pa.timestamp("us", tz="UTC"))
    refused(
        lambda: visits(tmp_path, patient=[1], day=zoned, code=["x"]),
        "TIMESTAMP WITH TIME ZONE",
        "AT TIME ZONE",
    )
    url, connection = server_database
    connection.execute("CREATE TABLE visits (patient int, day timestamptz(3), code text)")
    data = Data(kind="omop", database=url, system="LOCAL")
    refused(lambda: RelationalSource(data, VISITS), "timestamp(3) with time zone", "AT TIME ZONE")


def test_a_patient_number_that_is_too_large(tmp_path: Path) -> None:
    huge = pa.array([2**64 - 1], pa.uint64())
    refused(
        lambda: visits(tmp_path, patient=huge, day=[DAY], code=["x"]),
        "cannot be read",
        "18446744073709551615",
    )


def test_dates_beyond_the_calendar_are_passed_on(server_database: tuple[str, Any]) -> None:
    url, connection = server_database
    connection.execute("CREATE TABLE visits (patient int, day date, code text)")
    connection.execute(
        "INSERT INTO visits VALUES (1, 'infinity', 'x'), (2, '0044-03-15 BC', 'x'), (3, NULL, 'x')"
    )
    data = Data(kind="omop", database=url, system="LOCAL")
    (batch,) = RelationalSource(data, VISITS).batches(Reading())
    assert batch["date"].to_pylist() == ["infinity", "0044-03-15 BC", None]


def test_a_concept_that_is_there_twice(tmp_path: Path) -> None:
    tables = drug_tables()
    tables["concept"] = pa.concat_tables([tables["concept"], tables["concept"]])
    url = duckdb_file(tmp_path / "x", tables, schema="cdm")
    refused(lambda: OmopSource(omop(url, **drugs())), "concept_id 1 more than once")


def test_tables_that_differ_in_case_only(server_database: tuple[str, Any]) -> None:
    url, connection = server_database
    connection.execute('CREATE TABLE "Visits" (patient int); CREATE TABLE "VISITS" (patient int)')
    data = Data(kind="omop", database=url, system="LOCAL")
    refused(lambda: RelationalSource(data, VISITS), "VISITS and Visits", "differ in case only")


# The configuration


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@db.example/x",
        f"postgresql://me:1/{SECRET}@db.example/x",
        f"postgresql://me@db.example/x?password={SECRET}",
        f"postgresql://me@db.example/x?sslmode=require&password={SECRET}",
    ],
)
def test_a_password_in_the_url(url: str) -> None:
    error = refused(lambda: OmopSource(omop(url)), "holds a password", "SMILE_DATABASE_PASSWORD")
    assert isinstance(error, UsageError)


@pytest.mark.parametrize(
    "url",
    [
        "oracle://db/x",
        "postgresql://db.example",
        "duckdb://relative/file",
        "duckdb://localhost/file",
        "duckdb:relative/file",
        "duckdb:/file",
        "duckdb:///",
        "spark://",
        "/some/file",
        f"postgresql://me:{SECRET}/x@db.example/x",
        "postgresql://db:port/x",
        "spark://[half",
    ],
)
def test_no_url_of_a_database(url: str) -> None:
    error = refused(lambda: OmopSource(omop(url)), "data.database", "postgresql://user@host:port/name")
    assert isinstance(error, UsageError)


def test_a_relative_path_is_refused_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another command, started in another folder, would not find."""
    absolute = duckdb_file(tmp_path / "x", drug_tables(), schema="cdm")
    monkeypatch.chdir(tmp_path)
    refused(lambda: OmopSource(omop("duckdb:x", **drugs())), "absolute path")
    refused(lambda: OmopSource(omop("duckdb://x", **drugs())), "absolute path")
    refused(lambda: OmopSource(omop("duckdb:///x", **drugs())), "no database file /x", "absolute path")
    assert sum(map(len, OmopSource(omop(absolute, **drugs())).batches(Reading()))) == 3


def test_signs_in_a_path_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "a b#c%20"
    folder.mkdir()
    duckdb_file(folder / "x", drug_tables(), schema="cdm")
    url = f"duckdb://{quote(str(folder))}/x"
    assert sum(map(len, OmopSource(omop(url, **drugs())).batches(Reading()))) == 3


def test_no_table_for_the_domains() -> None:
    error = refused(lambda: OmopSource(omop("duckdb:///x", domains=())), "data.domains")
    assert isinstance(error, UsageError)


@pytest.mark.parametrize(
    ("module", "url", "extra"),
    [
        ("ibis", "duckdb:///x", "sql"),
        ("duckdb", "duckdb:///x", "sql"),
        ("psycopg", "postgresql://h/x", "sql"),
        ("pyspark.sql", "spark://local", "spark"),
    ],
)
def test_missing_extra(monkeypatch: pytest.MonkeyPatch, module: str, url: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    error = refused(lambda: OmopSource(omop(url)), module, f"pip install 'smile-federation[site,{extra}]'")
    assert isinstance(error, UsageError)


# The server


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_no_server() -> None:
    pytest.importorskip("psycopg")
    url = f"postgresql://me@127.0.0.1:{_closed_port()}/x"
    refused(lambda: OmopSource(omop(url)), f"No connection to {url}", "refused", "that the server runs")


def test_no_spark() -> None:
    pytest.importorskip("pyspark")
    url = f"spark://127.0.0.1:{_closed_port()}"
    refused(lambda: OmopSource(omop(url)), f"There is no Spark at {url}", "refused")


SILENT = """
from protocol.errors import DataError
from site_agent.sections import Data
from site_agent.sources.databases import spark
from site_agent.sources.omop import OmopSource

spark.MASTER_SECONDS = 2
try:
    OmopSource(Data(kind="omop", database="{url}", system="LOCAL")).fingerprint()
except DataError as error:
    print(error, error.__suppress_context__)
from pyspark import SparkContext
with SparkContext._lock:
    print("Java is gone" if SparkContext._gateway is None else "Java is there")
"""


def test_a_spark_master_that_never_answers() -> None:
    """A process of its own: in this one a session may be there already, and would be used."""
    pytest.importorskip("pyspark")
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        pytest.skip("no java here: Spark needs a Java runtime 17 or 21")
    # What listens takes connections, and nobody reads from them.
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"spark://127.0.0.1:{server.getsockname()[1]}"
        program = [sys.executable, "-c", SILENT.format(url=url)]
        found = subprocess.run(program, capture_output=True, text=True, timeout=30, check=True)
    first, second = found.stdout.splitlines()
    assert first.startswith(f"The Spark master of {url} does not answer. ")
    assert "for 2 seconds" in first
    assert first.endswith(" True")
    assert second == "Java is gone"
    assert "Traceback" not in found.stderr


def test_wrong_password(server_database: tuple[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMILE_DATABASE_PASSWORD", SECRET)
    url, _ = server_database
    refused(lambda: OmopSource(omop(url)), "password authentication failed", "SMILE_DATABASE_PASSWORD")


def test_no_password(
    server_database: tuple[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SMILE_DATABASE_PASSWORD")
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    url, _ = server_database
    refused(lambda: OmopSource(omop(url)), "no password supplied", "~/.pgpass")
    # libpq reads the file itself.
    (tmp_path / "pgpass").write_text(f"*:*:*:*:{pg.PASSWORD}\n")
    (tmp_path / "pgpass").chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    refused(lambda: OmopSource(omop(url)), "has no table condition_occurrence")


def test_no_such_database_or_user(postgres: Server) -> None:  # noqa: F811 (the fixture)
    refused(lambda: OmopSource(omop(postgres.url("nope"))), 'database "nope" does not exist', "data.database")
    refused(
        lambda: OmopSource(omop(postgres.url(user="nobody_known"))), "nobody_known", "SMILE_DATABASE_PASSWORD"
    )


def test_no_rights(server_database: tuple[str, Any], postgres: Server) -> None:  # noqa: F811 (the fixture)
    _, connection = server_database
    pg.load(connection, drug_tables(), "cdm")
    connection.execute(f"CREATE ROLE reader LOGIN PASSWORD '{pg.PASSWORD}'")
    try:
        data = omop(postgres.url("broken", user="reader"), **drugs())
        for grant in ("GRANT USAGE ON SCHEMA cdm TO reader", "GRANT SELECT ON cdm.drug_exposure TO reader"):
            refused(lambda: OmopSource(data), "may not read", "GRANT SELECT ON cdm.", "TO")
            connection.execute(grant)
        refused(lambda: OmopSource(data), "cdm.concept", "GRANT SELECT ON cdm.concept")
        # The columns that are read are enough.
        connection.execute(
            "GRANT SELECT (concept_id, concept_name, concept_code, vocabulary_id) ON cdm.concept TO reader"
        )
        assert sum(map(len, OmopSource(data).batches(Reading()))) == 3
        # Rows that a policy hides would be lost without a word.
        connection.execute("ALTER TABLE cdm.drug_exposure ENABLE ROW LEVEL SECURITY")
        refused(lambda: OmopSource(data), "row-level security", "BYPASSRLS")
    finally:
        connection.execute("DROP OWNED BY reader; DROP ROLE reader")


# While it is read


def _many(connection: Any) -> int:
    """Two event tables, the first of more than one batch; gives its rows."""
    n = BATCH_ROWS + 1000
    pg.load(
        connection,
        {name: t for name, t in generated(20).items() if name in {"concept", "drug_exposure"}},
        "cdm",
    )
    connection.execute(
        "CREATE TABLE cdm.condition_occurrence AS SELECT (i % 1000)::bigint AS person_id, date '2020-01-01' AS "
        "condition_start_date, 0 AS condition_concept_id, 'x'::text AS condition_source_value "
        f"FROM generate_series(1, {n}) i"
    )
    return n


def test_tables_that_change_while_they_are_read_give_one_snapshot(server_database: tuple[str, Any]) -> None:
    url, connection = server_database
    n = _many(connection)
    drugs_before = connection.execute("SELECT count(*) FROM cdm.drug_exposure").fetchone()[0]
    batches = OmopSource(omop(url, domains=("condition", "drug"))).batches(Reading())
    rows = len(next(batches))
    connection.execute(
        "INSERT INTO cdm.condition_occurrence SELECT * FROM cdm.condition_occurrence LIMIT 1000"
    )
    connection.execute("DELETE FROM cdm.drug_exposure")
    connection.execute("DELETE FROM cdm.concept")
    rest = list(batches)
    assert rows + sum(map(len, rest)) == n + drugs_before
    assert any(d for d in rest[-1]["description"].to_pylist())


def test_a_table_that_changes_while_spark_reads_is_noticed(spark: Any) -> None:  # noqa: F811 (the fixture)
    """Spark has no snapshot over tables: the rows that came must be as many as were counted."""
    tables = {
        n: t for n, t in generated(20).items() if n in {"concept", "condition_occurrence", "drug_exposure"}
    }
    sp.load(spark, tables, "changing")
    batches = OmopSource(omop(sp.URL, schema="changing", domains=("condition", "drug"))).batches(Reading())
    next(batches)
    spark.sql("INSERT INTO changing.drug_exposure SELECT * FROM changing.drug_exposure LIMIT 7")
    with pytest.raises(DataError, match=r"changed while it was read.* 120 rows, then 127"):
        list(batches)


def test_a_connection_that_is_cut(server_database: tuple[str, Any]) -> None:
    url, connection = server_database
    _many(connection)
    batches = OmopSource(omop(url, domains=("condition", "drug"))).batches(Reading())
    next(batches)
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'site-agent'"
    )
    with pytest.raises(DataError) as caught:
        list(batches)
    assert f"The connection to {url}" in str(caught.value)
    assert "was lost" in str(caught.value)


def test_a_source_left_in_the_middle_closes_its_connection(server_database: tuple[str, Any]) -> None:
    url, connection = server_database
    _many(connection)
    batches = OmopSource(omop(url, domains=("condition", "drug"))).batches(Reading())
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    # The server needs a moment to see it; an open transaction would hold its lock for good, and this would raise.
    connection.execute("SET lock_timeout = '10s'")
    connection.execute("DROP TABLE cdm.condition_occurrence")
    asked = "SELECT count(*) FROM information_schema.tables WHERE table_name = 'condition_occurrence'"
    assert connection.execute(asked).fetchone()[0] == 0


def test_nothing_is_written_to_a_server(server_database: tuple[str, Any]) -> None:
    url, connection = server_database
    pg.load(connection, drug_tables(), "cdm")
    connection.execute(
        "CREATE FUNCTION cdm.leak() RETURNS date LANGUAGE sql AS 'DELETE FROM cdm.concept; SELECT current_date'"
    )
    connection.execute("ALTER TABLE cdm.drug_exposure RENAME TO held")
    connection.execute(
        "CREATE VIEW cdm.drug_exposure AS SELECT person_id, cdm.leak() AS drug_exposure_start_date, drug_concept_id, "
        "drug_source_value FROM cdm.held"
    )
    refused(lambda: OmopSource(omop(url, **drugs())), "read-only transaction")
    assert connection.execute("SELECT count(*) FROM cdm.concept").fetchone()[0] == 1


def test_a_missing_table_on_a_server_and_on_spark(server_database: tuple[str, Any], spark: Any) -> None:  # noqa: F811
    url, connection = server_database
    tables: Tables = {"concept": drug_tables()["concept"]}
    pg.load(connection, tables, "cdm")
    sp.load(spark, tables, "partial")
    refused(lambda: OmopSource(omop(url, **drugs())), "has no table drug_exposure", "its tables are concept")
    refused(
        lambda: OmopSource(omop(sp.URL, **drugs(schema="partial"))), "has no table drug_exposure", "concept"
    )
    refused(lambda: OmopSource(omop(sp.URL, **drugs(schema="nowhere"))), "nowhere")
