"""`site-agent signer`: the people who may approve a release."""

from __future__ import annotations

from typing import Annotated

import typer

from protocol.console import out, print_json, table
from site_agent.agent import Agent
from site_agent.cli_options import HERE, HomeOption, JsonOption, PassphraseFileOption, passphrase
from site_agent.config import Home
from site_agent.signers import standing

app = typer.Typer(
    no_args_is_help=True, help="The people who may approve a release, each with a key and a passphrase."
)

NameArgument = Annotated[str, typer.Argument(help="1 to 32 of a-z, 0-9 and -, such as a-meier.")]


@app.command(epilog="Example: site-agent signer add a-meier --home north")
def add(name: NameArgument, home: HomeOption = HERE, passphrase_file: PassphraseFileOption = None) -> None:
    """Make a signer's key under a passphrase that only this person knows."""
    agent = Agent(Home(home))
    given = passphrase(passphrase_file, f"New passphrase of {name}, 12 characters or more", twice=True)()
    keys = agent.add_signer(name, lambda: given)
    out.print(f"{name} may approve now. The key's fingerprint is {keys.fingerprint}.")


@app.command("list", epilog="Example: site-agent signer list --home north")
def list_signers(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Who may approve, and who has approved the prepared release."""
    agent = Agent(Home(home))
    needed = agent.home.config.approval.signers
    found = standing(agent.ledger.verify())
    approved = agent.approvals(agent.outbox.prepared()) if agent.outbox.has_prepared() else {}
    rows = [
        [name, keys.fingerprint, found.since[name], name in approved]
        for name, keys in sorted(found.signers.items())
    ]
    columns = ["signer", "fingerprint", "since", "approved"]
    if json:
        signers = [dict(zip(columns, row, strict=True)) for row in rows]
        print_json({"needed": needed, "signers": signers})
        return
    table(f"Signers; a release needs {needed}", columns, rows)
    if len(rows) < needed:
        out.print("There are too few to approve a release: run site-agent signer add")


@app.command(epilog="Example: site-agent signer remove a-meier --home north")
def remove(name: NameArgument, home: HomeOption = HERE) -> None:
    """End a signer: the key is deleted, and a pending approval by it no longer counts."""
    Agent(Home(home)).remove_signer(name)
    out.print(f"{name} may not approve any more.")
