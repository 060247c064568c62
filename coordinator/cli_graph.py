"""`coordinator graph`: which standard codes are related, from sums over all sites."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli_options import HERE, HomeOption, JsonOption
from coordinator.config import Home
from protocol.console import out, print_json, progress, table
from protocol.errors import UsageError

if TYPE_CHECKING:
    from coordinator.graph.pooled import PooledGraph

app = typer.Typer(no_args_is_help=True, help="Which codes are related, from counts that no one sees apart.")

_SHOWN = 10


@app.command("build", epilog="Example: coordinator graph build alone-1 blocks-1 --home hub")
def graph_build(
    alone: Annotated[str, typer.Argument(help="The finished sum of graph-alone.")],
    blocks: Annotated[
        str,
        typer.Argument(help="The finished sum of graph-blocks; without it each pair is tested by itself."),
    ] = "",
    home: HomeOption = HERE,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for related.parquet and related.csv; the home's folder graph if left out."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Test all pairs that were summed, by the study's rules, and write them with p- and q-values."""
    # SciPy is imported where it is used.
    from coordinator.graph.pooled import pooled_graph  # noqa: PLC0415
    from coordinator.graph.tested import tests_table, write_tests  # noqa: PLC0415

    hub = Home(home)
    folder = output or hub.folder / "graph"
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"The graph's folder {folder} is a file", do="Name a folder for the graph")
    with progress("graph", quiet=json) as step:
        step("testing", 0.0)
        found = pooled_graph(hub, alone, blocks)
        step("writing", 0.8)
        rows = tests_table(found)
        files = write_tests(folder, found, rows)
    said = _summary(found)
    if json:
        print_json(said | {"files": [str(f) for f in files]})
        return
    rate = found.rules.fdr
    out.print(f"{said['found']:,} of {said['tested']:,} tested pairs of codes have a q of at most {rate:g}.")
    out.print(f"Each pair by itself: {said['found_alone']:,}. Shown by no site: {said['unseen']:,}.")
    for note in found.notes:
        out.print(f"[yellow]{note}[/]")
    shown = rows.slice(0, _SHOWN).to_pylist()
    columns = ["left", "right", "count", "expected", "q"]
    cells = [[r["left"], r["right"], r["count"], f"{r['expected']:.1f}", f"{r['q']:.2g}"] for r in shown]
    table(f"The {len(shown)} surest", columns, cells)
    out.print(f"Wrote {files[0]}, {' and '.join(f.name for f in files[1:])}.", markup=False)


def _summary(found: PooledGraph) -> dict[str, Any]:
    rate = found.rules.fdr
    return {
        "test": found.test,
        "sums": list(found.sums),
        "sites": list(found.sites),
        "tested": len(found.q),
        "found": int((found.q <= rate).sum()),
        "found_alone": int((found.alone_q <= rate).sum()),
        "unseen": int((found.alone.count == 0).sum()),
        "fdr": rate,
        "method": found.rules.method,
        "delta": found.rules.delta,
        "minimum_expected": found.rules.minimum_expected,
        "rank": found.rank,
        "notes": list(found.notes),
    }
