"""Secure sum: exact sums whatever drops out, and what a sum costs.

    python -m pytest tests/battery/test_secure_sum.py -s                          short
    SMILE_BATTERY=full python -m pytest tests/battery/test_secure_sum.py -s       5,000 sums, 20,000 x 64 cells

The figures beside the measured ones are those of the design: 0.06 s a site with three sites, 0.16 s with twenty, 10.2 MB,
error at most 4e-7.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.errors import RoundError
from protocol.secure_sum import from_fixed, threshold, to_fixed
from protocol.secure_sum.masks import BLOCK, Mask, apply_masks
from tests.secure_sum_wire import STEPS, Wire, names, nodes

FULL = os.environ.get("SMILE_BATTERY") == "full"
EXAMPLES = 5_000 if FULL else 60
CELLS = (20_000 if FULL else 2_000) * 64
BITS = 24
PLANNED = {3: 0.06, 20: 0.16}


@contextmanager
def stopwatch(seconds: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


counted = {"exact": 0, "refused": 0}


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(3, 7), st.integers(1, 12), st.integers(0, 2**32 - 1), st.data())
def sums(n: int, cells: int, seed: int, data: st.DataObject) -> None:
    """Bit-exact over those whose vectors came, or refused because too few were left."""
    last = data.draw(st.lists(st.sampled_from([*STEPS, *[""] * 30]), min_size=n, max_size=n))
    drop = {step: [s for s, at in zip(names(n), last, strict=True) if at == step] for step in STEPS}
    limit = (2**63 - 1) // n
    values = dict(zip(names(n), np.random.default_rng(seed).integers(-limit, limit, (n, cells)), strict=True))
    present, enough = n, True
    for step in STEPS:
        present -= len(drop[step])
        # After the vectors the floor is met; signatures and shares need the threshold alone.
        enough &= present >= (threshold(n) if step in ("sign", "reveal") else max(threshold(n), 3))
    members = [s for s in names(n) if not any(s in drop[step] for step in ("advertise", "share", "mask"))]
    if not enough:
        with pytest.raises(RoundError):
            Wire(nodes(n), cells).sum(values, drop)
        counted["refused"] += 1
        return
    result = Wire(nodes(n), cells).sum(values, drop)
    assert list(result.members) == members
    assert result.values.tolist() == [sum(int(values[s][i]) for s in members) for i in range(cells)]
    counted["exact"] += 1


@pytest.mark.timeout(7200)
def test_sums_are_exact_or_refused() -> None:
    sums()
    print(
        f"\nsums: {counted['exact']} exact, {counted['refused']} refused for too few sites, 0 wrong (bar: 0)"
    )
    assert counted["exact"] > 0 < counted["refused"]


@pytest.mark.parametrize("n", [3, 20])
def test_time_and_bytes(n: int) -> None:
    rng = np.random.default_rng(n)
    floats = {s: rng.standard_normal(CELLS) for s in names(n)}
    wire = Wire(nodes(n), CELLS)
    wire.run({}, until="share")
    fixed, masked, rest = list[float](), list[float](), list[float]()
    for site in names(n):
        with stopwatch(fixed):
            values = to_fixed(floats[site], BITS, sites=n)
        with stopwatch(masked):
            wire.mask(site, values)
    wire.close()
    for step in ("sign", "reveal"):
        for site in names(n):
            with stopwatch(rest):
                getattr(wire, step)(site)
    with stopwatch(rest):
        total = wire.total()
    error = np.abs(from_fixed(total.values, BITS) - sum(floats.values())).max()
    beside = f"{PLANNED[n]:.2f}" if FULL else "-"
    sent = max(wire.bytes.values())
    print(
        f"\n{n} sites, {CELLS:,} cells: masking {np.median(masked):.3f} s a site (design {beside}), "
        f"fixed point {np.median(fixed):.3f} s, coordinator {rest[-1]:.2f} s, "
        f"{sent / 1e6:.2f} MB a site of which {(sent - 8 * CELLS) / 1e3:.1f} kB are not the vector "
        f"(design {10.2 if FULL else '-'} MB), error {error:.1e} (bound {n * 2.0 ** -(BITS + 1):.1e})"
    )
    assert error <= n * 2.0 ** -(BITS + 1) * (1 + 1e-6)
    assert 8 * CELLS < sent < 8 * CELLS + 3_000 * (n + 1)


def test_masking_takes_blocks_of_memory_whatever_the_cells_and_sites() -> None:
    peaks = []
    for cells, masks in ((4 * BLOCK, 2), (16 * BLOCK, 2), (16 * BLOCK, 20)):
        values, out = np.arange(cells), np.empty(cells, "<u8")
        tracemalloc.start()
        apply_masks(values, [Mask(bytes([i]) * 32, negative=False) for i in range(masks)], out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    print(f"\nmemory of masking: {', '.join(f'{p / 2**20:.2f} MiB' for p in peaks)}")
    assert all(later < 1.1 * earlier for earlier, later in pairwise(peaks))
