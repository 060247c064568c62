"""What may be said of the size of a cohort: a rounded count over the floor, which near-identical questions do not move.

Two questions whose cohorts differ by a few patients have these patients as their difference. Refusing the second one would
tell that there are such patients, few of them, at this very site; so it gets the answer to the first (Kenthapadi, Mishra and
Nissim 2005: denials leak). What the answer is depends on neither the wording nor the order of codes, only on who is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.messages import Policy
from site_agent.changes import UInt64s, changed_patients
from site_agent.gate.suppression import in_force, round_to_one


@dataclass(frozen=True, eq=False)
class Counted:
    """An answer that was given, or may have been.

    Attributes:
        name: of the question.
        meaning: digest of what was asked.
        patients: (p,) uint64, sorted: salted fingerprints of who was counted.
        answer: what was said.
    """

    name: str
    meaning: str
    patients: UInt64s
    answer: int


@dataclass(frozen=True)
class Decided:
    """What a site says.

    Attributes:
        answer: 0, or a multiple of the step.
        floor: patients below which it is 0.
        step: that it is a multiple of.
        sticks_to: the earlier question whose answer it is; empty if it was found afresh.
    """

    answer: int
    floor: int
    step: int
    sticks_to: str = ""


def cohort_floor(policy: Policy, everyone: int) -> int:
    """Patients that a cohort needs: as many as a code or a pair does, whichever needs more, at a site of so many patients."""
    return max(policy.min_code_patients, in_force(policy, everyone).min_pair_patients)


def cohort_answer(count: int, floor: int, step: int) -> int:
    """The count rounded to the step, halves up; 0 below the floor.

    Laws: a multiple of the step; the same for all counts below the floor; |answer - count| <= max(floor - 1, step / 2).
    """
    return round_to_one(count, step) if count >= floor else 0


def decide(
    patients: UInt64s, meaning: str, earlier: Sequence[Counted], policy: Policy, everyone: int
) -> Decided:
    """What may be said of a cohort beside all that was said before.

    With M the larger of the floor and `sticky_patients`, a cohort that differs from that of an earlier answer by fewer than M
    patients gets that answer; so does the same question while its count has moved by fewer than M. Of several the
    nearest counts, and of equals the first. An answer that sticks is itself no reference, so that a chain of small steps
    leads nowhere.

    Args:
        patients: (p,) uint64, sorted: salted fingerprints of the cohort.
        meaning: digest of the question.
        earlier: answers that were found afresh, the first one first.
        policy: the site's floors.
        everyone: patients of the site.

    Laws: with one earlier answer, two cohorts that both differ from its cohort by fewer than M patients get the same
        answer. The same cohort gets the same answer.
    """
    floor, step = cohort_floor(policy, everyone), policy.margin_rounding
    near = max(floor, policy.sticky_patients)
    fresh = Decided(cohort_answer(len(patients), floor, step), floor, step)
    best, least = None, near
    for past in earlier:
        moved = changed_patients(past.patients, patients)
        if past.meaning == meaning:
            moved = min(moved, abs(len(past.patients) - len(patients)))
        if moved < least:
            best, least = past, moved
    if best is None:
        return fresh
    return Decided(best.answer, floor, step, best.name)
