"""The line of the rounds' driver over Flower: one run of the ServerApp a round, adopted where it still runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import Field

from coordinator.config import Home
from coordinator.flower.desk import RoundDesk
from coordinator.flower.services import Services
from coordinator.nodes import deny_nodes, known_nodes, settle_nodes
from coordinator.store import Store
from protocol.errors import FederationError, ProtocolError
from protocol.files import write_atomic
from protocol.messages import Message
from protocol.sections import Identifier
from protocol.signed import parse

_LOOK_SECONDS = 2.0
_LATE_SECONDS = 180.0
"""A run that has not ended so long after its deadline hangs."""

_LONGEST_PAUSE = 300.0


class _Run(Message):
    """run.json: the last run of a round."""

    id: int = Field(ge=0)
    phase: str
    sites: tuple[Identifier, ...]
    until: float = Field(description="Seconds since the epoch: its deadline.")
    superlink: int = Field(ge=0, description="Port of the SuperLink that was told of it.")

    def serves(self, desk: RoundDesk, phase: str, sites: Sequence[str]) -> bool:
        """Whether it asks these sites, and no other that it is not done with."""
        others = set(self.sites) - set(sites)
        done = all(desk.progress(site).state in {"received", "delivered", "refused"} for site in others)
        return self.phase == phase and set(sites) <= set(self.sites) and done


class FlowerLine:
    """Carries rounds over the services that `coordinator serve` keeps running.

    Args:
        home: of the coordinator.
        store: its store.
        poll_seconds: between two looks at the sites.
    """

    def __init__(self, home: Home, store: Store, poll_seconds: float = 5.0) -> None:
        self._home, self._store, self._poll = home, store, poll_seconds
        self._looked: dict[Path, float] = {}
        self._idle: dict[Path, tuple[tuple[str, ...], int, float]] = {}

    def nodes(self) -> dict[str, int]:
        """The Flower node of each member, known to the SuperLink from now on.

        Raises:
            FederationError: the services cannot be reached, or do not take a node's key.
        """
        services = Services.attach(self._home.flower)
        deny_nodes(self._home, self._store)
        return known_nodes(self._home, self._store, services)

    def carry(self, desk: RoundDesk, phase: str, sites: Sequence[str], seconds: float) -> None:
        """See to it that a run of this phase is under way for these sites; one that another process began counts.

        A run goes on where the last one stopped, so that one whose process died is simply followed by another.

        Raises:
            FederationError: the services cannot be reached.
        """
        # The SuperLink is asked every few seconds, not at every look.
        if time.monotonic() < self._looked.get(desk.folder, 0.0):
            return
        services = Services.attach(self._home.flower)
        self._looked[desk.folder] = time.monotonic() + _LOOK_SECONDS
        run = _read(desk)
        if run is not None and run.superlink != services.superlink_port:
            # Its ServerApp has ended with the services of then; the SuperLink would wait for a sign of life of it, and
            # where the clock was set back in between, for as long as it was ahead.
            self.rest(desk)
        elif run is not None:
            if not _state(services, run.id).startswith("finished"):
                if run.serves(desk, phase, sites) and time.time() < run.until + _LATE_SECONDS:
                    return
                self.rest(desk)
            elif run.serves(desk, phase, sites) and self._paused(desk, run):
                return
        # `coordinator serve` may run under an account that must not see the store: here is where nodes are shut out.
        deny_nodes(self._home, self._store)
        settle_nodes(self._home, self._store)
        run_id = services.start_run(
            desk, phase, deadline_seconds=seconds, poll_seconds=self._poll, sites=tuple(sites)
        )
        following = _Run(
            id=run_id,
            phase=phase,
            sites=tuple(sorted(sites)),
            until=time.time() + seconds,
            superlink=services.superlink_port,
        )
        write_atomic(_path(desk), following.model_dump_json())

    def _paused(self, desk: RoundDesk, run: _Run) -> bool:
        """Whether the next run waits: the first follows at once, those that bring nothing later and later."""
        last, count, begins = self._idle.get(desk.folder, ((), 0, 0.0))
        if last != run.sites:
            self._idle[desk.folder] = (run.sites, 0, 0.0)
            return False
        if not begins:
            begins = time.monotonic() + min(2.0**count, _LONGEST_PAUSE)
            self._idle[desk.folder] = (last, count, begins)
        if time.monotonic() < begins:
            return True
        self._idle[desk.folder] = (last, count + 1, 0.0)
        return False

    def rest(self, desk: RoundDesk) -> None:
        """End the run that is under way for a round, if there is one and the services answer."""
        run = _read(desk)
        if run is None:
            return
        with suppress(FederationError, OSError):
            services = Services.attach(self._home.flower)
            if not _state(services, run.id).startswith("finished"):
                services.stop_run(run.id)
            _path(desk).unlink(missing_ok=True)


def _path(desk: RoundDesk) -> Path:
    return desk.folder / "run.json"


def _read(desk: RoundDesk) -> _Run | None:
    try:
        return parse(_path(desk).read_bytes(), _Run)
    except (OSError, ProtocolError):
        return None


def _state(services: Services, run_id: int) -> str:
    """A run's state; one that the SuperLink does not know has ended with the database that knew it."""
    try:
        return services.run_state(run_id)
    except KeyError:
        return "finished:unknown"
