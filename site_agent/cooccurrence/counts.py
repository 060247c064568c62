"""Pair counts of a set of patients, and how those of several sets add."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from site_agent.cooccurrence.summing import sum_rows

_BYTES_A_CELL = 24  # while it is summed: as read from the disk, and as copied
_MEMORY = 2**29
_SPAN = 2**18  # cells summed at a time, at most: what they are copied to stays in the cache

Counts = sparse.csr_array[Any, tuple[int, int]]
_Cells = tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]  # column, pairs, patients


@dataclass(frozen=True, eq=False)
class PairCounts:
    """Pair counts of one set of patients.

    Both matrices are the upper triangle T, diagonal included, of a symmetric matrix C = T + T' - diag T (`symmetric`
    makes it), and have the same cells.

    Law: for disjoint sets of patients A and B with the same code numbering and rules,
    count(A) + count(B) = count(A u B), exactly.

    Attributes:
        events: int64 (n_codes, n_codes), co-occurring pairs of events.
        pair_patients: int64 (n_codes, n_codes), distinct patients with at least one such pair.
        code_patients: int64 (n_codes,), distinct patients with the code among their counted events.
        n_patients: distinct patients with any event.
        n_events: events that were counted: duplicates and events beyond the cap are gone.
        capped_patients: patients of whom only the most recent events were counted.
        withheld_cells: cells that `add_counts` left out because too few patients have them.
        withheld_events: the co-occurring pairs of events in those cells.
    """

    events: Counts
    pair_patients: Counts
    code_patients: NDArray[np.int64]
    n_patients: int
    n_events: int
    capped_patients: int = 0
    withheld_cells: int = 0
    withheld_events: int = 0

    def __add__(self, other: PairCounts) -> PairCounts:
        """Exact counts of the union of two sets of patients that have no patient in common.

        Raises:
            ValueError: the two number a different set of codes, or cells were withheld from one.
        """
        if not isinstance(other, PairCounts):
            return NotImplemented
        return add_counts([self, other])

    @classmethod
    def none(cls, n_codes: int) -> PairCounts:
        """The counts of no patient."""
        empty = sparse.csr_array((n_codes, n_codes), dtype=np.int64)
        return cls(empty, empty.copy(), np.zeros(n_codes, np.int64), 0, 0)


def add_counts(
    parts: Sequence[PairCounts], *, floor: int = 0, threads: int = 1, memory: int = _MEMORY
) -> PairCounts:
    """Exact counts of the union of disjoint sets of patients.

    The parts may lie on disk (`numpy.memmap`): they are read a range of rows at a time.

    Args:
        parts: one or more.
        floor: cells that fewer distinct patients have in all are left out and tallied.
        threads: that sum at the same time; the result is the same for any number.
        memory: bytes that cells being summed may take, beside the result.

    Raises:
        ValueError: no parts, parts that number different sets of codes, or one with withheld cells.
    """
    if not parts:
        raise ValueError("there are no counts to add")
    n_codes = parts[0].events.shape[0]
    for part in parts:
        if part.events.shape[0] != n_codes:
            raise ValueError(f"counts of {n_codes} and of {part.events.shape[0]} codes do not add")
        if part.withheld_cells:
            raise ValueError("cells were withheld from a part: the sum would miss what it had")
    spans = list(
        pairwise(_cuts(parts, n_codes, max(2**16, min(memory // _BYTES_A_CELL // threads, _SPAN))).tolist())
    )
    scratch: SimpleQueue[_Scratch] = SimpleQueue()
    largest = max((sum(_cells(p, *span) for p in parts) for span in spans), default=0)
    for _ in range(threads):
        scratch.put(_Scratch.make(largest, n_codes))
    filled = np.zeros(n_codes, np.int64)

    def add(span: tuple[int, int], out: _Cells | None = None) -> tuple[int, int]:
        own = scratch.get()
        first, stop = span
        pointer, cells = own.gather(parts, first, stop)
        below: tuple[int, int] = sum_rows(pointer, *cells, first, floor, own.table, filled[first:stop], out)
        scratch.put(own)
        return below

    with ThreadPoolExecutor(threads) as pool:
        # Twice over the same cells: how many there will be, and then each in its place. Room for all that there might
        # be costs more than summing again.
        below = list(pool.map(add, spans))
        place = np.concatenate([[0], np.cumsum(filled)])
        whole = (np.empty(place[-1], np.int32), np.empty(place[-1], np.int64), np.empty(place[-1], np.int64))
        slices = [slice(int(place[first]), int(place[stop])) for first, stop in spans]
        list(pool.map(add, spans, [(whole[0][s], whole[1][s], whole[2][s]) for s in slices]))
    events, pair_patients = matrices(filled, *whole)
    return PairCounts(
        events=events,
        pair_patients=pair_patients,
        code_patients=np.sum([p.code_patients for p in parts], axis=0),
        n_patients=sum(p.n_patients for p in parts),
        n_events=sum(p.n_events for p in parts),
        capped_patients=sum(p.capped_patients for p in parts),
        withheld_cells=sum(cells for cells, _ in below),
        withheld_events=sum(pairs for _, pairs in below),
    )


def matrices(
    filled: NDArray[np.int64],
    column: NDArray[np.int32],
    pairs: NDArray[np.int64],
    patients: NDArray[np.int64],
) -> tuple[Counts, Counts]:
    """Both matrices from the cells of each row; they share no memory."""
    pointer = np.concatenate([np.zeros(1, np.int64), np.cumsum(filled)])
    if column.size < 2**31:
        pointer = pointer.astype(np.int32)
    else:
        column = column.astype(np.int64)  # scipy wants one type for both
    shape = (filled.size, filled.size)
    made = []
    for data in (pairs, patients):
        own = (column, pointer) if data is pairs else (column.copy(), pointer.copy())
        matrix = sparse.csr_array((data, *own), shape=shape)
        # Each row was made in order of its columns; scipy need not look.
        matrix.has_canonical_format = True
        made.append(matrix)
    return made[0], made[1]


def _cuts(parts: Sequence[PairCounts], n_codes: int, most: int) -> NDArray[np.int64]:
    """Row numbers between which the parts have about `most` cells together."""
    cells = np.sum([np.asarray(p.events.indptr, np.int64) for p in parts], axis=0)
    inner = np.searchsorted(cells, np.arange(most, int(cells[-1]), most))
    return np.unique(np.concatenate([[0], inner, [n_codes]]))


def _cells(part: PairCounts, first: int, stop: int) -> int:
    return int(part.events.indptr[stop]) - int(part.events.indptr[first])


@dataclass(frozen=True)
class _Scratch:
    """What one thread needs while it adds a range of rows; used again for each range."""

    column: NDArray[np.int32]
    pairs: NDArray[np.int64]
    patients: NDArray[np.int64]
    table: NDArray[np.int64]

    @classmethod
    def make(cls, cells: int, n_codes: int) -> Self:
        pairs, patients = np.empty(cells, np.int64), np.empty(cells, np.int64)
        return cls(np.empty(cells, np.int32), pairs, patients, np.zeros((n_codes, 2), np.int64))

    def gather(self, parts: Sequence[PairCounts], first: int, stop: int) -> tuple[NDArray[np.int64], _Cells]:
        """Where the rows [first, stop) of each part begin, and their cells one part after the other."""
        pointers = []
        offset = 0
        for part in parts:
            pointer = np.asarray(part.events.indptr[first : stop + 1], np.int64)
            source = slice(int(pointer[0]), int(pointer[-1]))
            target = slice(offset, offset + source.stop - source.start)
            self.column[target] = part.events.indices[source]
            self.pairs[target] = part.events.data[source]
            self.patients[target] = part.pair_patients.data[source]
            pointers.append(pointer - pointer[0] + offset)
            offset = target.stop
        return np.stack(pointers), (self.column[:offset], self.pairs[:offset], self.patients[:offset])


def sum_same_rows(
    pointer: NDArray[np.int64], cells: _Cells, first_row: int, n_codes: int, floor: int
) -> tuple[NDArray[np.int64], _Cells, int, int]:
    """`sum_rows` of cells in memory: cells of each row, the cells, and how many were left out with what pairs."""
    filled, table = np.empty(pointer.shape[1] - 1, np.int64), np.zeros((n_codes, 2), np.int64)
    below, below_pairs = sum_rows(pointer, *cells, first_row, floor, table, filled, None)
    size = int(filled.sum())
    out = (np.empty(size, np.int32), np.empty(size, np.int64), np.empty(size, np.int64))
    sum_rows(pointer, *cells, first_row, floor, table, filled, out)
    return filled, out, below, below_pairs
