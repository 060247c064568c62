"""Composition of a release: source -> staged events -> counts -> floors -> views -> gate."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import protocol
import site_agent
from protocol.envelope import software_digest
from protocol.errors import UsageError
from protocol.release import Release
from protocol.study import StudySpec
from site_agent.config import Home
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.counting import CountRuns, count_staged
from site_agent.gate import KeptCounts, allowed_dim, check_enough, make_release, suppress
from site_agent.resources import Resources, resources
from site_agent.sources import Description, Events, Progress, silent
from site_agent.sources.anchors import read_anchors
from site_agent.sources.opening import open_source
from site_agent.sources.rollup import rollup_of
from site_agent.staging import Staged, stage
from site_agent.views.cooccurrence import cooccurrence_view


@dataclass(frozen=True)
class Prepared:
    """A release and what it was made of; only `release` may leave.

    Attributes:
        release: what may leave.
        kept: counts after suppression.
        codes: CURIEs of all codes of the site, in order of text.
        descriptions: CURIE -> text.
        skipped: reason -> rows that were left out for it.
        n_rows: rows that hold a usable event.
    """

    release: Release
    kept: KeptCounts
    codes: tuple[str, ...]
    descriptions: Mapping[str, Description]
    skipped: Mapping[str, int]
    n_rows: int


def agent_digest() -> str:
    """Digest of the installed agent: the Python files of `protocol` and `site_agent`."""
    return software_digest(*(Path(str(p.__file__)).parent for p in (protocol, site_agent)))


def version() -> str:
    """The installed version."""
    return importlib.metadata.version("smile-federation")


def stage_events(home: Home, machine: Resources, progress: Progress = silent) -> Staged:
    """The site's events from the source that its configuration names, coded and on the disk.

    Raises:
        DataError: the data cannot be used.
        StudyError: they hold a code system that the study does not list.
    """
    data, source = home.config.data, open_source(home)
    file = home.path(data.rollup.file) if data.rollup.file else None
    staged = stage(
        source,
        data,
        home.work / "events",
        memory=machine.memory // 4,
        rollup=rollup_of(data, source, file),
        progress=progress,
        today=data.latest_date,
    )
    for prefix in sorted({c.partition(":")[0] for c in staged.codes}):
        home.study.system(prefix)
    return staged


def count_events(home: Home, staged: Staged, machine: Resources, progress: Progress = silent) -> CountRuns:
    """Pair counts by the study's rule, on the disk."""
    return count_staged(
        staged,
        home.study.counting,
        home.work / "counts",
        memory=machine.memory,
        threads=machine.threads,
        progress=progress,
    )


def count(events: Events, study: StudySpec) -> PairCounts:
    """Pair counts by the study's rule of events in memory."""
    window = study.counting.window_days if study.counting.rule == "window" else None
    return count_pairs(
        events.patient,
        events.day,
        events.code,
        len(events.codes),
        window_days=window,
        max_events_per_patient=study.counting.max_events_per_patient,
    )


@contextmanager
def work_lock(home: Home) -> Iterator[None]:
    """Only one command of a site works in its work folder at a time.

    Raises:
        UsageError: another one does now.
    """
    home.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(home.work / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UsageError(
            f"Another command reads or counts this site's events in {home.work}",
            do="Wait until it ends, then run this one again",
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)  # the lock goes with it


def prepare_release(
    home: Home, *, sequence: int, previous: str, machine: Resources | None = None, progress: Progress = silent
) -> Prepared:
    """Everything from the source to a gated release; nothing leaves, and no coded event stays on the disk.

    After a failure or a kill, coded events and counts that are whole stay in the work folder and are used again.

    Raises:
        DataError: the data cannot be used.
        GateError: the release is refused.
        StudyError: the data hold a code system that the study does not list.
        UsageError: another command is at work.
    """
    study, policy, machine = home.study, home.policy(), machine or resources(home.config.machine)
    with work_lock(home):
        staged = stage_events(home, machine, progress)
        runs = count_events(home, staged, machine, progress)
        progress("withholding small cells", 0.0)
        counts = runs.total(
            floor=policy.min_pair_patients, memory=machine.memory // 2, threads=machine.threads
        )
        kept = suppress(counts, policy, shift=study.embedding.ppmi_shift)
        check_enough(kept, policy, study)
        progress("embedding codes", 0.0)
        view = cooccurrence_view(
            kept,
            dim=allowed_dim(len(kept.rows), policy, study),
            shift=study.embedding.ppmi_shift,
            seed=study.embedding.seed,
        )
        release = make_release(
            kept,
            (view,),
            staged.codes,
            site_anchors(home),
            policy=policy,
            study=study,
            identity={
                "site": home.config.site,
                "sequence": sequence,
                "previous": previous,
                "agent_version": version(),
                "agent_digest": agent_digest(),
            },
        )
        runs.remove()
        staged.remove()
    progress("done", 1.0)
    return Prepared(release, kept, staged.codes, staged.descriptions, staged.skipped, staged.n_rows)


def site_anchors(home: Home) -> Mapping[str, str]:
    """The site's anchors, if its configuration names a file."""
    data = home.config.data
    if not data.anchors:
        return {}
    return read_anchors(home.path(data.anchors), system=data.system, standard=home.study.standard)
