"""The API's endpoints of review: what people say of the map, and who may know it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import AfterValidator, BaseModel, Field
from starlette.concurrency import run_in_threadpool

from coordinator.review.record import MAX_COMMENT, MAX_REVIEWERS, Decision, PersonName
from coordinator.review.reviews import Reviews
from coordinator.review.standing import Standing, opinions, visible
from coordinator.web import models as m
from coordinator.web.access import (
    CoordinatorDependency,
    Person,
    PersonDependency,
    ReviewerDependency,
    require,
)
from coordinator.web.problems import ServiceError
from coordinator.web.reading import Opened, Reading, Systems, opened
from coordinator.web.tokens import ANONYMOUS
from protocol.errors import FederationError, UsageError
from protocol.vocabulary import curie, split_curie

router = APIRouter(prefix="/api/v1", dependencies=[Depends(require("analyst"))], tags=["review"])
T = TypeVar("T")
Verdict = Literal["accept", "reject", "unsure"]
StateFilter = Literal["open", "accepted", "rejected", "unsure", "conflict", "all"]


class DecisionQuery(BaseModel):
    """A verdict on one code."""

    code: m.PlainText = Field(
        max_length=600, examples=["NORTH:dm2"], description="A code outside the standard system."
    )
    target: m.PlainText = Field(
        "",
        max_length=600,
        examples=[m.CODE],
        description="The standard code that is right or wrong; empty with accept: no standard code is right.",
    )
    verdict: Verdict
    comment: m.PlainText = Field("", max_length=MAX_COMMENT, description="Why.")
    relation: Literal["", "exact", "broad", "narrow", "close"] = Field(
        "", description="What the target is to the code, where it is accepted."
    )
    version: int | None = Field(
        None, ge=1, le=10**9, description="The release that you looked at; the newest without it."
    )


class AdjudicationQuery(BaseModel):
    """The end of a conflict."""

    code: m.PlainText = Field(max_length=600, examples=["NORTH:dm2"])
    target: m.PlainText = Field("", max_length=600, examples=[m.CODE])
    verdict: Verdict
    comment: m.PlainText = Field("", max_length=MAX_COMMENT)
    version: int | None = Field(None, ge=1, le=10**9)


class CommentQuery(BaseModel):
    """A comment."""

    code: m.PlainText = Field(max_length=600, examples=["NORTH:dm2"])
    text: m.PlainText = Field(min_length=1, max_length=MAX_COMMENT)


class AssignmentQuery(BaseModel):
    """Codes for reviewers, each blind to what the others say; nobody ends the assignment."""

    codes: list[m.PlainText] = Field(min_length=1, max_length=1000)
    reviewers: list[Annotated[PersonName, AfterValidator(m.plain)]] = Field(
        max_length=MAX_REVIEWERS, examples=[["ada", "ben"]]
    )


class UndoQuery(BaseModel):
    """A record to take back."""

    number: int = Field(ge=1, le=2**53, description="Of the record.")


class TaskLine(BaseModel):
    """A code that waits for somebody."""

    mapping: m.MappingLine
    state: str
    assigned: list[str] = Field(description="Whom it is assigned to.")
    doubt: float = Field(description="Bits that the answer to `is this target right?` is worth.")


class Queue(BaseModel):
    """What to look at, as far as you can do something about it."""

    version: int
    items: list[TaskLine] = Field(description="Conflicts first, then the most doubtful.")


class ProgressFacts(BaseModel):
    """How far the review of a release is."""

    version: int
    counts: dict[str, int] = Field(description="State -> codes outside the standard system.")
    total: int
    settled: int


class CodeReview(m.Review):
    """What people said of one code."""

    code: str


# --- Reading -------------------------------------------------------------------------------------------


@router.get("/releases/{version}/reviews/queue")
def queue(
    reading: Opened,
    request: Request,
    person: ReviewerDependency,
    state: Annotated[StateFilter, Query(description="`open` shows conflicts too.")] = "open",
    system: Systems = [],  # noqa: B006
    everybody: Annotated[
        bool, Query(description="Not only what you can do something about; for coordinators.")
    ] = False,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    offset: Annotated[int, Query(ge=0, le=10**7)] = 0,
) -> Queue:
    """Codes that wait for you. The queue moves as people decide, so it has an offset rather than a cursor."""
    if everybody and not person.may("coordinator"):
        raise ServiceError(403, "Only a coordinator sees the whole queue")
    tasks = reviews_of(request).queue(
        reading.release,
        reviewer="" if everybody else person.name,
        state=state,
        systems=system,
        limit=limit,
        offset=offset,
    )
    items = [
        TaskLine(
            mapping=m.MappingLine.of(t.entry),
            state=t.standing.state,
            assigned=list(t.standing.assigned),
            doubt=t.doubt,
        )
        for t in tasks
    ]
    return Queue(version=reading.number, items=items)


@router.get("/releases/{version}/reviews/progress")
def progress(reading: Opened, request: Request) -> ProgressFacts:
    """How many codes are open, accepted, rejected, unsure or in conflict."""
    found = reviews_of(request).progress(reading.release)
    counts = {str(k): v for k, v in found.counts.items()}
    return ProgressFacts(version=reading.number, counts=counts, total=found.total, settled=found.settled)


@router.get("/reviews/codes/{code:path}")
async def code_review(
    code: Annotated[str, Path(max_length=600, description="A CURIE.", examples=["NORTH:dm2"])],
    request: Request,
    person: PersonDependency,
) -> CodeReview:
    """What people said of one code, as far as you may know it."""
    standings = await request.app.state.standings.get()
    return CodeReview(code=code, **review_of(standings.get(code), person).model_dump())


def review_of(standing: Standing | None, person: Person) -> m.Review:
    """What somebody may know of a code.

    While reviewers to whom a code is assigned have not all decided, what they and others said is hidden from everybody but
    those of them who have decided, and coordinators who are none of them: a blind reviewer could ask a colleague, or read
    without signing in.

    Analysts see who said the same, and not who that is; what people wrote to each other is for those who have signed in.
    """
    if standing is None:
        return m.Review(state="open", target="", history=[], hidden=False)
    said = opinions(standing.records)
    blind = any(name not in said for name in standing.assigned)
    if person.name in standing.assigned:
        shown = visible(person.name, standing.records)
    elif blind and not person.may("coordinator"):
        shown = tuple(r for r in standing.records if r.actor == person.name or r.kind == "assign")
    else:
        shown = standing.records
    return m.Review(
        state=standing.state,
        target=standing.target,
        history=[judgement(r) for r in shown] if person.may("reviewer") else _nameless(shown, person),
        hidden=len(shown) < len(standing.records),
    )


def _nameless(shown: Sequence[Decision], person: Person) -> list[m.Judgement]:
    known: dict[str, str] = {}
    found = []
    for said in map(judgement, shown):
        for name in (said.by, *said.reviewers):
            known.setdefault(name, f"person {len(known) + 1}")
        changes: dict[str, object] = {"by": known[said.by], "reviewers": [known[n] for n in said.reviewers]}
        if person.name == ANONYMOUS:
            changes["comment"] = ""
        found.append(said.model_copy(update=changes))
    return found


def judgement(record: Decision) -> m.Judgement:
    """A record without its chain: the digest of the record before would let one guess what that says."""
    return m.Judgement(
        number=record.number,
        by=record.actor,
        kind=record.kind,
        target=record.target,
        verdict=record.verdict,
        comment=record.comment,
        version=record.version or None,
        at=record.at,
        reviewers=list(record.reviewers),
        undoes=record.undoes or None,
    )


# --- Saying --------------------------------------------------------------------------------------------


@router.post("/reviews/decisions", status_code=201)
async def decide(query: DecisionQuery, request: Request, person: ReviewerDependency) -> m.Judgement:
    """Say whether a code maps to a target; your later decision replaces your earlier one."""
    reading, reviews = await _looked_at(request, query.version, query.code), reviews_of(request)
    target = _standard(reading, query.target, query.verdict)
    return await _said(
        request,
        lambda: reviews.decide(
            reviewer=person.name,
            code=query.code,
            target=target,
            verdict=query.verdict,
            comment=query.comment,
            relation=query.relation,
            version=reading.number,
        ),
    )


@router.post("/reviews/adjudications", status_code=201)
async def adjudicate(
    query: AdjudicationQuery, request: Request, person: CoordinatorDependency
) -> m.Judgement:
    """End a conflict between reviewers; not by one of those who disagree."""
    reading, reviews = await _looked_at(request, query.version, query.code), reviews_of(request)
    target = _standard(reading, query.target, query.verdict)
    return await _said(
        request,
        lambda: reviews.adjudicate(
            adjudicator=person.name,
            code=query.code,
            target=target,
            verdict=query.verdict,
            comment=query.comment,
            version=reading.number,
        ),
    )


@router.post("/reviews/comments", status_code=201)
async def comment(query: CommentQuery, request: Request, person: ReviewerDependency) -> m.Judgement:
    """Say something of a code that is no decision."""
    await _looked_at(request, None, query.code)
    reviews = reviews_of(request)
    return await _said(
        request, lambda: reviews.comment(reviewer=person.name, code=query.code, text=query.text)
    )


@router.post("/reviews/assignments", status_code=201)
async def assign(
    query: AssignmentQuery, request: Request, person: CoordinatorDependency
) -> list[m.Judgement]:
    """Ask reviewers for codes, all of them or none; each is blind to the others until they have decided."""
    for code in query.codes:
        await _looked_at(request, None, code)
    reviews = reviews_of(request)
    made = await _carried_out(
        request,
        lambda: reviews.assign_all(by=person.name, codes=query.codes, reviewers=query.reviewers),
    )
    return [judgement(r) for r in made]


@router.post("/reviews/undo", status_code=201)
async def undo(query: UndoQuery, request: Request, person: ReviewerDependency) -> m.Judgement:
    """Take a record of yours back, an undo too; a coordinator may take back anybody's."""
    reviews = reviews_of(request)
    return await _said(
        request,
        lambda: reviews.undo(
            reviewer=person.name, number=query.number, coordinator=person.may("coordinator")
        ),
    )


def reviews_of(request: Request) -> Reviews:
    """The decisions that the service keeps."""
    found: Reviews = request.app.state.reviews
    return found


async def _looked_at(request: Request, version: int | None, code: str) -> Reading:
    """The release that holds the code.

    Raises:
        ServiceError: 404 or 410, there is no such release; 404, it has no such code; 422, it is a standard code.
    """
    reading = await opened(request, "latest" if version is None else str(version))
    if code not in reading.release.entries:
        raise ServiceError(404, f"Version {reading.number} has no code {code[:80]!r}")
    standard = reading.release.map.study.standard
    if split_curie(code)[0] == standard:
        raise ServiceError(
            422,
            f"{code} is a standard code",
            why="it is its own target",
            do="Review the codes that map to it",
        )
    return reading


def _standard(reading: Reading, target: str, verdict: str) -> str:
    standard = reading.release.map.study.standard
    if not target and verdict != "reject":
        return ""
    try:
        clean = curie(*split_curie(target))
    except (FederationError, ValueError):
        clean = ""
    if not clean.startswith(f"{standard}:"):
        raise ServiceError(
            422, "The target is no code of the standard system", do=f"Write it as {standard}:code"
        )
    return clean


async def _said(request: Request, make: Callable[[], Decision]) -> m.Judgement:
    return judgement(await _carried_out(request, make))


async def _carried_out(request: Request, make: Callable[[], T]) -> T:
    """What the log made of it. What was asked is valid by now: what it refuses does not fit what was said before."""
    try:
        return await run_in_threadpool(make)
    except UsageError as error:
        raise ServiceError(409, error.what, why=error.why, do=error.do) from None
    finally:
        request.app.state.standings.forget()
