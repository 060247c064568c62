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
from protocol.errors import FederationError, ProtocolError, RoundError, StoreError, UsageError

ErrorPage: TypeAlias = Callable[[Request, Problem], Response]
"""What the pages may set as `app.state.error_page`: a page for a problem."""
_SHOWN = 5


def add_handlers(app: FastAPI) -> None:
    """Make every error an answer that says what, why and what to do; none shows a traceback."""
    app.state.error_page = None

    @app.exception_handler(ServiceError)
    async def refused(request: Request, error: ServiceError) -> Response:
        return _answer(request, error)

    @app.exception_handler(FederationError)
    async def federation(request: Request, error: FederationError) -> Response:
        home = str(request.app.state.home.folder)
        # Where the coordinator's files lie is no reader's business.
        what, why, do = (
            text.replace(home, "the coordinator's home") for text in (error.what, error.why, error.do)
        )
        return _answer(request, ServiceError(status_of(error), what, why=why, do=do))

    @app.exception_handler(NotModified)
    async def not_modified(_request: Request, had: NotModified) -> Response:
        return Response(status_code=304, headers={"etag": had.etag})

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> Response:
        return _answer(request, _not_valid(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ServiceError):
            # FastAPI wraps what the gate raises while the body arrives.
            return _answer(request, error.__cause__)
        what = {404: "There is nothing at this address", 405: f"This address does not take {request.method}"}
        said = what.get(error.status_code, str(error.detail)[:200])
        return _answer(request, ServiceError(error.status_code, said, headers=error.headers))


def unforeseen(request: Request) -> Response:
    """The answer to a request that met a mistake of this software; it says nothing of the mistake."""
    said = "The service has made a mistake"
    return _answer(
        request, ServiceError(500, said, do="Tell the coordinator; what it printed has the details")
    )


def status_of(error: FederationError) -> int:
    """The status of HTTP for an error of this software."""
    if isinstance(error, RoundError):
        return 409
    if isinstance(error, ProtocolError | StoreError):
        return 503
    return 422 if isinstance(error, UsageError) else 500


def _answer(request: Request, error: ServiceError) -> Response:
    problem, headers = problem_of(error.said, error.status), error.headers
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


def _not_valid(error: RequestValidationError) -> ServiceError:
    """Which fields are wrong; what was sent is not repeated."""
    found = [f"{'.'.join(str(p)[:60] for p in e['loc'])}: {e['msg'][:200]}" for e in error.errors()[:_SHOWN]]
    return ServiceError(
        422, "The request is not valid", why="; ".join(found), do="/openapi.json describes what is taken"
    )
