"""Fitting a round: its accepted releases, held against what the sites released before, and what else the coordinator has."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator import rounds
from coordinator.background import read_background
from coordinator.config import Home
from coordinator.estimate import Progress
from coordinator.harmonize import Harmonized, fit_releases, save_fit
from coordinator.history import last_used
from coordinator.review import Reviews
from coordinator.review.enter import settled_of
from coordinator.settled import NOTHING_SETTLED
from coordinator.store import Store


def fit_round(
    home: Home,
    store: Store,
    name: str,
    *,
    accepted: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Harmonized:
    """Fit a round's accepted releases and keep the fit in the round's folder.

    Args:
        home: of the coordinator.
        store: its store.
        name: the round.
        accepted: site -> why its release is used in spite of the checks.
        progress: told the step and the share done.

    Raises:
        RoundError: fewer releases were accepted than the study needs.
        FitError: as `fit_releases`.
        ProtocolError, EnvelopeError: the review log was altered.
        UsageError, DataError, StudyError: knowledge, titles or encoder that coordinator.toml names cannot be used.
    """
    releases = rounds.accepted_releases(home, store, name)
    earlier = last_used(home, store, name)
    settled = settled_of(Reviews(home, store)) if home.config.reviews == "pairs" else NOTHING_SETTLED
    background = read_background(home.folder, home.config, home.study, settled)
    found = fit_releases(
        releases, home.study, progress, earlier=earlier, accepted=accepted, background=background
    )
    save_fit(home.round_folder(name) / "fit.safetensors", found, releases)
    return found
