"""`site-agent keys`: change this site's keys; follow the coordinator's."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from protocol.console import out, print_json, table
from protocol.errors import UsageError
from protocol.keyfile import passphrase_from_file
from protocol.keys import key_file_public
from protocol.rotation import present
from site_agent import keys
from site_agent.agent import Agent
from site_agent.cli_options import HERE, HomeOption, JsonOption, PassphraseFileOption
from site_agent.config import Home

app = typer.Typer(no_args_is_help=True, help="Change this site's keys; follow the coordinator's new ones.")

_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M"]


@app.command(epilog="Example: site-agent keys show --home north")
def show(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Fingerprints and versions of this site's keys and of the coordinator's."""
    site = Home(home)
    own, hub = keys.own_keys(site), keys.coordinator_keys(site)
    listed = own.key_list()
    facts = {
        "fingerprint": (key_file_public(own.key) or site.keys.public()).fingerprint,
        "version": len(listed.versions) if listed else 1,
        "protected": key_file_public(own.key) is not None,
        "replaced keys not yet erased": len(own.previous()),
        "coordinator's fingerprint": hub.current.fingerprint,
        "coordinator's version": max(hub.known.version, 1),
    }
    if json:
        print_json({k.replace(" ", "_").replace("'s", ""): v for k, v in facts.items()})
    else:
        table("Keys", ["fact", "value"], [[k, v] for k, v in facts.items()])


@app.command(epilog="Example: site-agent keys rotate --home north")
def rotate(
    home: HomeOption = HERE, passphrase_file: PassphraseFileOption = None, json: JsonOption = False
) -> None:
    """Take new keys, and write the key list for the coordinator; the old ones stay until its receipt comes."""
    _change(Path(home), passphrase_file, None, json=json)


@app.command(epilog="Example: site-agent keys revoke --lost-since 2026-11-02 --home north")
def revoke(
    lost_since: Annotated[
        datetime,
        typer.Option(formats=_TIMES, help="UTC; the present keys may be in other hands since then."),
    ],
    home: HomeOption = HERE,
    passphrase_file: PassphraseFileOption = None,
    json: JsonOption = False,
) -> None:
    """Take new keys because the present ones are lost; call the coordinator at once."""
    _change(Path(home), passphrase_file, lost_since.replace(tzinfo=UTC), json=json)


@app.command(epilog="Example: site-agent keys confirm key-receipt-north.json --home north")
def confirm(
    receipt: Annotated[Path, typer.Argument(help="The coordinator's receipt for this site's key list.")],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Erase replaced keys, now that the coordinator uses the new ones."""
    site = Home(home)
    with Agent(site).locked():
        erased = keys.confirm(site, receipt)
    if json:
        print_json({"erased": erased})
    else:
        out.print(f"Erased {erased} replaced keys. Remove them from your backups too.")


@app.command(epilog="Example: site-agent keys trust key-list-coordinator.json --home north")
def trust(
    file: Annotated[Path, typer.Argument(help="The coordinator's key list.")],
    home: HomeOption = HERE,
    fingerprint: Annotated[
        str, typer.Option(help="The fingerprint that the coordinator told you; takes it without asking.")
    ] = "",
    json: JsonOption = False,
) -> None:
    """Follow the coordinator to its new keys, after comparing the new fingerprint."""
    site = Home(home)
    listed, found = keys.read_coordinator_list(site, file)
    seen = found.current.fingerprint
    if fingerprint and fingerprint.replace(" ", "").lower() != seen.replace(" ", ""):
        raise UsageError(
            f"The coordinator has fingerprint {seen}, which is not the one given",
            do="Ask the coordinator by telephone; do not take it if the two differ",
        )
    if not fingerprint and not typer.confirm(
        f"The coordinator has fingerprint {seen}. Did it tell you the same?"
    ):
        raise UsageError("The coordinator's keys were not taken in", do="Ask the coordinator by telephone")
    with Agent(site).locked():
        keys.follow_coordinator(site, listed, found)
    if json:
        print_json({"fingerprint": seen, "version": found.known.version})
    else:
        out.print(
            f"The coordinator has keys of version {found.known.version}; site-agent run uses them from now on."
        )


@app.command(
    "trust-authority",
    epilog="Example: site-agent keys trust-authority authority-coordinator.json --home north",
)
def trust_authority(
    file: Annotated[Path, typer.Argument(help="authority-coordinator.json from the coordinator.")],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Trust the coordinator's next certificate authority for the connection; the coordinator's keys have signed it."""
    site = Home(home)
    with Agent(site).locked():
        found = keys.trust_authority(site, file)
    count = found.certificates.count("BEGIN CERTIFICATE")
    if json:
        print_json({"authorities": count, "issued": found.issued})
        return
    out.print(
        f"The connection trusts {count} of the coordinator's authorities; site-agent run connects with them."
    )
    if not site.node_key.is_file():
        out.print(
            f"Give the account of site-agent connect the certificate of {site.folder / 'invitation.json'} as its ca.crt."
        )


@app.command("new-node-key", epilog="Example: site-agent keys new-node-key --home north")
def new_node_key(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Take a new key for the Flower connection, and write the file by which the coordinator shuts the old one out."""
    site = Home(home)
    separate = not site.node_key.is_file()
    with Agent(site).locked():
        path = keys.change_node_key(site)
    if json:
        print_json({"file": str(path)})
        return
    out.print(f"Send {path} to the coordinator: until it is taken in there, this site is offline.")
    if separate:
        out.print(f"Move {site.node_key} to the account of site-agent connect, in place of its node.key.")


def _change(home: Path, passphrase_file: Path | None, lost_since: datetime | None, *, json: bool) -> None:
    site = Home(home)
    given = (lambda: passphrase_from_file(passphrase_file)) if passphrase_file else None
    with Agent(site).locked():
        path = keys.rotate(
            site, now=datetime.now(UTC).replace(microsecond=0), lost_since=lost_since, passphrase=given
        )
    listed = keys.own_keys(site).key_list()
    seen = present(listed).fingerprint if listed else ""
    if json:
        print_json({"fingerprint": seen, "file": str(path)})
        return
    out.print(f"This site's new fingerprint is [bold]{seen}[/]: tell it to the coordinator by telephone.")
    out.print(
        f"Send it {path}. When its receipt comes: site-agent keys confirm key-receipt-{site.config.site}.json"
    )
    out.print("site-agent run signs with the new keys from now on.")
