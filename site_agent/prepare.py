"""Composition of a release: source -> counts -> floors -> views -> gate."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import protocol
import site_agent
from protocol.envelope import software_digest
from protocol.release import Release
from protocol.study import StudySpec
from site_agent.config import Home
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.gate import KeptCounts, allowed_dim, check_enough, make_release, suppress
from site_agent.sources import Events, Progress, silent
from site_agent.sources.anchors import read_anchors
from site_agent.sources.triplets import TripletFile
from site_agent.views.cooccurrence import cooccurrence_view


@dataclass(frozen=True)
class Prepared:
    """A release and what it was made of; only `release` may leave."""

    release: Release
    events: Events
    kept: KeptCounts


def agent_digest() -> str:
    """Digest of the installed agent: the Python files of `protocol` and `site_agent`."""
    return software_digest(*(Path(str(p.__file__)).parent for p in (protocol, site_agent)))


def version() -> str:
    """The installed version."""
    return importlib.metadata.version("smile-federation")


def read_events(home: Home, progress: Progress = silent) -> Events:
    """The site's events from the source that its configuration names."""
    data = home.config.data
    return TripletFile(home.path(data.events), data).read(progress)


def count(events: Events, study: StudySpec) -> PairCounts:
    """Pair counts by the study's rule."""
    window = study.counting.window_days if study.counting.rule == "window" else None
    return count_pairs(
        events.patient,
        events.day,
        events.code,
        len(events.codes),
        window_days=window,
        max_events_per_patient=study.counting.max_events_per_patient,
    )


def prepare_release(home: Home, *, sequence: int, previous: str, progress: Progress = silent) -> Prepared:
    """Everything from the data file to a gated release; nothing is written and nothing leaves.

    Raises:
        DataError: the data cannot be used.
        GateError: the release is refused.
        StudyError: the data hold a code system that the study does not list.
    """
    study, policy = home.study, home.policy()
    events = read_events(home, progress)
    for prefix in sorted({c.partition(":")[0] for c in events.codes}):
        study.system(prefix)
    progress("counting pairs", 0.0)
    counts = count(events, study)
    progress("withholding small cells", 0.0)
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
        events.codes,
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
    progress("done", 1.0)
    return Prepared(release, events, kept)


def site_anchors(home: Home) -> Mapping[str, str]:
    """The site's anchors, if its configuration names a file."""
    data = home.config.data
    if not data.anchors:
        return {}
    return read_anchors(home.path(data.anchors), system=data.system, standard=home.study.standard)
