"""`coordinator knowledge`: pairs of codes from vocabularies, mapping sets and experts' tables."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.cli_options import HERE, HomeOption, JsonOption
from coordinator.config import Home
from protocol.console import out, print_json, progress, table
from protocol.study import load_study

app = typer.Typer(
    no_args_is_help=True, help="Read what is known of codes: vocabularies, hierarchies, mapping sets, pairs."
)


@app.command(epilog="Example: coordinator knowledge build knowledge.toml --output knowledge --home hub")
def build(
    sources: Annotated[Path, typer.Argument(help="TOML file with a [[source]] table for each source.")],
    output: Annotated[Path, typer.Option(help="The folder to write.")] = Path("knowledge"),
    study: Annotated[Path | None, typer.Option(help="The study file, where there is no home folder.")] = None,
    home: HomeOption = HERE,
    force: Annotated[bool, typer.Option("--force", help="Build even if no input has changed.")] = False,
    json: JsonOption = False,
) -> None:
    """Read the sources and write the pairs of the study's codes, with a report; unchanged input is not read again."""
    from coordinator.knowledge.build import build as make  # noqa: PLC0415 - sssom-pydantic takes a second to import
    from coordinator.knowledge.config import load_knowledge_file  # noqa: PLC0415

    spec = load_study(study) if study is not None else Home(home).study
    file = load_knowledge_file(sources)
    with progress("knowledge", quiet=json) as step:
        made = make(file, spec, output, force=force, progress=step)
    if json:
        print_json({"folder": str(output), "fresh": made.fresh, **made.report})
        return
    if not made.fresh:
        out.print(f"Nothing has changed since {output} was built.")
    _show(made.report)
    out.print(f"Look at {output / 'report.md'}. Next: coordinator knowledge stats {output} --round ROUND")


@app.command(epilog="Example: coordinator knowledge stats knowledge --round 2026-q4 --home hub")
def stats(
    folder: Annotated[Path, typer.Argument(help="A folder that `coordinator knowledge build` wrote.")],
    round_name: Annotated[str, typer.Option("--round", help="The round whose codes are looked up.")] = "",
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Show the pairs of a build; with a round, how many of its codes have pairs, by code system."""
    from coordinator import rounds  # noqa: PLC0415
    from coordinator.knowledge.build import load_build  # noqa: PLC0415
    from coordinator.knowledge.stats import coverage  # noqa: PLC0415
    from coordinator.store import Store  # noqa: PLC0415

    made = load_build(folder)
    found: list[dict[str, Any]] = []
    if round_name:
        hub = Home(home)
        releases = rounds.accepted_releases(hub, Store(hub.database_url), round_name)
        found = [asdict(c) for c in coverage(made, {code for r in releases for code in r.manifest.codes})]
    if json:
        print_json({"pairs": made.report["pairs"], "codes": made.report["codes"], "coverage": found})
        return
    _show(made.report)
    if found:
        titles = [
            "system",
            "codes",
            "similar",
            "not similar",
            "related",
            "any",
            "mean degree",
            "median degree",
            "most",
        ]
        table(f"Codes of round {round_name} with pairs among them", titles, [list(c.values()) for c in found])


def _show(report: dict[str, Any]) -> None:
    table("Pairs", ["kind", "pairs"], [list(item) for item in report["pairs"].items()])
    rows = [
        [s["name"], s["kind"], s["rows"], sum(s["pairs"].values()), sum(s["skipped"].values())]
        for s in report["sources"]
    ]
    table("Sources", ["source", "kind", "rows", "pairs", "left out"], rows)
    if report["contradictions"]:
        out.print(
            f"{report['contradictions']:,} pairs on which sources disagree are left out; the report lists them."
        )
