"""Pure: FHIR R4's $translate, from the question in a Parameters resource to the one that answers it."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from coordinator.exports.fhir import EQUIVALENCE, fhir_code
from coordinator.exports.table import Entry, PublishedMap
from coordinator.library import OpenRelease
from coordinator.web.problems import ServiceError
from coordinator.web.reading import translated

_TURNED: Final = {"wider": "narrower", "narrower": "wider"}
"""R4's equivalence says what the second code is to the first: the other way round, what is wider is narrower."""


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
        # JSON can say half of a character, which nothing can write down.
        json.dumps(resource, ensure_ascii=False).encode()
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
