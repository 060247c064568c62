"""Sticky counts: from release to release a count stays as it was until enough patients have moved it.

Under plain thresholds and rounding one patient more moves over a hundred cells, and whoever subtracts two releases sees
which codes this patient has. Here a count is published anew only where at least `sticky_patients` distinct patients
differ, as many as a cell needs to be published at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from protocol.messages import Policy
from site_agent.cooccurrence import PairCounts
from site_agent.gate.suppression import in_force

Int64s = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reference:
    """Counts as they were when they were last published; what the next release is held against.

    Attributes:
        codes: CURIEs in order of text.
        counts: patients of all codes, those below the floor too; only the pairs at or over the floor.
        floor: distinct patients that a pair needed.
    """

    codes: tuple[str, ...]
    counts: PairCounts
    floor: int


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells of an upper triangle in order: key row * n + column, patients, event pairs."""

    key: Int64s
    patients: Int64s
    events: Int64s

    def at(self, wanted: Int64s) -> tuple[Int64s, Int64s]:
        """Patients and event pairs at these keys; 0 where there is no such cell."""
        place = np.searchsorted(self.key, wanted)
        found = np.zeros(len(wanted), bool)
        inside = place < len(self.key)
        found[inside] = self.key[place[inside]] == wanted[inside]
        patients, events = np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.int64)
        patients[found], events[found] = self.patients[place[found]], self.events[place[found]]
        return patients, events


def sticky_counts(
    counts: PairCounts,
    codes: tuple[str, ...],
    last: Reference | None,
    policy: Policy,
    *,
    same_rules: bool = True,
) -> Reference:
    """The counts that may be published after `last`.

    With M = `sticky_patients`, a count that `last` holds stays unless its distinct patients now differ by at least M; pairs
    move with their patients, the number of event pairs along with them. A pair that `last` does not hold was below its
    floor f, and had no more patients than either of its codes: it appears with at least
    min(f - 1, smaller count of its codes in `last`) + M patients. What is below the present floor is withheld.

    Args:
        counts: every cell at or over the present floor, and the exact cells that `last` holds (`doubtful_cells` names
            those that counting must not withhold); other cells below the floor have no effect.
        codes: CURIEs of the rows, in order of text.
        last: None for a site's first release.
        policy: the site's floors; a small site's pair floor is that of `Policy.at`.
        same_rules: False if pairs were counted by other rules than those of `last`: then pairs begin anew. Patients of a
            code are comparable in any case.

    Returns:
        The new reference. Its codes are those given and those of `last`: a code that is gone may still stick.

    Raises:
        ValueError: the codes are not in order of text, or not as many as the counts have.

    Laws: if fewer than M patients were added, removed or altered since `last`, and `last` holds what was true then, the
        counts of the result are those of `last`. Applied twice to the same data, it gives the same.
    """
    if len(codes) != len(counts.code_patients) or any(a >= b for a, b in pairwise(codes)):
        raise ValueError("the counts need one code a row, each once and in order of text")
    most = policy.sticky_patients
    n_patients = counts.n_patients if last is None else _one(counts.n_patients, last.counts.n_patients, most)
    # By the sticky number: what fewer than M patients changed moves no floor either.
    floor = in_force(policy, n_patients).min_pair_patients
    if last is None:
        cells = _cells(counts, np.arange(len(codes)), len(codes))
        shown = cells.patients >= floor
        kept = _Cells(cells.key[shown], cells.patients[shown], cells.events[shown])
        return Reference(codes, _counts(kept, counts.code_patients, counts, cells), floor)
    union, here, before = _union(codes, last)
    n = len(union)
    seen, old_seen = np.zeros(n, np.int64), np.zeros(n, np.int64)
    seen[here], old_seen[before] = counts.code_patients, last.counts.code_patients
    code_patients = _stick(seen, old_seen, most)
    now, old = _cells(counts, here, n), _cells(last.counts, before, n)
    if same_rules:
        bound = np.minimum(old_seen, last.floor - 1)
        cells = _stuck(now, old, bound, n, most, floor)
    else:
        over = now.patients >= floor
        cells = _Cells(now.key[over], now.patients[over], now.events[over])
    made = _counts(cells, code_patients, counts, now)
    made = replace(
        made,
        n_patients=n_patients,
        capped_patients=_one(counts.capped_patients, last.counts.capped_patients, most),
    )
    still = (
        np.array_equal(cells.key, old.key)
        and np.array_equal(cells.patients, old.patients)
        and np.array_equal(code_patients, old_seen)
        and made.n_patients == last.counts.n_patients
    )
    if still:  # then totals, of which one patient can move many, stay too
        made = replace(
            made,
            withheld_cells=last.counts.withheld_cells,
            withheld_events=last.counts.withheld_events,
            n_events=last.counts.n_events,
        )
    return Reference(union, made, floor)


def doubtful_cells(codes: Sequence[str], last: Reference, policy: Policy) -> Int64s:
    """(m,) cells of the reference of which "below the floor" does not say whether they moved enough.

    A cell of c patients that falls below the floor f has certainly moved by M if c - (f - 1) >= M. Of the others
    `sticky_counts` needs the exact count.

    Args:
        codes: CURIEs of the rows that the counts will have, in order of text.
        last: the reference.
        policy: the site's floors, those by which cells are withheld from counts.

    Returns:
        row * n + column of each cell whose two codes are still there, increasing.
    """
    place = {code: i for i, code in enumerate(codes)}
    where = np.array([place.get(code, -1) for code in last.codes], np.int64)
    cells = last.counts.pair_patients.tocoo()
    row, column = where[cells.coords[0]], where[cells.coords[1]]
    wanted = cells.data < policy.sticky_patients + policy.min_pair_patients - 1
    wanted &= (row >= 0) & (column >= 0)
    return np.sort(row[wanted] * len(place) + column[wanted])


def _union(codes: tuple[str, ...], last: Reference) -> tuple[tuple[str, ...], Int64s, Int64s]:
    """All codes that are there or still stick, and where those of either side are among them.

    Both lists are in order of text, so that an upper triangle stays one.
    """
    union = tuple(sorted({*codes, *last.codes}))
    place = {code: i for i, code in enumerate(union)}
    here, before = (np.array([place[c] for c in side], np.int64) for side in (codes, last.codes))
    return union, here, before


def _stuck(now: _Cells, old: _Cells, bound: Int64s, n: int, most: int, floor: int) -> _Cells:
    """Cells of the reference, moved or not, and those that appear."""
    patients, events = now.at(old.key)
    moved = np.abs(patients - old.patients) >= most
    kept = _Cells(old.key, np.where(moved, patients, old.patients), np.where(moved, events, old.events))
    was, _ = old.at(now.key)
    least = np.minimum(bound[now.key // n], bound[now.key % n]) + most
    fresh = (was == 0) & (now.patients >= least)
    key = np.concatenate([kept.key, now.key[fresh]])
    order = np.argsort(key, kind="stable")
    patients = np.concatenate([kept.patients, now.patients[fresh]])[order]
    events = np.concatenate([kept.events, now.events[fresh]])[order]
    over = patients >= max(floor, 1)
    return _Cells(key[order][over], patients[over], events[over])


def _stick(now: Int64s, old: Int64s, most: int) -> Int64s:
    return np.where(np.abs(now - old) >= most, now, old)


def _one(now: int, old: int, most: int) -> int:
    return now if abs(now - old) >= most else old


def _cells(counts: PairCounts, place: Int64s, n: int) -> _Cells:
    """The cells of counts whose rows lie at `place` among n codes."""
    events = counts.events
    row = np.repeat(place, np.diff(events.indptr))
    key = row * n + place[events.indices]
    return _Cells(key, np.asarray(counts.pair_patients.data), np.asarray(events.data))


def _counts(cells: _Cells, code_patients: Int64s, true: PairCounts, now: _Cells) -> PairCounts:
    """Counts of the cells that may be shown; all others of the true ones are tallied as withheld."""
    n = len(code_patients)
    pointer = np.searchsorted(cells.key, np.arange(n + 1, dtype=np.int64) * n)
    column = cells.key % max(n, 1)

    def matrix(data: Int64s) -> sparse.csr_array[Any, tuple[int, int]]:
        kind = np.int32 if len(data) < 2**31 else np.int64
        made = sparse.csr_array((data, column.astype(kind), pointer.astype(kind)), shape=(n, n))
        made.has_canonical_format = True
        return made

    shown, _ = now.at(cells.key)
    events = int(now.events.sum()) + true.withheld_events
    return PairCounts(
        events=matrix(cells.events),
        pair_patients=matrix(cells.patients),
        code_patients=code_patients,
        n_patients=true.n_patients,
        n_events=true.n_events,
        capped_patients=true.capped_patients,
        withheld_cells=len(now.key) + true.withheld_cells - int((shown > 0).sum()),
        withheld_events=max(0, events - int(cells.events.sum())),
    )
