"""FHIR R4: ConceptMap and $translate, read by fhir.resources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.capabilitystatement import CapabilityStatement
from fhir.resources.R4B.conceptmap import ConceptMap
from fhir.resources.R4B.operationoutcome import OperationOutcome
from fhir.resources.R4B.parameters import Parameters

from coordinator.config import Home
from coordinator.library import Library
from tests.big_release import HOSTILE_NAMES
from tests.web import Web, small_home, web

ICD = "http://hl7.org/fhir/sid/icd-10-cm"
TRANSLATE = "/fhir/ConceptMap/$translate"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return small_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def service(home: Home) -> Iterator[Web]:
    with web(home) as made:
        yield made


@pytest.fixture(scope="module")
def release(home: Home) -> Any:
    return Library(home).open(2)


def parameters(found: Any) -> dict[str, list[Any]]:
    """Name -> values of an answer that fhir.resources takes."""
    assert found.headers["content-type"].startswith("application/fhir+json")
    Parameters.model_validate_json(found.content)
    values: dict[str, list[Any]] = {}
    for p in found.json()["parameter"]:
        value = {q["name"]: next(v for k, v in q.items() if k.startswith("value")) for q in p.get("part", [])}
        values.setdefault(p["name"], []).append(
            value or next(v for k, v in p.items() if k.startswith("value"))
        )
    return values


def posted(*pairs: tuple[str, Any]) -> dict[str, Any]:
    listed = [{"name": name, **value} for name, value in pairs]
    return {"resourceType": "Parameters", "parameter": listed}


def test_a_code_goes_where_the_release_says(service: Web, release: Any) -> None:
    uri = release.map.system_uri("NORTH")
    for entry in [e for e in release.map.mappings if e.system == "NORTH"][:30]:
        found = parameters(service.get(TRANSLATE, params={"system": uri, "code": entry.local}))
        assert found["result"] == [True]
        (match,) = found["match"]
        assert (match["concept"]["system"], match["concept"]["code"]) == (ICD, entry.target)
        assert match["source"].endswith("/releases/v2/concept-map")


def test_the_reverse_is_complete_for_every_standard_code(service: Web, release: Any) -> None:
    uris = {s.prefix: release.map.system_uri(s.prefix) for s in release.map.study.code_systems}
    asked = sorted(release.sources)[:60]
    for code in asked:
        local = code.partition(":")[2]
        found = parameters(service.get(TRANSLATE, params={"system": ICD, "code": local, "reverse": True}))
        given = {(m["concept"]["system"], m["concept"]["code"]) for m in found["match"]}
        assert given == {(uris[e.system], e.local) for e in release.sources[code]}
    assert max(len(release.sources[c]) for c in asked) > 1


def test_forward_and_reverse_are_one_relation(service: Web, release: Any) -> None:
    """What a code translates to translates back to it."""
    for entry in release.map.mappings[::40]:
        params = {"system": ICD, "code": entry.target, "reverse": True}
        back = parameters(service.get(TRANSLATE, params=params))["match"]
        uri = release.map.system_uri(entry.system)
        assert (uri, entry.local) in {(m["concept"]["system"], m["concept"]["code"]) for m in back}


def test_all_ways_to_ask_give_one_answer(service: Web, release: Any) -> None:
    entry = next(e for e in release.map.mappings if e.system == "LOINC")
    coding = {"system": "http://loinc.org", "code": entry.local}
    params = coding | {"url": release.map.base + "releases/v2/concept-map"}
    answers = [
        service.get(TRANSLATE, params=coding),
        service.get(TRANSLATE, params=params),
        service.get(TRANSLATE, params=coding | {"conceptMapVersion": "2"}),
        service.get(TRANSLATE, params=coding | {"targetsystem": ICD}),
        service.get("/fhir/ConceptMap/v2/$translate", params=coding),
        service.get("/fhir/ConceptMap/latest/$translate", params=coding),
        service.post(TRANSLATE, posted(("coding", {"valueCoding": coding})), by="ann"),
        service.post(
            "/fhir/ConceptMap/v2/$translate",
            posted(("codeableConcept", {"valueCodeableConcept": {"coding": [coding]}})),
            by="ann",
        ),
        service.post(
            TRANSLATE,
            posted(("code", {"valueCode": entry.local}), ("system", {"valueUri": "http://loinc.org"})),
            by="ann",
        ),
    ]
    assert len({json.dumps(a.json(), sort_keys=True) for a in answers}) == 1
    assert parameters(answers[0])["result"] == [True]
    elsewhere = service.get(TRANSLATE, params=coding | {"targetsystem": "http://snomed.info/sct"})
    assert parameters(elsewhere)["result"] == [False]


def test_an_unknown_code_is_an_answer(service: Web) -> None:
    found = parameters(service.get(TRANSLATE, params={"system": "http://loinc.org", "code": "none"}))
    assert found["result"] == [False]
    assert "none" in found["message"][0]
    assert "match" not in found


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 422),
        ("?code=1", 422),
        ("?code=1&system=http://nowhere.example", 422),
        ("?code=1&system=http://loinc.org&url=http://other/map", 404),
        ("?code=1&system=http://loinc.org&conceptMapVersion=9", 404),
        ("?code=1&system=http://loinc.org&conceptMapVersion=x", 404),
        ("?code=1&system=http://loinc.org&reverse=perhaps", 422),
    ],
)
def test_errors_are_operation_outcomes(service: Web, query: str, status: int) -> None:
    found = service.get(TRANSLATE + query)
    assert found.status_code == status
    assert found.headers["content-type"].startswith("application/fhir+json")
    OperationOutcome.model_validate_json(found.content)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"resourceType":"Parameters","parameter":{}}',
        b'{"resourceType":"Parameters","parameter":[1]}',
        b'{"resourceType":"Parameters","parameter":[{"name":1}]}',
        b'{"resourceType":"Parameters","parameter":[{"name":"coding","valueCoding":[]}]}',
        b'{"resourceType":"Parameters","parameter":[{"name":"coding","valueCoding":{"code":1}}]}',
        b'{"resourceType":"Parameters","parameter":[{"name":"reverse","valueBoolean":"yes"}]}',
        b'{"resourceType":"Parameters","parameter":[{"name":"code","valueCode":"\\ud800"}]}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_body_that_is_no_parameters_is_refused(service: Web, body: bytes) -> None:
    headers = service.headers("ann") | {"Content-Type": "application/fhir+json"}
    found = service.client.post(TRANSLATE, content=body, headers=headers)
    assert found.status_code == 400
    OperationOutcome.model_validate_json(found.content)


def test_a_stranger_gets_an_outcome(service: Web) -> None:
    found = service.client.get(TRANSLATE)
    assert found.status_code == 401
    OperationOutcome.model_validate_json(found.content)


def test_the_map_itself_and_the_list_of_maps_are_fhir(service: Web) -> None:
    bundle = Bundle.model_validate_json(service.get("/fhir/ConceptMap").content)
    assert [e.resource.id for e in bundle.entry] == ["v1", "v2"]
    assert Bundle.model_validate_json(service.get("/fhir/ConceptMap?version=7").content).total == 0
    whole = service.get("/fhir/ConceptMap/v2")
    found = ConceptMap.model_validate_json(whole.content)
    assert (found.id, found.version) == ("v2", "2")
    assert sum(len(g.element) for g in found.group) == 200
    assert (
        service.get("/fhir/ConceptMap/v2", headers={"If-None-Match": whole.headers["etag"]}).status_code
        == 304
    )
    assert service.get("/fhir/ConceptMap/v9").status_code == 404
    CapabilityStatement.model_validate_json(service.client.get("/fhir/metadata").content)


def test_hostile_names_are_text_of_valid_fhir(service: Web, release: Any) -> None:
    for i in range(len(HOSTILE_NAMES)):
        system = ("NORTH", "SOUTH", "LOINC")[i % 3]
        entry = release.entries[f"{system}:{i:06d}"]
        params = {"system": ICD, "code": entry.target, "reverse": True}
        found = parameters(service.get(TRANSLATE, params=params))
        assert entry.local in {m["concept"]["code"] for m in found["match"]}
