"""`coordinator certificate`: what proves this coordinator to its sites' connections."""

from __future__ import annotations

from datetime import UTC, datetime

import typer

from coordinator import certificates
from coordinator.cli_options import HERE, HomeOption, JsonOption
from coordinator.config import Home
from coordinator.keychange import issue_authority
from protocol.console import out, print_json, table
from protocol.errors import KeyFileError

app = typer.Typer(
    no_args_is_help=True,
    help="The server certificate, which coordinator serve renews by itself, and the authority that sites trust.",
)
_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104


@app.command(epilog="Example: coordinator certificate show --home hub")
def show(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """What the server certificate and its authority are for, and when they end."""
    folder, now = Home(home).tls, datetime.now(UTC)
    found = certificates.facts(folder)
    if json:
        print_json([vars(f) | {"days_left": f.days(now)} for f in found])
    else:
        rows = [
            [f.what, ", ".join(f.names), f"{f.ends:%Y-%m-%d}", f.days(now), f.fingerprint[:16]] for f in found
        ]
        table("Certificates", ["certificate", "for", "ends", "days left", "SHA-256 begins"], rows)
    try:
        warning = certificates.check_authority(folder, now=now)
    except KeyFileError as error:
        warning = str(error)
    if warning and not json:
        out.print(f"[yellow]{warning}[/]")


@app.command(epilog="Example: coordinator certificate renew --home hub")
def renew(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Replace the server certificate and its key now; running services take it within seconds, sites notice nothing."""
    hub = Home(home)
    certificates.renew_server(hub.tls, _hosts(hub))
    _say(hub, json=json, text="Renewed the server certificate")


@app.command("new-authority", epilog="Example: coordinator certificate new-authority --home hub")
def new_authority(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Make the next authority, and the signed file by which sites trust it beside the present one."""
    hub = Home(home)
    both = certificates.next_authority(hub.tls)
    path = issue_authority(hub, both, now=datetime.now(UTC).replace(microsecond=0))
    if json:
        print_json({"file": str(path)})
        return
    out.print(f"Give every site {path}: it runs site-agent keys trust-authority {path.name}.")
    out.print(
        "When all have: coordinator certificate switch. Sites that have not cannot connect from then on."
    )


@app.command(epilog="Example: coordinator certificate switch --home hub")
def switch(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Put the next authority in the present one's place; sites that have taken it in stay connected."""
    hub = Home(home)
    files = certificates.switch_authority(hub.tls, _hosts(hub))
    issue_authority(hub, files.ca.read_text(), now=datetime.now(UTC).replace(microsecond=0))
    _say(hub, json=json, text="The next authority is the present one now")


def _say(hub: Home, *, json: bool, text: str) -> None:
    server = certificates.facts(hub.tls)[0]
    if json:
        print_json(vars(server))
    else:
        out.print(f"{text}: the server certificate is good until {server.ends:%Y-%m-%d}.")


def _hosts(hub: Home) -> tuple[str, ...]:
    listen = hub.config.listen
    return (hub.config.host, "127.0.0.1" if listen in _WILDCARDS else listen)
