"""Counting in Spark against the embedded path on the same tables, and against Spark SQL's own self-join.

Spark and Python start before the clocks do. The self-join starts from a cached table of distinct events with integer codes;
counting in Spark starts from the site's tables and checks every row. Both give the pairs of events and the patients of each
pair of codes. On one machine Spark can only lose to the embedded path: the table says what leaving the data where they
are costs there. SMILE_BENCH=full runs 1, 3 and 10 million rows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from protocol.sections import Counting
from site_agent.cooccurrence import PairCounts
from site_agent.counting import count_staged
from site_agent.sections import Data
from site_agent.sources.omop import OmopSource
from site_agent.spark import SparkCounted, count_in_spark
from site_agent.staging import Staged, stage
from tests import spark as sp
from tests.benchmarks.test_counting import WINDOW, zipf_events
from tests.spark import spark  # noqa: F401 (a fixture)

TODAY = date(2026, 1, 1)
MEMORY = 2 << 30
SHORT = ((4_000, 2_000),)  # patients with 60 events each, codes
FULL = ((16_667, 5_000), (50_000, 20_000), (166_667, 20_000))
SCHEMA = "bench"

SELF_JOIN = f"""
    SELECT j, k, sum(pairs) AS pairs, count(*) AS patients FROM (
        SELECT a.patient, least(a.code, b.code) AS j, greatest(a.code, b.code) AS k, count(*) AS pairs
        FROM events a JOIN events b
          ON a.patient = b.patient AND b.day BETWEEN a.day AND a.day + {WINDOW}
         AND (b.day > a.day OR b.code > a.code)
        GROUP BY 1, 2, 3
    ) GROUP BY 1, 2
"""


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def omop_tables(n_patients: int, n_codes: int) -> dict[str, pa.Table]:
    events = zipf_events(n_patients, n_codes)
    concepts = pa.table(
        {
            "concept_id": np.arange(1, n_codes + 1),
            "concept_name": [f"Concept {i}" for i in range(n_codes)],
            "vocabulary_id": ["SNOMED"] * n_codes,
            "concept_code": [f"{i:07d}" for i in range(n_codes)],
        }
    )
    rows = {
        "person_id": events.patient,
        "condition_start_date": np.datetime64("2015-01-01") + events.day,
        "condition_concept_id": events.code + 1,
        "condition_source_value": pa.nulls(len(events.code), pa.string()),
    }
    return {"condition_occurrence": pa.table(rows), "concept": concepts}


@pytest.fixture
def loaded(spark: Any, tmp_path: Path) -> Iterator[Callable[[int, int], tuple[Data, Data]]]:  # noqa: F811
    """Writes a hospital into Parquet, which Spark and DuckDB both read; gives the configurations of both."""
    form: dict[str, Any] = {"kind": "omop", "schema": SCHEMA, "domains": ("condition",), "system": "LOCAL"}

    def load(n_patients: int, n_codes: int) -> tuple[Data, Data]:
        spark.sql(f"DROP DATABASE IF EXISTS {SCHEMA} CASCADE")
        spark.sql(f"CREATE DATABASE {SCHEMA}")
        path = tmp_path / f"{n_patients}.duckdb"
        with duckdb.connect(str(path)) as database:
            database.execute(f"CREATE SCHEMA {SCHEMA}")
            for name, table in omop_tables(n_patients, n_codes).items():
                folder = tmp_path / f"{name}-{n_patients}"
                folder.mkdir()
                for i in range(4):
                    part = table.slice(i * (len(table) // 4), len(table) // 4 if i < 3 else len(table))
                    pq.write_table(part, folder / f"{i}.parquet")
                spark.sql(f"CREATE TABLE {SCHEMA}.{name} USING parquet LOCATION '{folder}'")
                database.execute(f"CREATE VIEW {SCHEMA}.{name} AS SELECT * FROM '{folder}/*.parquet'")
        return Data(database=sp.URL, **form), Data(database=f"duckdb://{path}", **form)

    yield load
    spark.sql(f"DROP DATABASE IF EXISTS {SCHEMA} CASCADE")


def embedded(data: Data, folder: Path) -> tuple[Staged, PairCounts]:
    staged = stage(OmopSource(data), data, folder / "events", memory=MEMORY // 4, today=TODAY)
    runs = count_staged(staged, Counting(window_days=WINDOW), folder / "counts", memory=MEMORY, threads=2)
    return staged, runs.total(memory=MEMORY, threads=2)


def in_spark(session: Any, data: Data) -> SparkCounted:
    return count_in_spark(session, data, Counting(window_days=WINDOW), today=TODAY)


def self_join(session: Any, codes: tuple[str, ...]) -> tuple[float, list[sparse.csr_array]]:
    """Seconds, and pairs and patients with our code numbers."""
    numbers = session.createDataFrame(
        pa.table({"id": [int(c.rpartition(":")[2]) + 1 for c in codes], "code": range(len(codes))})
    )
    numbers.createOrReplaceTempView("numbers")
    session.sql(
        "CACHE TABLE events AS SELECT DISTINCT person_id AS patient, datediff(condition_start_date, '1970-01-01') AS day, "
        f"CAST(code AS int) AS code FROM {SCHEMA}.condition_occurrence JOIN numbers ON id = condition_concept_id"
    )
    try:
        seconds, found = timed(session.sql(SELF_JOIN).toArrow)
    finally:
        session.sql("UNCACHE TABLE events")
    cells = (found["j"].to_numpy(), found["k"].to_numpy())
    shape = (len(codes),) * 2
    return seconds, [
        sparse.csr_array((found[n].to_numpy(), cells), shape=shape) for n in ("pairs", "patients")
    ]


@pytest.mark.benchmark
def test_counting_in_spark(
    loaded: Callable[[int, int], tuple[Data, Data]],
    spark: Any,  # noqa: F811 (the fixture)
    tmp_path: Path,
) -> None:
    in_spark(spark, loaded(200, 50)[0])  # workers start, and compile, before the clocks do
    print(
        f"\n{'rows':>12}{'codes':>9}{'cells':>12}{'Spark s':>10}{'join s':>10}{'ratio':>8}{'embedded s':>12}"
    )
    for n_patients, n_codes in FULL if os.environ.get("SMILE_BENCH") == "full" else SHORT:
        there, here = loaded(n_patients, n_codes)
        ours, found = timed(lambda there=there: in_spark(spark, there))
        alone, (staged, counts) = timed(
            lambda here=here, n=n_patients: embedded(here, tmp_path / f"work-{n}")
        )
        assert found.codes == staged.codes
        assert found.n_rows == staged.n_rows
        for name in ("events", "pair_patients"):
            assert (getattr(found.counts, name) != getattr(counts, name)).nnz == 0
        theirs, (pairs, patients) = self_join(spark, found.codes)
        assert (pairs != counts.events).nnz == 0
        assert (patients != counts.pair_patients).nnz == 0
        sizes = f"{found.n_rows:>12,}{n_codes:>9,}{counts.events.nnz:>12,}"
        print(f"{sizes}{ours:>10.1f}{theirs:>10.1f}{theirs / ours:>8.1f}{alone:>12.1f}")
