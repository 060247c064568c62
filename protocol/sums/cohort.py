"""The sum of cohort counts: one cell, each site's count of the patients that a question is about.

A site's part is its count rounded to its step; 0 below its floor and 0 where there is nobody are the same cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.secure_sum.state import need
from protocol.study import StudySpec
from protocol.sums.kind import Kind, Shape

if TYPE_CHECKING:
    from protocol.sums.proposal import SumProposal


def _shape(proposal: SumProposal, study: StudySpec) -> Shape:
    # With the name: the same question may be asked again, and then has the same answer while few patients have changed.
    return Shape(cells=1, digests={"question": need(proposal.cohort).meaning, "asked": proposal.name})


def _check(proposal: SumProposal) -> None:
    if proposal.vocabulary != need(proposal.cohort).codes:
        raise ValueError("the vocabulary of a question is the codes that it names")


def _unfit(study: StudySpec) -> tuple[str, ...]:
    if study.differential_privacy.enabled:
        return ("no noise is made for counts of cohorts, and the study asks for noise in every sum",)
    return ()


COHORT = Kind(
    what="patients that a question is about, rounded, 0 below the floor",
    given=frozenset({"cohort"}),
    shape=_shape,
    unfit=_unfit,
    check=_check,
)
