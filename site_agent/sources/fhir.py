"""Events from a FHIR bulk export: NDJSON files of Condition, MedicationRequest, Observation, Procedure (FHIR R4)."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa

from protocol.errors import DataError
from site_agent.sections import Data, Domain
from site_agent.sources import Reading
from site_agent.sources.files import files_digest

BATCH_ROWS = 250_000

NOT_JSON = "line is not a JSON object"
OTHER_KIND = "resource of another type than its file's name says"
OTHER_SUBJECT = "subject is not a patient"

PUBLIC = frozenset(
    {
        "http://loinc.org",
        "http://snomed.info/sct",
        "http://www.nlm.nih.gov/research/umls/rxnorm",
        "http://hl7.org/fhir/sid/icd-10-cm",
        "http://hl7.org/fhir/sid/icd-10",
        "http://hl7.org/fhir/sid/icd-9-cm",
        "http://hl7.org/fhir/sid/icd-9-cm/diagnosis",
        "http://hl7.org/fhir/sid/icd-9-cm/procedure",
        "http://hl7.org/fhir/sid/ndc",
        "http://hl7.org/fhir/sid/cvx",
        "http://hl7.org/fhir/sid/atc",
        "http://www.whocc.no/atc",
        "http://www.ama-assn.org/go/cpt",
        "http://www.cms.gov/Medicare/Coding/ICD10",
        "http://www.cms.gov/Medicare/Coding/HCPCSReleaseCodeSets",
        "https://www.nlm.nih.gov/medical-coding/hcpcs",
    }
)
"""URIs of terminologies that anyone may look up."""

_NEVER_HAPPENED = frozenset({"entered-in-error", "refuted", "not-done", "not-taken", "cancelled"})


class _Kind(NamedTuple):
    domains: frozenset[Domain]
    code: str
    dates: tuple[tuple[str, str], ...]  # in order of preference; a second name is a field of a period


def _kind(domains: set[Domain], code: str, *dates: str) -> _Kind:
    pairs = (date.partition(".") for date in dates)
    return _Kind(frozenset(domains), code, tuple((name, within) for name, _, within in pairs))


_EFFECTIVE = ("effectiveDateTime", "effectivePeriod.start")
_KINDS: Mapping[str, _Kind] = {
    "Condition": _kind({"condition"}, "code", "recordedDate", "onsetDateTime", "onsetPeriod.start"),
    "MedicationRequest": _kind({"drug"}, "medicationCodeableConcept", "authoredOn"),
    "MedicationStatement": _kind({"drug"}, "medicationCodeableConcept", *_EFFECTIVE),
    "Observation": _kind({"measurement", "observation"}, "code", *_EFFECTIVE, "effectiveInstant"),
    "Procedure": _kind({"procedure"}, "code", "performedDateTime", "performedPeriod.start"),
}


class _Row(NamedTuple):
    patient: str | None
    date: str | None
    code: str | None
    system: str | None
    description: str | None
    public: bool


_SCHEMA = pa.schema(
    [
        ("patient", pa.string()),
        ("date", pa.string()),
        ("code", pa.string()),
        ("system", pa.string()),
        ("description", pa.string()),
        ("public", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class FhirFolder:
    """A folder of files `Condition*.ndjson`, `Observation*.ndjson.gz`, ...; one resource a line, one event a resource.

    The patient is the one of `subject.reference`. Of several codings of a resource the first one counts whose system
    `data.systems` lists, else the first one without a system, as a code of `data.system`, else the first one, whose
    system is then not known. A medication that is only referred to is looked up in the resource itself and in
    `Medication*.ndjson`. Resources that say that nothing happened (entered in error, refuted, not done, not taken,
    cancelled) are left out and counted.

    Attributes:
        path: the folder; files in folders below it are not read.
        data: the code systems, the domains (both measurement and observation read Observation), and what to do with
            a line that is no JSON.
    """

    path: Path
    data: Data

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def fingerprint(self) -> str:
        """Digest of the names, sizes and times of all files that are read.

        Raises:
            DataError: there is no such folder, or no file of the domains in it.
        """
        return files_digest(self.path, [*(p for _, p in self._files()), *self._named("Medication")])

    def batches(self, reading: Reading) -> Iterator[pa.Table]:
        """One row for each resource that tells of an event, with the code system's URI as `system`.

        Raises:
            DataError: no folder, no files, a damaged file, or (with bad_rows = "stop") a line that is no JSON.
        """
        files = self._files()
        medications = self._medications(reading)
        total = max(1, sum(path.stat().st_size for _, path in files))
        done = 0
        waiting: list[_Row] = []
        for kind, path in files:
            with _opened(path) as (raw, stream):
                for resource in self._resources(path, stream, kind, reading):
                    row = self._row(resource, _KINDS[kind], medications, reading)
                    if row is not None:
                        waiting.append(row)
                    if len(waiting) >= BATCH_ROWS:
                        yield _table(waiting)
                        waiting = []
                        reading.progress("reading resources", min(1.0, (done + raw.tell()) / total))
            done += path.stat().st_size
            reading.progress("reading resources", min(1.0, done / total))
        yield _table(waiting)

    def ancestors(self) -> Mapping[str, tuple[str, ...]] | None:
        """None: resources know no hierarchy."""
        return None

    def _named(self, kind: str) -> list[Path]:
        pattern = re.compile(rf"{kind}([^A-Za-z].*)?\.ndjson(\.gz)?")
        return sorted(p for p in self.path.glob(f"{kind}*") if pattern.fullmatch(p.name) and p.is_file())

    def _files(self) -> list[tuple[str, Path]]:
        wanted = [kind for kind, what in _KINDS.items() if what.domains & set(self.data.domains)]
        files = [(kind, path) for kind in wanted for path in self._named(kind)]
        if not files:
            raise DataError(
                f"There are no FHIR files in {self.path}",
                why=f"files such as {wanted[0] if wanted else 'Condition'}.ndjson are looked for there"
                if self.path.is_dir()
                else "there is no such folder",
                do="Correct data.events or data.domains in site.toml",
            )
        return files

    def _resources(
        self, path: Path, stream: Iterator[bytes], kind: str, reading: Reading
    ) -> Iterator[dict[str, Any]]:
        decode = json.JSONDecoder().decode
        for number, line in enumerate(stream, start=1):
            try:
                resource = decode(line.decode())
            except (ValueError, RecursionError):
                if not line.strip():
                    continue
                resource = None
            if not isinstance(resource, dict):
                if self.data.bad_rows == "stop":
                    raise DataError(
                        f"Line {number} of {path} is not a JSON object",
                        do='Export the file again, or set data.bad_rows = "skip" in site.toml to count such lines',
                    )
                reading.skip(NOT_JSON, 1)
            elif resource.get("resourceType") != kind:
                reading.skip(OTHER_KIND, 1)
            else:
                yield resource

    def _medications(self, reading: Reading) -> dict[str, dict[str, Any]]:
        """Medication's reference -> its concept."""
        found = {}
        for path in self._named("Medication") if "drug" in self.data.domains else []:
            with _opened(path) as (_, stream):
                for resource in self._resources(path, stream, "Medication", reading):
                    found[f"Medication/{resource.get('id')}"] = _table_of(resource.get("code"))
        return found

    def _row(
        self,
        resource: dict[str, Any],
        kind: _Kind,
        medications: Mapping[str, dict[str, Any]],
        reading: Reading,
    ) -> _Row | None:
        """The event of a resource; None if it tells of none."""
        reason = _nothing_happened(resource)
        if reason:
            reading.skip(f"resource is {reason}", 1)
            return None
        patient = _text(_table_of(resource.get("subject")).get("reference"))
        if patient is not None:
            base, _, identity = patient.partition("/_history/")[0].rpartition("/")
            if base and base.rpartition("/")[2] != "Patient":
                reading.skip(OTHER_SUBJECT, 1)
                return None
            patient = identity
        concept = _table_of(resource.get(kind.code))
        if not concept and kind.code == "medicationCodeableConcept":
            concept = _medication(resource, medications)
        return _Row(patient, _date(resource, kind.dates), *self._coding(concept))

    def _coding(self, concept: dict[str, Any]) -> tuple[str | None, str | None, str | None, bool]:
        """Code, system, description and whether that is public, of the coding that counts."""
        codings = [c for c in _list_of(concept.get("coding")) if isinstance(c, dict) and _text(c.get("code"))]
        if not codings:
            return None, None, None, False
        listed = (c for c in codings if c.get("system") in self.data.systems)
        local = (c for c in codings if not c.get("system"))
        coding = next(listed, None) or next(local, codings[0])
        system, display = _text(coding.get("system")), _text(coding.get("display"))
        public = display is not None and system in PUBLIC and system in self.data.systems
        return _text(coding["code"]), system, display or _text(concept.get("text")), public


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Iterator[bytes]]]:
    """The file, whose position tells how far the reading is, and its lines."""
    try:
        with path.open("rb") as raw:
            yield raw, cast("Iterator[bytes]", gzip.GzipFile(fileobj=raw)) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"The FHIR file {path} cannot be read", why=str(error)[:200], do="Export the file again"
        ) from None


def _table(rows: list[_Row]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_SCHEMA)
    return pa.table([_array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # JSON may hold half a surrogate pair, which no text column can
        return pa.array([v and v.encode("utf-8", "replace").decode() for v in values], kind)


def _nothing_happened(resource: dict[str, Any]) -> str:
    """The status that says so; empty if none does."""
    status = resource.get("status")
    if isinstance(status, str) and status in _NEVER_HAPPENED:
        return status
    for coding in _list_of(_table_of(resource.get("verificationStatus")).get("coding")):
        verification = _text(_table_of(coding).get("code"))
        if verification in _NEVER_HAPPENED:
            return str(verification)
    return ""


def _medication(resource: dict[str, Any], medications: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The concept of a medication that a resource refers to; empty if it is nowhere."""
    reference = _text(_table_of(resource.get("medicationReference")).get("reference")) or ""
    if reference.startswith("#"):
        for contained in map(_table_of, _list_of(resource.get("contained"))):
            if contained.get("id") == reference[1:]:
                return _table_of(contained.get("code"))
    return medications.get("/".join(reference.partition("/_history/")[0].split("/")[-2:]), {})


def _date(resource: dict[str, Any], dates: tuple[tuple[str, str], ...]) -> str | None:
    for name, within in dates:
        value = resource.get(name)
        found = _text(_table_of(value).get(within) if within else value)
        if found is not None:
            return found
    return None


def _table_of(value: Any) -> dict[str, Any]:
    # Resources come from anywhere: what is not of the right type counts as absent.
    return value if isinstance(value, dict) else {}


def _list_of(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
