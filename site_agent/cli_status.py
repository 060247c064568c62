"""`site-agent status`: how this site is, and what it needs a person for."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

import typer

from protocol.console import out, print_json, shown, table
from site_agent.cli_options import HERE, HomeOption, JsonOption
from site_agent.config import Home
from site_agent.status import Status, read_status, short

_HEADINGS = {"broken": "Broken", "person": "Needs a person", "unknown": "Not known from here"}
_COLOURS = {"broken": "bold red", "person": "bold yellow", "unknown": "bold"}


def add_to(app: typer.Typer) -> None:
    """Add `status`."""
    app.command(epilog="Example: site-agent status --home north")(status)


def status(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Show how this site is: agent, connection, rounds, approvals, keys, ledger, disk; and what needs a person.

    Only reads. Exits with 1 if something is broken, and with 0 otherwise, also where something waits for a person.
    """
    found = read_status(Home(home))
    if json:
        print_json(_plain(found))
    else:
        _show(found)
    if found.broken:
        raise typer.Exit(1)


def _plain(found: Status) -> dict[str, object]:
    """For machines: times are ISO 8601, what is not known is null."""
    told = asdict(found) | {"broken": found.broken}
    return {name: _timed(value) for name, value in told.items()}


def _timed(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {k: _timed(v) for k, v in value.items()}
    return [_timed(v) for v in value] if isinstance(value, list | tuple) else value


def _show(found: Status) -> None:
    table(f"Site {found.site}", ["fact", "value"], [[name, value] for name, value in _facts(found)])
    if found.rounds:
        rows = [[r.round, r.state, shown(r.detail), _time(r.since), _time(r.until)] for r in found.rounds]
        table("Rounds", ["round", "state", "detail", "since", "until"], rows)
    for level, heading in _HEADINGS.items():
        notes = [note for note in found.notes if note.level == level]
        if notes:
            out.print(heading, style=_COLOURS[level])
        for note in notes:
            out.print(f"  {note.what}.{f' {note.do}.' if note.do else ''}", markup=False)
    if not found.notes:
        out.print("All is well; nothing needs a person.")


def _facts(found: Status) -> list[tuple[str, str]]:
    release = found.release
    approved = ""
    if release is not None:
        who = f" ({', '.join(release.approved_by)})" if release.approved_by else ""
        approved = f"{len(release.approved_by)} of {release.approvals_needed}{who}"
    return [
        ("agent", found.agent),
        *((name, "runs" if number else "does not run") for name, number in found.programs.items()),
        ("coordinator last asked", _time(found.heard) if found.heard else "never, or not known"),
        ("release prepared", f"{release.sequence} ({short(release.digest)})" if release else "none"),
        *([("approvals of it", approved)] if release else []),
        *([("sealed for", ", ".join(release.sealed_for))] if release and release.sealed_for else []),
        ("release accepted last", _number(found.accepted_sequence)),
        ("version arrived last", _number(found.result_version)),
        ("version applied last", _number(found.applied_version)),
        ("keys since", _time(found.keys_since) if found.keys_since else "not known"),
        ("ledger", "not known" if found.ledger_entries is None else f"{found.ledger_entries:,} entries hold"),
        ("disk free", "not known" if found.disk_free is None else f"{found.disk_free / 1e9:.1f} GB"),
    ]


def _number(value: int | None) -> str:
    return "not known" if value is None else str(value) if value else "none"


def _time(when: datetime | None) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC" if when else "–"
