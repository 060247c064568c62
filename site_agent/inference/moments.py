"""Sums over patients for the test of each pair by itself: one pass over the events, a patient at a time.

A patient's own counts are never a table of all codes: a row at a time, over the codes that the patient has.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from protocol.inference import EntrySums, Margins
from protocol.pair_index import Floats, PairIndex
from protocol.sections import Counting
from site_agent.cooccurrence.writing import _distinct_events  # the one rule of what an event is
from site_agent.inference.cells import Bools, Shown, expected_counts

Events = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int32]]


def entry_sums(
    parts: Iterable[Events],
    rule: Counting,
    pairs: PairIndex,
    margins: Margins,
    show: Shown,
    *,
    threads: int | None = None,
) -> EntrySums:
    """What a site sends for the test of each pair by itself.

    A patient changes the site's expected count by e = E_jk (x_j + x_k), x_j = own_j r_j - shared_j M to first order, with the
    patient's row sums r and M = response' r. The sums over patients of c e and e e follow from those of
    c r_j, c r_k, c M of the patients who have the pair, r_j r_k of those who have both codes.

    Args:
        parts: patient, day and code of the vocabulary, of whole patients, sorted by patient and day (`Staged.partition`);
            a code of -1 is none of it.
        rule: of the study; what is a pair is what `count_pairs` counts.
        pairs: tested pairs.
        margins: the site's, of all its patients.
        show: which codes and pairs the site shows.
        threads: that work at the same time; the cores if None.

    Time in proportion to the pairs of events, and to the tested pairs of codes of each patient. Memory: 48 bytes a tested pair.

    Law: counts and their squares of disjoint sets of patients add, exactly; the result is the same for any number of threads.
    """
    cells, codes, mm = _moments(parts, rule, pairs, margins.response, show.codes, threads)
    a = Margins(*(part[pairs.order] for part in margins))
    expected = expected_counts(margins, pairs, show.steady)
    cross, drift = np.empty(pairs.size), np.empty(pairs.size)
    rr, rm = codes.T
    for j, part, k in pairs.rows():  # a rank at a time: no more vectors of all pairs
        cr, cs, cm, rs = cells[part, 2:].T
        u, v, w, x = a.own[j], a.shared[j], a.own[k], a.shared[k]
        cross[part] = expected[part] * (u * cr + w * cs - (v + x) * cm)
        both = u * w * rs - u * x * rm[j] - v * w * rm[k] + v * x * mm
        single = u * u * rr[j] - 2.0 * u * v * rm[j] + v * v * mm
        other = w * w * rr[k] - 2.0 * w * x * rm[k] + x * x * mm
        drift[part] = expected[part] ** 2 * (single + other + 2.0 * both)
    hidden = ~show.pairs
    cells[hidden, :2] = 0
    cross[hidden] = 0.0
    return EntrySums(cells[:, 0].astype(np.int64), cells[:, 1].astype(np.int64), expected, cross, drift)


def _moments(
    parts: Iterable[Events],
    rule: Counting,
    pairs: PairIndex,
    response: Floats,
    codes: Bools,
    threads: int | None,
) -> tuple[Floats, Floats, float]:
    """Sums over patients, with c = C^i_jk, r the patient's row sums and M = response' r; whole numbers exact below 2^53.

    Returns:
        (m, 6) of c, c c, c r_j, c r_k, c M, r_j r_k; (p, 2) for each rank of r_j r_j, r_j M; and that of M M.
    """
    threads = len(os.sched_getaffinity(0)) if threads is None else threads
    n_codes = response.size
    # Codes without a tested pair count in a patient's margins all the same: they come after those with one.
    place = np.full(n_codes + 1, -1, np.int32)  # the last one is that of code -1
    place[:n_codes] = rank = pairs.rank(n_codes)
    rest = np.flatnonzero(rank == pairs.order.size)
    place[rest] = pairs.order.size + np.arange(rest.size)
    weight = np.empty(n_codes)
    weight[place[:n_codes]] = response
    place[:n_codes][~codes] = -1
    moments, squares, total = np.zeros((pairs.size, 6)), np.zeros((pairs.order.size, 2)), 0.0
    days = -1 if rule.window is None else rule.window
    with ThreadPoolExecutor(threads) as pool:
        for events in parts:

            def add(part: int, events: Events = events) -> float:
                shape, limits = (pairs.width, pairs.offset, weight), (days, rule.max_events_per_patient)
                return float(_add_patients(*events, place, *shape, *limits, part, threads, moments, squares))

            total += next(iter([*pool.map(add, range(threads))]))  # each thread has the same, of all patients
    return moments, squares, total


@njit(cache=True, nogil=True)
def _add_patients(
    patient: Any,
    day: Any,
    code: Any,
    place: Any,
    width: Any,
    offset: Any,
    weight: Any,
    days: int,
    limit: int,
    part: int,
    parts: int,
    moments: Any,
    squares: Any,
) -> float:
    """Add the pairs of the ranks part, part + parts ... of all patients; the sum of M M."""
    when, what = np.empty(1024, np.int64), np.empty(1024, np.int32)
    number = np.full(weight.size, -1, np.int32)  # of a place: its position among the patient's codes
    total, row = 0.0, 0
    while row < patient.size:
        start = row
        while row < patient.size and patient[row] == patient[start]:
            row += 1
        if row - start > what.size:
            when, what = np.empty(2 * (row - start), np.int64), np.empty(2 * (row - start), np.int32)
        n = _distinct_events(day, code, start, row, when, what)
        kept = 0
        for i in range(max(0, n - limit), n):
            if place[what[i]] >= 0:
                when[kept], what[kept] = when[i], place[what[i]]
                kept += 1
        if kept < 2:
            continue
        have = np.unique(what[:kept])
        for a in range(have.size):
            number[have[a]] = a
        local = number[what[:kept]]
        first, last = _windows(when[:kept], days)
        by_code, begin = _grouped(local, have.size)
        rows = _rows_of(have.size, local, when, days, first, last, by_code, begin)
        m = 0.0
        for a in range(have.size):
            m += weight[have[a]] * rows[a]
        total += m * m
        tested = np.searchsorted(have, width.size)
        count = np.zeros(have.size)
        for a in range(tested):
            j = have[a]
            if part == 0:
                squares[j, 0] += rows[a] * rows[a]
                squares[j, 1] += rows[a] * m
            if j % parts == part:
                _count_row(a, local, days, first, last, by_code, begin, count)
                _add_row(a, have, tested, rows, m, count, width[j], offset[j] - j - 1, moments)
    return total


@njit(cache=True, nogil=True)
def _windows(when: Any, days: int) -> tuple[Any, Any]:
    """For each event, the first and the one after the last event at most `days` from it."""
    n = when.size
    first, last = np.zeros(n, np.int32), np.full(n, n, np.int32)
    if days < 0:
        return first, last
    low = high = 0
    for i in range(n):
        while when[i] - when[low] > days:
            low += 1
        while high < n and when[high] - when[i] <= days:
            high += 1
        first[i], last[i] = low, high
    return first, last


@njit(cache=True, nogil=True)
def _grouped(local: Any, n_codes: int) -> tuple[Any, Any]:
    """Events by code, of a code by day; and where each code begins."""
    begin = np.zeros(n_codes + 1, np.int32)
    for a in local:
        begin[a + 1] += 1
    begin = np.cumsum(begin).astype(np.int32)
    at, by_code = begin.copy(), np.empty(local.size, np.int32)
    for i in range(local.size):
        by_code[at[local[i]]] = i
        at[local[i]] += 1
    return by_code, begin


@njit(cache=True, nogil=True)
def _rows_of(
    n_codes: int, local: Any, when: Any, days: int, first: Any, last: Any, by_code: Any, begin: Any
) -> Any:
    """Pairs of each code with the other codes."""
    rows = np.zeros(n_codes)
    if days < 0:
        rows[:] = n_codes - 1
        return rows
    for i in range(local.size):
        rows[local[i]] += last[i] - first[i]
    for a in range(n_codes):
        low = high = begin[a]
        for at in range(begin[a], begin[a + 1]):
            today = when[by_code[at]]
            while today - when[by_code[low]] > days:
                low += 1
            while high < begin[a + 1] and when[by_code[high]] - today <= days:
                high += 1
            rows[a] -= high - low
    return rows


@njit(cache=True, nogil=True)
def _count_row(
    a: int, local: Any, days: int, first: Any, last: Any, by_code: Any, begin: Any, count: Any
) -> None:
    """Pairs of one code with each of the patient's codes."""
    if days < 0:
        count[:] = 1
        return
    count[:] = 0
    for at in range(begin[a], begin[a + 1]):
        i = by_code[at]
        for e in range(first[i], last[i]):
            count[local[e]] += 1


@njit(cache=True, nogil=True)
def _add_row(
    a: int, have: Any, tested: int, rows: Any, m: float, count: Any, width: int, shift: int, moments: Any
) -> None:
    """Add one patient's tested pairs of one code."""
    for b in range(a + 1, tested):
        if have[b] >= width:
            break
        cell, c = moments[shift + have[b]], count[b]
        cell[5] += rows[a] * rows[b]
        if c:
            cell[0] += c
            cell[1] += c * c
            cell[2] += c * rows[a]
            cell[3] += c * rows[b]
            cell[4] += c * m
