"""Pairs written down: the first of the compiled kernels of pair counting; `summing` has the others.

Pairs are written down, each as one 64-bit number, into buckets by ranges of rows (`write_pairs`); then each
bucket is sorted by row and its rows are summed (`summing.sum_buckets`). Both passes write and read memory nearly in order: a
table of all cells that is hit at random spends most of its time waiting for memory.

A pair (j, k), j <= k, of a patient is the number [row of the bucket | k | patient], with 32 bits for the first two and
32 bits for the patient. A bucket is a chain of pages of a pool, so that nothing has to be counted beforehand.

Source: radix partitioning as in joins of databases (Balkesen et al. 2013).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

PAGE_BITS = 9
PAGE = 1 << PAGE_BITS  # pairs on a page of the pool

_32 = np.uint64(32)
_ONE = np.uint64(1)
_PAGE_BITS, _IN_PAGE = np.uint64(PAGE_BITS), np.uint64(PAGE - 1)

_Int32s = NDArray[np.int32]
_Int64s = NDArray[np.int64]
_UInt64s = NDArray[np.uint64]


@njit(cache=True, nogil=True)
def in_order(patient: _Int64s, day: _Int32s) -> bool:
    """Whether rows are sorted by patient and day."""
    for i in range(1, patient.size):
        if patient[i] < patient[i - 1] or (patient[i] == patient[i - 1] and day[i] < day[i - 1]):
            return False
    return True


@njit(cache=True, nogil=True)
def write_pairs(
    patient: _Int64s,
    day: _Int32s,
    code: _Int32s,
    begin: int,
    end: int,
    limit: int,
    days: int,
    rows: tuple[np.uint64, np.uint64] | None,
    shift: int,
    column_bits: int,
    pool: _UInt64s,
    first: _Int32s,
    link: _Int32s,
    position: _UInt64s,
    code_patients: _Int64s,
) -> tuple[int, int, int, int]:
    """Write the pairs of whole patients, from row `begin` on, to `end` or until the pool is full.

    Rows are sorted by patient and day. A negative `days` is the whole-history rule. Only pairs with
    rows[0] <= j < rows[1] are written, if `rows` is given. Bucket b holds the rows [b << shift, (b + 1) << shift); its
    pages begin with first[b] and go on by `link` (-1 ends the chain), and position[b] is where its next pair would go.
    Adds to `code_patients`.

    Returns the first row that is not done, and the patients, distinct events and capped patients of those done. If
    that row is `begin`, the first patient alone has more pairs than the pool holds.
    """
    last = np.full(first.size, -1, np.int32)
    first[:] = -1
    position[:] = 0
    # Of a code: 1 + the row where its latest patient begins, and its patients; then on two days, and its first day.
    seen = np.zeros((code_patients.size, 2), np.int64)
    twice = np.full(code_patients.size if days < 0 else 0, -1, np.int64)
    earliest = np.empty(twice.size, np.int32)
    when, what = np.empty(1024, np.int32), np.empty(1024, np.int32)
    used = n_patients = n_events = n_capped = 0
    row = begin
    while row < end:
        start, this = row, patient[row]
        while row < end and patient[row] == this:
            row += 1
        if row - start > what.size:
            when, what = np.empty(2 * (row - start), np.int32), np.empty(2 * (row - start), np.int32)
        size = _distinct_events(day, code, start, row, when, what)
        skip = max(0, size - limit)
        count = size - skip
        # Room for all pairs, and one page begun in every bucket; a patient alone in the pool may try with less.
        room = (link.size - used - first.size) << PAGE_BITS
        full = used > 0 and count * (count + 1) // 2 > room
        if full and days >= 0:
            full = _pairs_of(when, skip, size, days) > room
        if full:
            row = start
            break
        capped = int(skip > 0)
        place = (shift, column_bits, pool, first, last, link, position, used)
        # Without `twice`, the compiler leaves the whole-history rule out of the loop.
        if days < 0:
            size = _distinct_codes(start, when, what, skip, size, seen, twice, earliest)
            skip = 0
            used = _write_patient(start, when, what, skip, size, days, rows, *place, twice)
        else:
            used = _write_patient(start, when, what, skip, size, days, rows, *place, None)
        if used < 0:
            first[:] = -1  # forget what was written of this patient
            row = start
            break
        n_patients += 1
        n_events += count
        n_capped += capped
        for i in range(skip, size):
            j = what[i]
            seen[j, 1] += int(days < 0 or seen[j, 0] != start + 1)
            seen[j, 0] = start + 1
    code_patients += seen[:, 1]
    return row, n_patients, n_events, n_capped


@njit(cache=True, nogil=True)
def _distinct_events(day: _Int32s, code: _Int32s, begin: int, end: int, when: _Int32s, what: _Int32s) -> int:
    """One patient's rows, sorted by day -> distinct events by day and code, in when and what; their number."""
    size = first = 0  # of the day: its first event
    for row in range(begin, end):
        this, today = code[row], day[row]
        if size == 0 or when[size - 1] != today:
            first = size
        elif what[size - 1] >= this:
            # Out of order or a duplicate: to its place in the day, if it is not there.
            place = first + np.searchsorted(what[first:size], this)
            if what[place] == this:
                continue
            for i in range(size, place, -1):
                what[i] = what[i - 1]
            what[place] = this
            when[size] = today
            size += 1
            continue
        what[size] = this
        when[size] = today
        size += 1
    return size


@njit(cache=True, nogil=True)
def _distinct_codes(
    who: int,
    when: _Int32s,
    what: _Int32s,
    begin: int,
    end: int,
    seen: _Int64s,
    twice: _Int64s,
    earliest: _Int32s,
) -> int:
    """Move one patient's distinct codes to the front of what; twice[j] == who if code j is on two days."""
    size = 0
    for i in range(begin, end):
        j = what[i]
        if seen[j, 0] != who + 1:
            seen[j, 0] = who + 1
            earliest[j] = when[i]
            what[size] = j
            size += 1
        elif when[i] != earliest[j]:
            twice[j] = who
    return size


@njit(cache=True, nogil=True)
def _pairs_of(when: _Int32s, begin: int, end: int, days: int) -> int:
    """Pairs of one patient's events within the window."""
    total, stop = 0, begin
    for i in range(begin, end):
        while stop < end and np.int64(when[stop]) - when[i] <= days:
            stop += 1
        total += stop - i - 1
    return total


@njit(cache=True, nogil=True)
def _write_patient(
    who: int,
    when: _Int32s,
    what: _Int32s,
    begin: int,
    end: int,
    days: int,
    rows: tuple[np.uint64, np.uint64] | None,
    shift: int,
    column_bits: int,
    pool: _UInt64s,
    first: _Int32s,
    last: _Int32s,
    link: _Int32s,
    position: _UInt64s,
    used: int,
    twice: _Int64s | None,
) -> int:
    """Write one patient's pairs; the pages used then, or -1 if the pool is too small."""
    # Unsigned indices: numba lets signed ones count from the end, and that costs a comparison each time.
    tag, to_bucket, to_column = np.uint64(who), np.uint64(shift), np.uint64(column_bits)
    in_bucket = (_ONE << to_bucket) - _ONE
    for i in range(begin, end):
        j, today = what[i], np.int64(when[i])
        # In the whole-history rule a code is a pair of itself if it is on two days.
        begin_e = i + 1
        if twice is not None and twice[j] == who:
            begin_e = i
        for e in range(begin_e, end):
            if twice is None and when[e] - today > days:
                break
            k = what[e]
            lower, upper = np.uint64(min(j, k)), np.uint64(max(j, k))
            if rows is not None and (lower < rows[0] or lower >= rows[1]):
                continue
            b = lower >> to_bucket
            p = position[b]
            if p & _IN_PAGE == 0:
                if used == link.size:
                    return -1
                link[used] = -1
                if last[b] >= 0:
                    link[last[b]] = used
                else:
                    first[b] = used
                last[b] = used
                p = np.uint64(used) << _PAGE_BITS
                used += 1
            pool[p] = ((((lower & in_bucket) << to_column) | upper) << _32) | tag
            position[b] = p + _ONE
    return used
