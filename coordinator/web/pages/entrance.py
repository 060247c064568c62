"""The page that signs people in, and the page of an error."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response

from coordinator.web.access import local_path
from coordinator.web.pages.rendering import render
from coordinator.web.problems import Problem

router = APIRouter(include_in_schema=False)
HEADINGS: Final = {
    401: "Please sign in",
    403: "You may not do that",
    404: "Not found",
    409: "That does not fit what is there",
    410: "This version was withdrawn",
    422: "That was not understood",
    429: "Too many requests",
    500: "The service made a mistake",
    503: "Not available right now",
    504: "That took too long",
}


@router.get("/login")
def login(
    request: Request,
    next: Annotated[str, Query(max_length=2000)] = "/",  # noqa: A002 - the parameter's name
    failed: Annotated[str, Query(max_length=10)] = "",
) -> Response:
    """The form for a token."""
    return render(request, "login.html.j2", next=local_path(next), failed=bool(failed))


def error_page(request: Request, problem: Problem) -> Response:
    """What happened, why, and what to do."""
    heading = HEADINGS.get(problem.status, problem.title)
    return render(request, "error.html.j2", status=problem.status, problem=problem, heading=heading)
