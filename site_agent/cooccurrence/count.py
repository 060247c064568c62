"""Events in, exact pair counts out: checks, chunks that fit the memory, and threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from site_agent.cooccurrence.common import Common
from site_agent.cooccurrence.counts import PairCounts, add_counts, matrices
from site_agent.cooccurrence.summing import bucket_sizes, sum_buckets
from site_agent.cooccurrence.writing import PAGE, in_order, write_pairs

MAX_EVENTS_PER_PATIENT = 20_000
MEMORY = 2 * 2**30

_BYTES_A_PAIR = 48  # 8 in the pool, at worst 24 in the result; the rest for the tables, the largest bucket and waiting parts
_BUCKET_BITS = 8  # buckets as a power of two: a cache line and a memory page of each stay at hand
_SPANS = 32  # ranges of buckets that threads take in turn
_PARTS = 8  # counts of chunks that wait to be added, at most
_BYTES_A_CELL = 20
_WHOLE_HISTORY = -1
_NO_LIMIT = 2**62
_MOST_PAIRS = 2**31 - 1  # of a chunk: a cell's number fits 32 bits


def count_pairs(
    patient: ArrayLike,
    day: ArrayLike,
    code: ArrayLike,
    n_codes: int,
    *,
    window_days: int | None = 30,
    max_events_per_patient: int | None = MAX_EVENTS_PER_PATIENT,
    threads: int | None = None,
    memory: int = MEMORY,
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
        threads: that count at the same time, by patients and then by codes; the machine's cores if None.
        memory: bytes that the counting may take beside the events, the result, and the result so far while more is
            added to it.

    The rows may come in any order; rows already sorted by patient and day save the sort. Events that do not fit in
    memory are counted one batch of whole patients at a time, and the counts added (`site_agent.counting`).

    Law: the result is the same for any number of threads and any memory.

    Raises:
        ValueError: arrays that are not one-dimensional integers of one length, a code outside [0, n_codes),
            a day beyond 32 bits, a negative window, a cap or a number of threads below 1, or 2^31 rows or more
            (count them in batches).
    """
    if window_days is not None and window_days < 0:
        raise ValueError(f"window_days is {window_days}; it must be 0 or more, or None for whole history")
    if max_events_per_patient is not None and max_events_per_patient < 1:
        raise ValueError(f"max_events_per_patient is {max_events_per_patient}; it must be 1 or more, or None")
    threads = len(os.sched_getaffinity(0)) if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads is {threads}; it must be 1 or more")
    columns = _sorted_columns(*_checked_columns(patient, day, code, n_codes), threads)
    rule = _Rule(
        n_codes=n_codes,
        days=_WHOLE_HISTORY if window_days is None else min(window_days, 2**33),
        limit=_NO_LIMIT if max_events_per_patient is None else max_events_per_patient,
        pages=max(2, min(memory // _BYTES_A_PAIR, 2**31 - 1) // PAGE),
        threads=threads,
    )
    counts = _count(columns, rule)
    if window_days is None:
        return replace(counts, events=counts.pair_patients.copy())
    return counts


@dataclass(frozen=True)
class _Rule:
    """What is counted and with what; `pages` of pairs in all."""

    n_codes: int
    days: int
    limit: int
    pages: int
    threads: int

    @property
    def column_bits(self) -> int:
        return max(1, (self.n_codes - 1).bit_length())

    @property
    def shift(self) -> int:
        """Rows of a bucket as a power of two: few enough that row and column fit 32 bits."""
        return max(0, min(self.column_bits - _BUCKET_BITS, 32 - self.column_bits))


class _Pool:
    """Where each thread writes pairs down; used again for each chunk."""

    def __init__(self, rule: _Rule, code: NDArray[np.int32]) -> None:
        self.buckets = ((max(rule.n_codes, 1) - 1) >> rule.shift) + 1
        pages = rule.pages // rule.threads + self.buckets + 1
        self.pairs = np.empty((rule.threads, pages * PAGE), np.uint64)
        self.first = np.empty((rule.threads, self.buckets), np.int32)
        self.link = np.empty((rule.threads, pages), np.int32)
        self.position = np.empty((rule.threads, self.buckets), np.uint64)
        self.common = Common.of(code, rule.n_codes, rule.threads, rule.pages * PAGE // 4)


def _count(columns: _Columns, rule: _Rule) -> PairCounts:
    """Counts of sorted rows, chunk after chunk of what fits the pool."""
    ends = _patient_cuts(columns[0], rule.threads)
    at = ends[:-1].copy()
    if not columns[0].size:
        return PairCounts.none(rule.n_codes)
    pool, parts = _Pool(rule, columns[2]), []
    with ThreadPoolExecutor(rule.threads) as executor:
        while (at < ends[1:]).any():
            written = _write(executor, columns, rule, pool, at, ends[1:])
            stuck = [t for t in range(rule.threads) if written.row[t] == at[t] < ends[t + 1]]
            parts.append(_sum(executor, rule, pool, written))
            at = written.row
            if (at < ends[1:]).any():
                pool.common.clear()
            for t in stuck:
                stop = int(
                    at[t] + np.searchsorted(columns[0][at[t] : ends[t + 1]], columns[0][at[t]], side="right")
                )
                parts.append(_count_one(executor, columns, rule, pool, int(at[t]), stop))
                at[t] = stop
            waiting = sum(part.events.nnz for part in parts[1:]) * _BYTES_A_CELL
            if len(parts) >= _PARTS or waiting > rule.pages * PAGE * _BYTES_A_PAIR // 4:
                parts = [add_counts(parts, threads=rule.threads)]
    return parts[0] if len(parts) == 1 else add_counts(parts, threads=rule.threads)


def _count_one(
    executor: ThreadPoolExecutor, columns: _Columns, rule: _Rule, pool: _Pool, begin: int, end: int
) -> PairCounts:
    """Counts of one patient with more pairs than the pool holds: a range of codes at a time."""
    at = np.array([begin] + [end] * (rule.threads - 1))
    ends = np.full(rule.threads, end)
    waiting, parts = [(0, rule.n_codes)], []
    while waiting:
        low, high = waiting.pop()
        written = _write(executor, columns, rule, pool, at, ends, (low, high))
        if written.row[0] == end:
            parts.append(_sum(executor, rule, pool, written))
        elif high - low > 1:
            middle = (low + high) // 2
            waiting += [(middle, high), (low, middle)]
        else:
            pool = _Pool(replace(rule, pages=2 * rule.threads * pool.link.shape[1]), columns[2][:0])
            waiting.append((low, high))
    whole = add_counts(parts, threads=rule.threads)
    one = parts[0]
    return replace(
        whole,
        code_patients=one.code_patients,
        n_patients=1,
        n_events=one.n_events,
        capped_patients=one.capped_patients,
    )


class _Written(NamedTuple):
    """What the threads wrote: the row at which each stopped, and tallies of the patients done."""

    row: NDArray[np.int64]
    tallies: NDArray[np.int64]
    code_patients: NDArray[np.int64]


def _write(
    executor: ThreadPoolExecutor,
    columns: _Columns,
    rule: _Rule,
    pool: _Pool,
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    rows: tuple[int, int] | None = None,
) -> _Written:
    code_patients = np.zeros((rule.threads, rule.n_codes), np.int64)
    span = None if rows is None else (np.uint64(rows[0]), np.uint64(rows[1]))

    def write(t: int) -> tuple[int, int, int, int]:
        tables = (pool.pairs[t], pool.first[t], pool.link[t], pool.position[t], code_patients[t])
        where, limits = (int(begin[t]), int(end[t])), (rule.limit, rule.days)
        # A range of codes is asked for where one patient is too much for the tables: none is common then.
        dense, repeats = pool.common.table[t], pool.common.repeats[t]
        if span is not None:
            dense, repeats = dense[:0], repeats[:0]
        room, bits = _MOST_PAIRS // rule.threads, (rule.shift, rule.column_bits)
        return write_pairs(
            *columns, *where, *limits, span, *bits, room, pool.common.rank, dense, repeats, *tables
        )

    done = np.array(list(executor.map(write, range(rule.threads))), np.int64)
    return _Written(done[:, 0], done[:, 1:].sum(axis=0), code_patients.sum(axis=0))


def _sum(executor: ThreadPoolExecutor, rule: _Rule, pool: _Pool, written: _Written) -> PairCounts:
    filled = np.zeros(pool.buckets << rule.shift, np.int64)
    sizes = bucket_sizes(pool.first, pool.link, pool.position)
    common = np.sort(pool.common.code)
    np.add.at(sizes, common >> rule.shift, common.size - np.arange(common.size))
    place = np.concatenate([[0], np.cumsum(sizes)])
    most = int(place[-1])
    cells = (np.empty(most, np.int32), np.empty(most, np.int64), np.empty(most, np.int64))
    scratch: SimpleQueue[tuple[NDArray[np.uint64], NDArray[np.int64]]] = SimpleQueue()
    for _ in range(rule.threads):
        scratch.put((np.empty(int(sizes.max(initial=0)), np.uint64), np.zeros((rule.n_codes, 2), np.int64)))

    def add(span: tuple[int, int]) -> int:
        own = scratch.get()
        part = slice(place[span[0]], place[span[1]])
        size = sum_buckets(
            *span,
            rule.shift,
            rule.column_bits,
            pool.pairs,
            pool.first,
            pool.link,
            pool.position,
            (*pool.common,),
            *own,
            cells[0][part],
            cells[1][part],
            cells[2][part],
            filled,
        )
        scratch.put(own)
        return int(size)

    # One thread goes through all buckets at once: then no cells have to be moved.
    n_spans = _SPANS if rule.threads > 1 else 1
    cuts = np.unique(np.searchsorted(place, np.linspace(0, most, n_spans + 1)[1:-1]))
    spans = list(pairwise([0, *cuts[(cuts > 0) & (cuts < pool.buckets)].tolist(), pool.buckets]))
    counted = list(executor.map(add, spans))
    begins = [int(place[span[0]]) for span in spans]
    list(executor.map(_close_up, cells, repeat(begins), repeat(counted)))
    events, pair_patients = matrices(filled[: rule.n_codes], *cells)
    n_patients, n_events, capped = (int(n) for n in written.tallies)
    return PairCounts(events, pair_patients, written.code_patients, n_patients, n_events, capped)


def _close_up(whole: NDArray[Any], begins: list[int], sizes: list[int]) -> None:
    """Move the parts of an array to its front, and give the rest back: half the memory of copying them elsewhere."""
    stop = 0
    for begin, size in zip(begins, sizes, strict=True):
        if begin > stop:
            whole[stop : stop + size] = whole[begin : begin + size]
        stop += size
    whole.resize(stop, refcheck=False)  # what was lent of it is out of use


def _patient_cuts(patient: NDArray[np.int64], threads: int) -> NDArray[np.int64]:
    """Rows that part the sorted patients into `threads` ranges of about equal size: (threads + 1,)."""
    cuts = patient.size * np.arange(threads + 1) // threads
    if patient.size:
        # To the beginning of the patient there.
        cuts[1:-1] = np.searchsorted(patient, patient[cuts[1:-1]], side="left")
    return cuts


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
        if name == "day" and column.dtype == np.int32:
            continue
        if int(column.min()) < low or int(column.max()) >= high:
            row = int(np.flatnonzero((column < low) | (column >= high))[0])
            raise ValueError(f"{name}[{row}] is {column[row]}, outside [{low}, {high})")
    # An unsigned 64-bit patient wraps to a negative number: still one number for each patient.
    patient_column, day_column, code_column = (
        np.ascontiguousarray(column, dtype=kind)
        for column, kind in zip(named.values(), (np.int64, np.int32, np.int32), strict=True)
    )
    return patient_column, day_column, code_column


def _sorted_columns(
    patient: NDArray[np.int64], day: NDArray[np.int32], code: NDArray[np.int32], threads: int
) -> _Columns:
    """The rows ordered by patient and day; untouched when they are so already."""
    cuts = patient.size * np.arange(threads + 1) // threads
    with ThreadPoolExecutor(threads) as executor:
        # Each part begins with the last row of the part before.
        parts = [slice(max(int(a) - 1, 0), int(b)) for a, b in pairwise(cuts)]
        if all(executor.map(lambda part: in_order(patient[part], day[part]), parts)):
            return patient, day, code
    first_patient, first_day = int(patient.min()), int(day.min())
    span = int(day.max()) - first_day + 1
    if (int(patient.max()) - first_patient + 1) * span < 2**63:
        # One key for both columns: half the time of sorting by two.
        order = np.argsort((patient - first_patient) * span + (day.astype(np.int64) - first_day))
    else:
        order = np.lexsort((day, patient))
    return patient[order], day[order], code[order]
