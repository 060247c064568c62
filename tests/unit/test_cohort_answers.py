"""What may be said of a cohort's size: laws of rounding, floors and sticking, over any history of questions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import Policy
from site_agent.changes import UInt64s, changed_patients
from site_agent.gate.cohorts import Counted, Decided, cohort_answer, cohort_floor, decide

POLICY = Policy(min_code_patients=20, min_pair_patients=11, margin_rounding=100, max_dim=128)
EVERYONE = 50_000
counts = st.integers(0, 3000)
steps = st.sampled_from([1, 5, 10, 100, 250])
floors = st.integers(1, 60)


def people(first: int, last: int) -> UInt64s:
    """Patients first ... last - 1."""
    return np.arange(first, last, dtype=np.uint64)


def asked(patients: UInt64s, *earlier: Counted, meaning: str = "this") -> Decided:
    return decide(patients, meaning, earlier, POLICY, EVERYONE)


def past(name: str, patients: UInt64s, answer: int, meaning: str = "that") -> Counted:
    return Counted(name, meaning, patients, answer)


@given(counts, floors, steps)
def test_an_answer_is_zero_or_a_rounded_count_over_the_floor(count: int, floor: int, step: int) -> None:
    said = cohort_answer(count, floor, step)
    assert said % step == 0
    assert abs(said - count) <= max(floor - 1, step / 2)
    if count < floor:
        assert said == 0 == cohort_answer(0, floor, step)


def test_the_floor_is_that_of_codes_and_of_pairs_at_a_site_of_this_size() -> None:
    assert cohort_floor(POLICY, 50_000) == 20
    assert cohort_floor(POLICY, 5_000) == 25, "a small site"
    assert cohort_floor(POLICY.model_copy(update={"min_pair_patients": 30}), 50_000) == 30


def test_fewer_patients_than_the_floor_do_not_move_an_answer() -> None:
    first = past("q1", people(0, 140), 100)
    assert asked(people(0, 140)) == Decided(100, 20, 100)
    assert asked(people(0, 159)) == Decided(200, 20, 100)
    assert asked(people(0, 159), first) == Decided(100, 20, 100, "q1")
    assert asked(people(0, 160), first) == Decided(200, 20, 100)
    assert asked(people(10, 155), first) == Decided(100, 20, 100, "q1")
    assert asked(people(5000, 5159), first) == Decided(200, 20, 100), "other patients altogether"


def test_the_same_question_sticks_though_pseudonyms_are_new() -> None:
    first = past("q1", people(0, 140), 100, meaning="this")
    assert asked(people(5000, 5159), first) == Decided(100, 20, 100, "q1")
    assert asked(people(5000, 5160), first) == Decided(200, 20, 100)


def test_the_nearest_of_several_answers_counts_and_of_equals_the_first() -> None:
    one, two = past("q1", people(0, 140), 100), past("q2", people(0, 165), 200)
    assert asked(people(0, 151), one, two).sticks_to == "q1"
    assert asked(people(0, 154), one, two).sticks_to == "q2"
    three = past("q3", people(0, 165), 300)
    assert asked(people(0, 160), two, three).sticks_to == "q2"


def test_a_chain_of_small_steps_leads_nowhere() -> None:
    """An answer that stuck is no reference: the caller leaves it out, and so each step is held against the first."""
    history = [past("q0", people(0, 140), 100)]
    for step in range(1, 60):
        said = asked(people(0, 140 + step), *history)
        if not said.sticks_to:
            history.append(past(f"q{step}", people(0, 140 + step), said.answer))
        nearest = min(changed_patients(h.patients, people(0, 140 + step)) for h in history)
        assert nearest < 20
    assert [len(h.patients) for h in history] == [140, 160, 180]


@given(st.integers(0, 400), st.integers(0, 19), st.integers(0, 19))
def test_two_neighbours_of_an_answered_cohort_are_not_told_apart(size: int, more: int, less: int) -> None:
    first = past("q1", people(100, 100 + size), cohort_answer(size, 20, 100))
    bigger = people(100, 100 + size + more)
    smaller = people(100, max(100, 100 + size - less))
    assert asked(bigger, first).answer == asked(smaller, first).answer == first.answer


@given(st.sets(st.integers(0, 200), max_size=120), st.sets(st.integers(0, 200), max_size=120))
def test_the_same_cohort_has_the_same_answer(one: set[int], other: set[int]) -> None:
    here, there = (np.array(sorted(s), dtype=np.uint64) for s in (one, other))
    said = asked(here, past("q0", there, cohort_answer(len(there), 20, 100)))
    answered = past("q1", here, said.answer)
    assert asked(here, answered, meaning="words put otherwise").answer == said.answer
