"""One pass over the sorted events of one partition."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from numba import njit

from protocol.arrays import IntVector

IntMatrix: TypeAlias = npt.NDArray[np.integer[Any]]

WHOLE_HISTORY = -1
"""In place of a window: a patient adds one for each pair of its codes."""


class Tallies(NamedTuple):
    """What one partition adds.

    Attributes:
        sizes: (p,) distinct events of each patient.
        busiest: (p,) distinct events on each patient's fullest day.
        days: (2, n_days) distinct events on each day, and their patients.
        years: (n_years,) patients with an event in each year.
        code_events: (n_codes,) distinct events of each code.
        code_patients: (n_codes,) distinct patients of each code.
        repeated: rows that repeat another one.
        pairs: pairs of events that the counting rule counts.
    """

    sizes: IntVector
    busiest: IntVector
    days: IntMatrix
    years: IntVector
    code_events: IntVector
    code_patients: IntVector
    repeated: int
    pairs: int


@njit(cache=True, nogil=True)
def tally(
    patient: IntVector,
    day: IntVector,
    code: IntVector,
    n_codes: int,
    first_day: int,
    year_of: IntVector,
    n_years: int,
    window: int,
    limit: int,
) -> tuple[IntVector, IntVector, IntMatrix, IntVector, IntVector, IntVector, int, int]:
    """The fields of `Tallies`.

    Args:
        patient: (m,) sorted; within a patient rows are sorted by day, then by code.
        day: (m,)
        code: (m,) rows of the code list.
        n_codes: its length.
        first_day: not after any day.
        year_of: (n_days,) for each day from `first_day` on a number from 0 to n_years - 1.
        n_years: how many of these there are.
        window: largest distance of a pair in days, or `WHOLE_HISTORY`.
        limit: a patient's pairs are those of this many most recent events.
    """
    m = patient.size
    sizes, busiest = np.zeros(m, np.int64), np.zeros(m, np.int64)
    days, years = np.zeros((2, year_of.size), np.int64), np.zeros(n_years, np.int64)
    code_events, code_patients = np.zeros(n_codes, np.int64), np.zeros(n_codes, np.int64)
    last_patient = np.full(n_codes, -1, np.int64)  # by code: the last patient that had it
    own_day, own_code = np.empty(m, np.int64), np.empty(m, np.int64)
    repeated, pairs, who, begin = 0, 0, 0, 0
    while begin < m:
        n, end, on_day, year = 0, begin, 0, -1
        while end < m and patient[end] == patient[begin]:
            new_day = end == begin or day[end] != day[end - 1]
            if not new_day and code[end] == code[end - 1]:
                repeated += 1
                end += 1
                continue
            own_day[n], own_code[n] = day[end], code[end]
            n += 1
            on_day = 1 if new_day else on_day + 1
            busiest[who] = max(busiest[who], on_day)
            at = day[end] - first_day
            days[0, at] += 1
            days[1, at] += new_day
            if year_of[at] != year:
                year = year_of[at]
                years[year] += 1
            code_events[code[end]] += 1
            if last_patient[code[end]] != who:
                last_patient[code[end]] = who
                code_patients[code[end]] += 1
            end += 1
        sizes[who] = n
        first = max(0, n - limit)
        if window >= 0:
            pairs += _near(own_day, first, n, window)
        else:
            pairs += _ever(own_day, own_code, first, n)
        who += 1
        begin = end
    return sizes[:who], busiest[:who], days, years, code_events, code_patients, repeated, pairs


@njit(cache=True, nogil=True)
def _near(day: IntVector, first: int, stop: int, window: int) -> int:
    """Pairs of events at most `window` days apart."""
    pairs, low = 0, first
    for i in range(first, stop):
        while day[i] - day[low] > window:
            low += 1
        pairs += i - low
    return pairs


@njit(cache=True, nogil=True)
def _ever(day: IntVector, code: IntVector, first: int, stop: int) -> int:
    """Pairs of distinct codes, and codes on two or more days."""
    order = first + np.argsort(code[first:stop], kind="mergesort")
    distinct, twice, known = 0, 0, False
    for i in range(order.size):
        if i == 0 or code[order[i]] != code[order[i - 1]]:
            distinct += 1
            known = False
        elif not known:
            # Equal codes are in order of their days, and distinct events: they are on distinct days.
            twice += 1
            known = True
    return distinct * (distinct - 1) // 2 + twice


@njit(cache=True, nogil=True)
def order_of_arrival(patient: IntVector, day: IntVector) -> tuple[int, int]:
    """Runs of rows of one patient, and rows of an earlier day than the row before of the same patient."""
    runs, back = 0, 0
    for i in range(patient.size):
        if i == 0 or patient[i] != patient[i - 1]:
            runs += 1
        elif day[i] < day[i - 1]:
            back += 1
    return runs, back
