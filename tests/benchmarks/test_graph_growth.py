"""What tests of relations take at a site and at the coordinator, from 1,000 codes on.

    python -m pytest tests/benchmarks/test_graph_growth.py -s                      short: what CI runs
    SMILE_BENCH=full python -m pytest tests/benchmarks/test_graph_growth.py -s     up to 20,000 codes

Frequencies of codes fall as 1 / rank; three events in ten are of the patient's own kind, which makes relations.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

from protocol.inference import entrywise, fit_margins, smooth, smoothed
from protocol.pair_index import index_pairs
from protocol.sections import Counting
from site_agent.cooccurrence import add_counts, count_pairs
from site_agent.inference import block_sums, code_rows, entry_sums, half_counts, shown

pytestmark = pytest.mark.benchmark
FULL = os.environ.get("SMILE_BENCH") == "full"
BLOCKS = 128
T = TypeVar("T")


def make_events(codes: int, patients: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """75 events a patient over 540 days, by patient and day."""
    rng = np.random.default_rng(seed)
    size = 75 * patients
    patient, day = rng.integers(0, patients, size), rng.integers(0, 540, size)
    code = np.minimum((codes ** rng.random(size) - 1).astype(np.int64), codes - 1)
    code = np.where(rng.random(size) < 0.3, np.minimum(code // 10 * 10 + patient % 10, codes - 1), code)
    order = np.lexsort((day, patient))
    return patient[order], day[order].astype(np.int32), code[order].astype(np.int32)


@pytest.mark.parametrize(
    ("codes", "patients", "window"),
    [(1_000, 20_000, 60), (5_000, 40_000, 200), (20_000, 40_000, 540)] if FULL else [(1_000, 4_000, 60)],
)
def test_time_and_memory(codes: int, patients: int, window: int) -> None:
    events = make_events(codes, patients)
    block = events[0] % BLOCKS
    blocks = [
        count_pairs(*(c[block == g] for c in events), codes, window_days=window, threads=1, memory=1 << 26)
        for g in range(BLOCKS)
    ]
    total = add_counts(blocks)
    margins = fit_margins(code_rows(total))
    pairs = index_pairs(margins.level, 10.0)
    print(
        f"\n{codes:,} codes, {total.events.sum():,} pairs of events, {pairs.size:,} tested pairs of codes"
        "\n| step | seconds | peak MiB |\n|---|---|---|"
    )
    show, _ = step("what is shown", lambda: shown(total, pairs, min_code_patients=20))
    rule = Counting(window_days=window)
    sums, _ = step("site: sums for each pair", lambda: entry_sums([events], rule, pairs, margins, show))
    step("coordinator: each pair", lambda: entrywise(sums, pairs).q())
    both = [add_counts(blocks[: BLOCKS // 2]), add_counts(blocks[BLOCKS // 2 :])]
    halves, _ = step("site: half-samples", lambda: half_counts(both, pairs, show))
    smoothing, _ = step("coordinator: smoother", lambda: smooth(halves, pairs))
    found, peak = step("site: block sums", lambda: block_sums(blocks, pairs, smoothing, margins, show))
    step(
        "coordinator: smoothed",
        lambda: smoothed(smoothing, pairs, found.variance, found.freedom).q(),
    )
    # A dozen vectors over the tested pairs and a few tiles, however many blocks and codes.
    assert peak < 12 * 8 * pairs.size + 8 * 8 * codes * (smoothing.values.size + 8) + (100 << 20)


def step(name: str, work: Callable[[], T]) -> tuple[T, int]:
    """Run, and print what it took; bytes at the peak beyond what was there."""
    tracemalloc.start()
    start = time.monotonic()
    result = work()
    seconds, peak = time.monotonic() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"| {name} | {seconds:.1f} | {peak >> 20:,} |", flush=True)
    return result, peak
