"""python -m tests.benchmarks.real [--write] [--seeds N] [--rows FILE]: measure, print, and write docs/reference/results.md."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.real.data import REGIMES
from tests.benchmarks.real.drugs import measure as measure_drugs
from tests.benchmarks.real.regimes import Cell, measure
from tests.benchmarks.real.report import Measured, drug_names, page
from tests.benchmarks.real.report_groups import group_sections
from tests.benchmarks.real.studies import STUDIES, Tables

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "results.md"
SHARES = (0.0, 0.1, 0.5)
_ABLATED = {(0.0, "no text"), (0.1, "no text"), (0.1, "abbreviated titles")}


class Rows:
    """What was measured before, JSON lines of a key and a table; what is new is added as soon as it is there."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                key, table = json.loads(line)
                self.known[_text(key)] = table

    def get(self, key: dict[str, object], make: Callable[[], Any]) -> Any:
        """The table of a key, measured if it is not there."""
        if _text(key) not in self.known:
            self.known[_text(key)] = make()
            if self.path is not None:
                with self.path.open("a") as stream:
                    stream.write(json.dumps([key, self.known[_text(key)]]) + "\n")
        return self.known[_text(key)]

    def cells(self) -> list[Measured]:
        """All tables that are of a cell."""
        keys = [json.loads(key) for key in self.known]
        return [(Cell(**key), self.known[_text(key)]) for key in keys if "study" not in key]


def _text(key: dict[str, object]) -> str:
    return json.dumps(key, sort_keys=True)


def cells(seeds: int, unfloored: int) -> list[Cell]:
    """Seed by seed, so that a run that is cut short has whole seeds."""
    return [
        Cell(seed, floors, share, regime)
        for floors, count in ((True, seeds), (False, unfloored))
        for seed in range(count)
        for regime in REGIMES
        for share in SHARES
    ]


def collect(wanted: list[Cell], rows: Rows) -> list[Measured]:
    """The wanted cells, and what else of the kind the rows hold."""
    for cell in wanted:
        ablation = cell.floors and (cell.share, cell.regime) in _ABLATED
        rows.get(asdict(cell), lambda c=cell, a=ablation: measure(c, ablation=a))  # type: ignore[misc]
    return rows.cells()


def collect_studies(seeds: int, rows: Rows) -> dict[str, list[Tables]]:
    """Each study's tables, seed by seed."""
    return {
        name: [
            rows.get({"study": name, "seed": seed}, lambda m=make, s=seed: m(s))  # type: ignore[misc]
            for seed in range(seeds)
        ]
        for name, make in STUDIES.items()
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    full = os.environ.get("SMILE_BENCH") == "full"
    parser.add_argument("--write", action="store_true", help="write docs/reference/results.md")
    parser.add_argument("--seeds", type=int, default=5 if full else 1)
    parser.add_argument("--unfloored-seeds", type=int, default=5 if full else 0)
    parser.add_argument("--rows", type=Path, help="JSON lines: what is found there is not measured again")
    args = parser.parse_args()
    rows = Rows(args.rows)
    studies = collect_studies(args.seeds, rows)
    text = page(collect(cells(args.seeds, args.unfloored_seeds), rows))
    text += group_sections(studies) + drug_names(measure_drugs())
    if args.write:
        PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
