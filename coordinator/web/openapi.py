"""The service's own description: FastAPI's, with our errors and our way of signing in."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from coordinator.web.problems import FHIR_JSON, PROBLEM_JSON, Problem

_REF = "#/components/schemas/"
_SAID = {
    401: "Nobody has signed in.",
    403: "Somebody has signed in, with a lower role.",
    404: "There is no such thing.",
    408: "The body did not arrive in time.",
    409: "It does not fit what is there.",
    410: "The version was withdrawn; the problem says why.",
    413: "The body is too large.",
    421: "The service does not answer to that host name.",
    422: "The request is not valid.",
    429: "Too many requests; Retry-After says when to come again.",
    503: "The version cannot be served: its files are not what was signed.",
    504: "It took too long.",
}
_HEALTH = {421, 429, 503}
_TAGS = [
    {"name": "releases", "description": "The published versions."},
    {"name": "mappings", "description": "Codes, where they belong, and why."},
    {"name": "clusters", "description": "Synonyms."},
    {"name": "search", "description": "By text, code or vector."},
    {
        "name": "translation",
        "description": "From a code to its standard code, and back to all of its sources.",
    },
    {"name": "versions", "description": "What changed from one version to another, and why."},
    {"name": "downloads", "description": "Files as they were signed, and analysts' formats."},
    {"name": "review", "description": "What people say of the map."},
    {"name": "rounds", "description": "How rounds and their sites stand; for the coordinator."},
    {"name": "fhir", "description": "FHIR R4."},
    {"name": "health", "description": "For supervisors and load balancers."},
]


def describe(app: FastAPI) -> None:
    """Give the application its description, made when it is first asked for."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _made(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _made(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=_TAGS
    )
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema(ref_template=f"{_REF}{{model}}")
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    made["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "From `coordinator token add`."}
    }
    for path, operations in made["paths"].items():
        for operation in operations.values():
            _with_errors(path, operation)
        if "post" in operations:
            responses = operations["post"]["responses"]
            responses["400"] = {**responses["422"], "description": "The body cannot be read."}
    return made


def _with_errors(path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    is_fhir, is_health = path.startswith("/fhir/"), path in {"/healthz", "/readyz"}
    if not is_health and path != "/fhir/metadata":
        operation["security"] = [{"token": []}]
    schema = {"type": "object"} if is_fhir else {"$ref": f"{_REF}Problem"}
    said = {s: t for s, t in _SAID.items() if not is_health or s in _HEALTH}
    if "/files/" in path or "/exports/" in path or path == "/fhir/ConceptMap/{id}":
        said |= {412: "If-Match names another ETag.", 416: "The file has no such range."}
    for status, description in sorted(said.items()):
        content = {FHIR_JSON if is_fhir else PROBLEM_JSON: {"schema": schema}}
        responses[str(status)] = {"description": description, "content": content}
