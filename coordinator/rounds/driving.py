"""Takes rounds from wherever they are to their end; may be killed anywhere and started again.

One look at a round does what its state asks for and moves it on. Everything that a look needs is stored: a
driver that is started again finds the same, adopts the transport that still runs, and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol, get_args

from coordinator import rounds
from coordinator.config import Home
from coordinator.flower.desk import RoundDesk
from coordinator.rounds.deciding import accepted_sites
from coordinator.roundstates import OVER, STATES
from coordinator.store import Round, Store
from protocol.errors import FederationError, RoundError, StoreError

Until = Literal["collected", "fitted", "published", "delivered"]
UNTIL: tuple[Until, ...] = get_args(Until)

DELIVERY_DAYS = 90
"""Sealed results expire then; until then sites that were away are tried again."""

_TURN_SECONDS = 6 * 3600.0
_RETRY_SECONDS = 5.0

_STOPS: dict[Until, str] = {u: "closed" if u == "collected" else u for u in UNTIL}
# What a round that nobody watches leaves to people; what they have published is delivered.
_THEIRS: dict[Until, frozenset[str]] = {
    "collected": frozenset({"closed", "fitting", "fitted", "publishing"}),
    "fitted": frozenset({"fitted", "publishing"}),
    "published": frozenset({"published"}),
    "delivered": frozenset(),
}


class Line(Protocol):
    """What carries calls, releases and results; `coordinator.flower.line.FlowerLine` is the real one."""

    def nodes(self) -> dict[str, int]:
        """Site -> node, for every member.

        Raises:
            FederationError: the services cannot be reached.
        """

    def carry(self, desk: RoundDesk, phase: str, sites: Sequence[str], seconds: float) -> None:
        """See to it that this phase is under way for these sites.

        Raises:
            FederationError: the services cannot be reached.
        """

    def rest(self, desk: RoundDesk) -> None:
        """End what is under way for a round, if anything is; never raises."""


class _Unreachable(Exception):  # noqa: N818 - caught here, never shown
    """The line cannot be used now."""

    def __init__(self, reason: FederationError) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Driver:
    """Drives rounds.

    Args:
        home: of the coordinator.
        store: its store.
        line: carries what travels.
        until: how far rounds go by themselves.
        say: told in words what happened to a round: name, sentence.
        progress: told the step and share of a fit or a publication.
        patient: whether a step that fails is tried again when something has changed, and the line waited for.
    """

    home: Home
    store: Store
    line: Line
    until: Until = "delivered"
    say: Callable[[str, str], None] = lambda _name, _text: None
    progress: Callable[[str, float], None] | None = None
    patient: bool = False
    _failed: dict[str, object] = field(default_factory=dict)
    _retry: dict[str, float] = field(default_factory=dict)
    _waits: set[str] = field(default_factory=set)
    _reached: bool = False

    def look(self, name: str) -> bool:
        """Do what is to be done for a round now.

        Returns:
            whether nothing is left to do for it without a person.

        Raises:
            FederationError: a step failed, and the driver is not patient.
        """
        try:
            return self._look(name)
        except _Unreachable as unreachable:
            self._wait_for(name, "the line", unreachable.reason)
        except StoreError as error:
            self._wait_for(name, "the database", error)
        return False

    def _look(self, name: str) -> bool:
        found = self.store.round(name)
        if self._at_end(found.state):
            return True
        if self._failed.get(name) == self._mark(found) or time.monotonic() < self._retry.get(name, 0.0):
            return False
        try:
            _STEPS[found.state](self, found)
        except StoreError:
            raise
        except OSError as error:
            why = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
            self._hold(found, RoundError(f"Round {name} could not go on", why=why or ""))
        except FederationError as error:
            self._hold(found, error)
        else:
            self._waits.discard(name)
        return self._at_end(self.store.round(name).state)

    def _at_end(self, state: str) -> bool:
        """A person who drives a round stops where it was told to; a service leaves to people what is theirs."""
        if state in OVER:
            return True
        return state in _THEIRS[self.until] if self.patient else _rank(state) >= _rank(_STOPS[self.until])

    def _wait_for(self, name: str, what: str, error: FederationError) -> None:
        """What was there before comes back: whoever restarts the services finds the round where it was."""
        if not (self.patient or self._reached):
            raise error
        self._retry[name] = time.monotonic() + _RETRY_SECONDS
        if name not in self._waits:
            self._waits.add(name)
            self.say(name, f"Waits for {what}. {error}")

    def _hold(self, found: Round, error: FederationError) -> None:
        if not self.patient:
            raise error
        self._failed[found.name] = self._mark(self.store.round(found.name))
        self.say(found.name, f"Waits for a person. {error}")

    def _mark(self, found: Round) -> object:
        """What a failed step depends on: with another mark it is worth another try."""
        submissions = tuple((s.site, s.state, s.envelope_digest) for s in self.store.submissions(found.name))
        return found.state, found.call, submissions, tuple(self.store.exclusions(found.name))

    # --- Steps -----------------------------------------------------------------------------------------

    def _planned(self, found: Round) -> None:
        if _now() >= found.opened:
            nodes = {} if found.by_file else self._nodes()
            opened = rounds.open_planned(self.home, self.store, found.name, nodes=nodes)
            self.say(found.name, f"Open until {opened.expires:%Y-%m-%d %H:%M} UTC")

    def _collecting(self, found: Round) -> None:
        desk = RoundDesk(self.home.round_folder(found.name))
        if desk.call() != found.call:
            # Killed between storing a call and laying it out.
            desk.open(found.call, desk.sites())
        before = {s.site: s.state for s in self.store.submissions(found.name)}
        over = _now() >= found.expires
        if over:
            self.line.rest(desk)
        for submission in rounds.take_in(self.home, self.store, found.name):
            if before.get(submission.site) != submission.state:
                self.say(found.name, f"{submission.site}: {submission.state} {submission.detail}".rstrip())
        waiting, accepted = self._waiting(found.name), accepted_sites(self.store, found.name)
        if over or not waiting:
            self.line.rest(desk)
            self._close(found, accepted, waiting)
            return
        left = (found.expires - _now()).total_seconds()
        self._carry(found, desk, "collect", waiting, min(left, _TURN_SECONDS))

    def _close(self, found: Round, accepted: Sequence[str], waiting: Sequence[str]) -> None:
        study = self.home.study
        if waiting and len(accepted) < study.quorum:
            why = f"{len(accepted)} of {study.quorum} releases that the study asks for; nothing from {', '.join(waiting)}"
            self.store.move_round(found.name, "lapsed", why)
            self.say(found.name, f"Lapsed: {why}")
            return
        if len(accepted) < study.minimum_sites:
            why = f"{len(accepted)} sites are left, and the study needs {study.minimum_sites}"
            self.store.move_round(found.name, "lapsed", why)
            self.say(found.name, f"Lapsed: {why}")
            return
        detail = f"All {len(accepted)} sites are in" if not waiting else f"Without {', '.join(waiting)}"
        self.store.move_round(found.name, "closed", detail)
        self.say(found.name, f"Closed. {detail}")

    def _waiting(self, name: str) -> list[str]:
        """Sites that the round waits for, by name."""
        accepted = set(accepted_sites(self.store, name))
        return [s.name for s in rounds.called_sites(self.store, name) if s.name not in accepted]

    def _fit(self, found: Round) -> None:
        from coordinator.fitting import fit_round  # noqa: PLC0415 - torch; a round waits for days without it

        with rounds.exclusive(self.home):
            fitted = fit_round(self.home, self.store, found.name, progress=self.progress)
        self.say(found.name, f"Fitted: {len(fitted.union.codes):,} codes")

    def _publish(self, found: Round) -> None:
        from coordinator.publication import publish_round  # noqa: PLC0415

        with rounds.exclusive(self.home):
            made = publish_round(self.home, self.store, found.name, progress=self.progress)
        self.say(found.name, f"Published version {made.edition.version}: {made.folder}")

    def _deliver(self, found: Round) -> None:
        desk = RoundDesk(self.home.round_folder(found.name))
        have = rounds.take_receipts(self.home, self.store, found.name)
        if self.store.round(found.name).state == "delivered":
            self.line.rest(desk)
            self.say(found.name, "Delivered to all sites")
            return
        published = next(p for p in reversed(self.store.versions()) if p.round == found.name)
        missing = [s for s in published.sites if s not in have]
        if _now() - published.created > timedelta(days=DELIVERY_DAYS):
            raise RoundError(
                f"Version {published.version} did not reach {', '.join(missing)} within {DELIVERY_DAYS} days",
                why="what was sealed for them has expired",
                do=f"Carry it to them by file: coordinator round pack {found.name}",
            )
        self._carry(found, desk, "deliver", missing, _TURN_SECONDS)

    def _carry(self, found: Round, desk: RoundDesk, phase: str, sites: Sequence[str], seconds: float) -> None:
        called: Mapping[str, int] = desk.sites()
        wanted = [site for site in sites if site in called]
        if not wanted:
            return  # by files alone
        try:
            self.line.carry(desk, phase, wanted, seconds)
        except FederationError as error:
            raise _Unreachable(error) from None
        self._reached = True
        if found.state == "open":
            self.store.move_round(found.name, "collecting")

    def _nodes(self) -> dict[str, int]:
        try:
            nodes = self.line.nodes()
        except FederationError as error:
            raise _Unreachable(error) from None
        self._reached = True
        return nodes


_STEPS: dict[str, Callable[[Driver, Round], None]] = {
    "planned": Driver._planned,
    "open": Driver._collecting,
    "collecting": Driver._collecting,
    "closed": Driver._fit,
    "fitting": Driver._fit,
    "fitted": Driver._publish,
    "publishing": Driver._publish,
    "published": Driver._deliver,
}


def _rank(state: str) -> int:
    return STATES.index(state)


def _now() -> datetime:
    """UTC without a zone, as the store keeps it."""
    return datetime.now(UTC).replace(tzinfo=None)
