"""`coordinator round` and `coordinator import`: calls out, releases and receipts in, over Flower or as files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from coordinator import cli_round_moves, cli_round_watch, rounds
from coordinator.cli_options import HERE, DaysOption, HomeOption, JsonOption, RoundArgument
from coordinator.cli_round_watch import round_facts, states_table
from coordinator.config import Home
from coordinator.flower.desk import RoundDesk
from coordinator.roundstates import COLLECTING
from coordinator.store import Store
from protocol.console import out, print_json, progress, shown, table
from protocol.errors import RoundError

round_app = typer.Typer(no_args_is_help=True, help="Open a round, collect releases, deliver results.")

WaitOption = Annotated[float, typer.Option(min=1, help="Seconds to wait for the sites at most.")]
PollOption = Annotated[float, typer.Option(min=0.2, help="Seconds between two looks at the sites.")]


def add_to(app: typer.Typer) -> None:
    """Add `round` and `import`."""
    cli_round_moves.add_to(round_app)
    cli_round_watch.add_to(round_app)
    app.add_typer(round_app, name="round")
    app.command("import", epilog="Example: coordinator import usb/2026-q4-lake.release --home hub")(
        import_files
    )


@round_app.command("open", epilog="Example: coordinator round open 2026-q4 --home hub")
def round_open(
    name: RoundArgument,
    home: HomeOption = HERE,
    days: DaysOption = 0,
    by_file: Annotated[
        bool,
        typer.Option("--by-file", help="No site has a line: `round pack` writes what is carried to them."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make the round's key and sign the call to all enrolled sites."""
    hub = Home(home)
    store = Store(hub.database_url)
    nodes = {} if by_file else flower_nodes(hub, store)
    opened = rounds.open_round(hub, store, name, nodes=nodes, days=days, by_file=by_file)
    if json:
        print_json({"round": name, "expires": opened.expires, "sites": sorted(nodes)})
    else:
        called = "no site is called over the line" if by_file else f"{len(nodes)} sites are called"
        following = "pack" if by_file else "run"
        out.print(f"Round {name} is open until {opened.expires:%Y-%m-%d}; {called}.")
        out.print(f"Next: coordinator round {following} {name} --home {home}")


@round_app.command("collect", epilog="Example: coordinator round collect 2026-q4 --wait 3600 --home hub")
def round_collect(
    name: RoundArgument,
    home: HomeOption = HERE,
    wait: WaitOption = 3600.0,
    poll: PollOption = 5.0,
    json: JsonOption = False,
) -> None:
    """Fetch the sealed releases of sites that have approved; verify each before it is accepted."""
    hub = Home(home)
    store = Store(hub.database_url)
    state = store.round(name).state
    if state not in COLLECTING:
        raise RoundError(
            f"Round {name} is {state} and takes no releases in",
            do=f"To take in more: coordinator round extend {name} --days 7",
        )
    desk = RoundDesk(hub.round_folder(name))
    for site in hub.study.sites:
        desk.forgive(site)
    if state == "open":
        store.move_round(name, "collecting")
    sites = [s.name for s in rounds.called_sites(store, name) if s.name in desk.sites()]
    _transport(hub, store, name, "collect", sites, wait, poll, quiet=json)
    rounds.take_in(hub, store, name)
    _show_round(hub, store, name, json=json)


@round_app.command("deliver", epilog="Example: coordinator round deliver 2026-q4 --home hub")
def round_deliver(
    name: RoundArgument,
    home: HomeOption = HERE,
    wait: WaitOption = 3600.0,
    poll: PollOption = 5.0,
    json: JsonOption = False,
) -> None:
    """Send each site its sealed copy of the round's published version, and collect receipts."""
    hub = Home(home)
    store = Store(hub.database_url)
    if store.round(name).state not in {"published", "delivered"}:
        raise RoundError(f"Round {name} has no published version", do=f"Run coordinator publish {name}")
    sites = list(RoundDesk(hub.round_folder(name)).sites())
    _transport(hub, store, name, "deliver", sites, wait, poll, quiet=json)
    rounds.take_receipts(hub, store, name)
    _show_round(hub, store, name, json=json)


@round_app.command("status", epilog="Example: coordinator round status 2026-q4 --home hub")
def round_status(
    name: Annotated[str, typer.Argument(help="The round's name; all rounds if left out.")] = "",
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Show all rounds, or every site of one round with what it has done so far."""
    hub = Home(home)
    store = Store(hub.database_url)
    if name:
        _show_round(hub, store, name, json=json)
        return
    found = [
        {"round": r.name, "state": r.state, "opened": r.opened, "expires": r.expires} for r in store.rounds()
    ]
    if json:
        print_json(found)
    else:
        rows = [
            [r["round"], r["state"], f"{r['opened']:%Y-%m-%d %H:%M}", f"{r['expires']:%Y-%m-%d}"]
            for r in found
        ]
        table("Rounds (UTC)", ["round", "state", "opened", "expires"], rows)


@round_app.command(
    "pack", epilog="Example: coordinator round pack 2026-q4 --site lake --output usb --home hub"
)
def round_pack(
    name: RoundArgument,
    site: Annotated[str, typer.Option(help="The site that the files are carried to.")],
    output: Annotated[Path, typer.Option(help="Folder for the carrier, made if missing.")],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Write a round's signed call, and the site's sealed result once there is one, for a site without a line."""
    from coordinator import airgap  # noqa: PLC0415

    hub = Home(home)
    written = airgap.pack(hub, Store(hub.database_url), name, site, output)
    if json:
        print_json({"round": name, "site": site, "files": [str(path) for path in written]})
        return
    for path in written:
        out.print(f"Wrote {path}", markup=False)
    out.print(
        f"Carry them to {site}; there: site-agent import FILE. They are sealed or signed, and need no secrecy."
    )


def import_files(
    files: Annotated[list[Path], typer.Argument(help="Releases and receipts that site-agent export wrote.")],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Take in releases and receipts that came as files; each is verified as if it had come over the line."""
    from coordinator import airgap  # noqa: PLC0415

    hub = Home(home)
    store = Store(hub.database_url)
    taken = [airgap.bring_in(hub, store, path) for path in files]
    if json:
        print_json([vars(one) for one in taken])
    else:
        table(
            "Taken in", ["round", "site", "what", "state", "detail"], [[*vars(one).values()] for one in taken]
        )
    if any(one.state == "refused" for one in taken):
        raise typer.Exit(1)


def flower_nodes(hub: Home, store: Store) -> dict[str, int]:
    """The Flower node of each site, known to the SuperLink from now on."""
    from coordinator.flower.line import FlowerLine  # noqa: PLC0415 - Flower takes seconds to import

    return FlowerLine(hub, store).nodes()


def _transport(
    hub: Home,
    store: Store,
    name: str,
    phase: str,
    sites: Sequence[str],
    wait: float,
    poll: float,
    *,
    quiet: bool,
) -> None:
    """Run one phase over Flower and show every site's bar until it ends."""
    from coordinator.flower.line import FlowerLine  # noqa: PLC0415
    from coordinator.flower.services import Services  # noqa: PLC0415

    if not sites:
        return
    services, desk = Services.attach(hub.flower), RoundDesk(hub.round_folder(name))
    FlowerLine(hub, store).rest(desk)
    run = services.start_run(desk, phase, deadline_seconds=wait, poll_seconds=poll, sites=sites)
    with progress(phase, quiet=quiet) as step:
        while not services.run_state(run).startswith("finished"):
            found = [desk.progress(site) for site in sites]
            ended = sum(p.state in {"received", "delivered", "refused"} for p in found)
            step(", ".join(f"{p.site} {p.state}" for p in found), ended / max(len(found), 1))
            time.sleep(0.5)
    state = services.run_state(run)
    if state != "finished:completed":
        raise RoundError(
            f"The transport of round {name} ended as {state}",
            why=services.run_detail(run),
            do=f"Read {desk.folder / 'transport.log'}; run the command again, nothing that arrived is lost",
        )


def _show_round(hub: Home, store: Store, name: str, *, json: bool) -> None:
    if json:
        print_json(round_facts(hub, store, name))
        return
    out.print(states_table(store.round(name), rounds.site_states(hub, store, name)))
    for at, state, detail in ((e.at, e.state, e.detail) for e in store.round_events(name)[-5:]):
        out.print(f"[dim]{at:%Y-%m-%d %H:%M}[/] {state}  {shown(detail)}")
