"""Fitting a round: its accepted releases, held against what the sites released before, and what else the coordinator has."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from coordinator import rounds
from coordinator.background import read_background
from coordinator.config import Home
from coordinator.estimate import Progress
from coordinator.harmonize import Harmonized, fit_releases, save_fit
from coordinator.history import last_used
from coordinator.review import Reviews
from coordinator.review.enter import settled_of
from coordinator.roundstates import COLLECTING
from coordinator.settled import NOTHING_SETTLED
from coordinator.store import Store
from protocol.errors import FederationError
from protocol.files import remove_parts
from protocol.release import VerifiedRelease

_SECONDS_A_NOTE = 1.0


def fit_round(
    home: Home,
    store: Store,
    name: str,
    *,
    accepted: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Harmonized:
    """Fit a round and move it on: closed, if releases were still taken in, then fitting, then fitted.

    A fit that was interrupted is begun anew: equal releases and decisions give an equal fit.

    Args:
        home: of the coordinator.
        store: its store.
        name: the round.
        accepted: site -> why its release is used in spite of the checks.
        progress: told the step and the share done; the store is told too.

    Raises:
        RoundError: fewer releases were accepted than the study needs, or the round cannot be fitted now.
        FitError, ProtocolError, EnvelopeError, UsageError, DataError, StudyError: as `fit_accepted`; the round is closed.
    """
    releases = rounds.accepted_releases(home, store, name)
    if store.round(name).state in COLLECTING:
        rounds.close(home, store, name)
    store.move_round(name, "fitting", f"{len(releases)} releases")
    told = _telling(store, name, progress)
    try:
        found = fit_accepted(home, store, name, releases, accepted=accepted, progress=told)
    except FederationError as error:
        store.move_round(name, "closed", f"The fit failed. {error}")
        raise
    store.move_round(name, "fitted", f"{len(found.union.codes):,} codes, {found.n_clusters:,} clusters")
    return found


def fit_accepted(
    home: Home,
    store: Store,
    name: str,
    releases: Sequence[VerifiedRelease] = (),
    *,
    accepted: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Harmonized:
    """Fit a round's accepted releases and keep the fit in the round's folder; the round stays where it stands.

    Args:
        home: of the coordinator.
        store: its store.
        name: the round.
        releases: the round's accepted ones; opened here if none are given.
        accepted: site -> why its release is used in spite of the checks.
        progress: told the step and the share done.

    Raises:
        RoundError: fewer releases were accepted than the study needs.
        FitError: as `fit_releases`.
        ProtocolError, EnvelopeError: the review log was altered.
        UsageError, DataError, StudyError: knowledge, titles or encoder that coordinator.toml names cannot be used.
    """
    releases = releases or rounds.accepted_releases(home, store, name)
    earlier = last_used(home, store, name)
    settled = settled_of(Reviews(home, store)) if home.config.reviews == "pairs" else NOTHING_SETTLED
    background = read_background(home.folder, home.config, home.study, settled)
    found = fit_releases(
        releases, home.study, progress, earlier=earlier, accepted=accepted, background=background
    )
    home.fit_path(name).parent.mkdir(exist_ok=True, mode=0o700)
    remove_parts(home.fit_path(name).parent)  # of a fit that was killed
    save_fit(home.fit_path(name), found, releases)
    return found


def _telling(store: Store, name: str, progress: Progress | None) -> Progress:
    last = 0.0

    def tell(step: str, share: float) -> None:
        nonlocal last
        if progress is not None:
            progress(step, share)
        # A fit may tell of hundreds of iterations a second; each line of the store goes to the disk.
        if time.monotonic() - last > _SECONDS_A_NOTE:
            last = time.monotonic()
            store.set_round_step(name, step, share)

    return tell
