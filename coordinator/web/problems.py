"""Errors as the service says them: what happened, why, and what to do, as RFC 9457 problem documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from protocol.errors import FederationError

PROBLEM_JSON, FHIR_JSON = "application/problem+json", "application/fhir+json"
_LONGEST = 1000
_TITLES = {
    400: "Bad request",
    401: "Not signed in",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    408: "Too slow",
    409: "Conflict",
    410: "Gone",
    413: "Too large",
    415: "Unsupported media type",
    416: "Range not satisfiable",
    421: "Misdirected request",
    422: "Not valid",
    429: "Too many requests",
    500: "Error of the service",
    503: "Not available",
    504: "Took too long",
}


class Problem(BaseModel):
    """What went wrong (RFC 9457), in the words of every message of this software: what, why, and what to do."""

    type: str = Field("about:blank", description="Always `about:blank`: the status says the kind.")
    title: str = Field(description="The status in words.", examples=["Not found"])
    status: int = Field(ge=400, le=599, examples=[404])
    detail: str = Field(
        description="One line: what, why and what to do.",
        examples=["There is no version 9. published are: 1, 2."],
    )
    what: str = Field(description="What happened.", examples=["There is no version 9"])
    why: str = Field("", description="Why, if that adds something.", examples=["published are: 1, 2"])
    do: str = Field("", description="What to do next.")


class ServiceError(Exception):
    """A request that the service refuses. It has a status rather than an exit code, and is none of the command line's errors.

    Args:
        status: of HTTP.
        what: what happened.
        why: the reason.
        do: what to do next.
        headers: of the answer.
    """

    def __init__(
        self, status: int, what: str, *, why: str = "", do: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        self.said = FederationError(what, why=why, do=do)
        super().__init__(str(self.said))
        self.status, self.headers = status, dict(headers or {})


class NotModified(Exception):  # noqa: N818 - it is no error
    """Whoever asks has the answer already."""

    def __init__(self, etag: str) -> None:
        super().__init__(etag)
        self.etag = etag


def problem_of(error: FederationError, status: int) -> Problem:
    """The document of an error; what it repeats of a request is cut, and is text that can be written."""
    return Problem(
        title=_TITLES.get(status, "Error"),
        status=status,
        detail=_text(str(error)),
        what=_text(error.what),
        why=_text(error.why),
        do=_text(error.do),
    )


def _text(said: str) -> str:
    plain = said.encode("utf-8", "replace").decode()
    return plain if len(plain) <= _LONGEST else plain[:_LONGEST] + "…"


def problem_response(
    problem: Problem, headers: Mapping[str, str] | None = None, *, path: str
) -> JSONResponse:
    """The answer that carries a problem; below /fhir it is an OperationOutcome."""
    fhir = path.startswith("/fhir/")
    return JSONResponse(
        operation_outcome(problem) if fhir else problem.model_dump(),
        status_code=problem.status,
        headers=dict(headers or {}),
        media_type=FHIR_JSON if fhir else PROBLEM_JSON,
    )


def error_response(error: ServiceError, path: str) -> JSONResponse:
    """The answer to a request that never came to an endpoint."""
    return problem_response(problem_of(error.said, error.status), error.headers, path=path)


_ISSUE = {
    400: "invalid",
    401: "login",
    403: "forbidden",
    404: "not-found",
    405: "not-supported",
    406: "not-supported",
    409: "conflict",
    410: "deleted",
    413: "too-long",
    422: "invalid",
    429: "throttled",
    503: "transient",
    504: "timeout",
}


def operation_outcome(problem: Problem) -> dict[str, Any]:
    """A problem as FHIR says it."""
    issue = {
        "severity": "error",
        "code": _ISSUE.get(problem.status, "exception"),
        "details": {"text": problem.what},
        "diagnostics": problem.detail,
    }
    return {"resourceType": "OperationOutcome", "issue": [issue]}
