"""Exact counts of chosen cells, read from counts on the disk, beside those that the floor left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from site_agent.cooccurrence import PairCounts

_SPAN = 1 << 20  # cells looked at at a time

Int64s = NDArray[np.int64]


def with_cells(counts: PairCounts, parts: Iterable[PairCounts], wanted: Int64s) -> PairCounts:
    """Counts from which cells were withheld, with the exact values of some of these.

    Args:
        counts: of all patients.
        parts: counts of groups of these patients, without withheld cells; they may lie on the disk.
        wanted: row * n + column of cells, increasing.
    """
    n = len(counts.code_patients)
    wanted = wanted[_find(counts, wanted)[0] == 0]
    patients, pairs = np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.int64)
    for part in parts:
        more = _find(part, wanted)
        patients += more[0]
        pairs += more[1]
    there = patients > 0
    key, patients, pairs = wanted[there], patients[there], pairs[there]
    if not len(key):
        return counts
    at = ((key // n).astype(np.int32), (key % n).astype(np.int32))
    extra = sparse.csr_array((pairs, at), shape=(n, n))
    extra_patients = sparse.csr_array((patients, at), shape=(n, n))
    return replace(
        counts,
        events=sparse.csr_array(counts.events + extra),
        pair_patients=sparse.csr_array(counts.pair_patients + extra_patients),
        withheld_cells=counts.withheld_cells - len(key),
        withheld_events=counts.withheld_events - int(pairs.sum()),
    )


def _find(counts: PairCounts, wanted: Int64s) -> tuple[Int64s, Int64s]:
    """Patients and event pairs of cells; 0 where there are none."""
    events, n = counts.events, len(counts.code_patients)
    pointer = np.asarray(events.indptr, np.int64)
    patients, pairs = np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.int64)
    for first, stop in pairwise(_cuts(pointer)):
        here = slice(*np.searchsorted(wanted, (first * n, stop * n)))
        if here.start == here.stop:
            continue
        span = slice(int(pointer[first]), int(pointer[stop]))
        row = np.repeat(np.arange(first, stop, dtype=np.int64), np.diff(pointer[first : stop + 1]))
        key = row * n + np.asarray(events.indices[span])
        place = np.searchsorted(key, wanted[here])
        inside = place < len(key)
        found = np.flatnonzero(inside)[key[place[inside]] == wanted[here][inside]]
        patients[here.start + found] = np.asarray(counts.pair_patients.data[span])[place[found]]
        pairs[here.start + found] = np.asarray(events.data[span])[place[found]]
    return patients, pairs


def _cuts(pointer: NDArray[Any]) -> list[int]:
    """Rows between which there are about `_SPAN` cells, or one row."""
    inner = np.searchsorted(pointer, np.arange(_SPAN, int(pointer[-1]), _SPAN))
    return [int(i) for i in np.unique(np.concatenate([[0], inner, [len(pointer) - 1]]))]
