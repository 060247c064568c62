"""Open versions for endpoints that must not block: what the database says is read once a second."""

from __future__ import annotations

import gc
from datetime import datetime

from coordinator.library import Library, OpenRelease, Version
from coordinator.web.columns import warm
from coordinator.web.fresh import Fresh
from coordinator.web.heavy import run_heavy
from coordinator.web.problems import ServiceError
from protocol.errors import FederationError

_SECONDS = 1.0


class Shelf:
    """The library as the event loop may use it.

    Args:
        library: of the coordinator.
    """

    def __init__(self, library: Library) -> None:
        self.library = library
        self._versions = Fresh(library.versions, _SECONDS)
        self._withdrawals = Fresh(library.store.withdrawals, _SECONDS)
        self._open: dict[str, OpenRelease] = {}
        self.ready, self.trouble = False, ""

    async def versions(self) -> list[Version]:
        """All of them, the first one first."""
        return await self._versions.get()

    async def version(self, number: int | None = None) -> Version:
        """One version that stands; without a number the newest.

        Raises:
            ServiceError: 404, there is none; 410, it was withdrawn.
        """
        known = await self.versions()
        found = [v for v in known if (v.withdrawn is None if number is None else v.number == number)]
        if not found:
            have = ", ".join(str(v.number) for v in known) or "none"
            what = "published version" if number is None else f"version {number}"
            raise ServiceError(404, f"There is no {what}", why=f"published are: {have}")
        version = found[-1]
        if version.withdrawn is not None:
            raise await self._gone(version, version.withdrawn)
        return version

    async def open(self, number: int | None = None) -> tuple[Version, OpenRelease]:
        """A version, verified and read.

        Raises:
            ServiceError: as for `version`.
            ProtocolError: its folder is not what its manifest says.
            EnvelopeError: its signature does not hold.
        """
        version = await self.version(number)
        held = self._open.get(version.digest)
        if held is None:
            held = await run_heavy(lambda: self._read(version))
        return version, held

    def open_newest(self) -> None:
        """Verify and read the newest version that stands, so that nobody waits for it; nothing is done if it is open."""
        standing = [v for v in self._versions.now() if v.withdrawn is None]
        try:
            if standing and standing[-1].digest not in self._open:
                self._read(standing[-1])
        except FederationError as error:
            # Older versions may be sound, and somebody has to be able to see what is wrong.
            self.ready, self.trouble = False, str(error)
        else:
            self.ready, self.trouble = True, ""

    def forget(self) -> None:
        """Ask the database again at the next question."""
        self._versions.forget()
        self._withdrawals.forget()

    def _read(self, version: Version) -> OpenRelease:
        release = self.library.open(version.number)
        warm(release)
        # Millions of rows and names hold no cycles: the collector would stop the service for seconds to find that out.
        gc.collect()
        gc.freeze()
        # As many as the library holds; the one opened first goes first.
        self._open[version.digest] = release
        while len(self._open) > 4:
            self._open.pop(next(iter(self._open)))
        return release

    async def _gone(self, version: Version, since: datetime) -> ServiceError:
        left = [w for w in await self._withdrawals.get() if version.number in w.versions]
        why = "; ".join(f"site {w.site} has left the study: {w.reason}" for w in left)
        return ServiceError(
            410,
            f"Version {version.number} was withdrawn on {since:%Y-%m-%d}",
            why=why,
            do="Use the newest version, and delete your copies of this one",
        )
