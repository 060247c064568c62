"""What each site released before: what a round's releases are held against."""

from __future__ import annotations

from coordinator import rounds
from coordinator.config import Home
from coordinator.harmonize import load_screening
from coordinator.store import Store
from protocol.errors import FederationError
from protocol.release import VerifiedRelease


def last_used(home: Home, store: Store, name: str) -> tuple[VerifiedRelease, ...]:
    """Each site's last release that an earlier published version used as it was.

    A release of which changes were held is passed over: else a change that was held once would be the
    measure of the next round. Rounds whose releases cannot be opened any more are passed over too.

    Args:
        home: the coordinator's.
        store: its database.
        name: the round that is to be fitted; only versions before its own count.
    """
    found: dict[str, VerifiedRelease] = {}
    versions = store.versions()
    own = next((i for i, published in enumerate(versions) if published.round == name), len(versions))
    for published in reversed(versions[:own]):
        screening = load_screening(home.fit_path(published.round))
        if screening is None:
            continue
        try:
            releases = rounds.accepted_releases(home, store, published.round)
        except FederationError:
            continue
        held = {change.site for change in screening.held}
        for release in screening.kept(releases):
            if release.manifest.site not in held:
                found.setdefault(release.manifest.site, release)
        if len(found) == len(home.study.sites):
            break
    return tuple(found.values())
