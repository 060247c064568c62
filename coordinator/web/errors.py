"""Exceptions -> answers: problem documents for programs, pages for people."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from typing import TypeAlias

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from coordinator.web.problems import NotModified, Problem, ServiceError, problem_of, problem_response
from protocol.errors import FederationError, ProtocolError, RoundError, UsageError

ErrorPage: TypeAlias = Callable[[Request, Problem], Response]
"""What the pages may set as `app.state.error_page`: a page for a problem."""
_SHOWN = 5


def add_handlers(app: FastAPI) -> None:
    """Make every error an answer that says what, why and what to do; none shows a traceback."""
    app.state.error_page = None

    @app.exception_handler(FederationError)
    async def federation(request: Request, error: FederationError) -> Response:
        headers = error.headers if isinstance(error, ServiceError) else {}
        home = str(request.app.state.home.folder)
        # Where the coordinator's files lie is no reader's business.
        what, why, do = (
            text.replace(home, "the coordinator's home") for text in (error.what, error.why, error.do)
        )
        plain = FederationError(what, why=why, do=do)
        return _answer(request, problem_of(plain, status_of(error)), headers)

    @app.exception_handler(NotModified)
    async def not_modified(_request: Request, had: NotModified) -> Response:
        return Response(status_code=304, headers={"etag": had.etag})

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        return _answer(request, _not_valid(error), {})

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        what = {404: "There is nothing at this address", 405: f"This address does not take {request.method}"}
        raised = ServiceError(error.status_code, what.get(error.status_code, str(error.detail)[:200]))
        return _answer(request, problem_of(raised, error.status_code), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, _error: Exception) -> Response:
        raised = ServiceError(
            500,
            "The service has made a mistake",
            do="Tell the coordinator; the service's log has the details",
        )
        return _answer(request, problem_of(raised, 500), {})


def status_of(error: FederationError) -> int:
    """The status of HTTP for an error of this software."""
    if isinstance(error, ServiceError):
        return error.status
    if isinstance(error, RoundError):
        return 409
    if isinstance(error, ProtocolError):
        return 503
    return 422 if isinstance(error, UsageError) else 500


def _answer(request: Request, problem: Problem, headers: dict[str, str]) -> Response:
    path = request.url.path
    page: ErrorPage | None = request.app.state.error_page
    if path.startswith(("/api/", "/fhir/")) or "text/html" not in request.headers.get("accept", ""):
        return problem_response(problem, headers, path=path)
    if problem.status == 401 and request.method == "GET":
        target = path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/login?next={urllib.parse.quote(target, safe='')}", status_code=303)
    if page is None:
        return problem_response(problem, headers, path=path)
    response = page(request, problem)
    response.status_code = problem.status
    response.headers.update(headers)
    return response


def _not_valid(error: RequestValidationError) -> Problem:
    """Which fields are wrong; what was sent is not repeated."""
    found = [f"{'.'.join(str(p)[:60] for p in e['loc'])}: {e['msg'][:200]}" for e in error.errors()[:_SHOWN]]
    return problem_of(
        ServiceError(
            422, "The request is not valid", why="; ".join(found), do="/openapi.json describes what is taken"
        ),
        422,
    )
