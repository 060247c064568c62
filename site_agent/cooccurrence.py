"""Co-occurrence of codes within patients: events in, exact pair counts out.

The counts are made one code at a time (Gustavson's row-wise sparse accumulator): every event of code j
visits the events in its window and adds to one row of length n_codes, which is then emptied into the
result. So memory is the events, the result and one row: there is neither an n x n table nor a list of pairs.

All arithmetic is on 64-bit integers: the counts are exact, and they add exactly over disjoint sets of patients.

Source: Gustavson 1978 (accumulator); ARCH (event-level window rule); KEEP (whole-history rule).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from protocol.statistics import symmetric

__all__ = ["MAX_EVENTS_PER_PATIENT", "PairCounts", "count_pairs", "symmetric"]

MAX_EVENTS_PER_PATIENT = 20_000
_WHOLE_HISTORY = 2**33  # longer than any difference of two 32-bit days
_BLOCK_CELLS = 2**20  # result cells that one block of rows can need at most: 20 MB of buffers
_BATCH = 1024  # visited events that are gathered before they are added: stays in the first-level cache
_AHEAD = 8  # events by which the next windows are fetched from memory before their turn
_LOW_32 = np.int64(0xFFFFFFFF)


@dataclass(frozen=True, eq=False)
class PairCounts:
    """Pair counts of one set of patients.

    Both matrices are the upper triangle T, diagonal included, of a symmetric matrix
    C = T + T' - diag T (`symmetric` makes it).

    Law: for disjoint sets of patients A and B with the same code numbering and rules,
    count(A) + count(B) = count(A u B), exactly.

    Attributes:
        events: int64 (n_codes, n_codes), co-occurring pairs of events.
        pair_patients: int64 (n_codes, n_codes), distinct patients with at least one such pair.
        code_patients: int64 (n_codes,), distinct patients with the code among their counted events.
        n_patients: distinct patients with any event.
        n_events: events that were counted: duplicates and events beyond the cap are gone.
        capped_patients: patients of whom only the most recent events were counted.
    """

    events: sparse.csr_array[np.int64, tuple[int, int]]
    pair_patients: sparse.csr_array[np.int64, tuple[int, int]]
    code_patients: NDArray[np.int64]
    n_patients: int
    n_events: int
    capped_patients: int = 0

    def __add__(self, other: PairCounts) -> PairCounts:
        """Exact counts of the union of two sets of patients that have no patient in common.

        Raises:
            ValueError: the two number a different set of codes.
        """
        if not isinstance(other, PairCounts):
            return NotImplemented
        if self.events.shape != other.events.shape:
            raise ValueError(
                f"counts of {self.events.shape[0]} and of {other.events.shape[0]} codes do not add"
            )
        return PairCounts(
            events=sparse.csr_array(self.events + other.events),
            pair_patients=sparse.csr_array(self.pair_patients + other.pair_patients),
            code_patients=self.code_patients + other.code_patients,
            n_patients=self.n_patients + other.n_patients,
            n_events=self.n_events + other.n_events,
            capped_patients=self.capped_patients + other.capped_patients,
        )


def count_pairs(
    patient: ArrayLike,
    day: ArrayLike,
    code: ArrayLike,
    n_codes: int,
    *,
    window_days: int | None = 30,
    max_events_per_patient: int | None = MAX_EVENTS_PER_PATIENT,
) -> PairCounts:
    """Count the co-occurring pairs of codes of every patient.

    Identical (patient, day, code) rows are one event. Every unordered pair of distinct events of one patient
    with |day difference| <= window_days counts once; the same day counts; the same code on two days feeds the
    diagonal. With window_days=None the rule is whole history: a patient adds 1 for every unordered pair of
    distinct codes that the patient has, and 1 to the diagonal for a code on two or more distinct days
    (then `events` equals `pair_patients`).

    Time grows with the number of pairs, which is quadratic in the events of one window: the cap keeps a patient
    with an absurd record (a test account, a machine) from stopping the run.

    Args:
        patient: integer (n,), any identifiers.
        day: integer (n,), days from any origin, within 32 bits.
        code: integer (n,), rows of the vocabulary, each in [0, n_codes).
        n_codes: size of the vocabulary.
        window_days: largest difference in days, 0 for the same day only, None for whole history.
        max_events_per_patient: a patient with more distinct events counts with this many of the most recent
            ones (of the last day that is cut, the highest codes); None for no cap.

    The rows may come in any order; rows already sorted by patient and day save the sort. Events that do
    not fit in memory are counted one batch of whole patients at a time, and the counts added.

    Raises:
        ValueError: arrays that are not one-dimensional integers of one length, a code outside [0, n_codes),
            a day beyond 32 bits, a negative window, a cap below 1, 2^31 rows or more (count them in batches).
    """
    if window_days is not None and window_days < 0:
        raise ValueError(f"window_days is {window_days}; it must be 0 or more, or None for whole history")
    if max_events_per_patient is not None and max_events_per_patient < 1:
        raise ValueError(f"max_events_per_patient is {max_events_per_patient}; it must be 1 or more, or None")
    columns = _sorted_columns(*_checked_columns(patient, day, code, n_codes))
    limit = columns[0].size if max_events_per_patient is None else max_events_per_patient
    who, when, what, n_patients, capped = _distinct_events(*columns, limit)
    n_events = who.size
    if window_days is None:
        # With an unbounded window a patient has a pair of two codes exactly when both occur, and a pair on the
        # diagonal exactly when first and last day differ: two events of each code say all.
        keep = _first_or_last(who, what, n_codes)
        who, when, what = who[keep], when[keep], what[keep]
    days = _WHOLE_HISTORY if window_days is None else min(window_days, _WHOLE_HISTORY)
    windows = np.empty((what.size, 4), np.int32)
    start, visits, code_patients = _group_by_code(who, when, what, n_codes, days, windows)
    events, pair_patients = _count_rows(what, windows, start, visits)
    return PairCounts(
        events=pair_patients.copy() if window_days is None else events,
        pair_patients=pair_patients,
        code_patients=code_patients,
        n_patients=int(n_patients),
        n_events=int(n_events),
        capped_patients=int(capped),
    )


_Columns = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]


def _checked_columns(patient: ArrayLike, day: ArrayLike, code: ArrayLike, n_codes: int) -> _Columns:
    """The three columns as int64, int32, int32, or a ValueError that names the first bad row."""
    named = {"patient": np.asarray(patient), "day": np.asarray(day), "code": np.asarray(code)}
    sizes = {name: column.shape for name, column in named.items()}
    if len(set(sizes.values())) != 1 or len(sizes["code"]) != 1:
        raise ValueError(f"patient, day and code must be one-dimensional and of one length, not {sizes}")
    if not 0 <= n_codes < 2**31:
        raise ValueError(f"n_codes is {n_codes}; it must be between 0 and 2^31 - 1")
    if named["code"].size >= 2**31:
        raise ValueError("2^31 events or more at once: count batches of whole patients and add the counts")
    if not named["code"].size:
        return np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int32)
    for name, column in named.items():
        if column.dtype.kind not in "iu":
            raise ValueError(f"{name} must be an array of integers, not of {column.dtype}")
    limits = {"day": (-(2**31), 2**31), "code": (0, n_codes)}
    for name, (low, high) in limits.items():
        column = named[name]
        if int(column.min()) < low or int(column.max()) >= high:
            row = int(np.flatnonzero((column < low) | (column >= high))[0])
            raise ValueError(f"{name}[{row}] is {column[row]}, outside [{low}, {high})")
    # An unsigned 64-bit patient wraps to a negative number: still one number for each patient.
    return named["patient"].astype(np.int64), named["day"].astype(np.int32), named["code"].astype(np.int32)


def _sorted_columns(patient: NDArray[np.int64], day: NDArray[np.int32], code: NDArray[np.int32]) -> _Columns:
    """The rows ordered by patient and day; untouched when they are so already."""
    if _in_order(patient, day):
        return patient, day, code
    first_patient, first_day = int(patient.min()), int(day.min())
    span = int(day.max()) - first_day + 1
    if (int(patient.max()) - first_patient + 1) * span < 2**63:
        # One key for both columns: half the time of sorting by two.
        order = np.argsort((patient - first_patient) * span + (day.astype(np.int64) - first_day))
    else:
        order = np.lexsort((day, patient))
    return patient[order], day[order], code[order]


def _count_rows(
    what: NDArray[np.int32], windows: NDArray[np.int32], start: NDArray[np.int64], visits: NDArray[np.int64]
) -> tuple[sparse.csr_array[np.int64, tuple[int, int]], sparse.csr_array[np.int64, tuple[int, int]]]:
    """Upper triangles of the event pairs and of their patients, from the events grouped by code."""
    n_codes = visits.size
    widest = int((windows[:, 2] - windows[:, 0]).max(initial=0))
    cells = np.minimum(visits, np.arange(1, n_codes + 1))
    filled = np.zeros(n_codes, np.int64)
    blocks = [
        _count_block(what, windows, start, first, stop, int(cells[first:stop].sum()), widest, filled)
        for first, stop in _blocks(cells)
    ]
    empty = (np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64))
    partner, pairs, patients = (np.concatenate(parts) for parts in zip(empty, *blocks, strict=True))
    pointer = np.concatenate([np.zeros(1, np.int64), np.cumsum(filled)])
    if pairs.size < 2**31:
        pointer = pointer.astype(np.int32)
    shape = (n_codes, n_codes)
    # Row j of the accumulator is column j of the upper triangle, and a change from columns to rows sorts
    # the indices on the way: cheaper than sorting each row.
    return (
        sparse.csc_array((pairs, partner, pointer), shape=shape).tocsr(),
        sparse.csc_array((patients, partner, pointer), shape=shape).tocsr(),
    )


def _blocks(cells: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of codes that together need at most _BLOCK_CELLS result cells, or one code that needs more."""
    total = np.concatenate([[0], np.cumsum(cells)])
    first = 0
    while first < cells.size:
        stop = int(np.searchsorted(total, total[first] + _BLOCK_CELLS, side="right")) - 1
        stop = max(stop, first + 1)
        yield first, stop
        first = stop


def _prefetch_type(typing_context: Any, array: Any, index: Any) -> tuple[Any, Callable[..., Any]]:
    """Signature and LLVM code of `_prefetch(array, index)`, which compiled code alone can call."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t] + 3 * [cgutils.int32_t])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
        read_keep_data = [cgutils.int32_t(flag) for flag in (0, 3, 1)]
        builder.call(prefetch, [address, *read_keep_data])
        return context.get_dummy_value()

    return types.void(array, index), emit


# Tells the processor that array[index] will be read soon.
_prefetch: Any = intrinsic(_prefetch_type)


@njit(cache=True, nogil=True)
def _in_order(patient: NDArray[np.int64], day: NDArray[np.int32]) -> bool:
    for i in range(1, patient.size):
        if patient[i] < patient[i - 1] or (patient[i] == patient[i - 1] and day[i] < day[i - 1]):
            return False
    return True


@njit(cache=True, nogil=True)
def _distinct_events(
    patient: NDArray[np.int64], day: NDArray[np.int32], code: NDArray[np.int32], limit: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], int, int]:
    """Rows sorted by patient and day -> distinct events sorted by patient (numbered 0, 1, ...), day and code.

    Of each patient the last `limit` events are kept. Also the number of patients and of those cut.
    """
    n = code.size
    who, when, what = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    kept = n_patients = capped = row = 0
    while row < n:
        this, begin = patient[row], kept
        while row < n and patient[row] == this:
            today, first = day[row], kept
            end = first
            while row < n and patient[row] == this and day[row] == today:
                what[end] = code[row]
                end += 1
                row += 1
            if end - first > 1:
                what[first:end].sort()
            for i in range(first, end):
                if i == first or what[i] != what[kept - 1]:
                    what[kept] = what[i]
                    when[kept] = today
                    kept += 1
        excess = kept - begin - limit
        if excess > 0:
            for i in range(begin, kept - excess):
                what[i] = what[i + excess]
                when[i] = when[i + excess]
            kept -= excess
            capped += 1
        who[begin:kept] = n_patients
        n_patients += 1
    return who[:kept], when[:kept], what[:kept], n_patients, capped


@njit(cache=True, nogil=True)
def _first_or_last(who: NDArray[np.int32], what: NDArray[np.int32], n_codes: int) -> NDArray[np.bool_]:
    """Whether an event is its patient's first or last of its code; events sorted by patient and day."""
    keep = np.zeros(who.size, np.bool_)
    seen = np.full(n_codes, -1, np.int32)
    for i in range(who.size):
        keep[i] = seen[what[i]] != who[i]
        seen[what[i]] = who[i]
    seen[:] = -1
    for i in range(who.size - 1, -1, -1):
        keep[i] |= seen[what[i]] != who[i]
        seen[what[i]] = who[i]
    return keep


@njit(cache=True, nogil=True)
def _group_by_code(
    who: NDArray[np.int32],
    when: NDArray[np.int32],
    what: NDArray[np.int32],
    n_codes: int,
    days: int,
    windows: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Stable counting sort of the events by code, with the window of each.

    Fills windows (n, 4) with: first event of the window, the event itself, end of the window, patient.
    Returns where each code starts (n_codes + 1,), the window events that each code visits, and its patients.
    """
    n = what.size
    start = np.zeros(n_codes + 1, np.int64)
    for i in range(n):
        start[what[i] + 1] += 1
    for j in range(n_codes):
        start[j + 1] += start[j]
    place = start[:-1].copy()
    visits, code_patients = np.zeros(n_codes, np.int64), np.zeros(n_codes, np.int64)
    latest = np.full(n_codes, -1, np.int32)
    first = end = 0
    for i in range(n):
        while who[first] != who[i] or np.int64(when[i]) - when[first] > days:
            first += 1
        while end < n and (who[end] == who[i] and np.int64(when[end]) - when[i] <= days):
            end += 1
        j = what[i]
        slot = place[j]
        place[j] += 1
        windows[slot, 0], windows[slot, 1], windows[slot, 2], windows[slot, 3] = first, i, end, who[i]
        visits[j] += end - first - 1
        if latest[j] != who[i]:
            latest[j] = who[i]
            code_patients[j] += 1
    return start, visits, code_patients


@njit(cache=True, nogil=True)
def _count_block(
    what: NDArray[np.int32],
    windows: NDArray[np.int32],
    start: NDArray[np.int64],
    first_code: int,
    stop_code: int,
    cells: int,
    widest: int,
    filled: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Partners k <= j, event pairs and patients of the codes j in [first_code, stop_code), row after row.

    Writes the number of partners of each code to `filled`. Most of the time goes into waiting for memory and into
    branches that no processor can foretell. So the windows of a batch of events are first gathered, with those
    to come already on their way, and then added; and neither loop has a branch.
    """
    partner, pairs, patients = np.empty(cells, np.int32), np.empty(cells, np.int64), np.empty(cells, np.int64)
    # Per partner: event pairs; patients in the high 32 bits, 1 + the latest patient in the low 32 bits.
    row = np.zeros((stop_code, 2), np.int64)
    touched = np.empty(stop_code + 1, np.int32)
    batch_code, batch_patient = np.empty(_BATCH + widest, np.int32), np.empty(_BATCH + widest, np.int64)
    last = windows.shape[0] - 1
    size = 0
    for j in range(first_code, stop_code):
        n_touched = 0
        event = start[j]
        while event < start[j + 1]:
            n_batch = 0
            while event < start[j + 1] and n_batch < _BATCH:
                itself = windows[event, 1]
                _prefetch(what, windows[min(event + _AHEAD, last), 0])
                for i in range(windows[event, 0], windows[event, 2]):
                    batch_code[n_batch] = what[i]
                    batch_patient[n_batch] = windows[event, 3] + 1
                    n_batch += int(what[i] <= j) & int(i != itself)
                event += 1
            for i in range(n_batch):
                k, who = batch_code[i], batch_patient[i]
                touched[n_touched] = k
                n_touched += int(row[k, 0] == 0)
                row[k, 0] += 1
                support = row[k, 1]
                is_new = int((support & _LOW_32) != who)
                row[k, 1] = (((support >> 32) + is_new) << 32) | who
        for i in range(n_touched):
            k = touched[i]
            partner[size] = k
            # Two events of the same code visit each other.
            pairs[size] = row[k, 0] // 2 if k == j else row[k, 0]
            patients[size] = row[k, 1] >> 32
            row[k, 0] = row[k, 1] = 0
            size += 1
        filled[j] = n_touched
    return partner[:size].copy(), pairs[:size].copy(), patients[:size].copy()
