"""A whole site at hospital scale: Parquet file -> staged events -> pair counts over the floor; time and peak memory.

SMILE_BENCH=full runs a million patients with 75 events each, at 20,000 and at 61,000 codes, and the growth that leads
there. Each size runs in a process of its own, so that its peak memory is its own.
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
import pyarrow.parquet as pq
import pytest

from protocol.sections import Counting
from tests.benchmarks.test_counting import DAYS, WINDOW, zipf_codes

FULL = os.environ.get("SMILE_BENCH") == "full"
EVENTS_A_PATIENT = 75
FLOOR = 11


def write_events(path: Path, n_patients: int, n_codes: int, *, at_once: int = 100_000) -> None:
    """Zipf codes on days of a year and a half, patients in order, one row group for `at_once` patients."""
    names = pa.array([f"C{i:05}" for i in range(n_codes)])
    schema = pa.schema([("patient", pa.int64()), ("date", pa.date32()), ("code", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, n_patients, at_once):
            n = min(at_once, n_patients - first)
            rng = np.random.default_rng(first)
            days = np.sort(rng.integers(0, DAYS, (n, EVENTS_A_PATIENT), dtype=np.int32), axis=1) + 18_000
            codes = zipf_codes(rng, n * EVENTS_A_PATIENT, n_codes, seed=0).astype(np.int32)
            columns = [
                pa.array(np.repeat(np.arange(first, first + n), EVENTS_A_PATIENT)),
                pa.array(days.ravel()).cast(pa.date32()),
                pa.DictionaryArray.from_arrays(codes, names).cast(pa.string()),
            ]
            writer.write_table(pa.table(columns, schema=schema))


def peak_memory() -> int:
    """Bytes of this process's largest resident set; getrusage would count its parent's from before the start."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(options: dict[str, Any]) -> dict[str, float]:
    """Seconds of each step, peak memory in GiB, and sizes."""
    from datetime import date

    from site_agent.cooccurrence import count_pairs
    from site_agent.counting import count_staged
    from site_agent.sections import Data
    from site_agent.sources.triplets import TripletFile
    from site_agent.staging import stage

    path, work, memory = Path(options["path"]), Path(options["work"]), int(options["memory"])
    count_pairs([0], [0], [0], 1)  # compile before the clock starts
    data = Data(events=str(path), system="C")
    stamps = [time.perf_counter()]
    staged = stage(TripletFile(path, data), data, work / "events", memory=memory // 4, today=date(2030, 1, 1))
    stamps.append(time.perf_counter())
    runs = count_staged(
        staged, Counting(window_days=WINDOW), work / "counts", memory=memory, threads=options["threads"]
    )
    stamps.append(time.perf_counter())
    counts = runs.total(floor=FLOOR, memory=memory // 2, threads=options["threads"])
    stamps.append(time.perf_counter())
    disk = sum(f.stat().st_size for f in work.rglob("*") if f.is_file())
    return {
        "rows": staged.n_rows,
        "pairs": float(counts.events.sum() + counts.withheld_events),
        "cells": float(counts.events.nnz + counts.withheld_cells),
        "kept": float(counts.events.nnz),
        "staging": stamps[1] - stamps[0],
        "counting": stamps[2] - stamps[1],
        "adding": stamps[3] - stamps[2],
        "total": stamps[3] - stamps[0],
        "peak": peak_memory() / 2**30,
        "disk": disk / 2**30,
    }


def run_apart(folder: Path, n_patients: int, n_codes: int, memory: int) -> dict[str, float]:
    """`measure` in a fresh process on a fresh file."""
    path = folder / "events.parquet"
    write_events(path, n_patients, n_codes)
    options = {"path": str(path), "work": str(folder / "work"), "memory": memory, "threads": os.cpu_count()}
    code = "import json, sys; from tests.benchmarks.test_site_scale import measure; "
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


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_a_hospital_is_read_and_counted_within_its_memory(tmp_path: Path) -> None:
    sizes = [(10_000, 20_000, 1), (40_000, 20_000, 1)]  # patients, codes, GiB
    if FULL:
        sizes = [(10_000, 20_000, 6), (100_000, 20_000, 6), (1_000_000, 20_000, 6), (1_000_000, 61_000, 4)]
    print(
        f"\n{'patients':>10}{'codes':>8}{'GiB':>5}{'rows':>12}{'pairs':>14}{'cells':>12}{'kept':>11}", end=""
    )
    print("".join(f"{name:>10}" for name in ("staging", "counting", "adding", "total", "peak", "disk")))
    found = []
    for n_patients, n_codes, gib in sizes:
        folder = tmp_path / f"{n_patients}-{n_codes}"
        folder.mkdir()
        row = run_apart(folder, n_patients, n_codes, gib * 2**30)
        found.append(row)
        whole = f"{row['rows']:>12,.0f}{row['pairs']:>14,.0f}{row['cells']:>12,.0f}{row['kept']:>11,.0f}"
        times = "".join(
            f"{row[k]:>10.2f}" for k in ("staging", "counting", "adding", "total", "peak", "disk")
        )
        print(f"{n_patients:>10,}{n_codes:>8,}{gib:>5}{whole}{times}", flush=True)
        assert row["peak"] < gib
    same = [r for r, (_, codes, _) in zip(found, sizes, strict=True) if codes == sizes[0][1]]
    slope = np.polyfit(np.log([r["rows"] for r in same]), np.log([r["total"] for r in same]), 1)[0]
    print(f"time grows as rows^{slope:.2f}")
    assert slope < 1.2
