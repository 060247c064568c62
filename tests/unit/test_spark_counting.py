"""Counting in Spark: the same result as reading the same tables here, whatever the partitions, and clear errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import DataError, FederationError, UsageError
from protocol.sections import Counting
from site_agent.cells import with_cells
from site_agent.changes import Fingerprints, Keys, gathered, patient_fingerprints
from site_agent.cooccurrence import PairCounts, add_counts, count_pairs
from site_agent.sections import Data, RollUp
from site_agent.sources import Description, Events
from site_agent.sources.clean import collect
from site_agent.sources.decoder import Decoder
from site_agent.sources.i2b2 import I2b2Source
from site_agent.sources.omop import CONCEPT as CONCEPT_LOOKUP
from site_agent.sources.omop import OmopSource
from site_agent.sources.tablemap import CodeColumn
from site_agent.spark import SparkCounted, count_in_spark, tasks
from site_agent.spark.count import _pair_counts
from site_agent.spark.layout import span_cuts, unpacked
from site_agent.spark.session import explain, first_useful_line
from tests import spark as sp
from tests.spark import spark  # noqa: F401 (a fixture)
from tests.unit.test_omop import CONCEPT, TODAY, Tables, eunomia, generated, omop, read
from tests.unit.test_relational import duckdb_file, i2b2_tables

ARROW_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"
SALT = b"s" * 32
RULES = (Counting(), Counting(rule="whole-history"), Counting(window_days=3, max_events_per_patient=7))


def expected_counts(events: Events, rule: Counting, floor: int = 0) -> PairCounts:
    counts = count_pairs(
        events.patient,
        events.day,
        events.code,
        len(events.codes),
        window_days=rule.window_days if rule.rule == "window" else None,
        max_events_per_patient=rule.max_events_per_patient,
    )
    return add_counts([counts], floor=floor)


def same_counts(found: PairCounts, expected: PairCounts) -> None:
    """Equal to the last bit, types included."""
    for name in ("events", "pair_patients"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.shape == b.shape
        assert a.has_canonical_format
        for part in ("data", "indices", "indptr"):
            assert getattr(a, part).dtype == getattr(b, part).dtype
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
    assert found.code_patients.dtype == expected.code_patients.dtype
    np.testing.assert_array_equal(found.code_patients, expected.code_patients)
    tallies = ("n_patients", "n_events", "capped_patients", "withheld_cells", "withheld_events")
    assert [getattr(found, t) for t in tallies] == [getattr(expected, t) for t in tallies]


def same(found: SparkCounted, events: Events, rule: Counting, floor: int = 0) -> None:
    same_counts(found.counts, expected_counts(events, rule, floor))
    assert found.codes == events.codes
    assert dict(found.skipped) == dict(events.skipped)
    assert found.descriptions == events.descriptions
    assert found.n_rows == len(events.code)


# The tasks by themselves: what one writes, the next one reads, as Spark would carry it


def count_by_tasks(
    events: Sequence[tuple[int, int, str]],
    rule: Counting,
    *,
    parts: int,
    buckets: int,
    partitions: int,
    group_rows: int,
    span_cells: int,
    floor: int,
    exact: Sequence[int] | None = None,
) -> tuple[tuple[str, ...], PairCounts, Fingerprints]:
    """Pair counts and fingerprints by way of the tasks; the rows of part i are every `parts`-th one."""
    data = Data(kind="omop", database="spark://local", system="S")
    decoders = (Decoder(CodeColumn("code"), None),)
    schema = pa.schema([("patient", pa.int64()), ("date", pa.date32()), ("code0", pa.string())])
    code = tasks.CodeTable("t", 0, schema, decoders, None, data, TODAY, None)
    coded = []
    for i in range(parts):
        columns = list(zip(*events[i::parts], strict=True)) or [[], [], []]
        raw = pa.record_batch(
            [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema
        )
        coded.append(list(code(iter([raw]))))
    names = {t for part in coded for b in part for t in tasks._of_kind(b, tasks.CODE, "text").to_pylist()}
    codes = tuple(sorted(names))
    spans = span_cuts(len(codes), span_cells)
    scatter = tasks.Scatter(pa.array(codes, pa.string()), buckets)
    pieces = [b for part in coded for b in scatter(iter(part))]
    window = rule.window_days if rule.rule == "window" else None
    count = tasks.CountPatients(len(codes), window, rule.max_events_per_patient, spans, group_rows)
    counted = [b for part in shuffled(pieces, "bucket", partitions) for b in count(part)]
    cells = None if exact is None else np.array(exact, np.int64)
    add = tasks.AddCounts(len(codes), spans, tasks.Floor(floor, cells))
    sums = [row for part in shuffled(counted, "span", partitions) for b in add(part) for row in b.to_pylist()]
    mark = tasks.FingerprintPatients(Keys.make(codes, SALT), rule.max_events_per_patient, group_rows)
    hashes = [
        row for part in shuffled(pieces, "bucket", partitions) for b in mark(part) for row in b.to_pylist()
    ]
    patients = gathered(
        (np.frombuffer(h["whole"], np.uint64), np.frombuffer(h["days"], np.uint64)) for h in hashes
    )
    counts = _pair_counts(sorted(map(unpacked, sums), key=lambda row: row["span"]), spans)
    return codes, counts, patients


def shuffled(
    batches: Sequence[pa.RecordBatch], key: str, partitions: int
) -> Iterator[Iterator[pa.RecordBatch]]:
    """As Spark's repartition and sortWithinPartitions by a column."""
    whole = pa.Table.from_batches(batches).sort_by(key)
    for i in range(partitions):
        here = np.flatnonzero(whole[key].to_numpy() % partitions == i)
        if len(here):
            yield iter(whole.take(pa.array(here)).combine_chunks().to_batches(max_chunksize=3))


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.integers(-3, 9), st.integers(0, 60), st.sampled_from("abcdefgh")),
        min_size=1,
        max_size=80,
    ),
    rule=st.sampled_from(RULES),
    parts=st.integers(1, 3),
    buckets=st.integers(1, 7),
    partitions=st.integers(1, 4),
    group_rows=st.sampled_from([1, 10, 1000]),
    span_cells=st.sampled_from([1, 9, 1000]),
    floor=st.integers(0, 4),
)
def test_counts_do_not_depend_on_how_rows_are_dealt_out(
    events: list[tuple[int, int, str]], rule: Counting, floor: int, **how: int
) -> None:
    codes, found, patients = count_by_tasks(events, rule, floor=floor, **how)
    patient, day, code = zip(*events, strict=True)
    assert codes == tuple(f"S:{c}" for c in sorted(set(code)))
    numbers = [sorted(set(code)).index(c) for c in code]
    window = rule.window_days if rule.rule == "window" else None
    expected = count_pairs(
        patient,
        day,
        numbers,
        len(codes),
        window_days=window,
        max_events_per_patient=rule.max_events_per_patient,
    )
    same_counts(found, add_counts([expected], floor=floor))
    rows = np.array(sorted(zip(patient, day, numbers, strict=True)), np.int64)
    whole, days = patient_fingerprints(*rows.T, Keys.make(codes, SALT), rule.max_events_per_patient)
    np.testing.assert_array_equal(patients.whole, np.sort(whole))
    np.testing.assert_array_equal(patients.days, np.sort(days))


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 60), st.sampled_from("abcdefgh")), min_size=1, max_size=80
    ),
    wanted=st.sets(st.integers(0, 63)),
    span_cells=st.sampled_from([1, 9, 1000]),
    floor=st.integers(2, 4),
)
def test_chosen_cells_are_not_withheld(
    events: list[tuple[int, int, str]], wanted: set[int], span_cells: int, floor: int
) -> None:
    how = {"parts": 2, "buckets": 3, "partitions": 2, "group_rows": 10, "span_cells": span_cells}
    rule = Counting(window_days=30)
    _, whole, _ = count_by_tasks(events, rule, floor=0, **how)
    _, plain, _ = count_by_tasks(events, rule, floor=floor, **how)
    _, found, _ = count_by_tasks(events, rule, floor=floor, exact=sorted(wanted), **how)
    same_counts(found, with_cells(plain, [whole], np.array(sorted(wanted), np.int64)))
    for counts in (found.events, found.pair_patients):
        n = counts.shape[0]
        key = counts.tocoo().coords[0].astype(int) * n + counts.tocoo().coords[1]
        kept = (found.pair_patients.data >= floor) | np.isin(key, sorted(wanted))
        assert kept.all()


def test_more_rows_than_a_piece_or_a_batch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "PIECE_ROWS", 64)
    monkeypatch.setattr(tasks, "SCATTER_ROWS", 500)
    rng = np.random.default_rng(3)
    patient, day, number = rng.integers(0, 9, 3000), rng.integers(0, 500, 3000), rng.integers(0, 26, 3000)
    patient[:2000] = 4
    events = [(int(p), int(d), chr(97 + int(c))) for p, d, c in zip(patient, day, number, strict=True)]
    rule = Counting(max_events_per_patient=1500)
    how = {"parts": 2, "buckets": 5, "partitions": 2, "group_rows": 700, "span_cells": 40}
    codes, found, _ = count_by_tasks(events, rule, floor=0, **how)
    expected = count_pairs(patient, day, number, len(codes), max_events_per_patient=1500)
    assert found.capped_patients == 1
    same_counts(found, expected)


@pytest.mark.parametrize("n_codes", [1, 2, 7, 1000])
def test_spans_hold_every_row_once_and_no_more_cells_than_they_may(n_codes: int) -> None:
    cuts = span_cuts(n_codes, 50)
    assert (cuts[0], cuts[-1]) == (0, n_codes)
    for first, stop in pairwise(cuts):
        assert first < stop
        assert stop == first + 1 or sum(n_codes - row for row in range(first, stop)) <= 50


def coded_texts(keys: Sequence[int], known: pa.Table) -> Mapping[str, Description]:
    data = Data(kind="omop", database="spark://local", system="S")
    schema = pa.schema([("patient", pa.int64()), ("date", pa.date32()), ("code0", pa.int64())])
    decoder = Decoder(CodeColumn("code", lookup=CONCEPT_LOOKUP), known)
    task = tasks.CodeTable("t", 0, schema, (decoder,), None, data, TODAY, None)
    raw = pa.record_batch(
        [pa.array([1] * len(keys)), pa.array([date(2020, 1, 1)] * len(keys)), pa.array(keys)], schema=schema
    )
    found = pa.Table.from_batches(task(iter([raw]))).to_pylist()
    return {
        row["text"]: Description(row["detail"], public=not row["number"])
        for row in found
        if row["kind"] == tasks.DESCRIPTION
    }


def test_of_several_texts_for_a_code_the_smallest_is_taken_in_any_order() -> None:
    known = pa.table(
        {"key": [1, 2, 3], "description": ["b", "a", " "], "code": ["x"] * 3, "system": ["S"] * 3}
    )
    for keys in ([1, 2, 3], [3, 2, 1], [1, 1, 2], [2, 1]):
        assert coded_texts(keys, known) == {"S:x": Description("a", public=True)}
    assert coded_texts([3], known) == {}


# Real Spark, against the same tables in DuckDB


@pytest.fixture(scope="module")
def thousand(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Data, Events]]:  # noqa: F811
    """A generated hospital of 1,000 persons in Spark, and its events as read from DuckDB."""
    tables = generated(1000)
    sp.load(spark, tables, "thousand")
    here = omop(
        duckdb_file(tmp_path_factory.mktemp("duckdb") / "x.duckdb", tables, schema="thousand"),
        schema="thousand",
    )
    yield omop(sp.URL, schema="thousand"), read(here)
    spark.sql("DROP DATABASE IF EXISTS thousand CASCADE")


def left_clean(session: Any, arrow_rows: str) -> None:
    assert session.sparkContext._jsc.getPersistentRDDs().size() == 0
    assert session.conf.get(ARROW_ROWS) == arrow_rows


@pytest.mark.parametrize("partitions", [1, 4])
def test_a_hospital_is_counted_as_it_is_here(
    thousand: tuple[Data, Events],
    spark: Any,  # noqa: F811 (the fixture)
    partitions: int,
) -> None:
    data, events = thousand
    before, steps = spark.conf.get(ARROW_ROWS), []
    found = count_in_spark(
        OmopSource(data),
        data,
        Counting(),
        today=TODAY,
        partitions=partitions,
        progress=lambda step, share: steps.append((step, share)),
    )
    same(found, events, Counting())
    assert found.skipped["code with a control character"] > 0
    left_clean(spark, before)
    assert all(0 <= share <= 1 for _, share in steps)
    assert [step for step, share in steps if share == 1.0][-2:] == ["counting pairs", "collecting the sums"]


def test_real_data_with_a_floor_and_whole_histories(spark: Any, tmp_path: Path) -> None:  # noqa: F811
    tables, rule = eunomia(), Counting(rule="whole-history")
    sp.load(spark, tables, "eunomia")
    here = omop(duckdb_file(tmp_path / "x.duckdb", tables, schema="eunomia"), schema="eunomia")
    found = count_in_spark(spark, omop(sp.URL, schema="eunomia"), rule, today=TODAY, floor=4)
    same(found, read(here), rule, floor=4)
    assert found.counts.withheld_cells > 0
    assert found.counts.pair_patients.data.min() == 4
    assert not len(found.patients.whole)


def test_a_second_release_in_spark(spark: Any, tmp_path: Path) -> None:  # noqa: F811
    """Fingerprints and chosen small cells are those of the same rows elsewhere."""
    tables, rule = eunomia(), Counting()
    sp.load(spark, tables, "eunomia")
    here = omop(duckdb_file(tmp_path / "x.duckdb", tables, schema="eunomia"), schema="eunomia")
    events = read(here)
    whole = expected_counts(events, rule, 0)
    small = np.flatnonzero(whole.pair_patients.data < 4)[::3]
    cells = whole.pair_patients.tocoo()
    chosen = (cells.coords[0].astype(np.int64) * len(events.codes) + cells.coords[1])[small]
    asked = []

    def exact(codes: tuple[str, ...]) -> Any:
        asked.append(codes)
        return chosen

    found = count_in_spark(
        spark, omop(sp.URL, schema="eunomia"), rule, today=TODAY, floor=4, exact=exact, salt=SALT
    )
    assert asked == [events.codes]
    same_counts(found.counts, with_cells(expected_counts(events, rule, 4), [whole], chosen))
    order = np.lexsort((events.code, events.day, events.patient))
    rows = (events.patient[order], events.day[order], events.code[order])
    made = gathered([patient_fingerprints(*rows, Keys.make(events.codes, SALT), rule.max_events_per_patient)])
    np.testing.assert_array_equal(found.patients.whole, made.whole)
    np.testing.assert_array_equal(found.patients.days, made.days)


def giant() -> Tables:
    """A patient with 30,000 rows beside 50 with 20."""
    rng = np.random.default_rng(1)
    person = np.concatenate([np.full(30_000, 7), np.repeat(np.arange(100, 150), 20)])
    n = len(person)
    days = np.datetime64("2015-01-01") + rng.integers(0, 3000, n)
    tables: dict[str, pa.Table] = {
        "condition_occurrence": pa.table(
            {
                "person_id": pa.array(person.astype(str)),
                "condition_start_date": pa.array(days.astype("datetime64[D]")),
                "condition_concept_id": pa.array(np.zeros(n, np.int64)),
                "condition_source_value": pa.array([f"c{i}" for i in rng.integers(0, 400, n)]),
            }
        ),
        "concept": CONCEPT.empty_table(),
    }
    return tables


def test_a_giant_patient_counts_up_to_the_cap_and_a_roll_up_is_followed(spark: Any, tmp_path: Path) -> None:  # noqa: F811
    tables, rule = giant(), Counting(max_events_per_patient=5_000)
    sp.load(spark, tables, "giant")
    rollup = {f"LOCAL:c{i}": tuple({f"G:{i % 7}", f"G:{i % 11}"}) for i in range(300)}
    settings_ = {
        "schema": "giant",
        "domains": ("condition",),
        "rollup": RollUp(file="given", unmapped="skip"),
    }
    here = omop(duckdb_file(tmp_path / "x.duckdb", tables, schema="giant"), **settings_)
    events = collect(OmopSource(here), here, today=TODAY, rollup=rollup)
    there = omop(sp.URL, **settings_)
    found = count_in_spark(spark, there, rule, rollup=rollup, today=TODAY, partitions=2)
    same(found, events, rule)
    assert found.counts.capped_patients == 1
    assert found.skipped["no target in the roll-up"] > 0


def test_i2b2_in_spark(spark: Any, tmp_path: Path) -> None:  # noqa: F811 (the fixture)
    day = datetime(2020, 1, 2, 23, 30)
    rows = [
        (1, day, "ICD10:E11.9", "@"),
        (1, day, "ICD10:E11.9", "DOSE"),
        (1, day, "LAB:a:b", " @ "),
        (2, None, "homegrown", "@"),
        (3, day, "homegrown", "@"),
    ]
    tables = i2b2_tables(rows)
    sp.load(spark, tables, "i2b2")
    form: dict[str, Any] = {"kind": "i2b2", "schema": "i2b2", "system": "LOCAL", "bad_rows": "skip"}
    here = Data(database=duckdb_file(tmp_path / "x.duckdb", tables, schema="i2b2"), **form)
    events = collect(I2b2Source(here), here, today=TODAY)
    found = count_in_spark(spark, Data(database=sp.URL, **form), Counting(), today=TODAY, partitions=2)
    same(found, events, Counting())
    assert found.skipped == {"i2b2 modifier of another row": 1, "no date": 1}


# Bad input


def refused(run: Any, *texts: str, kind: type[FederationError] = DataError) -> str:
    """The one sentence of the error, which holds the texts and no stack trace."""
    with pytest.raises(kind) as caught:
        run()
    message = str(caught.value)
    for text in texts:
        assert text in message
    assert "Traceback" not in message
    assert "\tat " not in message
    assert "\n" not in message
    assert caught.value.__cause__ is None
    return message


def test_bad_rows_stop_with_the_same_totals(thousand: tuple[Data, Events], spark: Any) -> None:  # noqa: F811
    data, events = thousand
    before = spark.conf.get(ARROW_ROWS)
    strict = data.model_copy(update={"bad_rows": "stop"})
    message = refused(lambda: count_in_spark(spark, strict, Counting(), today=TODAY))
    bad = sum(events.skipped.values())
    assert message.startswith(f"{bad:,} of {len(events.code) + bad:,} rows of spark://local")
    for reason, n in events.skipped.items():
        assert re.search(rf"\b{n:,} rows?: {re.escape(reason)}, the first is data row ", message)
    assert "in one part of condition_occurrence" in message
    left_clean(spark, before)


def test_no_usable_row(spark: Any) -> None:  # noqa: F811 (the fixture)
    tables = {name: table.slice(0, 0) for name, table in giant().items()}
    sp.load(spark, tables, "nobody")
    data = omop(sp.URL, schema="nobody", domains=("condition",))
    refused(lambda: count_in_spark(spark, data, Counting(), today=TODAY), "No row of", "there are no rows")


def test_free_text_in_the_code_column(
    thousand: tuple[Data, Events],
    spark: Any,  # noqa: F811 (the fixture)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Too many codes in all partitions together, and in one."""
    from site_agent.sources import codebook
    from site_agent.spark import count

    monkeypatch.setattr(count, "MAX_CODES", 300)
    data, _ = thousand
    refused(lambda: count_in_spark(spark, data, Counting(), today=TODAY), "more than 300 distinct codes")
    monkeypatch.setattr(codebook, "MAX_CODES", 1)
    what, why, do = coded({"code0": ["a", "b"]})["error"]
    assert what == "The data have more than 1 distinct codes"
    assert "'S:b'" in why
    assert "free text" in do


def test_a_table_that_changes_meanwhile(spark: Any) -> None:  # noqa: F811 (the fixture)
    """A view that gives other rows each time that it is read."""
    sp.load(spark, giant(), "restless")
    spark.sql("ALTER TABLE restless.condition_occurrence RENAME TO restless.held")
    spark.sql("CREATE VIEW restless.condition_occurrence AS SELECT * FROM restless.held WHERE rand() < 0.5")
    data = omop(sp.URL, schema="restless", domains=("condition",))
    message = refused(lambda: count_in_spark(spark, data, Counting(), today=TODAY), "condition_occurrence")
    assert re.search(r"changed while it was read\. It had [\d,]+ rows, then", message, re.IGNORECASE)


def test_a_missing_table(spark: Any) -> None:  # noqa: F811 (the fixture)
    sp.load(spark, {"concept": CONCEPT.empty_table()}, "partial")
    data = omop(sp.URL, schema="partial")
    refused(lambda: count_in_spark(spark, data, Counting()), "has no table condition_occurrence", "concept")
    gone = omop(sp.URL, schema="nowhere")
    refused(lambda: count_in_spark(spark, gone, Counting()), "nowhere")


def test_workers_without_the_package(
    thousand: tuple[Data, Events],
    spark: Any,  # noqa: F811 (the fixture)
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers that are another Python: one whose import of site_agent finds nothing."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['site_agent'] = None\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}:$PYTHONPATH exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(spark.sparkContext, "pythonExec", str(python))
    data, _ = thousand
    refused(
        lambda: count_in_spark(spark, data, Counting(), today=TODAY),
        "workers lack the Python package site_agent",
        "spark.pyspark.python",
    )


def test_data_that_are_not_in_spark(tmp_path: Path) -> None:
    data = omop(duckdb_file(tmp_path / "x.duckdb", giant(), schema="cdm"))
    refused(lambda: count_in_spark(OmopSource(data), data, Counting()), "is not in Spark", kind=UsageError)
    files = Data(kind="meds", events="folder", system="S")
    refused(lambda: count_in_spark(object(), files, Counting()), "kind meds", kind=UsageError)


def test_no_pyspark(monkeypatch: pytest.MonkeyPatch) -> None:
    data = omop(sp.URL)
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.setitem(sys.modules, "pyspark.errors", None)
    for given_ in (OmopSource(data), object()):
        refused(lambda g=given_: count_in_spark(g, data, Counting()), "[site,spark]", kind=UsageError)


def test_no_java(tmp_path: Path) -> None:
    pytest.importorskip("pyspark")
    program = """
        from protocol.sections import Counting
        from site_agent.sections import Data
        from site_agent.sources.omop import OmopSource
        from site_agent.spark import count_in_spark
        data = Data(kind="omop", database="spark://local", system="S")
        try:
            count_in_spark(OmopSource(data), data, Counting())
        except Exception as error:
            print(type(error).__name__, error)
    """
    # The shell's own tools, but no java.
    for tool in ("bash", "sh", "dirname", "ps", "env", "uname", "cat", "readlink", "sed"):
        found = Path("/bin") / tool
        if found.exists():
            (tmp_path / tool).symlink_to(found)
    environment = {k: v for k, v in os.environ.items() if k != "JAVA_HOME"} | {"PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=True,
    )
    assert done.stdout.startswith("DataError Spark does not start for spark://local")
    assert "Java 17" in done.stdout


def test_no_cluster() -> None:
    pytest.importorskip("pyspark")
    data = omop("spark://127.0.0.1:9")
    refused(
        lambda: count_in_spark(OmopSource(data), data, Counting()), "There is no Spark at spark://127.0.0.1:9"
    )


JAVA = """An error occurred while calling o97.count.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 3 in stage 9.0 failed 4 times, most recent \
failure: Lost task 3.3 in stage 9.0 (TID 71) (10.0.0.7 executor 2): java.io.IOException: No space left on device
\tat java.base/java.io.FileOutputStream.writeBytes(Native Method)
\tat java.base/java.lang.Thread.run(Thread.java:840)
"""
PYTHON = """
  An exception was thrown from the Python worker. Please see the stack trace below.
Traceback (most recent call last):
  File "/opt/worker.py", line 5, in main
    func()
ModuleNotFoundError: No module named 'site_agent.spark'
"""


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        (JAVA, "java.io.IOException: No space left on device", "A disk of spark://x is full"),
        (
            PYTHON,
            "ModuleNotFoundError: No module named 'site_agent.spark'",
            "lack the Python package site_agent",
        ),
        (
            "[TABLE_OR_VIEW_NOT_FOUND] The table `t`.\n; line 1",
            "[TABLE_OR_VIEW_NOT_FOUND] The table `t`.",
            "cannot count",
        ),
        (
            "RuntimeError: cannot cache function 'f': no locator available for file 'x.py'",
            "RuntimeError: cannot cache function 'f': no locator available for file 'x.py'",
            "spark.executorEnv.NUMBA_CACHE_DIR",
        ),
        ("", "it gave no reason", "spark://x cannot count"),
        (
            "Python worker exited unexpectedly (crashed)",
            "Python worker exited unexpectedly (crashed)",
            "ran out of memory",
        ),
    ],
)
def test_a_stack_trace_becomes_one_line(text: str, line: str, what: str) -> None:
    assert first_useful_line(text) == line
    error = explain(RuntimeError(text), "spark://x")
    assert what in str(error)
    assert error.why == line


def test_workers_of_another_version_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from site_agent.spark import count

    monkeypatch.setattr(tasks, "version", lambda: "1.0")
    count._check_version("1.0")
    count._check_version("")
    with pytest.raises(DataError, match=r"workers have version 0\.9"):
        count._check_version("0.9")


def coded(columns: Mapping[str, Sequence[Any]]) -> Any:
    """What the task of a table of two rows, the third one read, tells of them."""
    data = Data(kind="omop", database="spark://local", system="S")
    schema = pa.schema([("patient", pa.int64()), ("date", pa.string()), ("code0", pa.string())])
    decoders = (Decoder(CodeColumn("c"), None),)
    task = tasks.CodeTable("drug_exposure", 2, schema, decoders, None, data, TODAY, None)
    made = {"patient": [1, 2], "date": ["2020-01-01"] * 2, "code0": ["a", "b"]} | columns
    raw = pa.record_batch([pa.array(made[f.name], f.type) for f in schema], schema=schema)
    (told,) = [r for b in task(iter([raw])) for r in b.to_pylist() if r["kind"] == tasks.FINDINGS]
    return json.loads(told["text"])


def test_findings_name_the_table() -> None:
    found = coded({"date": ["2020-01-01", "soon"]})
    assert (found["order"], found["read"], found["error"]) == (2, 2, None)
    assert "the first is data row 2: 'soon' in one part of drug_exposure" in found["findings"]
