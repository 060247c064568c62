"""`site-agent graph`: which of the site's own codes are related, with false discoveries controlled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.console import out, print_json, progress, table
from protocol.errors import UsageError
from site_agent.cli_options import HERE, HomeOption, JsonOption, MemoryOption, ThreadsOption
from site_agent.config import Home
from site_agent.resources import resources

if TYPE_CHECKING:
    from site_agent.graph import SiteGraph

_SHOWN = 10


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("graph", epilog="Example: site-agent graph --home north --output north-graph --fdr 0.05")(
        graph
    )


def graph(
    output: Annotated[
        Path, typer.Option(help="Folder for edges.parquet and edges.csv; made if it is not there.")
    ],
    home: HomeOption = HERE,
    fdr: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Largest q of a pair in the files; the study's graph.fdr if left out, 1: all tested pairs.",
        ),
    ] = None,
    memory: MemoryOption = "",
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Test which of this site's own codes are related; nothing leaves, and the files are not for others."""
    # What reads and counts tables is imported where it is used: `site-agent run` needs none of it.
    from site_agent.graph import site_graph  # noqa: PLC0415
    from site_agent.graph_table import graph_table, write_graph  # noqa: PLC0415

    site = Home(home)
    if output.exists() and not output.is_dir():
        raise UsageError(f"The graph's folder {output} is a file", do="Name a folder for the graph")
    machine = resources(site.config.machine, memory=memory, threads=threads)
    with progress("graph", quiet=json) as step:
        found = site_graph(site, machine, step)
    rate = found.rules.fdr if fdr is None else fdr
    rows = graph_table(found, fdr=rate)
    files = write_graph(output, rows)
    said = _summary(found, rate)
    if json:
        print_json(said | {"files": [str(f) for f in files]})
        return
    out.print(f"{said['found']:,} of {said['tested']:,} tested pairs of codes have a q of at most {rate:g}.")
    out.print(
        f"Each pair by itself: {said['found_alone']:,}. Withheld by this site's floors: {said['withheld']:,}."
    )
    for note in found.notes:
        out.print(f"[yellow]{note}[/]")
    if rows.num_rows:
        shown = rows.slice(0, _SHOWN).to_pylist()
        columns = ["left", "right", "count", "expected", "q"]
        cells = [[r["left"], r["right"], r["count"], f"{r['expected']:.1f}", f"{r['q']:.2g}"] for r in shown]
        table(f"The {len(shown)} surest", columns, cells)
    out.print(
        f"Wrote {files[0]} and {files[1].name}. They hold counts of this site: keep them here.", markup=False
    )


def _summary(found: SiteGraph, rate: float) -> dict[str, Any]:
    return {
        "test": found.test,
        "tested": len(found.q),
        "found": int((found.q <= rate).sum()),
        "found_alone": int((found.alone_q <= rate).sum()),
        "withheld": found.withheld,
        "fdr": rate,
        "method": found.rules.method,
        "delta": found.rules.delta,
        "minimum_expected": found.rules.minimum_expected,
        "rank": found.rank,
        "notes": list(found.notes),
    }
