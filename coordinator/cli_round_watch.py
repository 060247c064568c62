"""`coordinator round watch` and `run`: rounds as they go, and driving them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from json import dumps as to_json
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from coordinator import rounds
from coordinator.cli_options import HERE, HomeOption, JsonOption, RoundArgument
from coordinator.config import Home
from coordinator.rounds.driving import Driver, Until
from coordinator.roundstates import OVER
from coordinator.store import Round, Store
from protocol import logs
from protocol.console import grid_of, out, shown, stop_event
from protocol.errors import RoundError, StoreError, UsageError
from protocol.processes import FolderLock

_LOOK_SECONDS = 1.0


def add_to(app: typer.Typer) -> None:
    """Add `watch` and `run`."""
    app.command("watch", epilog="Example: coordinator round watch 2026-q4 --home hub")(watch)
    app.command("run", epilog="Example: coordinator round run 2026-q4 --until fitted --home hub")(run)


def watch(
    name: RoundArgument,
    home: HomeOption = HERE,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    json: JsonOption = False,
) -> None:
    """Follow every site of a round until its version is delivered, or Ctrl-C; nothing is changed.

    On a terminal the table is kept up to date. Elsewhere, and with --json, each change is a line of its own.
    """
    hub = Home(home)
    store, stop = Store(hub.database_url), stop_event()
    with _screen(hub, store, name, as_json=json) as screen:
        while True:
            screen.show()
            if store.round(name).state in OVER or stop.wait(every):
                return


def run(
    name: Annotated[
        str, typer.Argument(help="The round's name; every round that is not over if left out.")
    ] = "",
    home: HomeOption = HERE,
    until: Annotated[
        Until | None,
        typer.Option(help="Stop there: `delivered` for a named round, otherwise what coordinator.toml says."),
    ] = None,
    forever: Annotated[
        bool, typer.Option("--forever", help="Do not end: drive every round that there is or will be.")
    ] = False,
    poll: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks at the sites.")] = 5.0,
    json: JsonOption = False,
) -> None:
    """Take a round from wherever it is to its end: open, collect, close, fit, publish, deliver.

    Every step is stored before it begins: the command may be stopped or killed at any point, and run again.
    """
    if name and forever:
        raise UsageError("--forever drives every round", do="Leave the name out, or --forever")
    logs.configure("coordinator-rounds")
    hub = Home(home)
    _ = hub.keys  # asks for the passphrase now, not in a week
    store, stop = Store(hub.database_url), stop_event()
    if name:
        store.round(name)
    with _only_one(hub, name):
        if name:
            _run_one(hub, store, name, until or "delivered", poll, stop, as_json=json)
        else:
            _run_all(hub, store, until or hub.config.unattended, poll, stop, forever=forever, as_json=json)


def _run_one(
    hub: Home, store: Store, name: str, until: Until, poll: float, stop: threading.Event, *, as_json: bool
) -> None:
    with _screen(hub, store, name, as_json=as_json) as screen:
        driver = _driver(hub, store, until, poll, screen.say)
        driver.progress = screen.step
        while not driver.look(name):
            screen.show()
            if stop.wait(_LOOK_SECONDS):
                out.print(f"Stopped; go on with coordinator round run {name}") if not as_json else None
                return
        screen.show()
    state, last = store.round(name).state, store.round_events(name)[-1].detail
    if state == "lapsed":
        do = f"coordinator round extend {name} --days 7 gives sites more time"
        raise RoundError(f"Round {name} has lapsed", why=last, do=do)
    if state == "aborted":
        raise RoundError(f"Round {name} was aborted", why=last)


def _run_all(
    hub: Home, store: Store, until: Until, poll: float, stop: threading.Event, *, forever: bool, as_json: bool
) -> None:
    known: list[str] = []
    driver = _driver(hub, store, until, poll, lambda name, text: _line(name, text, as_json=as_json))
    driver.patient = True
    while True:
        with suppress(StoreError):  # it comes back, or each round says that it waits for it
            known = [r.name for r in store.rounds() if r.state not in OVER]
        left = [not driver.look(name) for name in known]
        if (not forever and not any(left)) or stop.wait(_LOOK_SECONDS):
            return


def _driver(hub: Home, store: Store, until: Until, poll: float, say: Any) -> Driver:
    from coordinator.flower.line import FlowerLine  # noqa: PLC0415 - Flower takes seconds to import

    return Driver(hub, store, FlowerLine(hub, store, poll), until=until, say=say)


@contextmanager
def _only_one(hub: Home, name: str) -> Iterator[None]:
    """One driver at a time: two would ask the same sites and fit the same round.

    Raises:
        RoundError: another one runs.
    """
    lock = FolderLock(hub.folder / "rounds", f"the driver of {'round ' + name if name else 'rounds'}")
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass
class _Screen:
    """A table that is kept up to date, or a line for each change."""

    hub: Home
    store: Store
    name: str
    as_json: bool
    live: Live | None
    said: Mapping[str, rounds.SiteState] = field(default_factory=dict)

    def show(self) -> None:
        """The states as they are now."""
        states, found = rounds.site_states(self.hub, self.store, self.name), self.store.round(self.name)
        if self.live is not None:
            self.live.update(states_table(found, states), refresh=True)
        else:
            _say_changes(states, self.said, as_json=self.as_json)
        self.said = {s.site: s for s in states}

    def say(self, name: str, text: str) -> None:
        """What happened to the round."""
        if self.live is not None:
            self.live.console.print(f"{name}: {shown(text, 300)}")
        else:
            _line(name, text, as_json=self.as_json)

    def step(self, step: str, share: float) -> None:
        """How far a fit or a publication is; elsewhere than on a terminal the store is told only."""
        if self.live is not None:
            states = rounds.site_states(self.hub, self.store, self.name)
            found = self.store.round(self.name)
            found.step, found.share = step, share
            self.live.update(states_table(found, states), refresh=True)


@contextmanager
def _screen(hub: Home, store: Store, name: str, *, as_json: bool) -> Iterator[_Screen]:
    live = out.is_terminal and not as_json
    with Live(console=out, auto_refresh=False) if live else nullcontext() as screen:
        yield _Screen(hub, store, name, as_json, screen)


def _line(name: str, text: str, *, as_json: bool) -> None:
    if logs.is_json():
        logging.getLogger("smile").info("%s", text, extra={"round": name})
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if as_json:
        typer.echo(to_json({"time": now, "round": name, "event": text}, ensure_ascii=False))
    else:
        out.print(f"{now} {name}: {shown(text, 300)}")


def _say_changes(
    states: Sequence[rounds.SiteState], said: Mapping[str, rounds.SiteState], *, as_json: bool
) -> None:
    """A line for each site of which something has changed."""
    for site in states:
        if site.same_as(said.get(site.site)):
            continue
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **vars(site)}
        if as_json:
            typer.echo(to_json(line, ensure_ascii=False))
        else:
            detail = f" {shown(site.detail)}" if site.detail else ""
            out.print(f"{line['time']} {site.site}: {site.state}.{detail}")


def round_facts(hub: Home, store: Store, name: str) -> dict[str, Any]:
    """A round with its sites and its history, for machines."""
    found = store.round(name)
    return {
        "round": name,
        "state": found.state,
        "opened": found.opened,
        "expires": found.expires,
        "step": found.step,
        "share": found.share,
        "sites": [vars(s) for s in rounds.site_states(hub, store, name)],
        "events": [{"at": e.at, "state": e.state, "detail": e.detail} for e in store.round_events(name)],
    }


def states_table(found: Round, states: Sequence[rounds.SiteState]) -> Table:
    """Every site of a round; a contact stands where people are needed."""
    rows = [[s.site, s.state, s.detail, _bytes(s), s.contact if s.state in _CALL else ""] for s in states]
    step = f": {found.step} ({found.share:.0%})" if found.step else ""
    title = f"Round {found.name}: {found.state}{step}, until {found.expires:%Y-%m-%d %H:%M} UTC"
    return grid_of(title, ["site", "state", "detail", "received", "contact"], rows)


_CALL = frozenset({"invited", "offline", "preparing", "awaiting-approval", "refused", "late"})


def _bytes(site: rounds.SiteState) -> str:
    """Bytes that have moved; what did not move is not shown as zero."""
    if not site.bytes_total:
        return ""
    if site.bytes_done >= site.bytes_total:
        return f"{site.bytes_total / 1e6:,.1f} MB"
    return f"{site.bytes_done / site.bytes_total:.0%} of {site.bytes_total / 1e6:,.1f} MB"
