"""What every event source must do, whatever its form: one set of events and of checks.

A test of a source writes `EVENTS` in the source's own form and hands over how:

    def make(folder: Path, rows: Sequence[Row], bad_rows: BadRows) -> tuple[EventSource, Data]: ...

    @pytest.mark.parametrize("check", CHECKS, ids=check_name)
    def test_contract(check: Check, tmp_path: Path) -> None:
        check(Form(make), tmp_path)

`make` is called more than once with one folder; each call replaces what the last one wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from protocol.errors import DataError
from site_agent.sections import Data, Domain
from site_agent.sources import Events, EventSource, Reading
from site_agent.sources.clean import collect

TODAY = date(2026, 1, 1)

BadRows = Literal["stop", "skip"]


@dataclass(frozen=True)
class Row:
    """One event as a hospital knows it; None where the data hold nothing."""

    patient: int | None
    date: date | None
    code: str | None
    system: str
    description: str
    domain: Domain


Make = Callable[[Path, Sequence[Row], BadRows], tuple[EventSource, Data]]


@dataclass(frozen=True)
class Form:
    """How one source's data are written.

    Attributes:
        make: writes rows into a folder and gives the source of them and its configuration.
        remove: takes away what `make` wrote; None where the test cannot.
        cannot_hold: names of `BAD` that the form has no way to write.
        describes: whether the form holds a description for each code.
    """

    make: Make
    remove: Callable[[Path], None] | None = None
    cannot_hold: frozenset[str] = frozenset()
    describes: bool = True


_KINDS: tuple[tuple[Domain, str, str, str], ...] = (
    ("condition", "ICD10CM", "E11.9", "Type 2 diabetes mellitus without complications"),
    ("condition", "ICD10CM", "I10", "Essential (primary) hypertension"),
    ("drug", "RXNORM", "860975", "metformin hydrochloride 500 MG, 24 HR"),
    ("measurement", "LOINC", "4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood"),
    ("procedure", "ICD10PCS", "0DTJ4ZZ", "Resection of Appendix"),
    ("observation", "SNOMED", "77176002", 'Smoker, "current"'),
)

EVENTS: tuple[Row, ...] = tuple(
    Row(
        patient, date(2020, 2, 27) + timedelta(days=40 * patient + step * patient), code, system, text, domain
    )
    for patient in range(1, 8)
    for step, (domain, system, code, text) in enumerate(_KINDS)
    if (patient + step) % 3
)
"""Seven patients, six codes, every domain; no two patients have the same events, and no event comes twice."""

SYSTEMS: Mapping[str, str] = {
    "http://hl7.org/fhir/sid/icd-10-cm": "ICD10CM",
    "http://www.nlm.nih.gov/research/umls/rxnorm": "RXNORM",
    "http://loinc.org": "LOINC",
    "http://www.cms.gov/Medicare/Coding/ICD10": "ICD10PCS",
    "http://snomed.info/sct": "SNOMED",
}

_GOOD = EVENTS[0]
BAD: Mapping[str, Row] = {
    "no patient": replace(_GOOD, patient=None),
    "no date": replace(_GOOD, date=None),
    "no code": replace(_GOOD, code=None),
    "empty code": replace(_GOOD, code="  "),
    "before 1900": replace(_GOOD, date=date(1899, 12, 31)),
    "in the future": replace(_GOOD, date=TODAY + timedelta(days=1)),
}
"""Rows that hold no usable event, by what is wrong with them."""


def known(events: Events) -> Counter[tuple[tuple[int, str], ...]]:
    """Each patient's (day, CURIE) pairs in order: what must not depend on how patients are numbered."""
    rows: dict[int, list[tuple[int, str]]] = {}
    for patient, day, code in zip(
        events.patient.tolist(), events.day.tolist(), events.code.tolist(), strict=True
    ):
        rows.setdefault(patient, []).append((day, events.codes[code]))
    return Counter(tuple(sorted(r)) for r in rows.values())


def _expected(rows: Sequence[Row]) -> Counter[tuple[tuple[int, str], ...]]:
    found: dict[int, list[tuple[int, str]]] = {}
    for row in rows:
        assert row.patient is not None
        assert row.date is not None
        day = (row.date - date(1970, 1, 1)).days
        found.setdefault(row.patient, []).append((day, f"{row.system}:{row.code}"))
    return Counter(tuple(sorted(r)) for r in found.values())


def read(form: Form, folder: Path, rows: Sequence[Row], bad_rows: BadRows = "stop") -> Events:
    """The rows written in the form and read again."""
    source, data = form.make(folder, rows, bad_rows)
    return collect(source, data, today=TODAY)


def reads_the_same_events(form: Form, folder: Path) -> None:
    events = read(form, folder, EVENTS)
    assert known(events) == _expected(EVENTS)
    assert events.codes == tuple(sorted({f"{r.system}:{r.code}" for r in EVENTS}))
    assert events.day.dtype == np.int32
    assert events.patient.dtype == np.int64
    assert dict(events.skipped) == {}
    if form.describes:
        texts = {name: d.text for name, d in events.descriptions.items()}
        assert texts == {f"{r.system}:{r.code}": r.description for r in EVENTS}


def yields_what_the_interface_says(form: Form, folder: Path) -> None:
    source, _ = form.make(folder, EVENTS, "stop")
    shares: list[float] = []
    batches = list(source.batches(Reading(progress=lambda _step, share: shares.append(share))))
    assert sum(len(b) for b in batches) == len(EVENTS)
    for batch in batches:
        columns = set(batch.column_names)
        assert {"patient", "date", "code"} <= columns
        assert columns <= {"patient", "date", "code", "system", "description", "public"}
    assert all(0 <= share <= 1 for share in shares)
    assert shares == sorted(shares)
    assert source.name
    ancestors = source.ancestors()
    assert ancestors is None or isinstance(ancestors, Mapping)


class _Split:
    """The same rows in small batches of uneven length, the last ones first."""

    def __init__(self, source: EventSource, largest: int) -> None:
        self._source, self._largest = source, largest
        self.name = source.name

    def fingerprint(self) -> str:
        return self._source.fingerprint()

    def batches(self, reading: Reading) -> Iterator[pa.Table]:
        pieces = []
        for batch in self._source.batches(reading):
            start, length = 0, 1
            while start < len(batch):
                pieces.append(batch.slice(start, length))
                start, length = start + length, length % self._largest + 1
            pieces.append(batch.slice(0, 0))
        yield from reversed(pieces)

    def ancestors(self) -> Mapping[str, tuple[str, ...]] | None:
        return self._source.ancestors()


def may_be_split_anywhere(form: Form, folder: Path) -> None:
    rows = [*EVENTS, *(row for name, row in BAD.items() if name not in form.cannot_hold)]
    source, data = form.make(folder, rows, "skip")
    whole = collect(source, data, today=TODAY)
    for largest in (1, 3, 50):
        split = collect(_Split(source, largest), data, today=TODAY)
        assert known(split) == known(whole)
        assert split.codes == whole.codes
        assert split.skipped == whole.skipped
        assert split.descriptions == whole.descriptions


def counts_every_row_it_leaves_out(form: Form, folder: Path) -> None:
    bad = [row for name, row in BAD.items() if name not in form.cannot_hold]
    assert bad
    events = read(form, folder, [*EVENTS, *bad, *bad], "skip")
    assert known(events) == _expected(EVENTS)
    assert sum(events.skipped.values()) == 2 * len(bad)


def stops_at_bad_rows(form: Form, folder: Path) -> None:
    late = BAD["in the future"]
    with pytest.raises(DataError) as caught:
        read(form, folder, [*EVENTS, late, late, BAD["before 1900"]], "stop")
    for part in ("2 rows", "date in the future", "1 row", "date before 1900-01-01", "bad_rows"):
        assert part in str(caught.value)


def has_a_fingerprint_of_its_data(form: Form, folder: Path) -> None:
    source, _ = form.make(folder, EVENTS, "stop")
    first = source.fingerprint()
    assert first == source.fingerprint()
    fewer, _ = form.make(folder, EVENTS[:-1], "stop")
    assert fewer.fingerprint() != first


def says_when_the_data_are_not_there(form: Form, folder: Path) -> None:
    if form.remove is None:
        pytest.skip("the test of this form cannot take the data away")
    source, _ = form.make(folder, EVENTS, "stop")
    form.remove(folder)
    with pytest.raises(DataError):
        source.fingerprint()
    with pytest.raises(DataError):
        list(source.batches(Reading()))


Check = Callable[[Form, Path], None]
CHECKS: tuple[Check, ...] = (
    reads_the_same_events,
    yields_what_the_interface_says,
    may_be_split_anywhere,
    counts_every_row_it_leaves_out,
    stops_at_bad_rows,
    has_a_fingerprint_of_its_data,
    says_when_the_data_are_not_there,
)


def check_name(check: Check) -> str:
    return check.__name__


def check_source(form: Form, folder: Path) -> None:
    """All checks, each in a folder of its own."""
    for check in CHECKS:
        place = folder / check.__name__
        place.mkdir()
        check(form, place)
