"""What a knowledge graph takes from end to end, at a site and at the coordinator, from 1,000 codes on.

    python -m pytest tests/benchmarks/test_graph_growth.py -s                      short: what CI runs
    SMILE_BENCH=full python -m pytest tests/benchmarks/test_graph_growth.py -s     up to 20,000 codes
    SMILE_CODES=20000 python -m pytest tests/benchmarks/test_graph_growth.py -s    these sizes

Two patients a code of 75 events each, so that the events grow with the codes. Frequencies of codes fall as 1 / rank; three
events in ten are of the patient's own kind, which makes relations. Every size has a process of its own, for its peak memory.
One thread throughout; the seconds are those that the processor worked, which other work on the machine hardly changes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from coordinator.model.selection import select_neighbours
from protocol.inference import entrywise, fit_margins, smooth, smoothed
from protocol.pair_index import index_pairs
from protocol.sections import Counting
from protocol.statistics import embed, nonempty, ppmi
from site_agent.cooccurrence import PairCounts, add_counts, count_pairs
from site_agent.inference import block_sums, code_rows, entry_sums, half_counts, shown
from tests.benchmarks.test_site_scale import peak_memory

FULL = os.environ.get("SMILE_BENCH") == "full"
NAMED = [int(n) for n in os.environ.get("SMILE_CODES", "").split(",") if n]
SIZES = NAMED or ([1_000, 5_000, 20_000] if FULL else [500, 1_500])
BLOCKS, WINDOW, DIM = 128, 540, 300 if FULL or NAMED else 50
T = TypeVar("T")

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200 if FULL or NAMED else 600)]


def make_events(
    codes: int, patients: int, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """75 events a patient over 540 days, by patient and day."""
    rng = np.random.default_rng(seed)
    size = 75 * patients
    patient, day = rng.integers(0, patients, size), rng.integers(0, 540, size)
    code = np.minimum((codes ** rng.random(size) - 1).astype(np.int64), codes - 1)
    code = np.where(rng.random(size) < 0.3, np.minimum(code // 10 * 10 + patient % 10, codes - 1), code)
    order = np.lexsort((day, patient))
    return patient[order], day[order].astype(np.int32), code[order].astype(np.int32)


def measure(codes: int) -> dict[str, float]:
    """Seconds of each step here, sizes, and the process's peak memory in GiB, after a small run that compiles."""
    end_to_end(300, lambda _line: None)
    begun = time.perf_counter()
    found = end_to_end(codes, lambda line: print(line, flush=True))
    return found | {"by the clock": time.perf_counter() - begun}


def end_to_end(codes: int, say: Callable[[str], None]) -> dict[str, float]:
    """All steps from events to edges, one site being the consortium."""
    took: dict[str, float] = {}

    def step(name: str, work: Callable[[], T]) -> T:
        start = time.process_time()
        result = work()
        took[name] = time.process_time() - start
        say(f"  {name}: {took[name]:.1f} s, peak so far {peak_memory() / 2**30:.2f} GiB")
        return result

    patient, day, code = make_events(codes, 2 * codes)
    block = patient % BLOCKS

    def counted(g: int) -> PairCounts:
        own = block == g
        return count_pairs(
            patient[own], day[own], code[own], codes, window_days=WINDOW, threads=1, memory=1 << 26
        )

    blocks = step("site: counting", lambda: [counted(g) for g in range(BLOCKS)])
    both = step("site: halves", lambda: [add_counts(blocks[g:][: BLOCKS // 2]) for g in (0, BLOCKS // 2)])
    total = add_counts(both)
    margins = fit_margins(code_rows(total))
    pairs = index_pairs(margins.level, 10.0)
    show = shown(total, pairs, min_code_patients=20)
    rule = Counting(window_days=WINDOW)
    sums = step(
        "site: each pair",
        lambda: entry_sums([(patient, day, code)], rule, pairs, margins, show, threads=1),
    )
    step("coordinator: each pair", lambda: entrywise(sums, pairs).q())
    halves = half_counts(both, pairs, show)
    smoothing = step("coordinator: smoother", lambda: smooth(halves, pairs))
    tracemalloc.start()
    found = step("site: block sums", lambda: block_sums(blocks, pairs, smoothing, margins, show))
    # A dozen vectors over the tested pairs and a few tiles, however many blocks and codes.
    most = 12 * 8 * pairs.size + 8 * 8 * codes * (smoothing.values.size + 8) + (100 << 20)
    assert tracemalloc.get_traced_memory()[1] < most
    tracemalloc.stop()
    step("coordinator: smoothed", lambda: smoothed(smoothing, pairs, found.variance, found.freedom).q())
    points = step("coordinator: embeddings", lambda: [unit_rows(c) for c in (total, *both)])
    chosen = step(
        "coordinator: regression",
        lambda: select_neighbours(points[0], halves=(points[1], points[2]), threads=1),
    )
    return {
        **took,
        "pairs of events": float(total.events.sum()),
        "tested pairs": float(pairs.size),
        "neighbours": chosen.weights.nnz / codes,
        "peak": peak_memory() / 2**30,
        "total": sum(took.values()),
    }


def unit_rows(counts: PairCounts) -> NDArray[np.float64]:
    """(codes, d) of all codes; zero rows of those without a pair."""
    weights = ppmi(counts.events)
    held = np.flatnonzero(nonempty(weights))
    vectors = embed(sp.csr_array(weights[held][:, held]), min(DIM, held.size))
    points = np.zeros((weights.shape[0], vectors.shape[1]))
    points[held] = vectors
    return points


def test_time_and_memory() -> None:
    rows = []
    for codes in SIZES:
        print(f"\n{codes:,} codes, {2 * codes:,} patients", flush=True)
        code = "import json, sys; from tests.benchmarks.test_graph_growth import measure; "
        code += "print(json.dumps(measure(int(sys.argv[1]))))"
        work = subprocess.Popen(
            [sys.executable, "-c", code, str(codes)], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        assert work.stdout is not None
        said = ""
        for said in work.stdout:
            if not said.startswith("{"):
                print(said, end="", flush=True)
        assert work.wait() == 0
        rows.append(json.loads(said))
        print(
            (
                "  {total:.0f} s in all, {by the clock:.0f} by the clock, peak {peak:.2f} GiB; "
                "{pairs of events:,.0f} pairs of events, {tested pairs:,.0f} tested pairs, "
                "{neighbours:.1f} neighbours a code"
            ).format_map(rows[-1])
        )
        # What the graph is asked to keep to on this machine, which has 23 GiB: 12 GiB at 20,000 codes.
        assert rows[-1]["peak"] < 12.0
    if len(SIZES) > 1:
        slopes = {
            name: float(np.polyfit(np.log(SIZES), np.log([r[name] for r in rows]), 1)[0])
            for name in rows[0]
            if name not in {"neighbours", "by the clock"}
        }
        print("  grow as codes to the power of: " + ", ".join(f"{n} {s:.2f}" for n, s in slopes.items()))
        # Codes' pairs are the most there is.
        assert slopes["total"] < 2.0
