"""`coordinator backup`, `restore` and `catch-up`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.backup import INDEX, Backup, make_backup
from coordinator.cli_options import HERE, HomeOption, JsonOption
from coordinator.config import Home
from coordinator.restore import restore as restore_backup
from coordinator.store import Store
from protocol.canonical import file_digest
from protocol.console import out, print_json, progress


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: coordinator backup /backup/hub-2026-11-22 --home hub")(backup)
    app.command(epilog="Example: coordinator restore /backup/hub-2026-11-22 --home hub-new")(restore)
    app.command("catch-up", epilog="Example: coordinator catch-up v7/manifest.json --home hub")(catch_up)


def backup(
    to: Annotated[Path, typer.Argument(help="A new folder, on another disk.")],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Copy the whole home folder while its programs run: database, keys, rounds, releases, configuration."""
    with progress("backup", quiet=json) as step:
        found = make_backup(Home(home), to, progress=step)
    index = file_digest(to / INDEX)
    if json:
        print_json(_facts(found) | {"folder": str(to), "index_sha256": index})
        return
    out.print(
        f"Backed up {len(found.files):,} files, {found.size:,} bytes, and the database to {to}.", markup=False
    )
    for path in found.missing:
        out.print(f"[yellow]warning:[/] the database names {path}, which the home folder does not have")
    for path in found.outside:
        out.print(f"[yellow]warning:[/] {path} lies outside of the home folder: back it up too")
    out.print(_keys_warning(found))
    out.print(f"SHA-256 of {INDEX}, to keep apart from it: {index}")


def restore(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="The backup's folder.")],
    home: Annotated[Path, typer.Option("--home", help="The new home folder: missing, or empty.")],
    database: Annotated[
        str,
        typer.Option(
            help="URL of an empty database in place of the one that the backup's coordinator.toml names."
        ),
    ] = "",
    json: JsonOption = False,
) -> None:
    """Make a home folder from a backup, whole or not at all; every digest is checked first."""
    with progress("restore", quiet=json) as step:
        found = restore_backup(source, home, database=database, progress=step)
    if json:
        print_json(_facts(found) | {"folder": str(home)})
        return
    out.print(
        f"Restored study {found.study} as of {found.created:%Y-%m-%d %H:%M} UTC into {home}.", markup=False
    )
    out.print(
        f"It knows {found.versions} published versions, and as last accepted releases: "
        + (", ".join(f"{site} {n}" for site, n in sorted(found.sites.items())) or "none"),
        markup=False,
    )
    out.print(
        "What was accepted or published later is not in it. Rounds that were open then ask for it again. Before you open"
        " another round: coordinator catch-up, with the manifest of every later version, or a later call that a site keeps.",
        markup=False,
    )
    out.print(
        "The old home folder must not be used any more: two coordinators of one study contradict each other."
    )
    out.print(_keys_warning(found))
    out.print(f"Next: coordinator versions --verify --home {home}", markup=False)


def catch_up(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="manifest.json of a version, or a call from a site's folder countersigned; oldest first."
        ),
    ],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """After a restore: learn what was accepted and published since, from what this coordinator has signed."""
    from coordinator.catchup import catch_up as learn  # noqa: PLC0415 - scikit-learn takes a second to import

    hub = Home(home)
    store, told = Store(hub.database_url), []
    for path in files:
        found = learn(hub, store, path)
        told.append({"file": str(path)} | vars(found))
        if json:
            continue
        parts = [f"release {n} of {site} was accepted" for site, n in sorted(found.sites.items())]
        parts += [f"version {found.version} was published"] if found.version else []
        parts += [f"there was a round {found.round}"] if found.round else []
        out.print(f"{path}: {'; '.join(parts) or 'nothing new'}.", markup=False)
    if json:
        print_json(told)


def _facts(found: Backup) -> dict[str, Any]:
    kept = found.model_dump(mode="json", exclude={"files", "folders"})
    return kept | {"files": len(found.files), "bytes": found.size}


def _keys_warning(found: Backup) -> str:
    if found.passphrase:
        return "It holds the coordinator's private keys: they open with the passphrase that they had at that time."
    return "It holds the coordinator's private keys without a passphrase: whoever reads it can act as the coordinator."
