"""FHIR ConceptMap in R4 (4.0.1, the same in R4B) and R5 (5.0.0)."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Callable
from itertools import groupby
from typing import Any, Final

from coordinator.exports.predicates import Predicate
from coordinator.exports.table import Entry, PublishedMap, evidence_line
from coordinator.exports.vocabulary import Vocabulary

EQUIVALENCE: Final = {
    Predicate.EXACT: "equivalent",
    Predicate.CLOSE: "relatedto",
    Predicate.BROAD: "wider",
    Predicate.NARROW: "narrower",
    Predicate.RELATED: "relatedto",
}
"""R4: what the target is to the code."""
RELATIONSHIP: Final = {
    Predicate.EXACT: "equivalent",
    Predicate.CLOSE: "related-to",
    Predicate.BROAD: "source-is-narrower-than-target",
    Predicate.NARROW: "source-is-broader-than-target",
    Predicate.RELATED: "related-to",
}
"""R5."""
_Target = Callable[[Entry, PublishedMap, Vocabulary | None], dict[str, Any]]
_CODE: Final = re.compile(r"[^\s]+( [^\s]+)*")


def write_r4(published: PublishedMap, vocabulary: Vocabulary | None = None) -> bytes:
    """A code without a standard code has one target without a code, `unmatched`.

    R4 has no place for scores: the probability and the predicate are extensions of the target.
    """
    return _json(_resource(published, vocabulary, _target_r4))


def write_r5(published: PublishedMap, vocabulary: Vocabulary | None = None) -> bytes:
    """A code without a standard code has `noMap`; probability, predicate and anchored are properties of the target."""
    kinds = {"probability": "decimal", "predicate": "string", "anchored": "boolean"}
    properties = [
        {"code": code, "uri": f"{published.base}properties/{code}", "type": kind}
        for code, kind in kinds.items()
    ]
    return _json(_resource(published, vocabulary, _target_r5) | {"property": properties})


def fhir_code(code: str) -> str:
    """The code as FHIR can hold it: one with blanks that FHIR forbids, or with a per cent sign, percent-encoded.

    Law: `urllib.parse.unquote` of it is the code.
    """
    fits = _CODE.fullmatch(code) and "%" not in code
    return code if fits else urllib.parse.quote(code, safe=".:/_-+*")


def _resource(published: PublishedMap, vocabulary: Vocabulary | None, target: _Target) -> dict[str, Any]:
    study, manifest = published.study, published.manifest
    found: dict[str, Any] = {
        "resourceType": "ConceptMap",
        "url": f"{published.base}releases/v{manifest.version}/concept-map",
        "version": str(manifest.version),
        "name": "Map_" + study.id.replace("-", "_"),
        "title": f"Harmonised codes of study {study.id}, version {manifest.version}",
        # What the fit found is a proposal until people have looked at it.
        "status": "draft",
        "date": manifest.created.date().isoformat(),
        "copyright": study.licence,
    }
    if study.title.strip():
        found["description"] = study.title
    groups = []
    for system, entries in groupby(
        sorted(published.mappings, key=lambda e: (e.system, e.local)), lambda e: e.system
    ):
        elements = [_element(e, published, vocabulary, target) for e in entries]
        groups.append(
            {
                "source": published.system_uri(system),
                "target": published.system_uri(study.standard),
                "element": elements,
            }
        )
    # FHIR knows no empty list.
    return found | ({"group": groups} if groups else {})


def _element(
    e: Entry, published: PublishedMap, vocabulary: Vocabulary | None, target: _Target
) -> dict[str, Any]:
    return _coded(e.local, e.code, e.name, vocabulary) | target(e, published, vocabulary)


def _target_r4(e: Entry, published: PublishedMap, vocabulary: Vocabulary | None) -> dict[str, Any]:
    if e.predicate is None:
        return {"target": [{"equivalence": "unmatched", "comment": evidence_line(e)}]}
    base = f"{published.base}properties/"
    extension = [
        {"url": f"{base}probability", "valueDecimal": e.confidence},
        {"url": f"{base}predicate", "valueString": str(e.predicate)},
        {"url": f"{base}anchored", "valueBoolean": e.anchored},
    ]
    return {
        "target": [
            {"extension": extension}
            | _coded(e.target, e.standard_code, e.standard_name, vocabulary)
            | {"equivalence": EQUIVALENCE[e.predicate], "comment": evidence_line(e)}
        ]
    }


def _target_r5(e: Entry, _published: PublishedMap, vocabulary: Vocabulary | None) -> dict[str, Any]:
    if e.predicate is None:
        return {"noMap": True}
    properties = [
        {"code": "probability", "valueDecimal": e.confidence},
        {"code": "predicate", "valueString": str(e.predicate)},
        {"code": "anchored", "valueBoolean": e.anchored},
    ]
    return {
        "target": [
            _coded(e.target, e.standard_code, e.standard_name, vocabulary)
            | {"relationship": RELATIONSHIP[e.predicate], "comment": evidence_line(e), "property": properties}
        ]
    }


def _coded(code: str, curie: str, called: str, vocabulary: Vocabulary | None) -> dict[str, str]:
    """`code`, and `display`: the concept's name, the release's, or the code itself where FHIR could not hold it."""
    shown = fhir_code(code)
    name = (vocabulary.name(curie) if vocabulary else "") or called or (code if shown != code else "")
    return {"code": shown} | ({"display": name} if name.strip() else {})


def _json(resource: dict[str, Any]) -> bytes:
    # Indented, json would take its encoder in Python, and the file would be half as large again.
    return (json.dumps(resource, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
