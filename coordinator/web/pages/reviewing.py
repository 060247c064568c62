"""The review queue, one task at a time, and what its forms say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from coordinator.exports.table import Entry
from coordinator.review.record import Decision, Relation
from coordinator.web.access import (
    CoordinatorDependency,
    PersonDependency,
    ReviewerDependency,
    local_path,
)
from coordinator.web.models import PlainText
from coordinator.web.pages.concept import bars, chosen, last_of
from coordinator.web.pages.rendering import concept_url, render, url
from coordinator.web.problems import ServiceError
from coordinator.web.reading import Opened, Reading
from coordinator.web.reviewing import review_of, reviews_of
from protocol.errors import FederationError, UsageError
from protocol.vocabulary import curie, split_curie

router = APIRouter(include_in_schema=False)
State = Literal["open", "accepted", "rejected", "unsure", "conflict", "all"]
Code = Annotated[PlainText, Form(max_length=600)]
Comment = Annotated[PlainText, Form(max_length=10_000)]
PAGE = 25


@router.get("/v/{version}/review")
def queue(
    reading: Opened,
    request: Request,
    person: PersonDependency,
    state: State = "open",
    system: Annotated[str, Query(max_length=40)] = "",
    page: Annotated[int, Query(ge=1, le=10_000)] = 1,
    task: Annotated[PlainText, Query(max_length=600)] = "",
    said: Annotated[int, Query(ge=0)] = 0,
    last: Annotated[PlainText, Query(max_length=600)] = "",
) -> Response:
    """What waits for this person, the most doubtful first; with the first, or `task`, laid open."""
    release, reviews = reading.release, reviews_of(request)
    me = person.name if person.may("reviewer") else ""
    tasks = reviews.queue(
        release,
        reviewer=me,
        state=state,
        systems=[system] if system else (),
        limit=PAGE + 1,
        offset=(page - 1) * PAGE,
    )
    more, tasks = len(tasks) > PAGE, tasks[:PAGE]
    code = task if task in release.entries else (tasks[0].code if tasks else "")
    entry = release.entries.get(code)
    standing = request.app.state.standings.now().get(code)
    review = review_of(standing, person)
    return render(
        request,
        "review.html.j2",
        reading=reading,
        tasks=[(t, review_of(request.app.state.standings.now().get(t.code), person)) for t in tasks],
        entry=entry,
        standard=release.entries.get(entry.standard_code) if entry else None,
        bars=bars(chosen(entry)) if entry else [],
        review=review,
        undo=last_of(review.history, person.name),
        assigned=standing.assigned if standing else (),
        progress=reviews.progress(release),
        state=state,
        system=system,
        systems=[s.prefix for s in release.map.study.code_systems if s.prefix != release.map.study.standard],
        page=page,
        more=more,
        position=next((i for i, t in enumerate(tasks) if t.code == code), -1),
        said=said if last in release.entries else 0,
        last_code=last,
    )


@router.post("/v/{version}/review/decide")
def decide(
    reading: Opened,
    request: Request,
    person: ReviewerDependency,
    code: Code,
    verdict: Annotated[Literal["accept", "reject", "unsure", "none"], Form()],
    target: Annotated[PlainText, Form(max_length=600)] = "",
    other: Annotated[PlainText, Form(max_length=600)] = "",
    relation: Annotated[Relation, Form()] = "",
    comment: Comment = "",
    adjudicate: Annotated[bool, Form()] = False,
    next: Annotated[str, Form(max_length=2000)] = "",  # noqa: A002 - the field's name
) -> Response:
    """A verdict; `none` accepts that no standard code is right."""
    entry, reviews = _entry(reading, code), reviews_of(request)
    # Whoever typed another code means that one.
    meant = "" if verdict == "none" else _target(reading, other or target)
    plain: Literal["accept", "reject", "unsure"] = "accept" if verdict == "none" else verdict
    if verdict == "accept" and not meant:
        # The log takes this for `none`, which has a button of its own.
        raise ServiceError(
            422, "There is no standard code to accept", do="Type one, or say that no standard code is right"
        )

    def make() -> Decision:
        if adjudicate:
            if not person.may("coordinator"):
                raise ServiceError(403, "Only a coordinator ends a conflict")
            return reviews.adjudicate(
                adjudicator=person.name,
                code=entry.code,
                target=meant,
                verdict=plain,
                comment=comment,
                version=reading.number,
            )
        return reviews.decide(
            reviewer=person.name,
            code=entry.code,
            target=meant,
            verdict=plain,
            comment=comment,
            relation=relation if plain == "accept" and meant else "",
            version=reading.number,
        )

    return _said(request, reading, entry, make, next)


@router.post("/v/{version}/review/comment")
def comment_on(
    reading: Opened,
    request: Request,
    person: ReviewerDependency,
    code: Code,
    comment: Comment = "",
    next: Annotated[str, Form(max_length=2000)] = "",  # noqa: A002
) -> Response:
    """A comment that is no decision."""
    entry, reviews = _entry(reading, code), reviews_of(request)
    return _said(
        request,
        reading,
        entry,
        lambda: reviews.comment(reviewer=person.name, code=entry.code, text=comment),
        next,
    )


@router.post("/v/{version}/review/undo")
def undo(
    reading: Opened,
    request: Request,
    person: ReviewerDependency,
    number: Annotated[int, Form(ge=1, le=2**53)],
    code: Code,
    next: Annotated[str, Form(max_length=2000)] = "",  # noqa: A002
) -> Response:
    """Take a record back."""
    entry, reviews = _entry(reading, code), reviews_of(request)
    return _said(
        request,
        reading,
        entry,
        lambda: reviews.undo(reviewer=person.name, number=number, coordinator=person.may("coordinator")),
        next,
    )


@router.post("/v/{version}/review/assign")
def assign(
    reading: Opened,
    request: Request,
    person: CoordinatorDependency,
    code: Code,
    reviewers: Annotated[PlainText, Form(max_length=2000)] = "",
    next: Annotated[str, Form(max_length=2000)] = "",  # noqa: A002
) -> Response:
    """Ask these people, each blind to the others; nobody ends the assignment."""
    entry, reviews = _entry(reading, code), reviews_of(request)
    names = [n for n in reviewers.replace(",", " ").split() if n]
    return _said(
        request,
        reading,
        entry,
        lambda: reviews.assign(by=person.name, code=entry.code, reviewers=names),
        next,
    )


# --- Details -------------------------------------------------------------------------------------------


def _entry(reading: Reading, code: str) -> Entry:
    entry = reading.entry(code)
    if entry.system == reading.release.map.study.standard:
        raise ServiceError(422, f"{entry.code} is a standard code", do="Review the codes that map to it")
    return entry


def _target(reading: Reading, text: str) -> str:
    """A standard code, with or without its prefix; "" for none."""
    standard, text = reading.release.map.study.standard, text.strip()
    if not text:
        return ""
    try:
        clean = curie(*split_curie(text)) if text.startswith(f"{standard}:") else curie(standard, text)
    except (FederationError, ValueError):
        clean = ""
    if clean not in reading.release.entries:
        raise ServiceError(
            422,
            f"{text[:80]!r} is no standard code of version {reading.number}",
            do=f"Write it as {standard}:code; search shows which there are",
        )
    return clean


def _said(
    request: Request, reading: Reading, entry: Entry, make: Callable[[], Decision], target: str
) -> Response:
    try:
        record = make()
    except UsageError as error:
        raise ServiceError(409, error.what, why=error.why, do=error.do) from None
    finally:
        request.app.state.standings.forget()
    where = local_path(target) if target else concept_url(reading.version, entry.code)
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"number": record.number, "code": entry.code})
    mark = "&" if "?" in where else "?"
    if record.kind in {"decide", "adjudicate"} and where.startswith(url(reading.version, "review")):
        where += mark + urlencode({"said": record.number, "last": entry.code})
    return RedirectResponse(where, status_code=303)
