"""From the review log to the rows of a release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Literal, cast

from coordinator.review.record import Decision
from coordinator.review.reviews import Reviews
from coordinator.review.standing import Standing
from coordinator.reviewed import Reviewed


def reviewed_of(reviews: Reviews, *, names: Literal["pseudonyms", "names"]) -> tuple[Reviewed, ...]:
    """What people say at present of every code on which all who were asked have decided, by code.

    Comments stay in the log: people write them for each other.

    Args:
        reviews: of the study.
        names: how reviewers are named. Pseudonyms are numbered in the order in which people first decided, which the log never
            changes: one person has one pseudonym in all versions.
    """
    known = pseudonyms(reviews) if names == "pseudonyms" else {}
    found: list[Reviewed] = []
    for _, standing in sorted(reviews.standings().items()):
        if standing.state != "open":
            found.extend(_rows(standing, known))
    return tuple(found)


def pseudonyms(reviews: Reviews) -> Mapping[str, str]:
    """Person -> reviewer-1, reviewer-2, ..."""
    found: dict[str, str] = {}
    for record in reviews.log.records():
        if record.verdict and record.actor not in found:
            found[record.actor] = f"reviewer-{len(found) + 1}"
    return found


def _rows(standing: Standing, known: Mapping[str, str]) -> Iterator[Reviewed]:
    """One row for each settled target; without any, one for each reviewer's decision."""
    if standing.settled:
        judged = standing.adjudication
        accepted = [("accept", standing.target)] if standing.state == "accepted" else []
        for verdict, target in accepted + [("reject", t) for t in standing.wrong]:
            mine = _makers(standing, target, verdict)
            yield _row(standing, target, verdict, mine or list(standing.decisions), known, judged in mine)
        return
    for decision in standing.decisions:
        yield _row(
            standing, decision.target, decision.verdict, [decision], known, decision.kind == "adjudicate"
        )


def _makers(standing: Standing, target: str, verdict: str) -> list[Decision]:
    """The last record of each person that says so."""
    counted = {d.actor for d in standing.decisions}
    said = [r for r in standing.records if r.verdict == verdict and r.target == target and r.actor in counted]
    return list({r.actor: r for r in said}.values())


def _row(
    standing: Standing,
    target: str,
    verdict: str,
    made: list[Decision],
    known: Mapping[str, str],
    adjudicated: bool,
) -> Reviewed:
    last = max(made, key=lambda d: d.number)
    return Reviewed(
        code=standing.code,
        target=target,
        verdict=cast("Literal['accept', 'reject', 'unsure']", verdict),
        state=cast("Literal['accepted', 'rejected', 'unsure', 'conflict']", standing.state),
        relation=last.relation,
        reviewers=len({d.actor for d in made}),
        reviewed_by=tuple(sorted({known.get(d.actor, d.actor) for d in made})),
        adjudicated=adjudicated,
        decided=last.at.astimezone(UTC),
    )
