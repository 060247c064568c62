"""Publishing a fitted round: its stored fit becomes the study's next version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from coordinator import publish, rounds
from coordinator.config import Home
from coordinator.edition import Edition
from coordinator.estimate import Progress
from coordinator.harmonize import load_fit
from coordinator.quality import compare, read_truth
from coordinator.report.data import Quality
from coordinator.store import Store


@dataclass(frozen=True)
class Publication:
    """A version that was just published, and its folder."""

    edition: Edition
    folder: Path
    quality: Quality | None


def publish_round(
    home: Home, store: Store, name: str, *, truth: Path | None = None, progress: Progress | None = None
) -> Publication:
    """Write, sign and number the release of a fitted round.

    Args:
        home: of the coordinator.
        store: its store.
        name: the round.
        truth: CSV (system, code, concept) by which the report scores the map.
        progress: told the step and the share done.

    Raises:
        RoundError: the round has no fit of just its accepted releases, or cannot be published now.
        UsageError: the truth cannot be read.
    """
    tell = progress or (lambda _step, _share: None)
    tell("opening releases", 0.0)
    releases = tuple(rounds.accepted_releases(home, store, name))
    result = load_fit(home.fit_path(name), releases, home.study)
    quality = None
    if truth is not None:
        tell("scoring against the truth", 0.2)
        known = read_truth(truth)
        quality = compare(result, releases, known, standard=home.study.standard, seed=home.study.fit.seed)
    tell("preparing the release", 0.3)
    created = datetime.now(UTC).replace(microsecond=0)
    edition = publish.make_edition(home, store, name, releases, result, created=created, quality=quality)
    return Publication(edition, publish.publish(home, store, edition, progress), quality)
