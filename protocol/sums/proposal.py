"""What the coordinator asks the sites to sum, and what each party derives from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple, Self

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from protocol.canonical import digest
from protocol.cohort import CohortQuestion
from protocol.keys import PublicKeys
from protocol.messages import Curie, HexDigest, Message
from protocol.sections import Identifier
from protocol.secure_sum import MIN_SITES, SumSubject
from protocol.study import StudySpec
from protocol.sums.counts import PooledMargins
from protocol.sums.graph import GraphBasis
from protocol.sums.kind import CellIndex
from protocol.sums.kinds import KINDS, Statistic

SumName = Annotated[str, StringConstraints(pattern="^[a-z0-9-]{1,24}$")]
MAX_CODES = 100_000
BASES = ("margins", "graph", "cohort")
"""Fields of a proposal that hold what a statistic may follow from."""


# --- Who takes part ------------------------------------------------------------------------------------


class Roster(Message):
    """The sites of a study and their keys, as the coordinator says; nobody trusts it before people compared it."""

    study_digest: HexDigest
    keys: dict[Identifier, PublicKeys] = Field(min_length=MIN_SITES, max_length=500)

    @property
    def fingerprint(self) -> str:
        """Ten groups of four hex digits, for the sites to compare with one another.

        Longer than that of one key: who writes the list could search for two lists that agree in
        the digits compared, which at 80 bits takes 2^40 trials and at 160 bits 2^80.
        """
        return " ".join(self.digest[i : i + 4] for i in range(0, 40, 4))


def roster_differences(ours: Roster, theirs: Mapping[str, PublicKeys]) -> list[str]:
    """Each site whose keys differ, or that one of the two lists lacks; in words."""
    found = []
    for site in sorted({*ours.keys, *theirs}):
        left, right = ours.keys.get(site), theirs.get(site)
        if left != right:
            found.append(
                f"{site}: {left.fingerprint if left else 'absent'} here, "
                f"{right.fingerprint if right else 'absent'} there"
            )
    return found


# --- What is summed ------------------------------------------------------------------------------------


class SumProposal(Message):
    """What the coordinator asks the sites to sum; what a person at each site approves rests on it."""

    study_digest: HexDigest
    name: SumName
    statistic: Statistic
    vocabulary: tuple[Curie, ...] = Field(min_length=1, max_length=MAX_CODES)
    margins: PooledMargins | None = Field(None, description="Of the same vocabulary; for cells only.")
    graph: GraphBasis | None = Field(None, description="Of the same vocabulary; for tests of association.")
    cohort: CohortQuestion | None = Field(None, description="Whose patients are counted; for cohort.")
    minimum: int = Field(ge=MIN_SITES, le=500, description="Fewest sites in the sum.")
    roster: Roster
    expires: AwareDatetime

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(a >= b for a, b in zip(self.vocabulary, self.vocabulary[1:], strict=False)):
            raise ValueError("the vocabulary must be sorted, each code once")
        kind = KINDS[self.statistic]
        if {f for f in BASES if getattr(self, f) is not None} != kind.given:
            needs = " and ".join(sorted(kind.given)) or "none of its own"
            raise ValueError(f"{self.statistic} follows from {needs}, and from nothing else")
        kind.check(self)
        if self.roster.study_digest != self.study_digest:
            raise ValueError("the roster is of another study")
        return self


class SumLayout(NamedTuple):
    """What the cells of a sum's vector mean; `pairs` is None where they are of single codes."""

    subject: SumSubject
    pairs: CellIndex | None


def vocabulary_digest(vocabulary: tuple[str, ...]) -> str:
    """SHA-256 of the list of codes."""
    return digest(list(vocabulary))


def layout(proposal: SumProposal, study: StudySpec) -> SumLayout:
    """What a proposal asks for, derived anew by each party.

    Raises:
        DataError: what the proposal follows from allows no such sum.
    """
    asked = KINDS[proposal.statistic].shape(proposal, study)
    shape = {
        "statistic": proposal.statistic,
        "vocabulary": vocabulary_digest(proposal.vocabulary),
        "small_cells": study.sharing.small_cells,
        **asked.digests,
    }
    subject = SumSubject(
        study_digest=proposal.study_digest,
        round=proposal.name,
        statistic=proposal.statistic,
        shape_digest=digest(shape),
        cells=asked.cells,
    )
    return SumLayout(subject, asked.pairs)
