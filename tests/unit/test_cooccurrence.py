"""Pair counts: edges of the rule, extreme inputs, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from protocol import statistics
from site_agent.cooccurrence import MAX_EVENTS_PER_PATIENT, count_pairs, symmetric


@pytest.mark.parametrize(("gap", "pairs"), [(0, 1), (29, 1), (30, 1), (31, 0)])
def test_the_window_includes_its_last_day(gap: int, pairs: int) -> None:
    counts = count_pairs([7, 7], [100, 100 + gap], [0, 1], 2, window_days=30)
    assert counts.events.sum() == counts.events[0, 1] == pairs


def test_a_window_of_zero_days_is_the_same_day() -> None:
    counts = count_pairs([1] * 4, [5, 5, 5, 6], [0, 1, 2, 0], 3, window_days=0)
    np.testing.assert_array_equal(counts.events.toarray(), [[0, 1, 1], [0, 0, 1], [0, 0, 0]])


def test_the_same_code_on_two_days_feeds_the_diagonal() -> None:
    counts = count_pairs([1, 1, 1, 2], [0, 10, 20, 0], [0, 0, 0, 0], 1, window_days=10)
    assert counts.events[0, 0] == 2  # days 0-10 and 10-20; 0-20 is too far
    assert counts.pair_patients[0, 0] == 1
    assert counts.code_patients[0] == 2


def test_patients_next_to_each_other_never_pair() -> None:
    counts = count_pairs([1, 2, 1, 2], [0, 0, 400, 400], [0, 1, 2, 3], 4, window_days=30)
    assert counts.events.nnz == 0
    assert counts.n_patients == 2


def test_whole_history_counts_patients() -> None:
    patient = [1, 1, 1, 1, 2, 2, 3]
    day = [0, 0, 9000, 9000, 0, 0, 0]
    code = [0, 1, 0, 1, 0, 1, 0]
    counts = count_pairs(patient, day, code, 2, window_days=None)
    # Patient 1 has both codes on two days each; patient 2 both on one day; patient 3 one code.
    np.testing.assert_array_equal(counts.events.toarray(), [[1, 2], [0, 1]])
    np.testing.assert_array_equal(counts.pair_patients.toarray(), counts.events.toarray())
    assert counts.n_events == 7
    counts.events.data[:] = 0
    assert counts.pair_patients.sum() == 4  # the two matrices share no memory


def test_a_vocabulary_whose_cells_pass_32_bits() -> None:
    n = 61_000
    top = n - 1
    counts = count_pairs([1, 1, 1, 2, 2], [0, 0, 1, 3, 3], [top, top - 1, top, top, 0], n)
    cells = {
        (int(j), int(k)): int(v)
        for j, k, v in zip(*counts.events.tocoo().coords, counts.events.data, strict=True)
    }
    assert cells == {(0, top): 1, (top - 1, top): 2, (top, top): 1}
    assert counts.code_patients[[0, top - 1, top]].tolist() == [1, 1, 2]


def test_patient_identifiers_of_any_integer_type() -> None:
    extremes = np.array([0, 2**64 - 1, 2**63, 0, 2**64 - 1, 2**63], np.uint64)
    counts = count_pairs(extremes, np.int16([0, 1, 2, 3, 4, 5]), np.uint8([0, 0, 0, 1, 1, 1]), 2)
    assert counts.n_patients == 3
    assert counts.events[0, 1] == 3
    wide = np.array([-(2**63), 2**63 - 1, -(2**63)])
    assert count_pairs(wide, [2**31 - 1, 0, 2**31 - 1], [0, 1, 1], 2).events[0, 1] == 1


def test_the_farthest_days_do_not_wrap() -> None:
    ends = [-(2**31), 2**31 - 1]
    assert count_pairs([1, 1], ends, [0, 1], 2, window_days=30).events.nnz == 0
    assert count_pairs([1, 1], ends, [0, 1], 2, window_days=2**40).events[0, 1] == 1
    assert count_pairs([1, 1], ends, [0, 1], 2, window_days=None).events[0, 1] == 1


def test_no_events() -> None:
    counts = count_pairs([], [], [], 3)
    assert counts.events.shape == (3, 3)
    assert counts.events.nnz == counts.pair_patients.nnz == counts.n_patients == counts.n_events == 0
    assert count_pairs([], [], [], 0).events.shape == (0, 0)


def test_a_patient_with_an_absurd_record_is_capped_and_reported() -> None:
    n = MAX_EVENTS_PER_PATIENT + 5
    patient = np.append(np.zeros(n, int), [1, 1])
    day = np.append(np.arange(n), [0, 0])
    counts = count_pairs(patient, day, np.append(np.zeros(n, int), [1, 2]), 3, window_days=1)
    assert counts.capped_patients == 1
    assert counts.events[0, 0] == MAX_EVENTS_PER_PATIENT - 1
    assert counts.events[1, 2] == 1
    assert counts.n_events == MAX_EVENTS_PER_PATIENT + 2
    free = count_pairs(
        patient, day, np.append(np.zeros(n, int), [1, 2]), 3, window_days=1, max_events_per_patient=None
    )
    assert (free.capped_patients, free.events[0, 0]) == (0, n - 1)


def test_duplicates_do_not_use_up_the_cap() -> None:
    counts = count_pairs([1] * 6, [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], 2, max_events_per_patient=2)
    assert (counts.capped_patients, counts.n_events, counts.events[0, 1]) == (0, 2, 1)


def test_inputs_stay_as_they_were() -> None:
    patient, day, code = np.array([2, 1, 1, 1]), np.array([0, 5, 5, 5]), np.array([0, 2, 1, 1])
    before = patient.copy(), day.copy(), code.copy()
    count_pairs(patient, day, code, 3, max_events_per_patient=1)
    for column, old in zip((patient, day, code), before, strict=True):
        np.testing.assert_array_equal(column, old)


def test_the_result_is_frozen_and_symmetric_is_the_shared_definition() -> None:
    counts = count_pairs([1, 1], [0, 0], [0, 1], 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        counts.n_events = 5  # type: ignore[misc]
    assert symmetric is statistics.symmetric
    np.testing.assert_array_equal(symmetric(counts.events).toarray(), [[0, 1], [1, 0]])


def test_counts_over_different_vocabularies_do_not_add() -> None:
    with pytest.raises(ValueError, match="of 2 and of 3 codes"):
        count_pairs([1], [0], [0], 2) + count_pairs([1], [0], [0], 3)
    with pytest.raises(TypeError):
        count_pairs([1], [0], [0], 2) + 1  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1, 1], [0], [0, 1], 2), {}, "one length"),
        (([[1]], [[0]], [[0]], 2), {}, "one-dimensional"),
        (([1, 1], [0, 0], [0, 2], 2), {}, r"code\[1\] is 2, outside \[0, 2\)"),
        (([1, 1], [0, 0], [-1, 0], 2), {}, r"code\[0\] is -1"),
        (([1], [0], np.uint64([2**64 - 1]), 2), {}, r"code\[0\] is 18446744073709551615"),
        (([1], [2**31], [0], 2), {}, r"day\[0\] is 2147483648"),
        (([1], [0.5], [0], 2), {}, "day must be an array of integers"),
        ((["a"], [0], [0], 2), {}, "patient must be an array of integers"),
        (([1], [0], [0], -1), {}, "n_codes is -1"),
        (([1], [0], [0], 2), {"window_days": -1}, "window_days is -1"),
        (([1], [0], [0], 2), {"max_events_per_patient": 0}, "max_events_per_patient is 0"),
    ],
)
def test_what_cannot_be_counted_is_refused(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_pairs(*arguments, **options)
