"""How long counting will take: a sample of the partitions is counted and timed."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from protocol.sections import Counting
from site_agent.cooccurrence import count_pairs
from site_agent.counting import count_staged
from site_agent.doctor.profiling import Profile
from site_agent.resources import Resources
from site_agent.staging import Staged

_SAMPLE_PAIRS = 20_000_000
_SAMPLE_ROWS = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """What counting will take.

    Attributes:
        pairs: pairs of events to count; exact.
        seconds: that counting them will take on this machine, from the sample's speed.
        sample: share of the pairs that was counted to know this.
    """

    pairs: int
    seconds: float
    sample: float


def estimate(staged: Staged, profile: Profile, rule: Counting, folder: Path, machine: Resources) -> Estimate:
    """Count a few partitions as all will be counted; what is written is removed.

    Args:
        staged: the events.
        profile: of these events.
        rule: which pairs count.
        folder: where the sample's counts go while they are made; it must not be in use.
        machine: memory and threads of the counting.

    Raises:
        DataError: the staged events are gone, or the disk is full.
    """
    chosen, rows, pairs = [0] * staged.partitions, 0, 0
    for i, (n_rows, n_pairs) in enumerate(zip(staged.rows, profile.partition_pairs, strict=True)):
        if rows >= _SAMPLE_ROWS or pairs >= _SAMPLE_PAIRS:
            break
        chosen[i], rows, pairs = n_rows, rows + n_rows, pairs + n_pairs
    sample = replace(staged, rows=tuple(chosen))
    _load_kernels(rule)
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left would be taken as done
    start = time.monotonic()
    try:
        runs = count_staged(sample, rule, folder, memory=machine.memory, threads=machine.threads)
        runs.total(memory=machine.memory // 2, threads=machine.threads)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    taken = time.monotonic() - start
    # Patients fall into partitions at random; without pairs, time goes with rows.
    share = pairs / profile.pairs if pairs else rows / max(1, staged.n_rows)
    return Estimate(profile.pairs, taken / max(share, 1e-9), share)


def _load_kernels(rule: Counting) -> None:
    """Compiled code is loaded at its first call, which is no part of the counting's speed."""
    few = np.zeros(2, np.int64)
    count_pairs(
        few, few.astype(np.int32), np.arange(2, dtype=np.int32), 2, window_days=rule.window, threads=1
    )
