"""FHIR bulk exports: which coding, date and patient count, what is left out, and damaged files."""

from __future__ import annotations

import gzip
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import DataError
from site_agent.sections import Data
from site_agent.sources import Description, Events, Reading
from site_agent.sources.clean import collect
from site_agent.sources.columns import patient_number
from site_agent.sources.fhir import NOT_JSON, OTHER_KIND, OTHER_SUBJECT, FhirFolder

TODAY = date(2026, 1, 1)
SNOMED, LOINC, RXNORM = (
    "http://snomed.info/sct",
    "http://loinc.org",
    "http://www.nlm.nih.gov/research/umls/rxnorm",
)
SYSTEMS = {SNOMED: "SNOMED", LOINC: "LOINC", RXNORM: "RXNORM", "urn:oid:1.2.3": "WARD"}


def concept(*codings: dict[str, Any], text: str = "") -> dict[str, Any]:
    return {"coding": list(codings)} | ({"text": text} if text else {})


def coding(system: str | None, code: str, display: str | None = None) -> dict[str, Any]:
    return {k: v for k, v in {"system": system, "code": code, "display": display}.items() if v is not None}


def condition(**changes: Any) -> dict[str, Any]:
    base = {
        "resourceType": "Condition",
        "subject": {"reference": "Patient/1"},
        "code": concept(coding(SNOMED, "44054006", "Diabetes mellitus type 2")),
        "recordedDate": "2020-01-02",
    }
    return base | changes


def medication(**changes: Any) -> dict[str, Any]:
    base = {
        "resourceType": "MedicationRequest",
        "subject": {"reference": "Patient/1"},
        "authoredOn": "2020-01-02",
    }
    return base | changes


def write(folder: Path, *resources: dict[str, Any], name: str = "") -> Path:
    kind = resources[0]["resourceType"]
    text = "".join(json.dumps(r) + "\n" for r in resources)
    (folder / (name or f"{kind}.ndjson")).write_text(text, encoding="utf-8")
    return folder


def source(folder: Path, **changes: Any) -> FhirFolder:
    base = {"kind": "fhir", "events": ".", "system": "LOCAL", "systems": SYSTEMS}
    return FhirFolder(folder, Data(**(base | changes)))


def read(folder: Path, **changes: Any) -> Events:
    found = source(folder, **changes)
    return collect(found, found.data, today=TODAY)


@pytest.mark.parametrize(
    ("codings", "found"),
    [
        ([coding("urn:other", "X"), coding(SNOMED, "1")], "SNOMED:1"),
        ([coding(None, "X"), coding("urn:oid:1.2.3", "W 7")], "WARD:W 7"),
        ([coding("urn:other", "X"), coding(None, "Y")], "LOCAL:Y"),
        ([coding(SNOMED, ""), coding(None, "Y")], "LOCAL:Y"),
        ([coding(SNOMED, "1"), coding(LOINC, "2")], "SNOMED:1"),
    ],
)
def test_which_coding_counts(tmp_path: Path, codings: list[dict[str, Any]], found: str) -> None:
    assert read(write(tmp_path, condition(code=concept(*codings)))).codes == (found,)


def test_codes_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    write(
        tmp_path,
        condition(),
        condition(code=concept(coding("urn:other", "X"))),
        condition(code=concept(text="sugar")),
        condition(code="E11.9"),
        condition(code={"coding": "E11.9"}),
        condition(code=None),
    )
    events = read(tmp_path, bad_rows="skip")
    assert events.skipped == {"code system not known (not in data.systems)": 1, "no code": 4}
    with pytest.raises(
        DataError, match=r"not known \(not in data.systems\), the first is data row 2: 'urn:other'"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    ("resource", "day"),
    [
        (condition(onsetDateTime="1990-05-05"), "2020-01-02"),
        (condition(recordedDate=None, onsetDateTime="2019-05-05T10:00:00-05:00"), "2019-05-05"),
        (condition(recordedDate=None, onsetPeriod={"start": "2018-01-01"}), "2018-01-01"),
        (
            {"resourceType": "Observation", "effectivePeriod": {"start": "2017-01-01T00:00:00Z"}},
            "2017-01-01",
        ),
        ({"resourceType": "Observation", "effectiveInstant": "2017-01-02T00:00:00Z"}, "2017-01-02"),
        ({"resourceType": "Procedure", "performedDateTime": "2016-01-01"}, "2016-01-01"),
        ({"resourceType": "Procedure", "performedPeriod": {"start": "2016-01-02"}}, "2016-01-02"),
    ],
)
def test_dates(tmp_path: Path, resource: dict[str, Any], day: str) -> None:
    events = read(write(tmp_path, condition() | resource))
    assert events.day.tolist() == [(date.fromisoformat(day) - date(1970, 1, 1)).days]


def test_partial_and_absent_dates_are_counted(tmp_path: Path) -> None:
    dates = ["2019", "2019-05", None, 2019, "2020-01-02"]
    write(tmp_path, *(condition(recordedDate=d) for d in dates))
    events = read(tmp_path, bad_rows="skip")
    assert events.skipped == {"not a full date (a year or a month)": 2, "no date": 2}


@pytest.mark.parametrize(
    "reference",
    ["Patient/7", "http://example.org/fhir/Patient/7", "Patient/7/_history/2", "7"],
)
def test_patients(tmp_path: Path, reference: str) -> None:
    events = read(write(tmp_path, condition(subject={"reference": reference})))
    assert events.patient.tolist() == [patient_number("7")]


def test_subjects_that_are_no_patients(tmp_path: Path) -> None:
    others: list[Any] = [{"reference": "Group/7"}, {"display": "Mr. X"}, None, "Patient/1"]
    write(tmp_path, condition(), *(condition(subject=s) for s in others))
    assert read(tmp_path, bad_rows="skip").skipped == {OTHER_SUBJECT: 1, "no patient": 3}


def test_what_never_happened_is_counted_and_stops_nothing(tmp_path: Path) -> None:
    refuted = {"coding": [{"code": "refuted"}]}
    wrong = {"coding": [{"code": "entered-in-error"}]}
    write(tmp_path, condition(), condition(verificationStatus=refuted), condition(verificationStatus=wrong))
    write(
        tmp_path,
        *({"resourceType": "Procedure", "status": s} for s in ("not-done", "entered-in-error")),
    )
    assert read(tmp_path).skipped == {
        "resource is refuted": 1,
        "resource is entered-in-error": 2,
        "resource is not-done": 1,
    }


def test_medications_by_concept_by_containment_and_by_reference(tmp_path: Path) -> None:
    drug = [concept(coding(RXNORM, str(i), f"drug {i}")) for i in range(5)]
    write(
        tmp_path,
        medication(medicationCodeableConcept=drug[0]),
        medication(
            medicationReference={"reference": "#m"}, contained=[{"id": "n"}, {"id": "m", "code": drug[1]}]
        ),
        medication(medicationReference={"reference": "Medication/a"}),
        medication(medicationReference={"reference": "http://example.org/Medication/b/_history/1"}),
        medication(medicationReference={"reference": "Medication/unknown"}),
    )
    write(
        tmp_path,
        *({"resourceType": "Medication", "id": i, "code": c} for i, c in zip("ab", drug[2:4], strict=True)),
    )
    events = read(tmp_path, bad_rows="skip")
    assert events.codes == ("RXNORM:0", "RXNORM:1", "RXNORM:2", "RXNORM:3")
    assert events.skipped == {"no code": 1}


def test_descriptions_are_public_only_from_public_terminologies(tmp_path: Path) -> None:
    write(
        tmp_path,
        condition(),
        condition(code=concept(coding("urn:oid:1.2.3", "7", "ward seven"))),
        condition(code=concept(coding(None, "8"), text="as typed")),
        condition(code=concept(coding(SNOMED, "9"), text="typed too")),
    )
    assert read(tmp_path).descriptions == {
        "SNOMED:44054006": Description("Diabetes mellitus type 2", public=True),
        "WARD:7": Description("ward seven"),
        "LOCAL:8": Description("as typed"),
        "SNOMED:9": Description("typed too"),
    }


def test_domains_choose_the_files(tmp_path: Path) -> None:
    write(tmp_path, condition())
    write(tmp_path, medication(medicationCodeableConcept=concept(coding(RXNORM, "1"))))
    statement = {"resourceType": "MedicationStatement", "effectiveDateTime": "2020-01-01"}
    write(tmp_path, medication(medicationCodeableConcept=concept(coding(RXNORM, "2"))) | statement)
    assert read(tmp_path, domains=["condition"]).codes == ("SNOMED:44054006",)
    assert read(tmp_path, domains=["drug"]).codes == ("RXNORM:1", "RXNORM:2")
    with pytest.raises(DataError, match=r"no FHIR files .* Procedure\.ndjson"):
        read(tmp_path, domains=["procedure"])
    before = source(tmp_path, domains=["condition"]).fingerprint()
    assert before != source(tmp_path, domains=["drug"]).fingerprint()


def test_files_of_other_names_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, condition(), name="Condition.part-1.ndjson")
    write(tmp_path, condition(), name="Condition_2.ndjson")
    write(tmp_path, condition(), name="Conditions.ndjson")
    write(tmp_path, condition(), name="Condition.ndjson.bak")
    assert len(read(tmp_path).code) == 2


def test_broken_lines(tmp_path: Path) -> None:
    good = json.dumps(condition()).encode()
    lines = [
        good,
        b"",
        good[:-1],
        b"[]",
        b"\xff\xfe",
        b'{"a":' * 5000,
        b'{"resourceType": "Patient"}',
        b"  ",
        good,
    ]
    (tmp_path / "Condition.ndjson").write_bytes(b"\n".join(lines))
    events = read(tmp_path, bad_rows="skip")
    assert events.skipped == {NOT_JSON: 4, OTHER_KIND: 1}
    assert len(events.code) == 2
    with pytest.raises(DataError, match=r"Line 3 of .*Condition\.ndjson is not a JSON object"):
        read(tmp_path)


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    (tmp_path / "Condition.ndjson").write_text(
        json.dumps(condition(code=concept(coding(SNOMED, "1", "\ud83d"))))
    )
    assert read(tmp_path).descriptions["SNOMED:1"].text == "?"


def test_damaged_gzip(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join(json.dumps(condition(id=str(i))) for i in range(1000)).encode())
    for content in (whole[:-40], b"no gzip", whole[:40] + b"\0" * 200 + whole[240:]):
        (tmp_path / "Condition.ndjson.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"Condition\.ndjson\.gz cannot be read"):
            list(source(tmp_path).batches(Reading()))


def test_more_resources_than_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("site_agent.sources.fhir.BATCH_ROWS", 3)
    write(tmp_path, *(condition(code=concept(coding(SNOMED, str(i)))) for i in range(7)))
    assert [len(b) for b in source(tmp_path).batches(Reading())] == [3, 3, 1]
    assert len(read(tmp_path).codes) == 7
