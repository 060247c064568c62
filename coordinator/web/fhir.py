"""FHIR R4 (4.0.1): ConceptMap, and $translate with a reverse that gives every source code."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from coordinator.exports.fhir import EQUIVALENCE, fhir_code
from coordinator.exports.table import Entry, PublishedMap, base_uri
from coordinator.library import OpenRelease, Version
from coordinator.version import NAME, VERSION
from coordinator.web.access import require
from coordinator.web.exported import CONCEPT_MAP, Exports
from coordinator.web.problems import FHIR_JSON, ServiceError
from coordinator.web.ranged import send_file
from coordinator.web.reading import translated
from coordinator.web.shelf import Shelf

_FHIR: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The resource.", "content": {FHIR_JSON: {}}}
}
router = APIRouter(prefix="/fhir", tags=["fhir"], responses=_FHIR, default_response_class=JSONResponse)
_reader = [Depends(require("analyst"))]
_TURNED: Final = {"wider": "narrower", "narrower": "wider"}
"""R4's equivalence says what the second code is to the first: the other way round, what is wider is narrower."""

Id = Annotated[
    str,
    Path(
        pattern="^(latest|v[1-9][0-9]{0,8})$",
        description="v and the version's number, or `latest`.",
        examples=["v1"],
    ),
]


@dataclass(frozen=True)
class Question:
    """What $translate is asked.

    Attributes:
        codings: (system, code) pairs; any of them may match.
        reverse: from the standard system back.
        target: URI of the system that is wanted; "" for any.
        url: of the map; "" for the newest.
        version: of the map; "" for the newest.
    """

    codings: tuple[tuple[str, str], ...]
    reverse: bool = False
    target: str = ""
    url: str = ""
    version: str = ""


class FhirResponse(JSONResponse):
    """A FHIR resource."""

    media_type = FHIR_JSON


# --- $translate ----------------------------------------------------------------------------------------


def _question(
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


def answer(release: OpenRelease, question: Question) -> dict[str, Any]:
    """The Parameters that say where the codings go.

    Raises:
        ServiceError: 422, nothing is asked, or of a code system that the study does not have.
    """
    published = release.map
    prefixes = {published.system_uri(s.prefix): s.prefix for s in published.study.code_systems}
    found: dict[str, Entry] = {}
    unknown = []
    for system, code in question.codings:
        if not code or not system:
            raise ServiceError(
                422, "A code and the URI of its system are needed", do="Send code and system, or a coding"
            )
        if system not in prefixes:
            raise ServiceError(
                422,
                "The study has no code system with that URI",
                do=f"Take one of {', '.join(sorted(prefixes))}",
            )
        curie = known_code(release, prefixes[system], code)
        if curie is None:
            unknown.append(f"{system}|{code}"[:200])
            continue
        found |= {e.code: e for e in translated(release, curie, reverse=question.reverse)}
    matches = [
        _match(e, published, reverse=question.reverse)
        # A standard code is no source of the map.
        for e in found.values()
        if e.system != published.study.standard and _is_wanted(e, published, question)
    ]
    said = f"Version {release.manifest.version} does not have {', '.join(unknown)}" if unknown else ""
    if not matches and not said:
        said = "No code is mapped to it" if question.reverse else "It has no standard code"
    return {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "result", "valueBoolean": bool(matches)},
            *([{"name": "message", "valueString": said}] if said else []),
            *matches,
        ],
    }


def known_code(release: OpenRelease, prefix: str, code: str) -> str | None:
    """The CURIE of a code as FHIR writes it, or as it is; None if the release has neither."""
    for local in (urllib.parse.unquote(code), code):
        if f"{prefix}:{local}" in release.entries:
            return f"{prefix}:{local}"
    return None


def _is_wanted(e: Entry, published: PublishedMap, question: Question) -> bool:
    system = e.system if question.reverse else published.study.standard
    return not question.target or question.target == published.system_uri(system)


def _match(e: Entry, published: PublishedMap, *, reverse: bool) -> dict[str, Any]:
    equivalence = EQUIVALENCE[e.predicate] if e.predicate else "unmatched"
    if reverse:
        equivalence = _TURNED.get(equivalence, equivalence)
        coding = _coding(published.system_uri(e.system), e.local, e.name)
    else:
        coding = _coding(published.system_uri(published.study.standard), e.target, e.standard_name)
    base = f"{published.base}properties/"
    return {
        "name": "match",
        # As in the exported map: R4 has no place for a probability.
        "extension": [
            {"url": f"{base}probability", "valueDecimal": e.confidence},
            {"url": f"{base}anchored", "valueBoolean": e.anchored},
        ],
        "part": [
            {"name": "equivalence", "valueCode": equivalence},
            {"name": "concept", "valueCoding": coding},
            {"name": "source", "valueUri": map_url(published)},
        ],
    }


def _coding(system: str, code: str, name: str) -> dict[str, Any]:
    shown = fhir_code(code)
    display = name.strip() or (code if shown != code else "")
    return {"system": system, "code": shown} | ({"display": display} if display else {})


def map_url(published: PublishedMap) -> str:
    """The canonical URL of a version's map."""
    return f"{published.base}releases/v{published.manifest.version}/concept-map"


def parse_parameters(body: bytes) -> Question:
    """A posted Parameters resource.

    Raises:
        ServiceError: 400, it is none.
    """
    try:
        resource = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise ServiceError(400, "The body is no JSON") from None
    listed = resource.get("parameter") if isinstance(resource, dict) else None
    if not isinstance(listed, list) or resource.get("resourceType") != "Parameters":
        raise ServiceError(400, "The body is no Parameters resource", do="Send resourceType and parameter")
    given: dict[str, Any] = {}
    for part in listed:
        if not isinstance(part, dict) or not isinstance(part.get("name"), str):
            raise ServiceError(400, "A parameter has no name")
        value = next((v for k, v in part.items() if k.startswith("value")), None)
        given[part["name"]] = value
    question = Question(
        _codings(given),
        reverse=_typed(given, "reverse", bool, False),
        target=_typed(given, "targetsystem", str, ""),
        url=_typed(given, "url", str, ""),
        version=_typed(given, "conceptMapVersion", str, ""),
    )
    if any(len(text) > 600 for pair in question.codings for text in pair):
        raise ServiceError(400, "A code or system is longer than 600 characters")
    return question


def _codings(given: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    concept = given.get("codeableConcept")
    listed = (
        concept.get("coding")
        if isinstance(concept, dict)
        else [given["coding"]]
        if "coding" in given
        else None
    )
    if listed is None:
        return ((_typed(given, "system", str, ""), _typed(given, "code", str, "")),)
    if (
        not isinstance(listed, list)
        or not 1 <= len(listed) <= 100
        or not all(isinstance(c, dict) for c in listed)
    ):
        raise ServiceError(400, "coding and codeableConcept take 1 to 100 codings")
    return tuple((_typed(c, "system", str, ""), _typed(c, "code", str, "")) for c in listed)


def _typed(given: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = given.get(name, default)
    if not isinstance(value, kind):
        raise ServiceError(400, f"{name} is of the wrong type")
    return value


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
    file = await run_in_threadpool(exports.get, version, CONCEPT_MAP)
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
