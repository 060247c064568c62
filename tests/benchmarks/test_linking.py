"""Time and memory of ranking and self-training as codes grow: the law, from sites of made-up codes.

python -m pytest tests/benchmarks/test_linking.py -s                          short: what CI runs
SMILE_BENCH=full python -m pytest tests/benchmarks/test_linking.py -s         up to 24 million pairs of codes
"""

from __future__ import annotations

import os
import resource
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from coordinator.linking import gather, self_train
from coordinator.model import Source
from coordinator.ranking import default_fusion

pytestmark = pytest.mark.benchmark
FULL = os.environ.get("SMILE_BENCH") == "full"
SIZES = ((1_500, 800), (3_000, 1_200), (6_000, 2_000), *(((12_000, 2_000),) if FULL else ()))
SITES, DIM, COLUMNS, SHARED = 4, 48, 100, 200


def sites(n_local: int, n_standard: int) -> tuple[list[Source], int, list[np.ndarray]]:
    """A hub with the standard codes, and sites with codes of their own; `SHARED` are anchored at each."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((n_standard, DIM))

    def seen(meaning: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal((len(meaning), COLUMNS))
        return truth[meaning] @ rng.standard_normal((DIM, COLUMNS)) + noise

    data = [Source("hub", np.arange(n_standard), seen(np.arange(n_standard)))]
    row = n_standard
    for s in range(SITES):
        own = n_local // SITES
        meaning = np.concatenate([np.arange(SHARED), rng.integers(0, n_standard, own)])
        data.append(Source(f"s{s}", np.concatenate([np.arange(SHARED), row + np.arange(own)]), seen(meaning)))
        row += own
    return data, row, [np.exp(rng.normal(-5.0, 1.0, len(source.codes))) for source in data]


def test_time_grows_as_the_pairs_of_codes() -> None:
    seconds, cells = [], []
    print("\n| local codes | standard codes | pairs | seconds | peak GiB |\n|---|---|---|---|---|")
    for n_local, n_standard in SIZES:
        data, n_rows, share = sites(n_local, n_standard)
        with threadpool_limits(1, user_api="blas"):
            begin = time.process_time()
            clues = gather(data, n_rows, np.arange(n_standard), share)
            self_train(data, n_rows, clues, DIM, default_fusion(clues.names))
            seconds.append(time.process_time() - begin)
        cells.append(n_local * n_standard)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"| {n_local:,} | {n_standard:,} | {cells[-1]:,} | {seconds[-1]:.1f} | {peak:.1f} |")
    growth = float(np.polyfit(np.log(cells), np.log(seconds), 1)[0])
    print(f"time grows as pairs^{growth:.2f}")
    assert growth < 1.3
