"""A site's counts over the standard codes: local codes are counted as the codes that its anchors name."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.errors import UsageError
from site_agent.budget import keep_codes
from site_agent.changes import Keys, UInt64s, gathered, patient_fingerprints
from site_agent.config import Home
from site_agent.cooccurrence import PairCounts
from site_agent.counting import count_staged
from site_agent.prepare import site_anchors
from site_agent.released import site_salt
from site_agent.resources import Resources
from site_agent.sections import Data
from site_agent.sources import EventSource, Progress, silent
from site_agent.sources.opening import open_source
from site_agent.sources.rollup import rollup_of
from site_agent.staging import Staged, stage
from site_agent.working import work_lock


@dataclass(frozen=True)
class Bound:
    """What a patient may contribute to a differentially private sum.

    Attributes:
        codes: CURIEs that are summed; no other code counts.
        most: of them, so many of each patient, drawn at random.
    """

    codes: Collection[str]
    most: int


@dataclass(frozen=True, eq=False)
class _Bounded(Staged):
    """Staged events of which each patient keeps `most` codes; which of them, is drawn anew for each preview."""

    inside: NDArray[np.bool_]
    most: int
    seed: int

    def partition(self, i: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        patient, day, code = super().partition(i)
        known = self.inside[code]
        patient, day, code = patient[known], day[known], code[known]
        kept = keep_codes(patient, code, self.most, np.random.default_rng([self.seed, i]))
        return patient[kept], day[kept], code[kept]


def _bounded(staged: Staged, bound: Bound) -> Staged:
    seed = secrets.randbits(128)
    # Counts of these events must never be taken for those of all, nor for those of another draw.
    digest = hashlib.sha256(f"{staged.digest} {bound.most} {seed}".encode()).hexdigest()
    parts = {f.name: getattr(staged, f.name) for f in fields(staged)} | {"digest": digest}
    inside = np.array([c in bound.codes for c in staged.codes], dtype=bool)
    return _Bounded(**parts, inside=inside, most=bound.most, seed=seed)


@dataclass(frozen=True, eq=False)
class StandardCounts:
    """Counts after anchors.

    Attributes:
        counts: pair counts; cells below the floor are withheld and tallied.
        codes: CURIEs of the rows and columns, in order of text.
        days: (p,) uint64, sorted: salted fingerprints of the days of each patient's events.
    """

    counts: PairCounts
    codes: tuple[str, ...]
    days: UInt64s


def count_standard(
    home: Home, machine: Resources, *, floor: int, bound: Bound | None = None, progress: Progress = silent
) -> StandardCounts:
    """Count a site's events with its anchors applied first, so that no event or patient counts twice.

    Args:
        home: the site.
        machine: what counting may take.
        floor: pairs that fewer distinct patients have are left out; 0 leaves out none.
        bound: what a patient may contribute; all, without it.
        progress: told the steps.

    Raises:
        DataError: the data cannot be used.
        UsageError: another command counts, or Spark is to bound contributions.
    """
    study, salt = home.study, site_salt(home.folder)
    source, data, targets = _standard_source(home)
    with work_lock(home):
        if data.database.startswith("spark:"):
            if bound is not None:
                raise UsageError(
                    "Differentially private sums are not counted in Spark",
                    why="there each patient's contribution is not bounded yet",
                    do="Let the agent read the tables itself, through postgresql:// or duckdb://, or from an extract",
                )
            # Spark and its libraries are an extra.
            from site_agent.spark import count_in_spark  # noqa: PLC0415

            found = count_in_spark(
                source,
                data,
                study.counting,
                rollup=targets,
                floor=floor,
                salt=salt,
                today=data.latest_date,
                progress=progress,
            )
            days = found.patients.days if found.patients else np.empty(0, np.uint64)
            return StandardCounts(found.counts, found.codes, days)
        staged, days = _stage(home, source, data, targets, machine, progress)
        runs = count_staged(
            _bounded(staged, bound) if bound else staged,
            study.counting,
            home.work / "counts",
            memory=machine.memory,
            threads=machine.threads,
            progress=progress,
        )
        counts = runs.total(floor=floor, memory=machine.memory // 2, threads=machine.threads)
        result = StandardCounts(counts, staged.codes, days)
        runs.remove()
        staged.remove()
    return result


def stage_standard(home: Home, machine: Resources, progress: Progress = silent) -> tuple[Staged, UInt64s]:
    """A site's events on the disk with its anchors applied, and its patients' days as `StandardCounts` has them.

    Raises:
        DataError: the data cannot be used.
    """
    return _stage(home, *_standard_source(home), machine, progress)


def _standard_source(home: Home) -> tuple[EventSource, Data, dict[str, tuple[str, ...]] | None]:
    data, source = home.config.data, open_source(home)
    rollup = rollup_of(data, source, home.path(data.rollup.file) if data.rollup.file else None)
    return source, *with_anchors(data, rollup, site_anchors(home))


def _stage(
    home: Home,
    source: EventSource,
    data: Data,
    targets: dict[str, tuple[str, ...]] | None,
    machine: Resources,
    progress: Progress,
) -> tuple[Staged, UInt64s]:
    staged = stage(
        source,
        data,
        home.work / "events",
        memory=machine.memory // 4,
        rollup=targets,
        progress=progress,
        today=data.latest_date,
    )
    keys = Keys.make(staged.codes, site_salt(home.folder))
    most = home.study.counting.max_events_per_patient
    patients = gathered(
        patient_fingerprints(*staged.partition(i), keys, most) for i in range(staged.partitions)
    )
    return staged, patients.days


def with_anchors(
    data: Data, rollup: Mapping[str, tuple[str, ...]] | None, anchors: Mapping[str, str]
) -> tuple[Data, dict[str, tuple[str, ...]] | None]:
    """The roll-up that counts each anchored code, or anchored target of the site's own roll-up, as its standard code.

    Returns:
        the data's configuration and the roll-up. A site without a roll-up of its own keeps its other codes.
    """
    if not anchors:
        return data, None if rollup is None else dict(rollup)
    targets = {
        code: tuple(dict.fromkeys(anchors.get(t, t) for t in found)) for code, found in (rollup or {}).items()
    }
    for local, standard in anchors.items():
        targets.setdefault(local, (standard,))
    if rollup is None:
        data = data.model_copy(update={"rollup": data.rollup.model_copy(update={"unmapped": "keep"})})
    return data, targets
