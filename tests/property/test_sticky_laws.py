"""Laws of sticky counts: what fewer than M patients changed since the last release is published as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages import Policy
from site_agent.cells import with_cells
from site_agent.cooccurrence import PairCounts, add_counts, count_pairs
from site_agent.gate import Reference, doubtful_cells, sticky_counts, suppress
from site_agent.views.cooccurrence import cooccurrence_view
from tests.cms import shared_file
from tests.property.test_gate_laws import events
from tests.synthetic import cells_moved

M = 5
POLICY = Policy(
    min_code_patients=9,
    min_pair_patients=6,
    margin_rounding=5,
    max_dim=128,
    sticky_patients=M,
    small_site_patients=0,
)
N = 24
CODES = tuple(f"ICD10CM:{i:02d}" for i in range(N))
Rows = tuple[Any, Any, Any]


def counts_of(rows: Rows, without: Any = (), n: int = N) -> PairCounts:
    """Counts of all patients but some."""
    who, day, code = rows
    stays = ~np.isin(who, list(without))
    return count_pairs(who[stays], day[stays], code[stays], n)


def same(one: PairCounts, two: PairCounts) -> bool:
    """Every cell, margin and tally."""
    arrays = all(
        np.array_equal(getattr(one, name).toarray(), getattr(two, name).toarray())
        for name in ("events", "pair_patients")
    )
    tallies = [k for k, v in vars(one).items() if isinstance(v, int)]
    return (
        arrays
        and np.array_equal(one.code_patients, two.code_patients)
        and [getattr(one, t) for t in tallies] == [getattr(two, t) for t in tallies]
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, M - 1), st.booleans())
def test_fewer_patients_than_the_minimum_move_nothing(seed: int, k: int, added: bool) -> None:
    rows = events(seed, 120, N, 8)
    chosen = np.random.default_rng(seed).choice(120, k, replace=False)
    before, after = counts_of(rows), counts_of(rows, chosen)
    if added:
        before, after = after, before
    first = sticky_counts(before, CODES, None, POLICY)
    second = sticky_counts(after, CODES, first, POLICY)
    assert second.codes == first.codes
    assert same(first.counts, second.counts)
    one, two = suppress(first.counts, POLICY), suppress(second.counts, POLICY)
    assert one.statistics == two.statistics
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_array_equal(one.code_patients, two.code_patients)
    if len(one.rows) > 2:
        views = [cooccurrence_view(k, dim=2, shift=1.0, seed=0).matrix.tobytes() for k in (one, two)]
        assert views[0] == views[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 40))
def test_a_count_moves_only_by_the_minimum_and_then_to_what_is_true(seed: int, gone: int, new: int) -> None:
    """Removed and added patients, many of either: each published count is the old one or moved by M at least."""
    rows = events(seed, 160, N, 8)
    before, after = counts_of(rows, range(160 - new, 160)), counts_of(rows, range(gone))
    first = sticky_counts(before, CODES, None, POLICY)
    second = sticky_counts(after, CODES, first, POLICY)
    old, shown, true = (
        c.pair_patients.toarray() for c in (first.counts, second.counts, sticky_true(after).counts)
    )
    moved = old != shown
    np.testing.assert_array_equal(shown[moved & (shown > 0)], true[moved & (shown > 0)])
    assert (np.abs(after.pair_patients.toarray() - old)[moved & (old > 0)] >= M).all()
    # What was not held had at most floor - 1 patients, and no more than either code.
    seen = first.counts.code_patients
    bound = np.minimum(np.minimum.outer(seen, seen), POLICY.min_pair_patients - 1)
    appeared = (old == 0) & (shown > 0)
    assert (shown - bound >= M)[appeared].all()
    events_, old_events = second.counts.events.toarray(), first.counts.events.toarray()
    np.testing.assert_array_equal(events_[~moved], old_events[~moved])
    codes = second.counts.code_patients != first.counts.code_patients
    assert (np.abs(after.code_patients - first.counts.code_patients)[codes] >= M).all()
    assert same(sticky_counts(after, CODES, second, POLICY).counts, second.counts)  # applied twice


def sticky_true(counts: PairCounts) -> Reference:
    """What a first release would hold."""
    return sticky_counts(counts, CODES, None, POLICY)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_first_release_is_that_of_plain_suppression(seed: int) -> None:
    counts = counts_of(events(seed, 120, N, 8))
    plain, first = suppress(counts, POLICY), suppress(sticky_true(counts).counts, POLICY)
    np.testing.assert_array_equal(plain.events.toarray(), first.events.toarray())
    assert plain.statistics == first.statistics


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 80), st.integers(1, 4))
def test_counts_from_which_cells_were_withheld_give_the_same(seed: int, gone: int, groups: int) -> None:
    """Counting withholds cells below the floor; the doubtful ones are read again, exactly."""
    rows = events(seed, 160, N, 8)
    first = sticky_true(counts_of(rows))
    who = rows[0]
    parts = [counts_of(rows, [p for p in range(160) if p < gone or p % groups != g]) for g in range(groups)]
    assert who.max() == 159
    withheld = add_counts(parts, floor=POLICY.min_pair_patients)
    exact = with_cells(withheld, parts, doubtful_cells(CODES, first, POLICY))
    whole = counts_of(rows, range(gone))
    one, two = (sticky_counts(c, CODES, first, POLICY) for c in (exact, whole))
    assert same(one.counts, two.counts)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 60))
def test_another_code_list_is_handled_by_name(seed: int, gone: int) -> None:
    """Codes that no one had before, or has any more, are those that the other list lacks."""
    rows = events(seed, 160, N, 8)
    before, after = counts_of(rows), counts_of(rows, range(gone))
    cut = after.code_patients > np.median(after.code_patients) // 2  # some codes vanish
    keep = np.flatnonzero(cut)
    fewer = replace(
        after,
        events=after.events[keep][:, keep],
        pair_patients=after.pair_patients[keep][:, keep],
        code_patients=after.code_patients[keep],
    )
    padded = replace(
        after,
        events=masked(after.events, cut),
        pair_patients=masked(after.pair_patients, cut),
        code_patients=np.where(cut, after.code_patients, 0),
    )
    first = sticky_true(before)
    one = sticky_counts(fewer, tuple(CODES[i] for i in keep), first, POLICY)
    two = sticky_counts(padded, CODES, first, POLICY)
    assert one.codes == two.codes == CODES
    assert same(one.counts, two.counts)


def masked(matrix: Any, keep: Any) -> Any:
    dense = matrix.toarray() * np.outer(keep, keep)
    return type(matrix)(dense)


def test_other_rules_begin_pairs_anew_and_keep_patients_of_codes() -> None:
    rows = events(1, 160, N, 8)
    first = sticky_true(counts_of(rows))
    after = counts_of(rows, range(3))
    found = sticky_counts(after, CODES, first, POLICY, same_rules=False)
    np.testing.assert_array_equal(
        found.counts.pair_patients.toarray(), sticky_true(after).counts.pair_patients.toarray()
    )
    np.testing.assert_array_equal(found.counts.code_patients, first.counts.code_patients)


def test_codes_must_be_in_order() -> None:
    counts = counts_of(events(1, 50, N, 8))
    for codes in (CODES[::-1], CODES[:-1], (CODES[0], *CODES[:-1])):
        with pytest.raises(ValueError, match="in order of text"):
            sticky_counts(counts, codes, None, POLICY)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 40), min_size=3, max_size=6))
def test_over_many_releases_a_count_moves_only_by_the_minimum(seed: int, starts: list[int]) -> None:
    """A drift of few patients a release adds up until it is the minimum; never is less shown."""
    rows = events(seed, 160, N, 8)
    last = sticky_true(counts_of(rows, range(100, 160)))
    for start in starts:
        true = counts_of(rows, [p for p in range(160) if not start <= p < start + 100])
        found = sticky_counts(true, CODES, last, POLICY)
        for now, old, exact in (
            (found.counts.code_patients, last.counts.code_patients, true.code_patients),
            *((c.pair_patients.toarray() for c in (found.counts, last.counts, true)),),
        ):
            moved = (now != old) & (old > 0)
            assert (np.abs(exact - old)[moved] >= M).all()
            assert ((now == exact) | (now == 0))[moved].all()
        last = found


def one_patient_less(
    rows: Rows, codes: tuple[str, ...], patients: list[int], title: str
) -> dict[str, list[int]]:
    """Published cells that the removal of each patient moves, at the default floors, with and without stickiness."""
    policy = Policy(min_code_patients=20, min_pair_patients=11, margin_rounding=5, max_dim=128)
    plain = policy.model_copy(update={"sticky_patients": 0})
    before = counts_of(rows, n=len(codes))
    moved: dict[str, list[int]] = {"sticky": [], "plain": []}
    for patient in patients:
        after = counts_of(rows, [patient], n=len(codes))
        for name, rules in (("sticky", policy), ("plain", plain)):
            first = sticky_counts(before, codes, None, rules)
            found = sticky_counts(after, codes, first, rules).counts
            moved[name].append(cells_moved(first.counts, found))
    print(
        f"{title}: one patient less moves {np.mean(moved['plain']):.0f} published cells without stickiness "
        f"(mean of {len(patients)}, at most {max(moved['plain'])}), {max(moved['sticky'])} with it"
    )
    return moved


def test_without_stickiness_one_patient_moves_many_cells() -> None:
    codes = tuple(f"ICD10CM:{i:03d}" for i in range(400))
    moved = one_patient_less(events(7, 3000, 400, 12), codes, list(range(20)), "3,000 patients of 12 codes")
    assert moved["sticky"] == [0] * 20
    assert np.mean(moved["plain"]) > 20


def test_on_claims_too() -> None:
    table = pq.read_table(shared_file("cms_claims/inpatient_events.parquet"), filters=[("sample", "=", 1)])
    names = table["code"].combine_chunks().dictionary_encode()
    order = np.argsort(np.array(names.dictionary.to_pylist()))
    place = np.argsort(order)
    code = place[names.indices.to_numpy()].astype(np.int32)
    who = np.unique(table["patient"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    day = table["date"].to_numpy().astype("datetime64[D]").astype(np.int64)
    codes = tuple(f"ICD9CM:{c}" for c in np.array(names.dictionary.to_pylist())[order])
    most = np.argsort(-np.bincount(who))[:40:8].tolist()  # patients with many codes move the most
    moved = one_patient_less((who, day, code), codes, most, f"CMS claims, {who.max() + 1:,} patients")
    assert moved["sticky"] == [0] * len(most)
    assert min(moved["plain"]) > 20
