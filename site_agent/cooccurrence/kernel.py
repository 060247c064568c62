"""The compiled kernels of pair counting.

Pairs are first written down, each as one 64-bit number, into buckets by ranges of rows (`write_pairs`); then each
bucket is sorted by row and its rows are summed (`sum_buckets`). Both passes write and read memory nearly in order: a
table of all cells that is hit at random spends most of its time waiting for memory.

A pair (j, k), j <= k, of a patient is the number [row of the bucket | k | patient], with 32 bits for the first two and
32 bits for the patient. A bucket is a chain of pages of a pool, so that nothing has to be counted beforehand.

Source: radix partitioning as in joins of databases (Balkesen et al. 2013); accumulator of a row (Gustavson 1978).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.cpython.unsafe.numbers import trailing_zeros as _trailing_zeros
from numpy.typing import NDArray

PAGE_BITS = 9
PAGE = 1 << PAGE_BITS  # pairs on a page of the pool

_32 = np.uint64(32)
_LOW_32 = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)
_PAGE_BITS, _IN_PAGE = np.uint64(PAGE_BITS), np.uint64(PAGE - 1)

trailing_zeros: Any = _trailing_zeros  # compiled code alone can call it
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
        n_patients += 1
        n_events += count
        capped = int(skip > 0)
        n_capped += capped
        # Room for all pairs, and one page begun in every bucket; a patient alone in the pool may try with less.
        room = (link.size - used - first.size) << PAGE_BITS
        full = used > 0 and count * (count + 1) // 2 > room
        if full and days >= 0:
            full = _pairs_of(when, skip, size, days) > room
        if not full:
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
        if full or used < 0:
            code_patients += seen[:, 1]
            return start, n_patients - 1, n_events - count, n_capped - capped
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


@njit(cache=True, nogil=True)
def bucket_sizes(first: _Int32s, link: _Int32s, position: _UInt64s) -> _Int64s:
    """Pairs in each bucket, of all threads."""
    sizes = np.zeros(first.shape[1], np.int64)
    for t in range(first.shape[0]):
        for b in range(first.shape[1]):
            page = first[t, b]
            while page >= 0:
                sizes[b] += _stop(t, page, b, link, position) - (np.int64(page) << PAGE_BITS)
                page = link[t, page]
    return sizes


@njit(cache=True, nogil=True)
def sum_buckets(
    begin: int,
    end: int,
    shift: int,
    column_bits: int,
    pool: _UInt64s,
    first: _Int32s,
    link: _Int32s,
    position: _UInt64s,
    by_row: _UInt64s,
    table: _Int64s,
    column: _Int32s,
    pairs: _Int32s,
    patients: _Int32s,
    filled: _Int64s,
) -> int:
    """Write the cells of the rows in buckets [begin, end) by row and column; how many there are.

    pool, first, link and position have one row for each thread that wrote; a patient is in one of them only.

    Args:
        begin: first bucket.
        end: the one after the last.
        shift: rows of a bucket as a power of two.
        column_bits: of a pair's number.
        pool: (threads, places) pairs.
        first: (threads, buckets) first page.
        link: (threads, pages) the page that follows.
        position: (threads, buckets) end of the last page's pairs.
        by_row: scratch for the pairs of one bucket.
        table: zeros (n_codes, 2), left as zeros. Of a column: pairs in the low and patients in the high 32 bits; 1 + the
            latest patient.
        column: room for as many cells as the buckets have pairs; pairs and patients likewise.
        pairs: event pairs of each cell.
        patients: distinct patients of each cell.
        filled: (rows,) set to the cells of each row.
    """
    n_codes = table.shape[0]
    row_end = np.empty((1 << shift) + 1, np.int64)
    touched = np.empty(n_codes + 1, np.int32)
    marked = np.zeros((n_codes >> 6) + 1, np.uint64)
    column_mask = (_ONE << np.uint64(column_bits)) - _ONE
    cells = 0
    for b in range(begin, end):
        _sort_by_row(b, column_bits, pool, first, link, position, by_row, row_end)
        i = 0
        for r in range(1 << shift):
            if row_end[r] == i:
                continue
            n_touched = 0
            while i < row_end[r]:
                pair = by_row[i]
                k = (pair >> _32) & column_mask
                who = np.int64(pair & _LOW_32) + 1
                cell = table[k, 0]
                touched[n_touched] = k
                n_touched += int(cell == 0)
                table[k, 0] = cell + 1 + (np.int64(table[k, 1] != who) << 32)
                table[k, 1] = who
                i += 1
            for t in range(n_touched):
                k = touched[t]
                marked[k >> 6] |= _ONE << np.uint64(k & 63)
            row, before = (b << shift) + r, cells
            for word in range(row >> 6, marked.size):
                bits = marked[word]
                marked[word] = 0
                while bits != 0:
                    k = np.int64(word << 6) + np.int64(trailing_zeros(bits))
                    bits &= bits - _ONE
                    column[cells] = k
                    pairs[cells] = table[k, 0] & 0xFFFFFFFF
                    patients[cells] = table[k, 0] >> 32
                    cells += 1
                    table[k, 0] = 0
                    table[k, 1] = 0
            filled[row] = cells - before
    return cells


@njit(cache=True, nogil=True)
def _stop(t: int, page: int, b: int, link: _Int32s, position: _UInt64s) -> int:
    """Where the pairs of a page of bucket b end."""
    return np.int64(position[t, b]) if link[t, page] < 0 else (np.int64(page) + 1) << PAGE_BITS


@njit(cache=True, nogil=True)
def _sort_by_row(
    b: int,
    column_bits: int,
    pool: _UInt64s,
    first: _Int32s,
    link: _Int32s,
    position: _UInt64s,
    by_row: _UInt64s,
    row_end: _Int64s,
) -> None:
    """Stable counting sort of a bucket's pairs by row; row r ends at row_end[r]."""
    row_shift = np.uint64(32 + column_bits)
    row_end[:] = 0
    for t in range(first.shape[0]):
        page = first[t, b]
        while page >= 0:
            for i in range(np.int64(page) << PAGE_BITS, _stop(t, page, b, link, position)):
                row_end[(pool[t, i] >> row_shift) + _ONE] += 1
            page = link[t, page]
    for r in range(1, row_end.size):
        row_end[r] += row_end[r - 1]
    for t in range(first.shape[0]):
        page = first[t, b]
        while page >= 0:
            for i in range(np.int64(page) << PAGE_BITS, _stop(t, page, b, link, position)):
                pair = pool[t, i]
                r = pair >> row_shift
                by_row[np.uint64(row_end[r])] = pair
                row_end[r] += 1
            page = link[t, page]


@njit(cache=True, nogil=True)
def sum_rows(
    pointer: _Int64s,
    column: _Int32s,
    pairs: _Int64s,
    patients: _Int64s,
    first_row: int,
    floor: int,
    table: _Int64s,
    filled: _Int64s,
    out: tuple[_Int32s, _Int64s, _Int64s] | None,
) -> tuple[int, int]:
    """Sum the same rows of several upper triangles; the cells left out and their pairs.

    Args:
        pointer: (runs, rows + 1), where each row of each run begins in column, pairs and patients.
        column: of the cells of all runs.
        pairs: event pairs of each cell.
        patients: distinct patients of each cell.
        first_row: number of the first row.
        floor: cells with fewer patients in the sum are left out.
        table: zeros (n_codes, 2), left as zeros.
        filled: (rows,) set to the cells of each row.
        out: column, pairs and patients by row and column, of as many cells as there are; None only counts them.
    """
    marked = np.zeros((table.shape[0] >> 6) + 1, np.uint64)
    cells = below = below_pairs = 0
    for r in range(pointer.shape[1] - 1):
        for run in range(pointer.shape[0]):
            for i in range(pointer[run, r], pointer[run, r + 1]):
                k = column[i]
                table[k, 0] += pairs[i]
                table[k, 1] += patients[i]
                marked[k >> 6] |= _ONE << np.uint64(k & 63)
        before = cells
        for word in range((first_row + r) >> 6, marked.size):
            bits = marked[word]
            marked[word] = 0
            while bits != 0:
                k = np.int64(word << 6) + np.int64(trailing_zeros(bits))
                bits &= bits - _ONE
                if table[k, 1] >= floor:
                    if out is not None:
                        out[0][cells] = k
                        out[1][cells] = table[k, 0]
                        out[2][cells] = table[k, 1]
                    cells += 1
                else:
                    below += 1
                    below_pairs += table[k, 0]
                table[k, 0] = 0
                table[k, 1] = 0
        filled[r] = cells - before
    return below, below_pairs
