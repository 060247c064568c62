"""What staged events look like: one pass over the partitions, in the memory of a partition for each thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal, NamedTuple

import numpy as np

from protocol.arrays import IntVector
from protocol.messages import Policy
from protocol.sections import Counting
from protocol.study import StudySpec
from protocol.vocabulary import split_curie
from site_agent.doctor.kernel import WHOLE_HISTORY, Tallies, order_of_arrival, tally
from site_agent.sources import Progress, silent
from site_agent.sources.columns import EPOCH
from site_agent.staging import Staged

BUSY_DAY = 1_000
"""Distinct events of one patient on one day; more are a machine's or a test account's."""
EARLY_YEAR = 1950
"""No electronic record is older: such a date stands for another one, or for none."""

_BYTES_A_ROW = 128  # while a partition is sorted and looked at
_NAMED = 5


@dataclass(frozen=True)
class System:
    """The events of one code system.

    Attributes:
        prefix: of the system.
        category: what kind of things its codes are, by the study.
        kind: the study's standard system, one that sites share, or one that is local to a site.
        codes: distinct codes with events.
        events: distinct events.
        codes_below: codes of fewer patients than the floor.
        events_below: events of these codes.
        anchored_codes: codes with an anchor.
        anchored_events: events of these codes.
    """

    prefix: str
    category: str
    kind: Literal["standard", "shared", "local"]
    codes: int
    events: int
    codes_below: int
    events_below: int
    anchored_codes: int
    anchored_events: int


class Year(NamedTuple):
    """The events of one year, and their patients."""

    year: int
    events: int
    patients: int


class Unanchored(NamedTuple):
    """A local code without an anchor."""

    code: str
    events: int


@dataclass(frozen=True)
class Profile:
    """What a site's staged events look like. An event is a distinct (patient, day, code); rows may repeat one.

    Attributes:
        rows: staged rows.
        repeated: rows that repeat another one.
        events: distinct events.
        patients: distinct patients.
        codes: distinct codes.
        skipped: reason -> rows that were left out before.
        runs: runs of rows of one patient as they came; as many as patients where each patient's rows were together.
        backwards: rows that came right after a later day of the same patient.
        sizes: events -> patients that have so many, by events.
        cap: most recent events of a patient that count.
        busy_patients: patients with more than `BUSY_DAY` events on a day.
        largest_day: most events of a patient on a day.
        years: those with events.
        first: the first day with events.
        last: the last one.
        days: how many there are.
        new_year: events on any 1 January.
        top_day: the day with the most events.
        top_day_events: their number.
        top_day_patients: distinct patients of these events.
        floor: distinct patients that a code needs.
        systems: by prefix.
        anchors: how many the site has.
        anchors_without_events: those of codes without events.
        unanchored: the local codes without an anchor that have the most events and enough patients for release.
        pairs: pairs of events that the study's rule counts.
        partition_pairs: the same for each partition.
    """

    rows: int
    repeated: int
    events: int
    patients: int
    codes: int
    skipped: Mapping[str, int]
    runs: int
    backwards: int
    sizes: Mapping[int, int]
    cap: int
    busy_patients: int
    largest_day: int
    years: tuple[Year, ...]
    first: date
    last: date
    days: int
    new_year: int
    top_day: date
    top_day_events: int
    top_day_patients: int
    floor: int
    systems: tuple[System, ...]
    anchors: int
    anchors_without_events: int
    unanchored: tuple[Unanchored, ...]
    pairs: int
    partition_pairs: tuple[int, ...]

    @property
    def left_out(self) -> int:
        """Rows that were left out before."""
        return sum(self.skipped.values())

    @property
    def capped_patients(self) -> int:
        """Patients with more events than the cap."""
        return sum(n for size, n in self.sizes.items() if size > self.cap)

    @property
    def capped_events(self) -> int:
        """Their events beyond the cap, which do not count."""
        return sum((size - self.cap) * n for size, n in self.sizes.items() if size > self.cap)

    @property
    def early_events(self) -> int:
        """Events before `EARLY_YEAR`."""
        return sum(y.events for y in self.years if y.year < EARLY_YEAR)

    @property
    def codes_below(self) -> int:
        """Codes of fewer patients than the floor."""
        return sum(s.codes_below for s in self.systems)

    @property
    def events_below(self) -> int:
        """Events of these codes."""
        return sum(s.events_below for s in self.systems)

    def quantile(self, share: float) -> int:
        """The least number of events that at least this share of the patients do not exceed."""
        needed, seen = share * self.patients, 0
        for size, n in self.sizes.items():
            seen += n
            if seen >= needed:
                return size
        return max(self.sizes, default=0)


def profile(
    staged: Staged,
    policy: Policy,
    study: StudySpec,
    anchors: Mapping[str, str],
    *,
    threads: int = 1,
    memory: int = 2**30,
    progress: Progress = silent,
) -> Profile:
    """Look at every staged event once.

    Args:
        staged: the events; at least one.
        policy: its floor for codes.
        study: the counting rule and the code systems.
        anchors: local CURIE -> standard CURIE.
        threads: partitions looked at at the same time, if the memory allows.
        memory: bytes that they may take; one partition is looked at in any case.
        progress: told the rows so far.

    Raises:
        DataError: a staged file is gone or was changed.
        StudyError: a code is of a system that the study does not list.

    Law: the result is the same for any number of threads, any memory and any order of the rows, but for `runs` and
    `backwards`, which are the order's.
    """
    total = _Total(staged, study.counting)
    most = max(1, memory // (_BYTES_A_ROW * max(1, *staged.rows)))
    with ThreadPoolExecutor(max(1, min(threads, most))) as pool:
        done = 0
        for i, part in enumerate(pool.map(total.look, range(staged.partitions))):
            total.add(part)
            done += staged.rows[i]
            progress(f"looking at events: {done:,} rows", done / max(1, staged.n_rows))
    return total.profile(policy, study, anchors)


class _Part(NamedTuple):
    tallies: Tallies
    low: int
    first_year: int
    runs: int
    backwards: int


class _Total:
    """Sums over the partitions that were looked at so far."""

    def __init__(self, staged: Staged, rule: Counting) -> None:
        self._staged, self._cap = staged, rule.max_events_per_patient
        self._window = rule.window_days if rule.rule == "window" else WHOLE_HISTORY
        n = len(staged.codes)
        self._code_events, self._code_patients = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._low, self._days = 0, np.zeros((2, 0), np.int64)
        self._years: Counter[int] = Counter()
        self._sizes: Counter[int] = Counter()
        self._repeated = self._runs = self._backwards = self._busy = self._largest_day = 0
        self._pairs: list[int] = []

    def look(self, i: int) -> _Part | None:
        """What one partition adds; None if it is empty. Changes nothing, so that threads may call it."""
        patient, day, code = self._staged.partition(i)
        if not patient.size:
            return None
        runs, backwards = order_of_arrival(*self._staged.arrived(i))
        low, high = int(day.min()), int(day.max())
        years = np.arange(low, high + 1).astype("M8[D]").astype("M8[Y]").astype(np.int64) + 1970
        found = tally(
            patient,
            day,
            code,
            len(self._staged.codes),
            low,
            years - years[0],
            int(years[-1] - years[0]) + 1,
            self._window,
            self._cap,
        )
        return _Part(Tallies(*found), low, int(years[0]), runs, backwards)

    def add(self, part: _Part | None) -> None:
        """Add what `look` found."""
        if part is None:
            self._pairs.append(0)
            return
        found = part.tallies
        self._pairs.append(found.pairs)
        self._repeated += found.repeated
        self._runs += part.runs
        self._backwards += part.backwards
        self._busy += int(np.count_nonzero(found.busiest > BUSY_DAY))
        self._largest_day = max(self._largest_day, int(found.busiest.max()))
        self._code_events += found.code_events
        self._code_patients += found.code_patients
        sizes, patients = np.unique(found.sizes, return_counts=True)
        self._sizes.update(dict(zip(sizes.tolist(), patients.tolist(), strict=True)))
        self._years.update({part.first_year + k: n for k, n in enumerate(found.years.tolist()) if n})
        low = min(self._low, part.low) if self._days.size else part.low
        high = max(self._low + self._days.shape[1], part.low + found.days.shape[1])
        days = np.zeros((2, high - low), np.int64)
        for start, counts in ((self._low, self._days), (part.low, found.days)):
            days[:, start - low : start - low + counts.shape[1]] += counts
        self._low, self._days = low, days

    def profile(self, policy: Policy, study: StudySpec, anchors: Mapping[str, str]) -> Profile:
        """The sums, and what the codes are."""
        staged, days = self._staged, self._days[0]
        when = np.arange(self._low, self._low + days.size).astype("M8[D]")
        year = when.astype("M8[Y]")
        numbers = year.astype(np.int64) + 1970
        by_year = np.bincount(numbers - numbers[0], weights=days).astype(np.int64)
        there = np.flatnonzero(days)
        top = int(days.argmax())
        systems, unanchored = self._systems(policy.min_code_patients, study, anchors)
        return Profile(
            rows=staged.n_rows,
            repeated=self._repeated,
            events=int(days.sum()),
            patients=sum(self._sizes.values()),
            codes=int(np.count_nonzero(self._code_events)),
            skipped=dict(staged.skipped),
            runs=self._runs,
            backwards=self._backwards,
            sizes=dict(sorted(self._sizes.items())),
            cap=self._cap,
            busy_patients=self._busy,
            largest_day=self._largest_day,
            years=tuple(Year(y, int(by_year[y - numbers[0]]), n) for y, n in sorted(self._years.items())),
            first=self._date(int(there[0])),
            last=self._date(int(there[-1])),
            days=len(there),
            new_year=int(days[when == year.astype("M8[D]")].sum()),
            top_day=self._date(top),
            top_day_events=int(days[top]),
            top_day_patients=int(self._days[1, top]),
            floor=policy.min_code_patients,
            systems=systems,
            anchors=len(anchors),
            anchors_without_events=len(anchors.keys() - set(staged.codes)),
            unanchored=unanchored,
            pairs=sum(self._pairs),
            partition_pairs=tuple(self._pairs),
        )

    def _date(self, i: int) -> date:
        return EPOCH + timedelta(days=self._low + i)

    def _systems(
        self, floor: int, study: StudySpec, anchors: Mapping[str, str]
    ) -> tuple[tuple[System, ...], tuple[Unanchored, ...]]:
        codes = self._staged.codes
        anchored = np.fromiter((c in anchors for c in codes), bool, len(codes))
        below = self._code_patients < floor
        rows: dict[str, list[int]] = {}
        for i, code in enumerate(codes):
            rows.setdefault(split_curie(code)[0], []).append(i)
        found, local = [], np.zeros(len(codes), bool)
        for prefix, members in sorted(rows.items()):
            system, at = study.system(prefix), np.array(members)
            if system.local_to is not None:
                local[at] = True
            found.append(
                System(
                    prefix=prefix,
                    category=system.category,
                    kind="standard" if prefix == study.standard else "local" if system.local_to else "shared",
                    codes=len(members),
                    events=self._sum(at),
                    codes_below=int(np.count_nonzero(below[at])),
                    events_below=self._sum(at[below[at]]),
                    anchored_codes=int(np.count_nonzero(anchored[at])),
                    anchored_events=self._sum(at[anchored[at]]),
                )
            )
        waiting = np.flatnonzero(local & ~anchored & ~below)
        first = waiting[np.argsort(-self._code_events[waiting], kind="stable")][:_NAMED]
        return tuple(found), tuple(Unanchored(codes[i], int(self._code_events[i])) for i in first)

    def _sum(self, rows: IntVector) -> int:
        return int(self._code_events[rows].sum())
