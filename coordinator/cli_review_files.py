"""`coordinator review import` and `export`: decisions from files of other tools, and where every code stands as a file."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli_options import HERE, HomeOption, JsonOption
from coordinator.cli_review_show import COLUMNS, csv_line, names_of
from coordinator.config import Home
from coordinator.exports.cells import csv_bytes
from coordinator.review.reviews import Reviews
from coordinator.store import Store
from protocol.console import out, print_json, progress, shown, table
from protocol.errors import UsageError
from protocol.files import write_atomic

AsOption = Annotated[
    str, typer.Option("--as", help="Who says so; the account that runs the command without it.")
]
_SHOWN = 20
_LEFT = ("line", "code", "reason")


def add_to(app: typer.Typer) -> None:
    """Add the two commands."""
    app.command(
        "import",
        epilog="Example: coordinator review import map.csv --format usagi --vocabulary athena --as ann --dry-run --home hub",
    )(import_command)
    app.command(epilog="Example: coordinator review export reviews.csv --home hub")(export)


def open_reviews(home: Path) -> Reviews:
    """The decisions of a coordinator."""
    hub = Home(home)
    return Reviews(hub, Store(hub.database_url))


def account() -> str:
    """The account that runs the command."""
    return getpass.getuser()


def import_command(
    file: Annotated[Path, typer.Argument(help="The file.")],
    form: Annotated[str, typer.Option("--format", help="usagi, sssom or stcm.")],
    actor: AsOption = "",
    vocabulary: Annotated[
        Path | None, typer.Option(help="Folder of the OMOP vocabularies, where targets are concept ids.")
    ] = None,
    system: Annotated[
        str, typer.Option("--system", help="The system of the source codes, where the file does not name it.")
    ] = "",
    with_conflicts: Annotated[
        bool,
        typer.Option(
            "--with-conflicts", help="Record what contradicts a decision too: the code is in conflict then."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be recorded.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="CSV to write, with every line that was not taken, and why.")
    ] = None,
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Take over what people decided in Usagi, in a mapping set or in an earlier map; all of it or, after an error, nothing."""
    from coordinator.review.importing import check_form, import_file  # noqa: PLC0415 - sssom-pydantic takes a second

    if report is not None:
        _write(report, csv_bytes(_LEFT, []))  # where it cannot be written nothing is recorded either
    with progress("import", quiet=json) as step:
        step("reading and comparing", 0.1)
        found = import_file(
            open_reviews(home),
            file,
            check_form(form),
            actor=actor or account(),
            vocabulary=vocabulary,
            system=system,
            with_conflicts=with_conflicts,
            dry_run=dry_run,
        )
    if report is not None:
        _write(report, csv_bytes(_LEFT, [(x.line, x.code, x.reason) for x in found.left]))
    if json:
        print_json(
            {
                "source": found.source,
                "dry_run": dry_run,
                "taken": found.counts(),
                "left": [vars(x) for x in found.left],
                "conflicts": [vars(c) for c in found.clashes],
                "records": [r.number for r in found.records],
            }
        )
        return
    said = ", ".join(f"{count:,} {name}" for name, count in found.counts().items() if count) or "nothing"
    out.print(f"{'Would take' if dry_run else 'Took'} {said}; {len(found.left):,} lines were left.")
    if found.left:
        rows = [[x.line, shown(x.code), shown(x.reason, 200)] for x in found.left[:_SHOWN]]
        table("Left", ["line", "code", "reason"], rows)
    if len(found.left) > _SHOWN and report is None:
        out.print("The rest: --report FILE.csv")
    if found.clashes:
        clashing = [
            [
                c.line,
                shown(c.code),
                f"{c.verdict} {shown(c.target)}",
                f"{c.state} {shown(c.known)}",
                str(c.by),
            ]
            for c in found.clashes[:_SHOWN]
        ]
        table(
            f"{len(found.clashes):,} contradict decisions",
            ["line", "code", "file", "known", "records"],
            clashing,
        )


def export(
    output: Annotated[Path, typer.Argument(help="The CSV file to write.")],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Write where every code stands of which something was said."""
    reviews = open_reviews(home)
    found = [s for _, s in sorted(reviews.standings().items())]
    names = names_of(reviews)
    _write(output, csv_bytes(COLUMNS, [csv_line(s, names) for s in found]))
    if json:
        print_json({"output": str(output), "codes": len(found)})
        return
    out.print(f"Wrote {len(found):,} codes to {shown(str(output), 300)}.")


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomic(path, data, mode=0o644)
    except OSError as error:
        raise UsageError(
            f"The export {path} cannot be written", why=str(error.strerror), do="Name another file"
        ) from None
