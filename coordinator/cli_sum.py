"""`coordinator sum`: pools counts so that the coordinator learns the total only."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.config import Home
from coordinator.nodes import known_nodes
from coordinator.store import Store
from coordinator.sums.asking import Asked, asked_for
from coordinator.sums.drive import restart, run_sum
from coordinator.sums.opening import open_sum
from coordinator.sums.outcome import outcome_folder, signed_outcome
from coordinator.sums.record import SumRecord, SumStore
from protocol.console import out, print_json, progress, table
from protocol.errors import RoundError, UsageError
from protocol.signed import open_signed
from protocol.sums import STEPS, PooledSum, Statistic

sum_app = typer.Typer(no_args_is_help=True, help="Pool the sites' counts by secure sums.")

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="SMILE_COORDINATOR_HOME", help="The coordinator's home folder.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
NameArgument = Annotated[str, typer.Argument(help="The sum's name.")]
HERE = Path()

_NEXT = {
    "margins": ("sum open NAME --statistic cells --margins {name}",),
    "graph-margins": (
        "sum open NAME --statistic graph-alone --margins {name}",
        "sum open NAME --statistic graph-halves --margins {name}",
    ),
    "graph-halves": ("sum open NAME --statistic graph-blocks --halves {name}",),
    "graph-alone": ("graph build {name}",),
    "graph-blocks": ("graph build ALONE {name}",),
}
"""What follows from each statistic, for people."""


def open_for_members(hub: Home, name: str, asked: Asked, days: int) -> SumRecord:
    """Open a sum with all sites that take part, each registered as a node of Flower.

    Raises:
        FederationError: as `open_sum`, or Flower does not run.
    """
    from coordinator.flower.services import Services  # noqa: PLC0415 - Flower takes seconds to import

    store = Store(hub.database_url)
    nodes = known_nodes(hub, store, Services.attach(hub.flower))
    enrolled = {s.name: s.public_keys for s in store.members()}
    return open_sum(hub, name, asked, enrolled=enrolled, nodes=nodes, days=days)


@sum_app.command("open", epilog="Example: coordinator sum open margins-1 --codes codes.csv --home hub")
def sum_open(
    name: Annotated[str, typer.Argument(help="A new name: 1 to 24 of a-z, 0-9 and -.")],
    home: HomeOption = HERE,
    statistic: Annotated[
        Statistic, typer.Option(help="margins first, then what follows from them.")
    ] = "margins",
    codes: Annotated[
        Path | None,
        typer.Option(help="margins, graph-margins: CSV with a column code, the standard codes to sum over."),
    ] = None,
    margins: Annotated[
        str,
        typer.Option(
            help="cells: the finished sum of margins; graph-alone, graph-halves: that of graph-margins."
        ),
    ] = "",
    halves: Annotated[str, typer.Option(help="graph-blocks: the finished sum of graph-halves.")] = "",
    days: Annotated[int, typer.Option(min=1, max=365, help="Days until the proposal expires.")] = 30,
    json: JsonOption = False,
) -> None:
    """Fix what is summed: the vocabulary, the roster of sites and keys, and the pairs of codes."""
    hub = Home(home)
    asked = asked_for(hub, statistic, codes=str(codes or ""), margins=margins, halves=halves)
    record = open_for_members(hub, name, asked, days)
    if json:
        print_json(_facts(hub, record))
        return
    roster = record.proposal.roster
    out.print(
        f"Sum {name} of {statistic} is open: {len(asked.vocabulary):,} codes, {len(record.nodes)} sites."
    )
    out.print(f"The roster of sites and keys has fingerprint [bold]{roster.fingerprint}[/]:")
    out.print("the sites compare it with one another by telephone, not with you alone, and trust it once.")
    out.print(f"Next: coordinator sum run {name} --home {home}")


@sum_app.command("run", epilog="Example: coordinator sum run margins-1 --wait 3600 --home hub")
def sum_run(
    name: NameArgument,
    home: HomeOption = HERE,
    wait: Annotated[
        float, typer.Option(min=1, help="Seconds to wait for the sites at most, in each step.")
    ] = 3600.0,
    poll: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks at the sites.")] = 5.0,
    json: JsonOption = False,
) -> None:
    """Drive the sum from wherever it is; after the wait a step goes on without the sites that are gone."""
    from coordinator.flower.desk import RoundDesk  # noqa: PLC0415
    from coordinator.flower.services import Services  # noqa: PLC0415

    hub = Home(home)
    SumStore(hub.folder / "sums" / name).load()
    services = Services.attach(hub.flower)
    with progress(f"sum {name}", quiet=json) as step:

        def transport(desk: RoundDesk, sites: tuple[str, ...]) -> None:
            number = int(desk.round_id.rpartition("-")[2])
            run = services.start_run(desk, "sum", deadline_seconds=wait, poll_seconds=poll, sites=sites)
            state = "pending"
            try:
                while not state.startswith("finished"):
                    found = [desk.progress(s) for s in sites]
                    step(
                        f"{STEPS[number]}: " + ", ".join(f"{p.site} {p.state}" for p in found),
                        (number + sum(p.state in {"received", "refused"} for p in found) / len(found))
                        / len(STEPS),
                    )
                    time.sleep(0.2)
                    state = services.run_state(run)
            finally:
                if not state.startswith("finished"):
                    services.stop_run(run)
            if state != "finished:completed":
                raise RoundError(
                    f"The transport of sum {name} ended as {state}",
                    why=services.run_detail(run),
                    do=f"Read {desk.folder / 'transport.log'}; run the command again, nothing that arrived is lost",
                )

        result = run_sum(hub, name, transport)
    if json:
        print_json({"folder": str(outcome_folder(hub, name))} | result.model_dump(mode="json"))
        return
    out.print(f"Sum {name} holds the counts of {', '.join(result.sites)}: {outcome_folder(hub, name)}")
    for site in result.faulty:
        out.print(f"[yellow]warning:[/] {site} sent shares other than those dealt to it")
    for line in _NEXT.get(result.statistic, ()):
        out.print(f"Next: coordinator {line.format(name=name)} --home {home}", markup=False)


@sum_app.command("restart", epilog="Example: coordinator sum restart margins-1 --without north --home hub")
def sum_restart(
    name: NameArgument,
    home: HomeOption = HERE,
    without: Annotated[list[str] | None, typer.Option(help="A site to leave out; may be repeated.")] = None,
    json: JsonOption = False,
) -> None:
    """Begin a new attempt with new keys, with all sites or without some; a sum that was closed is refused by the sites."""
    hub = Home(home)
    store = SumStore(hub.folder / "sums" / name)
    record = store.load()
    if signed_outcome(hub, name) is not None:
        raise UsageError(f"Sum {name!r} is finished", do="Open a new one")
    record = restart(store, record, without or [])
    if json:
        print_json(_facts(hub, record))
    else:
        out.print(f"Attempt {record.attempt} of sum {name} is with {', '.join(record.sites)}.")
        out.print(f"Next: coordinator sum run {name} --home {home}")


@sum_app.command("status", epilog="Example: coordinator sum status margins-1 --home hub")
def sum_status(
    name: Annotated[str, typer.Argument(help="The sum's name; all sums if left out.")] = "",
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Show all sums, or how far every site is in one."""
    hub = Home(home)
    names = [name] if name else sorted(p.parent.name for p in (hub.folder / "sums").glob("*/sum.json"))
    found = [_facts(hub, SumStore(hub.folder / "sums" / n).load()) for n in names]
    if json:
        print_json(found[0] if name else found)
    elif not name:
        rows = [[f["sum"], f["statistic"], f["step"], f["attempt"], ", ".join(f["members"])] for f in found]
        table("Sums", ["sum", "statistic", "step", "attempt", "sites in the sum"], rows)
    else:
        (facts,) = found
        table(
            f"Sum {name}, attempt {facts['attempt']}: {facts['step']}",
            ["site", "state", "detail"],
            [[s["site"], s["state"], s["detail"]] for s in facts["sites"]],
        )


def _facts(hub: Home, record: SumRecord) -> dict[str, Any]:
    proposal = record.proposal
    store = SumStore(hub.folder / "sums" / proposal.name)
    signed, step = signed_outcome(hub, proposal.name), store.step(record)
    desk = store.desk(record, step) if step else None
    progress_ = [desk.progress(s) for s in record.sites] if desk else []
    return {
        "sum": proposal.name,
        "statistic": proposal.statistic,
        "codes": len(proposal.vocabulary),
        "attempt": record.attempt,
        "step": "finished" if signed else step or "opened",
        "expires": proposal.expires,
        "roster": proposal.roster.fingerprint,
        "members": open_signed(signed, PooledSum, hub.keys.public()).sites if signed else (),
        "sites": [{"site": p.site, "state": p.state, "detail": p.detail} for p in progress_],
    }
