"""Rows a second that each kind of database gives, from the query to raw rows, and the memory that this takes.

Each database is read in a process of its own, so that its peak memory is its own; Spark's Java has a process beside it.
SMILE_BENCH=full reads two and six million rows; the rates are for `docs/adr/0009-ibis.md`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from site_agent.sections import Data
from site_agent.sources import Reading
from site_agent.sources.omop import OmopSource
from tests import postgres as pg
from tests.benchmarks.test_site_scale import peak_memory
from tests.postgres import postgres  # noqa: F401 (a fixture)
from tests.spark import spark  # noqa: F401 (a fixture)
from tests.unit.test_omop import BACKENDS, CONCEPT, _loader

SIZES = (2_000_000, 6_000_000) if os.environ.get("SMILE_BENCH") == "full" else (100_000,)


def conditions(n: int) -> dict[str, pa.Table]:
    """n condition occurrences of a thousand concepts, one row in ten unmapped."""
    rng = np.random.default_rng(0)
    concept = rng.integers(0, 1_000, n) * (rng.random(n) > 0.1)
    ids = np.arange(1_000)
    texts = [f"C{i}" for i in ids]
    table = pa.table(
        {
            "person_id": np.arange(n) // 60,
            "condition_start_date": pa.array(rng.integers(16_000, 19_000, n).astype(np.int32)).cast(
                pa.date32()
            ),
            "condition_concept_id": concept,
            "condition_source_value": pa.array(texts).take(pa.array(rng.integers(0, 1_000, n))),
        }
    )
    known = [ids, texts, ["ICD10CM"] * 1_000, ["x"] * 1_000, texts]
    return {"concept": pa.table(known, schema=CONCEPT), "condition_occurrence": table}


def measure(options: dict[str, Any]) -> dict[str, float]:
    """Seconds and rows of one read, and the peak memory in MiB before and after."""
    data = Data(**options)
    source = OmopSource(data)
    source.fingerprint()  # libraries are loaded and a first connection was made before the clock starts
    before, begin = peak_memory(), time.perf_counter()
    rows = sum(len(batch) for batch in source.batches(Reading()))
    seconds = time.perf_counter() - begin
    return {
        "rows": rows,
        "seconds": seconds,
        "before": before / 2**20,
        "peak": peak_memory() / 2**20,
    }


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", BACKENDS)
def test_rows_a_second(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMILE_DATABASE_PASSWORD", pg.PASSWORD)
    for load in _loader(request, kind, tmp_path):
        for n in SIZES:
            options = {
                "kind": "omop",
                "database": load(conditions(n)),
                "schema": "cdm",
                "domains": ["condition"],
                "system": "LOCAL",
            }
            found = measure(options) if kind == "spark" else _apart(options)
            print(
                f"\n{kind}: {found['rows']:,.0f} rows in {found['seconds']:.1f} s, "
                f"{found['rows'] / found['seconds'] / 1e6:.2f} M rows a second; "
                f"{found['before']:.0f} MiB before, {found['peak']:.0f} MiB at most",
                flush=True,
            )
            assert found["rows"] == n
            # A read that held all rows would take more than this for each of them.
            assert found["peak"] - found["before"] < 512 + n * 16 / 2**20


def _apart(options: dict[str, Any]) -> dict[str, float]:
    """`measure` in a fresh process."""
    code = "import json, sys; from tests.benchmarks.test_sources import measure; "
    code += "print(json.dumps(measure(json.loads(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(options)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))
