"""`site-agent import` and `site-agent export`: a round whose files are carried by a person."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protocol.console import out, print_json, table
from site_agent.agent import Agent
from site_agent.airgap import bring_in, take_out
from site_agent.cli_options import HERE, HomeOption, JsonOption
from site_agent.config import Home


def add_to(app: typer.Typer) -> None:
    """Add the two commands."""
    app.command("import", epilog="Example: site-agent import usb/2026-q4.call --home north")(import_files)
    app.command("export", epilog="Example: site-agent export usb --home north")(export)


def import_files(
    files: Annotated[list[Path], typer.Argument(help="Calls and results that coordinator round pack wrote.")],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Take in a call or a result that came as a file, and answer it; nothing leaves."""
    agent = Agent(Home(home))
    news = [line for path in files for line in bring_in(agent, path)]
    if json:
        print_json({"news": news})
        return
    for line in news or ["Nothing is new"]:
        out.print(line, markup=False)
    if agent.outbox.has_prepared():
        out.print(
            f"What is sealed, and receipts, go out with: site-agent export FOLDER --home {home}", markup=False
        )


def export(
    folder: Annotated[Path, typer.Argument(help="Folder for the carrier, made if missing.")],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Write approved and sealed releases, and receipts, as files; each stands in the ledger first."""
    agent = Agent(Home(home))
    carried = take_out(agent, folder)
    if json:
        print_json([{**vars(one), "path": str(one.path)} for one in carried])
    elif carried:
        rows = [[one.path.name, one.kind, one.round, one.sha256[:16]] for one in carried]
        table(f"In {folder}", ["file", "what", "round", "SHA-256"], rows)
    else:
        out.print("Nothing waits: no release is sealed, and no result has arrived")
