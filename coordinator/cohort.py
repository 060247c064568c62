"""Questions about cohorts: how many patients like this do all sites together have?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date

from pydantic import ValidationError

from coordinator.config import Home
from coordinator.library import Library
from coordinator.sums.asking import Asked, finished
from coordinator.sums.record import SumStore
from protocol.cohort import CohortQuestion, Sex, space_digest, standard_code
from protocol.errors import UsageError
from protocol.secure_sum.state import need
from protocol.study import StudySpec, validation_reasons

Dates = tuple[date | None, date | None]


@dataclass(frozen=True)
class Conditions:
    """Who is counted; see `protocol.cohort.CohortQuestion`.

    Attributes:
        weights: code -> weight of the profile; codes of the standard system, with or without its prefix.
        least: smallest cosine with the profile; None without one.
        having: codes that a patient must have, all of them.
        lacking: codes of which a patient must have none.
        age: youngest and oldest.
        sexes: female, male.
        seen: days of which one at least lies between the patient's first and last event.
        window: days whose events count.
    """

    weights: Mapping[str, float]
    least: float | None = None
    having: Collection[str] = ()
    lacking: Collection[str] = ()
    age: tuple[int | None, int | None] = (None, None)
    sexes: tuple[Sex, ...] = ()
    seen: Dates = (None, None)
    window: Dates = (None, None)


@dataclass(frozen=True)
class Told:
    """The answer of all sites together.

    Attributes:
        question: that was asked.
        total: sum of the sites' rounded counts.
        sites: whose counts are in it.
        off: by how many patients it may be wrong, if no site has stricter floors than the study.
    """

    question: CohortQuestion
    total: int
    sites: tuple[str, ...]
    off: int


def ask(home: Home, title: str, conditions: Conditions, release: int | None = None) -> Asked:
    """A question by a published release, to open a sum with; nothing is sent.

    Args:
        home: the coordinator.
        title: for people.
        conditions: who is counted.
        release: the version; the newest if left out.

    Raises:
        UsageError: no such release, a code that is not in it or of another system, or conditions that do not fit together.
        DataError: a malformed code.
        ProtocolError: the release is not what was published.
    """
    found, standard = Library(home).open(release), home.study.standard
    try:
        question = CohortQuestion(
            title=title,
            release=found.manifest.version,
            space=space_digest(found.index, standard),
            window=conditions.window,
            weights={standard_code(c, standard): weight for c, weight in conditions.weights.items()},
            least=conditions.least,
            age=conditions.age,
            sexes=tuple(sorted(set(conditions.sexes))),
            seen=conditions.seen,
            having=tuple(sorted({standard_code(c, standard) for c in conditions.having})),
            lacking=tuple(sorted({standard_code(c, standard) for c in conditions.lacking})),
        )
    except ValidationError as error:
        raise UsageError("This cannot be asked", why=validation_reasons(error)) from None
    if question.weights:
        question.direction(found.index)
    return Asked("cohort", question.codes, cohort=question)


def told(home: Home, name: str) -> Told:
    """The answer to a question.

    Raises:
        RoundError: it is not finished, or there is none of this name.
        UsageError: it is another sum.
    """
    proposal = SumStore(home.folder / "sums" / name).load().proposal
    result, values, _ = finished(home, name, "cohort")
    return Told(
        question=need(proposal.cohort),
        total=int(values[0]),
        sites=result.sites,
        off=len(result.sites) * _off(home.study),
    )


def _off(study: StudySpec) -> int:
    """By how many patients a site's part may be off: below the floor or by rounding, and by sticking to an earlier answer."""
    rule = study.privacy
    floor = max(rule.min_code_patients, rule.min_pair_patients, rule.small_site_pair_patients)
    return max(floor - 1, rule.margin_rounding // 2) + max(floor, rule.sticky_patients) - 1
