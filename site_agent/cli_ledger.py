"""`site-agent ledger`: read, check and export the record of what was decided and of what left."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from protocol.canonical import fingerprint
from protocol.console import out, print_json, table
from protocol.errors import UsageError
from site_agent import audit
from site_agent.agent import Agent
from site_agent.cli_options import HERE, HomeOption, JsonOption
from site_agent.config import Home
from site_agent.countersigned import proved
from site_agent.keys import coordinator_keys
from site_agent.ledger import Entry
from site_agent.signers import standing

app = typer.Typer(no_args_is_help=True, help="The record of what was decided and of everything that left.")

_LONG = 60


@app.command(epilog="Example: site-agent ledger verify --home north")
def verify(
    home: HomeOption = HERE,
    file: Annotated[
        Path | None, typer.Option(help="Check an exported ledger instead; it needs no home folder.")
    ] = None,
    told: Annotated[
        str, typer.Option("--fingerprint", help="The site's fingerprint, as the coordinator has it.")
    ] = "",
    json: JsonOption = False,
) -> None:
    """Check the chain, every approval in it, and how far the coordinator has countersigned it."""
    if file is not None:
        _verify_file(file, told, as_json=json)
        return
    site = Home(home)
    ledger = Agent(site).ledger
    entries, torn = ledger.verify(), ledger.torn()
    standing(entries)
    seen = proved(site.folder, entries, coordinator=coordinator_keys(site).listed, site=site.config.site)
    if json:
        head = entries[-1].head if entries else ""
        print_json({"entries": len(entries), "head": head, "countersigned": seen, "incomplete_bytes": torn})
        return
    out.print(f"{len(entries):,} entries hold, and every approval among them.")
    if seen:
        out.print(f"The coordinator has countersigned all up to entry {seen:,}, of {entries[seen - 1].time}.")
    else:
        out.print(
            "The coordinator has countersigned none yet: it does in the call after an accepted release."
        )
    if torn:
        out.print(
            f"Behind them are {torn} bytes of a line that was not finished when the machine stopped. Nothing was "
            "done for it; the next entry removes it and says so."
        )


def _verify_file(file: Path, told: str, *, as_json: bool) -> None:
    found = audit.read_export(file)
    statement, keys = found.statement, found.statement.keys
    if told and told.split() != keys.fingerprint.split():
        raise UsageError(
            f"The exported ledger {file} was signed by {keys.fingerprint}, not by {told}",
            do="It is not that site's, or the site has a new key: ask the coordinator",
        )
    if as_json:
        print_json(statement.model_dump(mode="json") | {"fingerprint": keys.fingerprint})
        return
    out.print(f"{statement.entries:,} entries of site {statement.site} hold, and every approval among them.")
    out.print(f"They were signed by {keys.fingerprint} and exported at {statement.exported.isoformat()}.")
    if not told:
        out.print("Compare the fingerprint with the one that the coordinator has for this site.")


@app.command(epilog="Example: site-agent ledger show --event sealed --since 2026-01-01 --home north")
def show(
    home: HomeOption = HERE,
    event: Annotated[str, typer.Option(help="Only entries of this event, such as sealed.")] = "",
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only entries from this day on, UTC.")
    ] = None,
    last: Annotated[int, typer.Option(min=0, help="Only so many, the newest; 0 means all.")] = 0,
    json: JsonOption = False,
) -> None:
    """List the entries."""
    entries = Agent(Home(home)).ledger.verify()
    chosen = [e for e in entries if not event or e.event == event]
    if event and not chosen:
        events = ", ".join(sorted({e.event for e in entries}))
        raise UsageError(f"The ledger has no entry {event!r}", why=f"there are: {events}" if events else "")
    if since is not None:
        chosen = [e for e in chosen if e.time[:10] >= since.date().isoformat()]
    chosen = chosen[-last:] if last else chosen
    if json:
        print_json(
            [{"entry": e.number, "time": e.time, "event": e.event, "facts": dict(e.facts)} for e in chosen]
        )
        return
    table(
        f"Ledger of {Home(home).config.site}",
        ["entry", "time", "event", "facts"],
        [[e.number, e.time, e.event, _words(e)] for e in chosen],
    )


@app.command(epilog="Example: site-agent ledger export ledger-2026.json --home north")
def export(
    file: Annotated[Path, typer.Argument(help="New file; its signature goes to FILE.sig.")],
    home: HomeOption = HERE,
    form: Annotated[str, typer.Option("--format", help="json or csv.")] = "json",
    json: JsonOption = False,
) -> None:
    """Write the whole ledger for an auditor, and a signature by the site's key beside it."""
    if form not in {"json", "csv"}:
        raise UsageError(f"There is no format {form!r}", why="there are json and csv")
    site = Home(home)
    entries = Agent(site).ledger.verify()
    statement = audit.export(
        entries, file, form="csv" if form == "csv" else "json", site=site.config.site, keys=site.keys
    )
    if json:
        print_json(statement.model_dump(mode="json"))
        return
    out.print(f"Wrote {file} and {audit.signature_path(file)}: {len(entries):,} entries.")
    out.print(f"To check them anywhere: site-agent ledger verify --file {file}")


def _words(entry: Entry) -> str:
    """An entry's facts on a line or two: digests as fingerprints, signed bytes left out."""
    return ", ".join(f"{name} {_word(value)}" for name, value in entry.facts.items() if _shown(name))


def _shown(name: str) -> bool:
    return name not in {"approval", "public"}


def _word(value: Any) -> str:
    text = str(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return fingerprint(text)
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."
