"""python -m tests.benchmarks.real [--write] [--seeds N] [--rows FILE]: measure, print, and write docs/reference/results.md."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks.real.data import REGIMES
from tests.benchmarks.real.drugs import measure as measure_drugs
from tests.benchmarks.real.regimes import Cell, measure
from tests.benchmarks.real.report import Measured, drug_names, page

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "results.md"
SHARES = (0.0, 0.1, 0.5)
_ABLATED = {(0.0, "no text"), (0.1, "no text"), (0.1, "abbreviated titles")}


def cells(seeds: int, unfloored: int) -> list[Cell]:
    """Seed by seed, so that a run that is cut short has whole seeds."""
    return [
        Cell(seed, floors, share, regime)
        for floors, count in ((True, seeds), (False, unfloored))
        for seed in range(count)
        for regime in REGIMES
        for share in SHARES
    ]


def collect(wanted: list[Cell], rows: Path | None) -> list[Measured]:
    """Measure what the file of rows lacks, and keep it there; what else it holds is returned too."""
    done: dict[Cell, Measured] = {}
    if rows is not None and rows.exists():
        for line in rows.read_text().splitlines():
            cell, table = json.loads(line)
            done[Cell(**cell)] = (Cell(**cell), table)
    for cell in wanted:
        if cell not in done:
            ablation = (cell.share, cell.regime) in _ABLATED
            done[cell] = (cell, measure(cell, ablation=ablation and cell.floors))
            if rows is not None:
                with rows.open("a") as stream:
                    stream.write(json.dumps([asdict(cell), done[cell][1]]) + "\n")
    return list(done.values())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    full = os.environ.get("SMILE_BENCH") == "full"
    parser.add_argument("--write", action="store_true", help="write docs/reference/results.md")
    parser.add_argument("--seeds", type=int, default=5 if full else 1)
    parser.add_argument("--unfloored-seeds", type=int, default=5 if full else 0)
    parser.add_argument("--rows", type=Path, help="JSON lines: cells found there are not measured again")
    args = parser.parse_args()
    text = page(collect(cells(args.seeds, args.unfloored_seeds), args.rows)) + drug_names(measure_drugs())
    if args.write:
        PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
