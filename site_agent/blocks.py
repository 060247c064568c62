"""Compiled kernels of staging: patients dealt to random blocks, and the rows of a block brought in order."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

Int32s: TypeAlias = npt.NDArray[np.int32]
Int64s: TypeAlias = npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def _mixed(x: np.uint64) -> np.uint64:
    """The finaliser of SplitMix64: every bit of the result depends on every bit of x (Steele et al. 2014)."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)) & np.uint64(0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def partition_of(patient: Int64s, partitions: int) -> Int32s:
    """(m,) the partition of each row's patient."""
    which = np.empty(patient.size, np.int32)
    for i in range(patient.size):
        high = _mixed(np.uint64(patient[i])) >> np.uint64(32)
        which[i] = np.int32((high * np.uint64(partitions)) >> np.uint64(32))
    return which


@njit(cache=True, nogil=True)
def scatter(
    patient: Int64s,
    day: Int32s,
    code: Int32s,
    which: Int32s,
    place: Int64s,
    out_patient: Int64s,
    out_day: Int32s,
    out_code: Int32s,
) -> None:
    """Copy rows to their partition's next places, and move those on."""
    for i in range(patient.size):
        at = place[which[i]]
        place[which[i]] += 1
        out_patient[at] = patient[i]
        out_day[at] = day[i]
        out_code[at] = code[i]


@njit(cache=True, nogil=True)
def numbered(patient: Int64s) -> tuple[Int32s, Int64s]:
    """(m,) a number for each row's patient in order of first sight, and (u,) the patients in that order.

    A hash table with open addressing that doubles before it is half full.
    """
    size = 1 << 12
    table = np.full(size, -1, np.int32)
    distinct = np.empty(size >> 1, np.int64)
    number = np.empty(patient.size, np.int32)
    n = 0
    for i in range(patient.size):
        if i and patient[i] == patient[i - 1]:
            number[i] = number[i - 1]
            continue
        at = _mixed(np.uint64(patient[i])) & np.uint64(size - 1)
        while table[at] >= 0 and distinct[table[at]] != patient[i]:
            at = (at + np.uint64(1)) & np.uint64(size - 1)
        if table[at] < 0:
            table[at] = n
            distinct[n] = patient[i]
            n += 1
        number[i] = table[at]
        if n == distinct.size:
            size *= 2
            table = np.full(size, -1, np.int32)
            distinct = np.concatenate((distinct, np.empty(n, np.int64)))
            for j in range(n):
                at = _mixed(np.uint64(distinct[j])) & np.uint64(size - 1)
                while table[at] >= 0:
                    at = (at + np.uint64(1)) & np.uint64(size - 1)
                table[at] = j
    return number, distinct[:n].copy()


@njit(cache=True, nogil=True)
def by_patient(patient: Int32s, n_patients: int, day: Int32s, code: Int32s) -> tuple[Int64s, Int32s, Int32s]:
    """Rows sorted by patient, day and code: (n_patients + 1,) where each patient begins, days and codes."""
    bounds = np.zeros(n_patients + 1, np.int64)
    for i in range(patient.size):
        bounds[patient[i] + 1] += 1
    for p in range(n_patients):
        bounds[p + 1] += bounds[p]
    place = bounds[:-1].copy()
    keys = np.empty(patient.size, np.int64)
    for i in range(patient.size):
        keys[place[patient[i]]] = (np.int64(day[i]) << np.int64(32)) | np.int64(code[i])
        place[patient[i]] += 1
    days, codes = np.empty(patient.size, np.int32), np.empty(patient.size, np.int32)
    for p in range(n_patients):
        keys[bounds[p] : bounds[p + 1]].sort()
    for i in range(patient.size):
        days[i] = keys[i] >> np.int64(32)
        codes[i] = keys[i] & np.int64(0xFFFFFFFF)
    return bounds, days, codes
