"""Differencing: what can be seen of a few patients by subtracting two releases of their site?

    python -m pytest tests/battery/test_differencing.py -s                       short
    SMILE_BATTERY=full python -m pytest tests/battery/test_differencing.py -s    sites of 1,000 and 10,000, more changes

Two guards stand one behind the other. The gate refuses a release if fewer than `min_changed_patients` have changed; and
counts are sticky, so that even without that rule ten patients move nothing. Each is tested alone.
"""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import pytest

from protocol.messages import Policy
from site_agent.changes import Fingerprints, Keys, changed_patients, gathered, patient_fingerprints
from site_agent.gate import Difference, Reference, sticky_counts, suppress, too_similar
from tests.battery.attacks.differencing import Moved, subtract
from tests.battery.attacks.population import DEFAULT, Index, Population, draw_population, release_bytes
from tests.inprocess import policy
from tests.synthetic import cells_moved

FULL = os.environ.get("SMILE_BATTERY") == "full"
SIZES = (1_000, 10_000) if FULL else (10_000,)
FEW = tuple(range(1, 11)) if FULL else (1, 10)
REPEATS = 6 if FULL else 2
MANY = (11, 100, 1_000)
KINDS = ("added", "removed", "replaced")
FLOORS: Policy = policy(DEFAULT.study)


@cache
def people(size: int) -> Population:
    return draw_population(size + 2_500, seed=3)


@cache
def first(size: int) -> tuple[Reference, bytes]:
    """The first release of patients 0 to size - 1."""
    counts = people(size).count(np.arange(size))
    reference = sticky_counts(counts, people(size).codes, None, FLOORS)
    return reference, release_bytes(reference, DEFAULT)


def changed(size: int, kind: str, m: int, rng: np.random.Generator) -> Index:
    """The site's patients after m of them were added, removed or replaced by others."""
    old = np.arange(size)
    fresh = rng.choice(np.arange(size, people(size).size), m, replace=False)
    stay = old if kind == "added" else np.setdiff1d(old, rng.choice(old, m, replace=False))
    return stay if kind == "removed" else np.concatenate([stay, fresh])


def second(size: int, who: Index, *, sticky: bool) -> tuple[Reference, bytes]:
    """The release after the first one, with sticky counts or as a first one would be."""
    reference, _ = first(size)
    counts = people(size).count(who)
    after = sticky_counts(counts, people(size).codes, reference if sticky else None, FLOORS)
    return after, release_bytes(after, DEFAULT)


def attack(size: int, kind: str, m: int, *, sticky: bool, seed: int) -> tuple[int, Moved]:
    """Cells of the counts behind the release that moved, and what can be seen in the released bytes."""
    after, released = second(size, changed(size, kind, m, np.random.default_rng([seed, m])), sticky=sticky)
    reference, before = first(size)
    return cells_moved(reference.counts, after.counts), subtract(before, released)


def line(title: str, cells: list[int], moved: list[Moved]) -> None:
    seen = " ".join(
        f"{n} {np.mean([getattr(x, n) for x in moved]):,.1f}" for n in ("codes", "counts", "vectors")
    )
    print(f"  {title:24} cells {np.mean(cells):8,.1f} (most {max(cells):,}); released: {seen}")


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("size", SIZES)
def test_one_to_ten_patients_move_nothing(size: int) -> None:
    print(
        f"\ndifferencing at {size:,} patients: cells that moved (bar: 0), and what differs in the released bytes"
    )
    for kind in KINDS:
        found = [attack(size, kind, m, sticky=True, seed=s) for m in FEW for s in range(REPEATS)]
        line(f"{FEW[0]} to {FEW[-1]} {kind}", [c for c, _ in found], [x for _, x in found])
        assert all(c == 0 and x.total == 0 for c, x in found)


@pytest.mark.parametrize("size", SIZES[-1:])
def test_without_sticky_counts_one_patient_is_seen(size: int) -> None:
    """The control: plain thresholds and rounding."""
    print(f"\ncontrol at {size:,} patients, counts not sticky")
    found = [attack(size, "added", 1, sticky=False, seed=s) for s in range(REPEATS)]
    line("1 added", [c for c, _ in found], [x for _, x in found])
    assert np.mean([c for c, _ in found]) > 50
    assert all(x.vectors > 0 for _, x in found)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("size", SIZES[-1:])
def test_many_patients_move_only_what_they_moved_enough(size: int) -> None:
    """Every count that is published anew differs from the one before by at least `sticky_patients`."""
    print(f"\ndifferencing at {size:,} patients, many changed (no bar: shown)")
    for m in MANY:
        reference, _ = first(size)
        who = changed(size, "added", m, np.random.default_rng(m))
        after, _ = second(size, who, sticky=True)
        cells, moved = attack(size, "added", m, sticky=True, seed=0)
        line(f"{m:,} added", [cells], [moved])
        by = np.abs((after.counts.pair_patients - reference.counts.pair_patients).data)
        assert (by[by > 0] >= FLOORS.sticky_patients).all()
        codes = np.abs(after.counts.code_patients - reference.counts.code_patients)
        assert (codes[codes > 0] >= FLOORS.sticky_patients).all()


@pytest.mark.timeout(7200)
def test_many_small_steps_add_up_to_no_more_than_one(size: int = 1_000) -> None:
    """An attacker who adds one patient a release, many times, sees a cell move only when it has moved enough in all."""
    reference, _ = first(size)
    own = people(size)
    last, moved = reference, 0
    steps = 50 if FULL else 20
    for step in range(1, steps + 1):
        counts = own.count(np.arange(size + step))
        after = sticky_counts(counts, own.codes, last, FLOORS)
        by = np.abs(after.counts.code_patients - last.counts.code_patients)
        assert (by[by > 0] >= FLOORS.sticky_patients).all()
        moved += int((by > 0).sum())
        last = after
    print(
        f"\n{steps} releases, one patient more each: {moved} code counts moved, each by {FLOORS.sticky_patients} or more"
    )
    assert suppress(last.counts, FLOORS).statistics.patients >= size


def fingerprints(size: int, who: Index) -> Fingerprints:
    own = people(size)
    patient, day, code = own.rows(who)
    order = np.lexsort((code, day, patient))
    keys = Keys.make(own.codes, b"0" * 32)
    return gathered([patient_fingerprints(patient[order], day[order], code[order], keys, 20_000)])


def test_the_gate_refuses_a_release_of_few_changed_patients() -> None:
    """The rule before sticky counts: none, or at least `min_changed_patients`."""
    size, least = SIZES[0], FLOORS.min_changed_patients
    before = fingerprints(size, np.arange(size))
    print(f"\nchanged patients that the gate accepts at {size:,} (bar: 0 or at least {least:,})")
    refused = {}
    for m in (0, 1, 10, least - 1, least, least + 200):
        after = fingerprints(size, changed(size, "added", m, np.random.default_rng(m)))
        count = changed_patients(before.whole, after.whole)
        assert count == m
        refused[m] = bool(too_similar([Difference(1, count)], FLOORS))
        print(f"  {m:5,}: {'refused' if refused[m] else 'accepted'}")
    assert refused == {m: 0 < m < least for m in refused}
    lenient = FLOORS.model_copy(update={"min_changed_patients": 0})
    assert not too_similar([Difference(1, 1)], lenient)
