"""`coordinator versions` and `coordinator diff`: what was published, and what changed from one version to another."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from coordinator.cli_options import HERE, HomeOption, JsonOption
from coordinator.config import Home
from coordinator.library import Library, Version
from coordinator.report.text import safe_text
from coordinator.versions.diff import STEP, Change, Difference, compare
from coordinator.versions.listing import difference_csv
from protocol.console import out, print_json, table
from protocol.errors import FederationError, ProtocolError, UsageError
from protocol.files import write_atomic

_SHOWN = 20


def add_to(app: typer.Typer) -> None:
    """Register both commands."""
    app.command("versions", epilog="Example: coordinator versions --verify --home hub")(versions)
    app.command("diff", epilog="Example: coordinator diff 1 2 --csv changes.csv --home hub")(diff)


def versions(
    home: HomeOption = HERE,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every file of every version against what was published.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the published versions: their rounds, sites, digests, and which of them were withdrawn."""
    library = Library(Home(home))
    found = [_facts(v, _checked(library, v) if verify else "") for v in library.versions()]
    if json:
        print_json(found)
    else:
        rows = [
            [
                v["version"],
                v["round"],
                _day(v["created"]),
                v["state"],
                ", ".join(v["sites"]),
                v["digest"][:12],
            ]
            + ([escape(v["check"])] if verify else [])
            for v in found
        ]
        columns = ["version", "round", "created", "state", "sites", "digest"] + (["check"] if verify else [])
        table("Published versions", columns, rows)
    bad = [v for v in found if v["check"] not in {"", "holds", "erased"}]
    if bad:
        raise ProtocolError(
            f"{len(bad)} of {len(found)} versions are not what was published",
            why=f"version {bad[0]['version']}: {bad[0]['check']}",
            do="Restore their folders from a backup",
        )


def diff(
    before: Annotated[int, typer.Argument(min=1, help="A published version.")],
    after: Annotated[int, typer.Argument(min=1, help="Another one.")],
    home: HomeOption = HERE,
    step: Annotated[
        float, typer.Option(min=0.0001, max=1, help="List probabilities that moved by at least this.")
    ] = STEP,
    csv: Annotated[Path | None, typer.Option(help="Write every change to this CSV file.")] = None,
    json: JsonOption = False,
) -> None:
    """Say what changed from one published version to another, code by code, and what is known of why."""
    library = Library(Home(home))
    withdrawn = {}
    for number in (before, after):
        version = library.version(number)
        if version.withdrawn is not None:
            withdrawn[number] = _left(library, version)
    found = compare(library.read_map(before), library.read_map(after), step=step, withdrawn=withdrawn)
    if csv is not None:
        try:
            write_atomic(csv, difference_csv(found), mode=0o644)
        except OSError as error:
            raise UsageError(
                f"The changes cannot be written to {csv}", why=str(error.strerror), do="Name another file"
            ) from None
    if json:
        print_json(found.facts())
        return
    _show(found)
    if csv is not None:
        out.print(f"Wrote {len(found.changes):,} changes to {csv}", markup=False)


def _show(found: Difference) -> None:
    for edition in (found.before, found.after):
        if edition.withdrawn:
            named = ", ".join(edition.withdrawn)
            out.print(
                f"[yellow]Version {edition.number} was withdrawn[/] with {named}: compare it, do not use it."
            )
    table(
        f"What version {found.after.number} was made from, beside version {found.before.number}",
        ["cause", "what"],
        [[cause.kind, _words(cause.detail)] for cause in found.causes],
    )
    table("Codes", ["change", "number"], [[kind, n] for kind, n in found.counts.items()])
    if found.changes:
        # A target that moved matters more than many probabilities that did.
        first = found.changes[:_SHOWN]
        title = f"The first {len(first)} of {len(found.changes):,} changes"
        table(title, ["code", "change", "before", "after", "why"], [_row(change) for change in first])


def _row(change: Change) -> list[Any]:
    places = [
        "" if e is None else f"{e.standard_code or 'no standard code'} {e.probability:.2f}"
        for e in (change.before, change.after)
    ]
    why = "; ".join(cause.detail for cause in change.why)
    return [_words(change.code), change.kind, *map(_words, places), _words(why)]


def _words(text: str) -> str:
    """Text of others for a terminal: one line, no control characters, no markup."""
    return escape(safe_text(text, 300))


def _facts(version: Version, check: str) -> dict[str, Any]:
    return {
        "version": version.number,
        "round": version.round,
        "created": version.created,
        "state": "erased" if version.erased else "withdrawn" if version.withdrawn else "stands",
        "withdrawn": version.withdrawn,
        "sites": list(version.sites),
        "digest": version.digest,
        "folder": str(version.folder),
        "check": check,
    }


def _checked(library: Library, version: Version) -> str:
    if version.erased:
        return "erased"
    try:
        library.check(version)
    except FederationError as error:
        return str(error)
    return "holds"


def _left(library: Library, version: Version) -> tuple[str, ...]:
    """The sites that a version was fitted with and that have withdrawn since."""
    return tuple(w.site for w in library.store.withdrawals() if version.number in w.versions)


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"
