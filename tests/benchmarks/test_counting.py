"""Pair counting against what a site would use instead: a self-join in DuckDB, X'X over months in scipy, a naive kernel.

DuckDB starts from a loaded table of distinct events and counts event pairs alone, on as many cores as ours; ours starts
from raw rows and counts the patients of each pair as well. The month bins are another, cruder statistic, there for
their time only: they miss every pair across a bin's end, about half of all. The naive kernel hits one dense table at
random, counts no patients and removes no duplicates; it is compared with ours on one core. SMILE_BENCH=full adds
larger sizes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from numba import njit
from scipy import sparse

from site_agent.cooccurrence import PairCounts, count_pairs

EVENTS_PER_PATIENT = 60
DAYS = 550
WINDOW = 30
SHORT = ((1_000, 5_000), (4_000, 10_000), (16_000, 20_000))  # patients, codes
FULL = (*SHORT, (125_000, 20_000), (500_000, 20_000), (125_000, 61_000))
REPEATS = 3
THREADS = os.cpu_count() or 1
LARGEST_TABLE = 20_000  # codes whose dense table of counts is made
# Half of the pairs are written to a bucket, read to count rows, read and written in order of rows, and read to be summed:
# 40 bytes. The others stay in a table in the cache.
BYTES_A_PAIR = 20

SELF_JOIN = f"""
    SELECT least(a.code, b.code) AS j, greatest(a.code, b.code) AS k, count(*) AS pairs
    FROM events a JOIN events b
      ON a.patient = b.patient AND b.day BETWEEN a.day AND a.day + {WINDOW}
     AND (b.day > a.day OR b.code > a.code)
    GROUP BY ALL
"""


class Events(NamedTuple):
    patient: np.ndarray
    day: np.ndarray
    code: np.ndarray
    n_codes: int


class Row(NamedTuple):
    name: str
    counts: PairCounts
    ours: float
    one_core: float
    shuffled: float
    duckdb: float
    months: float
    naive: float


@njit(cache=True)
def naive_count(patient, day, code, table, window):  # type: ignore[no-untyped-def]
    """Every pair of events, sorted by patient and day, straight into one dense table."""
    n = code.size
    for i in range(n):
        for e in range(i + 1, n):
            if patient[e] != patient[i] or day[e] - day[i] > window:
                break
            table[min(code[i], code[e]), max(code[i], code[e])] += 1


def zipf_events(n_patients: int, n_codes: int, seed: int = 0) -> Events:
    """Events by patient and day, code frequencies falling as 1 / rank, the ranks dealt out at random."""
    rng = np.random.default_rng(seed)
    code = zipf_codes(rng, n_patients * EVENTS_PER_PATIENT, n_codes, seed)
    patient = np.repeat(np.arange(n_patients), EVENTS_PER_PATIENT)
    day = np.sort(rng.integers(0, DAYS, (n_patients, EVENTS_PER_PATIENT)), axis=1).ravel()
    return typed(patient, day, code, n_codes)


def typed(patient: np.ndarray, day: np.ndarray, code: np.ndarray, n_codes: int) -> Events:
    """Columns as wide as a site's staged events."""
    return Events(patient.astype(np.int64), day.astype(np.int32), code.astype(np.int32), n_codes)


def zipf_codes(rng: np.random.Generator, n: int, n_codes: int, seed: int) -> np.ndarray:
    """n codes whose frequencies fall as 1 / rank; `seed` deals the ranks out."""
    cumulated = np.cumsum(1 / np.arange(1, n_codes + 1))
    rank = np.searchsorted(cumulated, rng.uniform(0, cumulated[-1], n))
    return np.random.default_rng(seed).permutation(n_codes)[np.minimum(rank, n_codes - 1)]


def loaded(events: Events) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect()
    rows = {"patient": events.patient, "day": events.day, "code": events.code}
    database.register("rows", rows)
    database.execute(
        "CREATE TABLE events AS SELECT DISTINCT patient, day::INT AS day, code::INT AS code FROM rows"
    )
    return database


def months(events: Events) -> sparse.csr_array:
    bins = events.patient * (DAYS // WINDOW + 1) + events.day // WINDOW
    shape = (int(bins.max()) + 1, events.n_codes)
    table = sparse.csr_array((np.ones(bins.size, np.int64), (bins, events.code)), shape=shape)
    return table.T @ table


def assert_equal_counts(
    counts: PairCounts, joined: dict[str, np.ndarray], column: str, ours: sparse.csr_array
) -> None:
    theirs = sparse.csr_array((joined[column].astype(np.int64), (joined["j"], joined["k"])), shape=ours.shape)
    assert counts.events.nnz == theirs.nnz
    assert (ours != theirs).nnz == 0


def claims() -> Events | None:
    """The inpatient claims of all samples, if they are there."""
    path = Path(__file__).parents[2].parent / "shared" / "data" / "cms_claims" / "inpatient_events.parquet"
    if not path.exists():
        return None
    table = pq.read_table(path, columns=["patient", "date", "code"])
    columns = [
        table[name].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        for name in ("patient", "code")
    ]
    day = table["date"].cast("date32").combine_chunks().cast("int32").to_numpy().astype(np.int64)
    order = np.lexsort((day, columns[0]))
    return typed(columns[0][order], day[order], columns[1][order], int(columns[1].max()) + 1)


def compare(name: str, events: Events, *, support: bool) -> Row:
    """All ways of counting, one after the other and the best of a few, and whether DuckDB's counts are ours."""
    order = np.random.default_rng(1).permutation(events.code.size)
    shuffled = Events(events.patient[order], events.day[order], events.code[order], events.n_codes)
    ours = one_core = unsorted = duck = dense = np.inf
    table = np.zeros((events.n_codes, events.n_codes), np.int32) if events.n_codes <= LARGEST_TABLE else None
    with loaded(events) as database:
        for _ in range(REPEATS):
            seconds, counts = timed(lambda: count_pairs(*events, window_days=WINDOW, threads=THREADS))
            ours = min(ours, seconds)
            one_core = min(one_core, timed(lambda: count_pairs(*events, window_days=WINDOW, threads=1))[0])
            unsorted = min(unsorted, timed(lambda: count_pairs(*shuffled, window_days=WINDOW))[0])
            seconds, joined = timed(lambda: database.execute(SELF_JOIN).fetchnumpy())
            duck = min(duck, seconds)
            if table is not None:
                dense = min(dense, timed(lambda: naive_count(*events[:3], table, WINDOW))[0])
        assert_equal_counts(counts, joined, "pairs", counts.events)
        if support:
            query = SELF_JOIN.replace("count(*) AS pairs", "count(DISTINCT a.patient) AS patients")
            found = database.execute(query).fetchnumpy()
            assert_equal_counts(counts, found, "patients", counts.pair_patients)
    return Row(name, counts, ours, one_core, unsorted, duck, timed(lambda: months(events))[0], dense)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


@pytest.mark.benchmark
def test_counts_equal_a_self_join_and_come_sooner() -> None:
    count_pairs([0], [0], [0], 1)  # compile before the clock starts
    naive_count(
        np.zeros(1, np.int64), np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros((1, 1), np.int32), 0
    )
    rows = []
    for n_patients, n_codes in FULL if os.environ.get("SMILE_BENCH") == "full" else SHORT:
        rows.append(compare(f"{n_codes:,} codes", zipf_events(n_patients, n_codes), support=not rows))
    report(rows)
    real = claims()
    if real is not None:
        report([compare("CMS claims", real, support=True)])
    assert all(row.duckdb / row.ours > 1 for row in rows)


def report(rows: list[Row]) -> None:
    stream = bandwidth()
    titles = (
        "",
        "events",
        "pairs",
        "cells",
        "ours s",
        "1 core s",
        "ns/pair",
        "shuffled",
        "DuckDB s",
        "ratio",
        "months s",
    )
    print("\n" + "".join(f"{title:>13}" for title in (*titles, "ratio", "naive s", "ratio", "bandwidth")))
    for row in rows:
        pairs = int(row.counts.events.sum())
        print(
            f"{row.name:>13}{row.counts.n_events:>13,}{pairs:>13,}{row.counts.events.nnz:>13,}{row.ours:>13.3f}"
            f"{row.one_core:>13.3f}{row.one_core / pairs * 1e9:>13.1f}{row.shuffled:>13.3f}"
            f"{row.duckdb:>13.3f}{row.duckdb / row.ours:>13.1f}{row.months:>13.3f}{row.months / row.ours:>13.1f}"
            f"{row.naive:>13.3f}{row.naive / row.one_core:>13.1f}{pairs * BYTES_A_PAIR / row.ours / stream:>13.2f}"
        )
    print(
        f"bandwidth: {BYTES_A_PAIR} bytes a pair as a part of the {stream / 1e9:.1f} GB/s that copying reaches"
    )
    if len(rows) > 2:
        pairs = np.log([row.counts.events.sum() for row in rows])
        for name in ("ours", "duckdb", "months"):
            exponent = np.polyfit(pairs, np.log([getattr(row, name) for row in rows]), 1)[0]
            print(f"{name}: time grows as pairs^{exponent:.2f}")


def bandwidth() -> float:
    """Bytes a second, read and written, of copying on all cores."""
    source = np.ones(1 << 25)
    target = np.empty_like(source)
    parts = np.array_split(np.arange(source.size), THREADS)

    def copy(part: np.ndarray) -> None:
        target[part[0] : part[-1] + 1] = source[part[0] : part[-1] + 1]

    with ThreadPoolExecutor(THREADS) as pool:
        return 2 * source.nbytes / min(timed(lambda: list(pool.map(copy, parts)))[0] for _ in range(5))
