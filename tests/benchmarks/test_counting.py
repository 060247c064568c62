"""Pair counting against what a site would use instead: a self-join in DuckDB, and X'X over months in scipy.

DuckDB starts from a loaded table of distinct events, uses every core and counts event pairs alone; ours starts from
raw rows on one core and counts the patients of each pair as well. The month bins are another, cruder statistic, there
for their time only: they miss every pair across a bin's end, about half of all. SMILE_BENCH=full adds larger sizes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pytest
from scipy import sparse

from site_agent.cooccurrence import PairCounts, count_pairs

EVENTS_PER_PATIENT = 60
DAYS = 550
WINDOW = 30
SHORT = ((1_000, 5_000), (4_000, 10_000), (16_000, 20_000))  # patients, codes
FULL = (*SHORT, (50_000, 20_000), (125_000, 20_000), (125_000, 61_000))

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
    patients: int
    codes: int
    events: int
    pairs: int
    ours: float
    unsorted: float
    duckdb: float
    months: float


def zipf_events(n_patients: int, n_codes: int, seed: int = 0) -> Events:
    """Events by patient and day, code frequencies falling as 1 / rank, the ranks dealt out at random."""
    rng = np.random.default_rng(seed)
    code = zipf_codes(rng, n_patients * EVENTS_PER_PATIENT, n_codes, seed)
    patient = np.repeat(np.arange(n_patients), EVENTS_PER_PATIENT)
    day = np.sort(rng.integers(0, DAYS, (n_patients, EVENTS_PER_PATIENT)), axis=1).ravel()
    return Events(patient, day, code, n_codes)


def zipf_codes(rng: np.random.Generator, n: int, n_codes: int, seed: int) -> np.ndarray:
    """n codes whose frequencies fall as 1 / rank; `seed` deals the ranks out."""
    cumulated = np.cumsum(1 / np.arange(1, n_codes + 1))
    rank = np.searchsorted(cumulated, rng.uniform(0, cumulated[-1], n))
    return np.random.default_rng(seed).permutation(n_codes)[np.minimum(rank, n_codes - 1)]


def best_of(repeats: int, run: Callable[[], Any]) -> tuple[float, Any]:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - begin)
    return min(times), result


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


@pytest.mark.benchmark
def test_counts_equal_a_self_join_and_come_sooner() -> None:
    count_pairs([0], [0], [0], 1)  # compile before the clock starts
    rows = []
    for n_patients, n_codes in FULL if os.environ.get("SMILE_BENCH") == "full" else SHORT:
        events = zipf_events(n_patients, n_codes)
        ours, counts = best_of(3, lambda events=events: count_pairs(*events, window_days=WINDOW))
        order = np.random.default_rng(1).permutation(events.code.size)
        shuffled = Events(events.patient[order], events.day[order], events.code[order], n_codes)
        unsorted, _ = best_of(2, lambda shuffled=shuffled: count_pairs(*shuffled, window_days=WINDOW))
        with loaded(events) as database:
            theirs, joined = best_of(3, lambda database=database: database.execute(SELF_JOIN).fetchnumpy())
            assert_equal_counts(counts, joined, "pairs", counts.events)
            if not rows:
                supported = SELF_JOIN.replace("count(*) AS pairs", "count(DISTINCT a.patient) AS patients")
                support = database.execute(supported).fetchnumpy()
                assert_equal_counts(counts, support, "patients", counts.pair_patients)
        binned, _ = best_of(1, lambda events=events: months(events))
        pairs = int(counts.events.sum())
        rows.append(Row(n_patients, n_codes, counts.n_events, pairs, ours, unsorted, theirs, binned))
    report(rows)
    assert all(row.duckdb / row.ours > 1 for row in rows)


def report(rows: list[Row]) -> None:
    titles = (
        "patients",
        "codes",
        "events",
        "pairs",
        "ours s",
        "ns/pair",
        "unsorted",
        "DuckDB s",
        "ratio",
        "months s",
    )
    print("\n" + "".join(f"{title:>12}" for title in titles))
    for row in rows:
        whole = (row.patients, row.codes, row.events, row.pairs)
        times = (
            f"{row.ours:>12.3f}{row.ours / row.pairs * 1e9:>12.1f}{row.unsorted:>12.3f}{row.duckdb:>12.3f}"
        )
        print(
            "".join(f"{n:>12,}" for n in whole) + times + f"{row.duckdb / row.ours:>12.1f}{row.months:>12.3f}"
        )
    pairs = np.log([row.pairs for row in rows])
    for name in ("ours", "duckdb", "months"):
        exponent = np.polyfit(pairs, np.log([getattr(row, name) for row in rows]), 1)[0]
        print(f"{name}: time grows as pairs^{exponent:.2f}")
