"""Laws of the pair counts: what any counting that follows the rule must give, however it is made."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from site_agent.cooccurrence import PairCounts, add_counts, count_pairs

N_CODES = 6
Event = tuple[int, int, int]
events_of_few_patients = st.lists(
    st.tuples(st.integers(0, 3), st.integers(-20, 20), st.integers(0, N_CODES - 1)), max_size=60
)
windows = st.one_of(st.none(), st.integers(0, 45))


def counted(
    events: list[Event], window: int | None, n_codes: int = N_CODES, **options: int | None
) -> PairCounts:
    table = np.array(events, dtype=np.int64).reshape(-1, 3)
    return count_pairs(table[:, 0], table[:, 1], table[:, 2], n_codes, window_days=window, **options)


def naive(
    events: list[Event], window: int | None, n_codes: int = N_CODES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rule as it is written, one pair at a time."""
    pairs = np.zeros((n_codes, n_codes), np.int64)
    patients = np.zeros_like(pairs)
    support = np.zeros(n_codes, np.int64)
    for patient in {event[0] for event in events}:
        own = sorted({(day, code) for who, day, code in events if who == patient})
        seen = set()
        for (day_a, a), (day_b, b) in combinations(own, 2):
            if window is None or abs(day_a - day_b) <= window:
                pairs[min(a, b), max(a, b)] += 1
                seen.add((min(a, b), max(a, b)))
        for cell in seen:
            patients[cell] += 1
        for code in {code for _, code in own}:
            support[code] += 1
    return (patients if window is None else pairs), patients, support


def assert_same(left: PairCounts, right: PairCounts) -> None:
    np.testing.assert_array_equal(left.events.toarray(), right.events.toarray())
    np.testing.assert_array_equal(left.pair_patients.toarray(), right.pair_patients.toarray())
    np.testing.assert_array_equal(left.code_patients, right.code_patients)
    assert (left.n_patients, left.n_events) == (right.n_patients, right.n_events)
    assert left.capped_patients == right.capped_patients


def assert_naive(
    events: list[Event], window: int | None, n_codes: int = N_CODES, **options: int | None
) -> None:
    counts = counted(events, window, n_codes, **options)
    pairs, patients, support = naive(events, window, n_codes)
    np.testing.assert_array_equal(counts.events.toarray(), pairs)
    np.testing.assert_array_equal(counts.pair_patients.toarray(), patients)
    np.testing.assert_array_equal(counts.code_patients, support)
    assert counts.n_events == len(set(events))
    assert counts.n_patients == len({event[0] for event in events})


@settings(deadline=None, max_examples=200)
@given(events_of_few_patients, windows)
def test_counts_are_those_of_the_rule_as_written(events: list[Event], window: int | None) -> None:
    assert_naive(events, window)


@pytest.mark.parametrize("window", [0, 7, 400, None])
@pytest.mark.parametrize(("memory", "threads"), [(0, 1), (400_000, 1), (400_000, 3), (2**28, 2)])
def test_the_rule_holds_beyond_one_chunk_and_one_thread(
    window: int | None, memory: int, threads: int
) -> None:
    # With no memory to speak of, each patient has more pairs than fit, and is counted by ranges of codes.
    rng = np.random.default_rng(3)
    rows = np.column_stack(
        [rng.integers(0, 9, 6000) % 6, rng.integers(0, 300, 6000), rng.geometric(0.02, 6000) % 300]
    )
    assert_naive([tuple(row) for row in rows.tolist()], window, 300, memory=memory, threads=threads)


@pytest.mark.parametrize("window", [7, None])
@pytest.mark.parametrize("most_common", [0, 1, 40, 300])
@pytest.mark.parametrize("most_pairs", [3000, 2**31 - 1])
def test_which_codes_are_common_says_nothing(
    window: int | None, most_common: int, most_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With room for 3,000 pairs in the tables, some patients fit beside others, some alone, and some not at all.
    rng = np.random.default_rng(4)
    n = 4000
    rows = np.column_stack([rng.geometric(0.05, n), rng.integers(0, 300, n), rng.geometric(0.02, n) % 300])
    monkeypatch.setattr("site_agent.cooccurrence.common._MOST", most_common)
    monkeypatch.setattr("site_agent.cooccurrence.count._MOST_PAIRS", most_pairs)
    assert_naive([tuple(row) for row in rows.tolist()], window, 300, threads=2)


@settings(deadline=None)
@given(events_of_few_patients, windows, st.integers(1, 4), st.integers(0, 2**17))
def test_threads_and_memory_say_nothing(
    events: list[Event], window: int | None, threads: int, memory: int
) -> None:
    assert_same(counted(events, window, threads=threads, memory=memory), counted(events, window, threads=1))


@settings(deadline=None)
@given(
    events_of_few_patients, windows, st.lists(st.integers(0, 2), min_size=4, max_size=4), st.integers(0, 4)
)
def test_a_floor_withholds_cells_and_tallies_them(
    events: list[Event], window: int | None, part_of_patient: list[int], floor: int
) -> None:
    parts = [counted([e for e in events if part_of_patient[e[0]] == part], window) for part in range(3)]
    whole, floored = counted(events, window), add_counts(parts, floor=floor, threads=2)
    keep = whole.pair_patients.toarray() >= floor
    np.testing.assert_array_equal(floored.events.toarray(), whole.events.toarray() * keep)
    np.testing.assert_array_equal(floored.pair_patients.toarray(), whole.pair_patients.toarray() * keep)
    assert floored.withheld_cells == whole.events.nnz - floored.events.nnz
    assert floored.withheld_events == whole.events.sum() - floored.events.sum()


@settings(deadline=None)
@given(events_of_few_patients, windows, st.lists(st.integers(0, 2), min_size=4, max_size=4))
def test_counts_add_over_any_split_of_the_patients(
    events: list[Event], window: int | None, part_of_patient: list[int]
) -> None:
    parts = [counted([e for e in events if part_of_patient[e[0]] == part], window) for part in range(3)]
    assert_same(parts[0] + parts[1] + parts[2], counted(events, window))


@settings(deadline=None)
@given(events_of_few_patients.flatmap(lambda e: st.tuples(st.just(e), st.permutations(e))), windows)
def test_the_order_of_rows_says_nothing(both: tuple[list[Event], list[Event]], window: int | None) -> None:
    assert_same(
        counted(both[0], window, max_events_per_patient=7), counted(both[1], window, max_events_per_patient=7)
    )


@settings(deadline=None)
@given(events_of_few_patients, windows)
def test_repeated_rows_are_one_event(events: list[Event], window: int | None) -> None:
    assert_same(counted(events + events[::2] + events, window), counted(events, window))


@settings(deadline=None)
@given(
    events_of_few_patients, windows, st.permutations(range(N_CODES)), st.integers(-(2**31) + 20, 2**31 - 21)
)
def test_numbering_of_patients_codes_and_days_says_nothing(
    events: list[Event], window: int | None, rename: list[int], origin: int
) -> None:
    renamed = [(10**18 - 7 * who, day + origin, rename[code]) for who, day, code in events]
    counts, other = counted(events, window), counted(renamed, window)
    for name in ("events", "pair_patients"):
        upper = getattr(counts, name).toarray()
        full = np.zeros_like(upper)
        full[np.ix_(rename, rename)] = upper + np.triu(upper, 1).T
        np.testing.assert_array_equal(np.triu(full), getattr(other, name).toarray())


@settings(deadline=None)
@given(events_of_few_patients, windows)
def test_matrices_are_canonical_upper_triangles_with_support_below_count(
    events: list[Event], window: int | None
) -> None:
    counts = counted(events, window)
    for matrix in (counts.events, counts.pair_patients):
        assert matrix.dtype == np.int64
        assert matrix.has_canonical_format
        assert (matrix.tocoo().row <= matrix.tocoo().col).all()
        assert (matrix.data > 0).all()
    np.testing.assert_array_equal(counts.events.indices, counts.pair_patients.indices)
    assert (counts.pair_patients.data <= counts.events.data).all()
    rarer = np.minimum.outer(counts.code_patients, counts.code_patients)
    assert (counts.pair_patients.toarray() <= rarer).all()


@settings(deadline=None)
@given(events_of_few_patients, st.integers(1, 12), st.integers(0, 45))
def test_the_cap_keeps_the_most_recent_events(events: list[Event], limit: int, window: int) -> None:
    kept, capped = [], 0
    for patient in {event[0] for event in events}:
        own = sorted({event for event in events if event[0] == patient})
        # Of one day the lowest codes go first: sorted by day and code, the tail stays.
        kept += own[-limit:]
        capped += len(own) > limit
    counts = counted(events, window, max_events_per_patient=limit)
    assert counts.capped_patients == capped
    expected = counted(kept, window)
    np.testing.assert_array_equal(counts.events.toarray(), expected.events.toarray())
    np.testing.assert_array_equal(counts.code_patients, expected.code_patients)
    assert counts.n_events == len(kept)
