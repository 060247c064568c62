"""Pairs counted or written down: the first of the compiled kernels of pair counting; `summing` has the others.

Pairs of two common codes are counted in place, in the dense table of `common`. The others are written down, each as one
64-bit number, into buckets by ranges of rows (`write_pairs`); then each bucket is sorted by row and its rows are summed
(`summing.sum_buckets`). Both passes write and read memory nearly in order: a table of all cells that is hit at random
spends most of its time waiting for memory.

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

_BATCH = 4096  # pairs at hand
_STEP = 4
_NEVER = 2**62  # beyond any day and window
_32 = np.uint64(32)
_LOW_32 = np.uint64(0xFFFFFFFF)
_ZERO, _ONE, _TWO, _THREE = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3)
_PAGE_BITS, _IN_PAGE = np.uint64(PAGE_BITS), np.uint64(PAGE - 1)

_Int32s = NDArray[np.int32]
_Int64s = NDArray[np.int64]
_UInt32s = NDArray[np.uint32]
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
    dense_room: int,
    rank: _Int32s,
    dense: _UInt64s,
    repeats: _UInt32s,
    pool: _UInt64s,
    first: _Int32s,
    link: _Int32s,
    position: _UInt64s,
    code_patients: _Int64s,
) -> tuple[int, int, int, int]:
    """Count or write the pairs of whole patients, from row `begin` on, to `end` or until there is no room.

    Rows are sorted by patient and day. A negative `days` is the whole-history rule. Only pairs with
    rows[0] <= j < rows[1] are written, if `rows` is given. `dense` and `repeats` are this thread's part of a
    `common.Common`, and may be empty; they take `dense_room` pairs. Bucket b holds the rows [b << shift, (b + 1) << shift);
    its pages begin with first[b] and go on by `link` (-1 ends the chain), and position[b] is where its next pair would
    go. Adds to `code_patients`.

    Returns the first row that is not done, and the patients, distinct events and capped patients of those done. If
    that row is `begin`, the first patient alone has more pairs than there is room for.
    """
    last = np.full(first.size, -1, np.int32)
    first[:] = -1
    position[:] = 0
    # Of a code: 1 + the row where its latest patient begins, and its patients; then on two days, and its first day.
    seen = np.zeros((code_patients.size, 2), np.int32)
    twice = np.full(code_patients.size if days < 0 else 0, -1, np.int32)
    earliest = np.empty(twice.size, np.int64)
    when, what, numbered = np.empty(1024, np.int64), np.empty(1024, np.int32), np.empty(1024, np.uint64)
    flat = np.empty((2, _BATCH + 8), np.uint64)
    used = n_patients = n_events = n_capped = 0
    row = begin
    while row < end:
        start, this = row, patient[row]
        while row < end and patient[row] == this:
            row += 1
        if row - start + _STEP > what.size:
            n = 2 * (row - start) + _STEP
            when, what, numbered = np.empty(n, np.int64), np.empty(n, np.int32), np.empty(n, np.uint64)
        size = _distinct_events(day, code, start, row, when, what)
        skip = max(0, size - limit)
        count = size - skip
        if rows is None:
            # Room for all pairs in either place, and one page begun in every bucket.
            room = min((link.size - used - first.size) << PAGE_BITS, dense_room)
            most = count * (count + 1) // 2
            if most > room and days >= 0:
                most = _pairs_of(when, skip, size, days)
            if most > room:
                row = start
                break
            dense_room -= most
        n_patients += 1
        n_events += count
        n_capped += int(skip > 0)
        if days < 0:
            size = _distinct_codes(start, when, what, skip, size, seen, twice, earliest)
            skip = 0
        when[size : size + _STEP] = _NEVER
        for i in range(skip, size):
            j = what[i]
            seen[j, 1] += int(days < 0 or seen[j, 0] != start + 1)
            seen[j, 0] = start + 1
            numbered[i] = (np.uint64(rank[j]) << _32) | np.uint64(j)
        place = (rows, shift, column_bits, dense, repeats, pool, first, last, link, position)
        used = _write_patient(start, when, numbered, skip, size, days, twice, flat, used, *place)
        if used < 0:
            return begin, 0, 0, 0
    code_patients += seen[:, 1]
    return row, n_patients, n_events, n_capped


@njit(cache=True, nogil=True)
def _distinct_events(day: _Int32s, code: _Int32s, begin: int, end: int, when: _Int64s, what: _Int32s) -> int:
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
    when: _Int64s,
    what: _Int32s,
    begin: int,
    end: int,
    seen: _Int32s,
    twice: _Int32s,
    earliest: _Int64s,
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
def _pairs_of(when: _Int64s, begin: int, end: int, days: int) -> int:
    """Pairs of one patient's events within the window."""
    total, stop = 0, begin
    for i in range(begin, end):
        while stop < end and when[stop] - when[i] <= days:
            stop += 1
        total += stop - i - 1
    return total


@njit(cache=True, nogil=True)
def _write_patient(
    who: int,
    when: _Int64s,
    numbered: _UInt64s,
    begin: int,
    end: int,
    days: int,
    twice: _Int32s,
    flat: _UInt64s,
    used: int,
    rows: tuple[np.uint64, np.uint64] | None,
    shift: int,
    column_bits: int,
    dense: _UInt64s,
    repeats: _UInt32s,
    pool: _UInt64s,
    first: _Int32s,
    last: _Int32s,
    link: _Int32s,
    position: _UInt64s,
) -> int:
    """One patient's pairs, batch by batch, to their places; the pages used then, or -1 if the pool is too small."""
    place = (rows, shift, column_bits, dense, repeats, pool, first, last, link, position)
    lefts, rights, n = flat[0], flat[1], _ZERO
    for i in range(np.uint64(begin), np.uint64(end)):
        left, to, e = numbered[i], when[i] + days, i + _ONE
        if days < 0:
            # All that follow; and in this rule a code is a pair of itself if it is on two days.
            to = _NEVER - 1
            if twice[left & _LOW_32] == who:
                e = i
        while True:
            # Four at a time, and then how many of them count: the end of a window is no branch to be guessed.
            found = _ZERO
            for t in range(_STEP):
                found += np.uint64(when[e + np.uint64(t)] <= to)
            a, b, c, d = numbered[e], numbered[e + _ONE], numbered[e + _TWO], numbered[e + _THREE]
            lefts[n] = lefts[n + _ONE] = lefts[n + _TWO] = lefts[n + _THREE] = left
            rights[n], rights[n + _ONE], rights[n + _TWO], rights[n + _THREE] = a, b, c, d
            n += found
            if n > np.uint64(_BATCH):
                used = _place(who, n, flat, used, *place)
                n = _ZERO
                if used < 0:
                    return used
            if found < np.uint64(_STEP):
                break
            e += np.uint64(_STEP)
    return _place(who, n, flat, used, *place)


@njit(cache=True, nogil=True)
def _place(
    who: int,
    n: np.uint64,
    flat: _UInt64s,
    used: int,
    rows: tuple[np.uint64, np.uint64] | None,
    shift: int,
    column_bits: int,
    dense: _UInt64s,
    repeats: _UInt32s,
    pool: _UInt64s,
    first: _Int32s,
    last: _Int32s,
    link: _Int32s,
    position: _UInt64s,
) -> int:
    """Count pairs of common codes, write the others; the pages used then, or -1 if the pool is too small."""
    # Unsigned indices: numba lets signed ones count from the end, and that costs a comparison each time.
    n_common = n_rest = _ZERO
    common, rest = flat[0], flat[1]
    for p in range(n):
        x, y = flat[0, p], flat[1, p]
        high, low = max(x, y) >> _32, min(x, y) >> _32
        cell = ((high * (high + _ONE)) >> _ONE) + low
        j, k = x & _LOW_32, y & _LOW_32
        # Written to both lists, and kept by one: no branch.
        common[n_common] = cell
        rest[n_rest] = (min(j, k) << _32) | max(j, k)
        dense_one = np.uint64(cell < np.uint64(dense.size))
        n_common += dense_one
        n_rest += _ONE - dense_one
    tag = np.uint64(who + 1) << _32
    for p in range(n_common):
        cell = common[p]
        value = dense[cell]
        if value >> _32 << _32 == tag:
            repeats[cell] += np.uint32(1)
        dense[cell] = ((value & _LOW_32) + _ONE) | tag
    to_bucket, to_column = np.uint64(shift), np.uint64(column_bits)
    in_bucket = (_ONE << to_bucket) - _ONE
    for q in range(n_rest):
        lower, upper = rest[q] >> _32, rest[q] & _LOW_32
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
        pool[p] = ((((lower & in_bucket) << to_column) | upper) << _32) | np.uint64(who)
        position[b] = p + _ONE
    return used
