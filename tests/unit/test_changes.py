"""Fingerprints of patients' events: what counts as a change, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from site_agent.changes import Fingerprints, Keys, changed_patients, gathered, patient_fingerprints

CODES = tuple(f"ICD10CM:{i:02d}" for i in range(8))
KEYS = Keys.make(CODES, b"s" * 32)
Event = tuple[int, int, int]


def of(events: list[Event], *, keys: Keys = KEYS, most: int = 20_000) -> Fingerprints:
    rows = np.array(sorted(events), np.int64).reshape(-1, 3)
    return gathered([patient_fingerprints(rows[:, 0], rows[:, 1].astype(np.int32), rows[:, 2], keys, most)])


def changed(before: list[Event], after: list[Event], **how: Any) -> int:
    return changed_patients(of(before, **how).whole, of(after, **how).whole)


histories = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40), st.integers(0, 7)), max_size=60)


@settings(max_examples=200, deadline=None)
@given(histories, histories)
def test_at_most_the_patients_that_changed(one: list[Event], two: list[Event]) -> None:
    def of_patient(events: list[Event], who: int) -> set[Event]:
        return {e for e in events if e[0] == who}

    differ = sum(of_patient(one, who) != of_patient(two, who) for who in range(13))
    found = changed(one, two)
    assert found <= differ
    assert changed(two, one) == found
    # Histories without who and when: only if these are the same is nothing changed.
    shapes = []
    for events in (one, two):
        shape = []
        for who in {e[0] for e in events}:
            own = sorted(of_patient(events, who), key=lambda e: e[1:])
            shape.append(tuple((day - own[0][1], code) for _, day, code in own))
        shapes.append(sorted(shape))
    assert (found == 0) == (shapes[0] == shapes[1])


@settings(max_examples=100, deadline=None)
@given(histories, st.integers(1, 12), st.integers(-500, 500))
def test_duplicates_pseudonyms_and_shifted_dates_change_nothing(
    events: list[Event], twice: int, shift: int
) -> None:
    moved = [(99 - who, day + shift * (who + 1), code) for who, day, code in events]
    assert changed(events, moved + moved[:twice]) == 0


def test_one_event_more_is_one_patient() -> None:
    events = [(p, d, d % 8) for p in range(50) for d in range(p % 5 + 1)]
    assert changed(events, [*events, (7, 30, 1)]) == 1
    assert changed(events, [*events, (70, 30, 1)]) == 1
    assert changed(events, [e for e in events if e[0] != 3]) == 1
    assert changed([], events) == 50


def test_only_events_that_count_change_a_patient() -> None:
    events = [(p, d, d % 8) for p in range(5) for d in range(10)]
    early = [*events, (2, -5, 1)]
    assert changed(events, early, most=10) == 0
    assert changed(events, early, most=11) == 1


def test_days_alone_do_not_see_recoding() -> None:
    events = [(p, d * d, (d + p) % 4) for p in range(30) for d in range(4)]
    recoded = [(p, d, code + 4) for p, d, code in events]
    one, two = of(events), of(recoded)
    assert changed_patients(one.whole, two.whole) == 30
    assert changed_patients(one.days, two.days) == 0
    assert changed_patients(one.days, of([*recoded, (4, 50, 0)]).days) == 1


def test_another_salt_gives_other_fingerprints() -> None:
    events = [(p, d, d % 8) for p in range(20) for d in range(p + 1)]
    one, two = of(events), of(events, keys=Keys.make(CODES, b"t" * 32))
    assert not np.isin(one.whole, two.whole).any()
    assert not np.isin(one.days, two.days).any()


def test_groups_of_patients_give_the_same_as_all_at_once() -> None:
    events = [(p, d, (p * d) % 8) for p in range(40) for d in range(p % 7 + 1)]
    rows = np.array(events)
    parts = (rows[rows[:, 0] % 3 == i] for i in range(3))
    found = gathered(patient_fingerprints(r[:, 0], r[:, 1], r[:, 2], KEYS, 5) for r in parts)
    np.testing.assert_array_equal(found.whole, of(events, most=5).whole)
    np.testing.assert_array_equal(found.days, of(events).days)


def test_no_patient() -> None:
    assert len(of([]).whole) == len(of([]).days) == 0
