"""`coordinator round plan`, `close`, `extend`, `exclude`, `include`, `abort`, `rerun`: what people decide about a round."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from coordinator import rounds
from coordinator.cli_options import HERE, DaysOption, HomeOption, JsonOption, RoundArgument
from coordinator.cli_round_watch import round_facts
from coordinator.config import Home
from coordinator.store import Store
from protocol.console import out, print_json
from protocol.errors import UsageError

BecauseOption = Annotated[str, typer.Option(help="Why; recorded with the round.")]
ByFileOption = Annotated[bool, typer.Option("--by-file", help="No site is called over the line.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command, example in (
        (plan, "plan 2027-q1 --opens 2027-01-04"),
        (close, "close 2026-q4"),
        (extend, "extend 2026-q4 --days 7"),
        (exclude, 'exclude 2026-q4 north --because "its data are being moved"'),
        (include, "include 2026-q4 north"),
        (abort, 'abort 2026-q4 --because "the study file was wrong"'),
        (rerun, "rerun 2026-q4 --as 2026-q4b"),
    ):
        app.command(epilog=f"Example: coordinator round {example} --home hub")(command)


def plan(
    name: RoundArgument,
    opens: Annotated[
        datetime,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="When it opens by itself, UTC."),
    ],
    home: HomeOption = HERE,
    days: DaysOption = 0,
    by_file: ByFileOption = False,
    json: JsonOption = False,
) -> None:
    """Plan a round; `coordinator round run` opens it when its time has come."""
    hub = Home(home)
    store = Store(hub.database_url)
    found = rounds.plan_round(hub, store, name, opens=opens.replace(tzinfo=UTC), days=days, by_file=by_file)
    _said(hub, store, name, f"Round {name} opens on {found.opened:%Y-%m-%d %H:%M} UTC.", json=json)


def close(name: RoundArgument, home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Take no more releases in: the round goes on with the sites that it has."""
    hub = Home(home)
    store = Store(hub.database_url)
    rounds.close(hub, store, name)
    _said(hub, store, name, f"Round {name} is closed.", json=json)


def extend(
    name: RoundArgument,
    days: Annotated[int, typer.Option(min=1, max=365, help="Days from now until the call expires.")],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Give the sites more time; a round that was closed or has lapsed takes releases in again."""
    hub = Home(home)
    store = Store(hub.database_url)
    found = rounds.extend(hub, store, name, days=days)
    _said(hub, store, name, f"Round {name} is open until {found.expires:%Y-%m-%d %H:%M} UTC.", json=json)


def exclude(
    name: RoundArgument,
    site: Annotated[str, typer.Argument(help="The site to go on without.")],
    because: BecauseOption,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Go on without a site in this round; unlike `withdraw` nothing of it is erased elsewhere."""
    hub = Home(home)
    store = Store(hub.database_url)
    rounds.exclude(store, name, site, because=because)
    _said(hub, store, name, f"Round {name} goes on without {site}.", json=json)


def include(
    name: RoundArgument,
    site: Annotated[str, typer.Argument(help="The site that was excluded.")],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Take an excluded site back into a round."""
    hub = Home(home)
    store = Store(hub.database_url)
    rounds.include(store, name, site)
    _said(hub, store, name, f"Round {name} waits for {site} again.", json=json)


def abort(
    name: RoundArgument,
    because: BecauseOption,
    home: HomeOption = HERE,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """End a round without a result; what was sealed to it is erased. Sites keep what they approved."""
    hub = Home(home)
    store = Store(hub.database_url)
    if json and not yes:
        raise UsageError("--json needs --yes", why="a script cannot be asked")
    if not yes and not typer.confirm(f"End round {name} for good? What the sites sealed to it is erased."):
        raise UsageError(f"Round {name} was not aborted", do="Nothing was changed")
    rounds.abort(hub, store, name, because=because)
    _said(hub, store, name, f"Round {name} is aborted.", json=json)


def rerun(
    name: RoundArgument,
    new: Annotated[str, typer.Option("--as", help="The name of the new round.")],
    home: HomeOption = HERE,
    days: DaysOption = 0,
    by_file: ByFileOption = False,
    json: JsonOption = False,
) -> None:
    """Open a new round like an earlier one, without the sites that were excluded there."""
    from coordinator.cli_round import flower_nodes  # noqa: PLC0415 - that module adds these commands

    hub = Home(home)
    store = Store(hub.database_url)
    nodes = {} if by_file else flower_nodes(hub, store)
    found = rounds.rerun(hub, store, name, new, nodes=nodes, days=days, by_file=by_file)
    _said(hub, store, new, f"Round {new} is open until {found.expires:%Y-%m-%d %H:%M} UTC.", json=json)


def _said(hub: Home, store: Store, name: str, text: str, *, json: bool) -> None:
    if json:
        print_json(round_facts(hub, store, name))
    else:
        out.print(text)
