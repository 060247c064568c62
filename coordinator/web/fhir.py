"""FHIR R4 (4.0.1): ConceptMap, and $translate with a reverse that gives every source code."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from coordinator.exports.table import base_uri
from coordinator.library import Version
from coordinator.version import NAME, VERSION
from coordinator.web.access import require
from coordinator.web.exported import CONCEPT_MAP, Exports
from coordinator.web.heavy import run_heavy
from coordinator.web.problems import FHIR_JSON, ServiceError
from coordinator.web.ranged import send_file
from coordinator.web.shelf import Shelf
from coordinator.web.translation import Question, answer, parse_parameters

_FHIR: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The resource.", "content": {FHIR_JSON: {}}}
}
router = APIRouter(prefix="/fhir", tags=["fhir"], responses=_FHIR, default_response_class=JSONResponse)
_reader = [Depends(require("analyst"))]
Id = Annotated[
    str,
    Path(
        pattern="^(latest|v[1-9][0-9]{0,8})$",
        description="v and the version's number, or `latest`.",
        examples=["v1"],
    ),
]


class FhirResponse(JSONResponse):
    """A FHIR resource."""

    media_type = FHIR_JSON


# --- $translate ----------------------------------------------------------------------------------------


# async: FastAPI would send a plain function to another thread and wait for it.
async def _question(
    code: Annotated[str, Query(max_length=600, description="The code.", examples=["dm2"])] = "",
    system: Annotated[str, Query(max_length=600, description="URI of its code system.")] = "",
    reverse: Annotated[
        bool, Query(description="From the standard system back to all codes mapped to it.")
    ] = False,
    targetsystem: Annotated[str, Query(max_length=600, description="URI of the system that is wanted.")] = "",
    url: Annotated[str, Query(max_length=600, description="Of the map; the newest version without it.")] = "",
    conceptMapVersion: Annotated[str, Query(max_length=20, description="Number of the version.")] = "",
) -> Question:
    return Question(((system, code),), reverse, targetsystem, url, conceptMapVersion)


Asked = Annotated[Question, Depends(_question)]
_PARAMETERS: Final = {
    "requestBody": {
        "required": True,
        "content": {
            kind: {
                "schema": {
                    "type": "object",
                    "required": ["resourceType", "parameter"],
                    "properties": {
                        "resourceType": {"const": "Parameters"},
                        "parameter": {"type": "array", "items": {"type": "object"}},
                    },
                },
                "example": {
                    "resourceType": "Parameters",
                    "parameter": [
                        {
                            "name": "coding",
                            "valueCoding": {"system": "http://hl7.org/fhir/sid/icd-10-cm", "code": "E11.9"},
                        },
                        {"name": "reverse", "valueBoolean": True},
                    ],
                },
            }
            for kind in (FHIR_JSON, "application/json")
        },
    }
}


@router.get("/ConceptMap/$translate", response_class=FhirResponse, dependencies=_reader)
async def translate(request: Request, question: Asked) -> Response:
    """Translate a code by the newest version, or by the one that `url` or `conceptMapVersion` names."""
    return await _translate(request, question, None)


@router.post(
    "/ConceptMap/$translate", response_class=FhirResponse, dependencies=_reader, openapi_extra=_PARAMETERS
)
async def translate_posted(request: Request) -> Response:
    """The same with a Parameters resource: code and system, coding or codeableConcept."""
    return await _translate(request, parse_parameters(await request.body()), None)


@router.get("/ConceptMap/{id}/$translate", response_class=FhirResponse, dependencies=_reader)
async def translate_by(request: Request, id: Id, question: Asked) -> Response:  # noqa: A002 - FHIR's word
    """Translate a code by one version."""
    return await _translate(request, question, id)


@router.post(
    "/ConceptMap/{id}/$translate",
    response_class=FhirResponse,
    dependencies=_reader,
    openapi_extra=_PARAMETERS,
)
async def translate_by_posted(request: Request, id: Id) -> Response:  # noqa: A002
    """The same with a Parameters resource."""
    return await _translate(request, parse_parameters(await request.body()), id)


async def _translate(request: Request, question: Question, name: str | None) -> Response:
    shelf: Shelf = request.app.state.shelf
    number = _number(name) if name is not None else _named(request, question)
    version, release = await shelf.open(number)
    if question.version and question.version != str(version.number):
        raise ServiceError(
            404,
            f"{name} is not version {question.version[:20]}",
            do="Name one of the two, or the same version",
        )
    return FhirResponse(answer(release, question))


# --- ConceptMap ----------------------------------------------------------------------------------------


@router.get("/ConceptMap", response_class=FhirResponse, dependencies=_reader)
async def concept_maps(
    request: Request,
    url: Annotated[str, Query(max_length=600, description="Canonical URL of one map.")] = "",
    version: Annotated[str, Query(max_length=20, description="Number of one version.")] = "",
) -> Response:
    """A Bundle of all versions' maps without their groups; read one to have them."""
    shelf: Shelf = request.app.state.shelf
    shown = [_summary(request, v) for v in await shelf.versions()]
    if url:
        shown = [r for r in shown if r["url"] == url]
    if version:
        shown = [r for r in shown if r["version"] == version]
    root = str(request.base_url).rstrip("/")
    bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "searchset", "total": len(shown)}
    bundle["link"] = [{"relation": "self", "url": f"{root}/fhir/ConceptMap"}]
    if shown:
        bundle["entry"] = [
            {"fullUrl": f"{root}/fhir/ConceptMap/{r['id']}", "resource": r, "search": {"mode": "match"}}
            for r in shown
        ]
    return FhirResponse(bundle)


@router.get("/ConceptMap/{id}", response_class=FhirResponse, dependencies=_reader)
async def concept_map(request: Request, id: Id) -> Response:  # noqa: A002
    """One version's whole map; large ones are tens of megabytes, and can be fetched in ranges."""
    shelf: Shelf = request.app.state.shelf
    exports: Exports = request.app.state.exports
    version = await shelf.version(_number(id))
    file = await run_heavy(lambda: exports.get(version, CONCEPT_MAP))
    response = send_file(request, replace(file, media_type=FHIR_JSON))
    del response.headers["content-disposition"]
    return response


@router.get("/metadata", response_class=FhirResponse)
async def metadata(request: Request) -> Response:
    """What this service does of FHIR; may be read without signing in."""
    study = request.app.state.home.study
    parameters = [
        {"name": "url", "type": "uri"},
        {"name": "version", "type": "token"},
    ]
    return FhirResponse(
        {
            "resourceType": "CapabilityStatement",
            "status": "active",
            "date": request.app.state.started.astimezone(UTC).isoformat(timespec="seconds"),
            "kind": "instance",
            "software": {"name": NAME, "version": VERSION},
            "implementation": {"description": f"Harmonised code maps of study {study.id}"},
            "fhirVersion": "4.0.1",
            "format": ["json"],
            "rest": [
                {
                    "mode": "server",
                    "resource": [
                        {
                            "type": "ConceptMap",
                            "interaction": [{"code": "read"}, {"code": "search-type"}],
                            "searchParam": parameters,
                            "operation": [
                                {
                                    "name": "translate",
                                    "definition": "http://hl7.org/fhir/OperationDefinition/ConceptMap-translate",
                                }
                            ],
                        }
                    ],
                }
            ],
        }
    )


def _summary(request: Request, version: Version) -> dict[str, Any]:
    study = request.app.state.home.study
    return {
        "resourceType": "ConceptMap",
        "id": f"v{version.number}",
        "meta": {
            "tag": [
                {"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "SUBSETTED"}
            ]
        },
        "url": f"{base_uri(study)}releases/v{version.number}/concept-map",
        "version": str(version.number),
        "name": "Map_" + study.id.replace("-", "_"),
        "status": "retired" if version.withdrawn else "draft",
        "date": version.created.date().isoformat(),
    }


def _number(name: str) -> int | None:
    return None if name == "latest" else int(name.removeprefix("v"))


def _named(request: Request, question: Question) -> int | None:
    """The version that a question names; None for the newest.

    Raises:
        ServiceError: 404, it names another map.
    """
    version = question.version
    if question.url:
        base = f"{base_uri(request.app.state.home.study)}releases/v"
        url, _, pinned = question.url.partition("|")
        number = url.removeprefix(base).removesuffix("/concept-map")
        wanted = {n for n in (number, version, pinned) if n}
        if url != f"{base}{number}/concept-map" or len(wanted) > 1:
            raise ServiceError(404, "This service has no map of that URL and version")
        version = number
    if not version:
        return None
    if not version.isascii() or not version.isdigit() or len(version) > 9:
        raise ServiceError(404, "This service has no map of that version", do="Versions are numbers, as 1")
    return int(version)
