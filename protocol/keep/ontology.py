"""An is-a graph: codes, their parents, and one root above all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from protocol.errors import DataError

Index = NDArray[np.int64]
DEPTH = 5
ROOT = 0
"""The root's row; its code is empty."""


@dataclass(frozen=True, eq=False)
class IsA:
    """A directed acyclic is-a graph in which every code lies below one root.

    Attributes:
        codes: n codes by falling nearness to the root, then by name; the first is the root, whose code is empty.
        parents: (n, n) with a 1 in row i, column j where j is a parent of i.
        above: code -> codes of the graph that stand for it: itself, or, for a code deeper than the graph goes, its
            nearest ancestors in it.
    """

    codes: tuple[str, ...]
    parents: sp.csr_array
    above: Mapping[str, tuple[str, ...]]

    @cached_property
    def row(self) -> Mapping[str, int]:
        """Code -> its row."""
        return {code: i for i, code in enumerate(self.codes)}

    @cached_property
    def ancestors(self) -> sp.csr_array:
        """(n, n) with a 1 in row i, column j where j is i or an ancestor of i."""
        n = len(self.codes)
        found = sp.csr_array(sp.eye_array(n, format="csr", dtype=np.int8))
        front = found
        while front.nnz:
            front = _support(front @ self.parents)
            found = _support(found + front)
        return found

    @cached_property
    def edges(self) -> sp.csr_array:
        """(n, n) symmetric 0/1 matrix of is-a links, either way."""
        return sp.csr_array(_support(self.parents + self.parents.T).astype(np.float64))

    def places(self, codes: Iterable[str]) -> tuple[Index, Index]:
        """Which of some codes the graph knows, and where they stand.

        Returns:
            positions in `codes`, increasing, and the row of each: of a code that lies deeper than the graph goes, the row
            of its nearest ancestor, the first by name of several.
        """
        found = [(at, self.row[self.above[code][0]]) for at, code in enumerate(codes) if code in self.above]
        both = np.array(found, dtype=np.int64).reshape(-1, 2)
        return both[:, 0], both[:, 1]


def make_is_a(
    links: Iterable[tuple[str, str]], *, wanted: Collection[str] | None = None, depth: int = DEPTH
) -> IsA:
    """The graph of some codes and all their ancestors.

    Codes without a parent become children of the root. A code's depth is its fewest steps below the root; codes
    deeper than `depth` are left out, and their nearest ancestors stand for them (`IsA.above`).

    Args:
        links: (code, parent); an empty parent says that the code has none.
        wanted: codes that matter, others join only as their ancestors; all codes if None.
        depth: at least 1.

    Raises:
        DataError: no links, or a code that is its own ancestor.
        ValueError: depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}; it must be 1 or more")
    up: dict[str, set[str]] = {}
    for code, parent in links:
        up.setdefault(code, set())
        if parent:
            up[code].add(parent)
            up.setdefault(parent, set())
    if not up:
        raise DataError("The ontology holds no codes")
    kept = set(up) if wanted is None else _closed(up, {c for c in wanted if c in up})
    _check_acyclic({code: up[code] for code in kept})
    steps = _depths({code: up[code] for code in kept})
    inside = {code for code in kept if steps[code] <= depth}
    codes = ("", *sorted(inside, key=lambda c: (steps[c], c)))
    row = {code: i for i, code in enumerate(codes)}
    pairs = [(row[c], row[p]) for c in codes[1:] for p in (up[c] & inside or {""})]
    child, parent_row = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    parents = sp.csr_array(
        (np.ones(len(pairs), np.int8), (child, parent_row)), shape=(len(codes), len(codes))
    )
    above = {code: (code,) for code in inside} | {
        code: tuple(sorted(_nearest(up, code, inside))) for code in kept - inside
    }
    return IsA(codes, parents, above)


def _closed(up: Mapping[str, set[str]], codes: set[str]) -> set[str]:
    """The codes and all their ancestors."""
    found, front = set(codes), list(codes)
    while front:
        for parent in up[front.pop()]:
            if parent not in found:
                found.add(parent)
                front.append(parent)
    return found


def _check_acyclic(up: Mapping[str, set[str]]) -> None:
    """Return only if no code is its own ancestor (Kahn's algorithm)."""
    waiting = {code: len(parents) for code, parents in up.items()}
    ready = [code for code, left in waiting.items() if not left]
    below = _children(up)
    done = 0
    while ready:
        done += 1
        for child in below[ready.pop()]:
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    if done < len(up):
        bad = sorted(code for code, left in waiting.items() if left)
        raise DataError(
            f"The ontology has a circle of is-a links at or above {bad[0]}",
            why=f"{len(bad)} codes are their own ancestors, or lie below such codes",
            do="Take one link of the circle out",
        )


def _depths(up: Mapping[str, set[str]]) -> dict[str, int]:
    """Fewest steps below the root; a code without parents has depth 1."""
    below = _children(up)
    steps = {code: 1 for code, parents in up.items() if not parents}
    front = deque(steps)
    while front:
        code = front.popleft()
        for child in below[code]:
            if child not in steps:
                steps[child] = steps[code] + 1
                front.append(child)
    return steps


def _children(up: Mapping[str, set[str]]) -> dict[str, list[str]]:
    below: dict[str, list[str]] = {code: [] for code in up}
    for code, parents in up.items():
        for parent in parents:
            below[parent].append(code)
    return below


def _nearest(up: Mapping[str, set[str]], code: str, inside: set[str]) -> set[str]:
    """The first ancestors that are inside, going up from a code that is not."""
    front, found = set(up[code]), set()
    while front:
        found |= front & inside
        front = {p for c in front - inside for p in up[c]}
    return found


def _support(matrix: sp.csr_array) -> sp.csr_array:
    """1 where the matrix is not 0."""
    out = sp.csr_array(matrix)
    out.sum_duplicates()
    out.data = np.ones_like(out.data)
    return out
