"""What `site-agent enroll` does beside writing the file, and `site-agent lost-memory`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protocol.console import out, print_json
from protocol.errors import UsageError
from protocol.keyfile import passphrase_from_file
from site_agent import enrolment, lost
from site_agent.agent import Agent
from site_agent.cli_options import HERE, HomeOption, JsonOption, PassphraseFileOption, passphrase
from site_agent.config import Home
from site_agent.keys import coordinator_keys


def add_to(app: typer.Typer) -> None:
    """Add `lost-memory`."""
    app.command(
        "lost-memory",
        epilog="Example: site-agent lost-memory --by a-meier --patients-changed 5000 "
        '--because "disk lost in March; a year of new events since" --home north',
    )(lost_memory)


def confirm(site: Home, path: Path, told: str, *, json: bool) -> None:
    """Take the coordinator's welcome in, after comparing its fingerprint.

    Raises:
        UsageError: the fingerprint is another one, or the answer is no.
    """
    welcome = enrolment.read_welcome(site, path)
    seen = coordinator_keys(site).current.fingerprint
    if told and told.replace(" ", "").lower() != seen.replace(" ", ""):
        raise UsageError(
            f"The coordinator has fingerprint {seen}, which is not the one given",
            do="Ask the coordinator by telephone; do not take it if the two differ",
        )
    if not told and not typer.confirm(f"The coordinator has fingerprint {seen}. Did it tell you the same?"):
        raise UsageError("The welcome was not taken in", do="Ask the coordinator by telephone")
    with Agent(site).locked():
        enrolment.take_welcome(site, welcome, path)
    if json:
        print_json(
            {"site": welcome.site, "enrolled": welcome.enrolled, "accepted_release": welcome.sequence or None}
        )
        return
    out.print(f"Site {welcome.site} is enrolled since {welcome.enrolled:%Y-%m-%d %H:%M} UTC.")
    if welcome.sequence:
        out.print(f"Its last accepted release is {welcome.sequence}; the next one follows it.")
    out.print("Next: site-agent run")


def anew(site: Home, passphrase_file: Path | None, *, json: bool) -> Home:
    """New keys for a home that was restored from an old backup."""
    separate = site.exchange.is_symlink()
    given = (lambda: passphrase_from_file(passphrase_file)) if passphrase_file else None
    with Agent(site).locked():
        after = enrolment.begin_anew(site, given)
    if separate and not json:
        out.print(f"Move {site.node_key} to the account of site-agent connect, in place of its node.key.")
    return after


def lost_memory(
    by: Annotated[str, typer.Option(help="The signer who decides it.")],
    patients_changed: Annotated[
        int,
        typer.Option(
            help="Patients whose events have surely changed since the release that is not remembered."
        ),
    ],
    because: Annotated[
        str, typer.Option(help="What was lost, and how the number is known; goes into the ledger.")
    ],
    home: HomeOption = HERE,
    passphrase_file: PassphraseFileOption = None,
    json: JsonOption = False,
) -> None:
    """Decide that releases go on although what this site remembered of its last release is lost."""
    agent = Agent(Home(home))
    given = passphrase(passphrase_file, f"Passphrase of {by}")
    decision = lost.decide(agent, by, patients_changed, because, given)
    if json:
        print_json(decision.model_dump(mode="json"))
        return
    out.print(f"{by} has decided it; the ledger says so. Next: site-agent preview")
