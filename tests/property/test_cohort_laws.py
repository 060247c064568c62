"""Laws of cohort search: gathering, lift, survival, subgroups, and search."""

from __future__ import annotations

import dataclasses
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from site_agent.cohort.gathering import LEAST_YEARS, YEAR, Window, follow_up, gather
from site_agent.cohort.index import PatientIndex
from site_agent.cohort.lift import lift
from site_agent.cohort.own import joined, own_vectors
from site_agent.cohort.subgroups import adjusted_rand, subgroups
from site_agent.cohort.survival import kaplan_meier
from site_agent.cooccurrence import PairCounts, count_pairs

EVENTS = st.lists(
    st.tuples(st.integers(-5, 5), st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=60
)
DAY = date(1970, 1, 1)


def columns(events: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    patient, day, code = np.array(sorted(events)).T
    return patient.astype(np.int64), day.astype(np.int32), code.astype(np.int32)


@given(EVENTS, st.integers(0, 20), st.integers(0, 20))
def test_gathering_is_counting_by_hand(events: list[tuple[int, int, int]], one: int, two: int) -> None:
    low, high = min(one, two), max(one, two)
    found = gather(*columns(events), Window(DAY + timedelta(low), DAY + timedelta(high)))
    within = {e for e in events if low <= e[1] <= high}
    assert found.patient.tolist() == sorted({p for p, _, _ in within})
    assert found.outside == len({p for p, _, _ in events}) - len(found.patient)
    for i, patient in enumerate(found.patient.tolist()):
        days = sorted(d for p, d, _ in within if p == patient)
        assert (found.first[i], found.last[i]) == (days[0], days[-1])
        assert found.seen[i] == max(d for p, d, _ in events if p == patient)
        span = slice(found.start[i], found.start[i + 1])
        own = {c: len({d for p, d, k in within if p == patient and k == c}) for _, _, c in within}
        told = dict(zip(found.code[span].tolist(), found.days[span].tolist(), strict=True))
        assert told == {c: n for c, n in own.items() if n}
        assert found.code[span].tolist() == sorted(told)


@given(EVENTS)
def test_repeated_events_and_empty_windows(events: list[tuple[int, int, int]]) -> None:
    once, twice = (gather(*columns(rows), Window()) for rows in (list(set(events)), events * 2))
    assert once.days.tolist() == twice.days.tolist()
    nobody = gather(*columns(events), Window(DAY + timedelta(99), None))
    assert nobody.patient.size == nobody.code.size == nobody.first.size == 0
    assert nobody.start.tolist() == [0]


@given(
    arrays(np.int32, 5, elements=st.integers(0, 10_000)), arrays(np.int32, 5, elements=st.integers(0, 10_000))
)
def test_follow_up_is_at_least_a_year(first: np.ndarray, more: np.ndarray) -> None:
    years = follow_up(first, first + more)
    assert (years >= LEAST_YEARS).all()
    long = more >= 366
    assert np.allclose(years[long], (more[long] + 1) / YEAR)


@given(st.integers(1, 500), st.integers(1, 5000), st.data())
def test_lift_of_exchanged_groups_is_the_reciprocal(n: int, m: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    one, other = lift([a], n, [b], m), lift([b], m, [a], n)
    assert one.ratio[0] * other.ratio[0] == pytest.approx(1)
    assert one.low[0] * other.high[0] == pytest.approx(1)
    assert 0 < one.low[0] <= one.ratio[0] <= one.high[0] < np.inf
    with pytest.raises(ValueError, match="between"):
        lift([n + 1], n, [b], m)


def test_lift_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    for share, ratio, n, m in ((0.02, 1.0, 100, 5000), (0.1, 3.0, 100, 5000), (0.005, 2.0, 1000, 20_000)):
        found = lift(rng.binomial(n, share * ratio, 20_000), n, rng.binomial(m, share, 20_000), m)
        held = ((found.low <= ratio) & (ratio <= found.high)).mean()
        assert 0.93 < held < 0.99, (share, ratio, n)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_survival_without_censoring_is_the_share_alive(times: list[int]) -> None:
    found = kaplan_meier(times, [True] * len(times))
    for time, share, at_risk in zip(found.time, found.share, found.at_risk, strict=True):
        assert share == pytest.approx(np.mean(np.array(times) > time))
        assert at_risk == (np.array(times) >= time).sum()
    assert found.share[-1] == pytest.approx(0)
    assert (found.low <= found.share + 1e-12).all()
    assert (found.share <= found.high + 1e-12).all()
    assert found.median == sorted(times)[(len(times) + 1) // 2 - 1]


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=60), st.integers(2, 5))
def test_survival_heeds_no_order_and_no_repetition(people: list[tuple[int, bool]], times: int) -> None:
    time, died = zip(*people, strict=True)
    found, again = kaplan_meier(time, died), kaplan_meier(time[::-1] * times, died[::-1] * times)
    assert np.allclose(found.share, again.share)
    assert (np.diff(found.share) <= 0).all()
    assert ((found.low >= 0) & (found.high <= 1)).all()
    assert (again.high - again.low <= found.high - found.low + 1e-9)[found.share > 1e-12].all()


def test_greenwoods_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(1000):
        life, leaves = rng.exponential(100, 80), rng.uniform(0, 300, 80)
        found = kaplan_meier(np.ceil(np.minimum(life, leaves)).astype(int), life <= leaves)
        told = found.at(60)
        assert told is not None
        held.append(told[1] <= np.exp(-0.6) <= told[2])
    assert 0.93 < np.mean(held) < 0.975


def test_survival_says_nothing_beyond_what_was_observed() -> None:
    found = kaplan_meier([5, 9], [False, False])
    assert (found.at(0), found.at(9), found.at(10), found.median) == (
        (1.0, 1.0, 1.0),
        (1.0, 1.0, 1.0),
        None,
        None,
    )
    with pytest.raises(ValueError, match="0 or more"):
        kaplan_meier([-1], [True])


@given(arrays(np.intp, 30, elements=st.integers(0, 3)), st.permutations(range(4)))
def test_rand_heeds_no_names_of_groups(labels: np.ndarray, names: list[int]) -> None:
    assert adjusted_rand(labels, np.array(names)[labels]) == pytest.approx(1)


def test_rand_of_random_groups_is_zero_on_average() -> None:
    rng = np.random.default_rng(0)
    assert abs(np.mean([adjusted_rand(*rng.integers(0, 4, (2, 60))) for _ in range(400)])) < 0.01


@pytest.mark.parametrize("method", ["k-means", "mixture"])
def test_subgroups_are_found_where_there_are_some_and_only_there(method: str) -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(8)[rng.permutation(np.repeat(range(3), (60, 40, 30)))]
    there = centres + 0.1 * rng.standard_normal((130, 8))
    cloud = rng.standard_normal((130, 8))
    for points, groups in ((there, 3), (cloud, 1)):
        unit = points / np.linalg.norm(points, axis=1, keepdims=True)
        found = subgroups(unit, method=method, repeats=15, most=4)  # type: ignore[arg-type]
        assert int(found.labels.max()) + 1 == groups
        if groups == 3:
            assert np.bincount(found.labels).tolist() == [60, 40, 30]
            again = subgroups(unit, 3, method=method, repeats=15)  # type: ignore[arg-type]
            assert adjusted_rand(again.labels, centres.argmax(1)) == pytest.approx(1)
            assert again.stable


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_exact_search_is_sorting(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (n, 3)).astype(np.float32)
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(norm == 0, 1, norm)
    allowed = rng.random(n) < 0.7
    query = np.array([0.6, 0.8, 0.0], dtype=np.float32)
    rows, cosines = PatientIndex(vectors).search(query, k, allowed=allowed)
    able = np.flatnonzero(allowed & vectors.any(axis=1))
    right = able[np.lexsort((able, -(vectors @ query)[able]))][:k]
    assert np.allclose(cosines, (vectors @ query)[right], atol=1e-6)
    assert len(set(rows.tolist())) == len(right)
    assert set(rows.tolist()) <= set(able.tolist())


def own_counts(seed: int) -> PairCounts:
    """Twelve codes of 60 patients; the last two are of three patients, the others of many."""
    rng = np.random.default_rng(seed)
    rows = [(p, d, c) for p in range(60) for d in range(2) for c in rng.choice(10, 3, replace=False)]
    rows += [(p, 0, c) for p in range(3) for c in (10, 11)]
    patient, day, code = np.array(sorted(rows)).T
    return count_pairs(patient, day.astype(np.int32), code.astype(np.int32), 12, window_days=30)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_rare_codes_and_pairs_change_no_own_vector(seed: int) -> None:
    counts = own_counts(seed)
    found = own_vectors(counts, dim=4)
    assert found.shape == (12, 4)
    assert not found[10:].any(), "three patients are too few"
    assert np.allclose(np.linalg.norm(found[found.any(axis=1)], axis=1), 1, atol=1e-5)
    rare = counts.events.copy()
    rare.data[counts.pair_patients.data < 2] += 7
    rare = rare.tolil()
    rare[0, 10] = rare[10, 11] = 99
    more = dataclasses.replace(counts, events=sparse.csr_array(rare))
    assert np.allclose(own_vectors(more, dim=4), found, atol=1e-6)


def test_where_no_code_has_enough_patients_there_are_no_own_vectors() -> None:
    assert own_vectors(own_counts(0), dim=4, least=61).shape == (12, 0)
    assert own_vectors(own_counts(0), dim=4, least_pair=61).shape == (12, 0)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
def test_products_of_joined_vectors_are_weighted_means_of_both_cosines(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((6, d)).astype(np.float32) for d in (3, 5)]
    parts = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in parts]
    parts[0][0] = 0
    both = joined(parts[0], parts[1], share)
    right = share * parts[0] @ parts[0].T + (1 - share) * parts[1] @ parts[1].T
    assert np.allclose(both @ both.T, right, atol=1e-5)
