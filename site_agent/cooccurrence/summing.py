"""Pairs summed: the compiled kernels that turn written pairs into the cells of an upper triangle, and add triangles.

`writing` says how a pair is written and where.

Source: accumulator of a row (Gustavson 1978).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.cpython.unsafe.numbers import trailing_zeros as _trailing_zeros
from numpy.typing import NDArray

from site_agent.cooccurrence.writing import PAGE_BITS

_32 = np.uint64(32)
_LOW_32 = np.uint64(0xFFFFFFFF)
_ONE, _6, _63 = np.uint64(1), np.uint64(6), np.uint64(63)

trailing_zeros: Any = _trailing_zeros  # compiled code alone can call it
_Int32s = NDArray[np.int32]
_Int64s = NDArray[np.int64]
_UInt32s = NDArray[np.uint32]
_UInt64s = NDArray[np.uint64]


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
    common: tuple[_Int32s, _Int32s, _UInt64s, _UInt32s],
    by_row: _UInt64s,
    table: _Int64s,
    column: _Int32s,
    pairs: _Int64s,
    patients: _Int64s,
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
        common: code, rank, table and repeats of `common.Common`.
        by_row: scratch for the pairs of one bucket.
        table: zeros (n_codes, 2), left as zeros. Of a column: pairs in the low and patients in the high 32 bits; 1 + the
            latest patient.
        column: room for as many cells as the buckets have pairs and cells of common codes; pairs and patients likewise.
        pairs: event pairs of each cell.
        patients: distinct patients of each cell.
        filled: (rows,) set to the cells of each row.
    """
    code, rank = common[0], common[1]
    row_end = np.empty((1 << shift) + 1, np.int64)
    marked = np.zeros((rank.size >> 6) + 1, np.uint64)
    column_mask = (_ONE << np.uint64(column_bits)) - _ONE
    cells = np.uint64(0)
    for b in range(begin, end):
        _sort_by_row(b, column_bits, pool, first, link, position, by_row, row_end)
        start = np.uint64(0)
        for row in range(b << shift, min((b + 1) << shift, rank.size)):
            stop = np.uint64(row_end[row - (b << shift)])
            for i in range(start, stop):
                pair = by_row[i]
                k = (pair >> _32) & column_mask
                who = np.int64(pair & _LOW_32) + 1
                table[k, 0] += 1 + (np.int64(table[k, 1] != who) << 32)
                table[k, 1] = who
                marked[k >> _6] |= _ONE << (k & _63)
            start = stop
            if rank[row] < code.size:
                _add_common(row, *common, table, marked)
            before = cells
            for word in range(row >> 6, marked.size):
                bits = marked[word]
                marked[word] = 0
                while bits != 0:
                    column[cells] = (word << 6) + np.int64(trailing_zeros(bits))
                    bits &= bits - _ONE
                    cells += _ONE
            for i in range(before, cells):
                k = np.uint64(column[i])
                pairs[i] = table[k, 0] & 0xFFFFFFFF
                patients[i] = table[k, 0] >> 32
                table[k, 0] = 0
                table[k, 1] = 0
            filled[row] = cells - before
    return np.int64(cells)


@njit(cache=True, nogil=True)
def _add_common(
    row: int,
    code: _Int32s,
    rank: _Int32s,
    dense: _UInt64s,
    repeats: _UInt32s,
    table: _Int64s,
    marked: _UInt64s,
) -> None:
    """Add what all threads counted of a common code, with common codes from itself on, to its row's table."""
    own = rank[row]
    for other in range(code.size):
        k = np.uint64(code[other])
        if k < np.uint64(row):
            continue
        high, low = max(own, other), min(own, other)
        cell = np.uint64(high * (high + 1) // 2 + low)
        events = again = np.int64(0)
        for t in range(dense.shape[0]):
            events += np.int64(dense[t, cell] & _LOW_32)
            again += np.int64(repeats[t, cell])
        if events > 0:
            table[k, 0] += events + ((events - again) << 32)
            marked[k >> _6] |= _ONE << (k & _63)


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
                pair = pool[t, np.uint64(i)]
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
