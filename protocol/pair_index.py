"""Which pairs of codes are tested, in an order that both sides derive alike, and products with matrices of such pairs.

Codes stand in falling order of their level a; a pair is tested if its expected count a_j a_k is large enough. So the partners
of each code are the commonest ones, a row without gaps, and all tested pairs lie behind one another in one vector:

    rank 0:  (0,1) (0,2) (0,3) (0,4) ... (0, width_0 - 1)
    rank 1:        (1,2) (1,3) (1,4) ...
    rank 2:              (2,3)

The number of a pair is arithmetic, and a matrix with entries at tested pairs only is worked on a dense tile at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import DataError

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

MAX_PAIRS = 1 << 24
"""Tested pairs of one study, so that a vector of them stays below 128 MiB."""
_TILE = 1 << 21  # entries of a dense tile: a product's operands stay within a few MiB


@dataclass(frozen=True, eq=False)
class PairIndex:
    """The tested pairs of codes; no code is paired with itself.

    Attributes:
        order: (p,) int64, codes that have any tested pair, the highest level first; of equal levels the first code first.
        width: (p,) int64; the pairs of rank i are those with ranks i + 1 to width[i] - 1. Never rises.
        offset: (p + 1,) int64, where the pairs of each rank begin.
    """

    order: Int64s
    width: Int64s
    offset: Int64s

    @property
    def size(self) -> int:
        """How many pairs are tested."""
        return int(self.offset[-1])

    def rank(self, n_codes: int) -> Int64s:
        """(n_codes,) rank of each code; p of a code without tested pairs."""
        rank = np.full(n_codes, self.order.size, np.int64)
        rank[self.order] = np.arange(self.order.size)
        return rank

    def ranks(self) -> tuple[Int64s, Int64s]:
        """(m,) the two ranks of each pair, the lower one first."""
        length = np.diff(self.offset)
        row = np.repeat(np.arange(self.order.size), length)
        return row, np.arange(self.size) - self.offset[row] + row + 1

    def codes(self) -> tuple[Int64s, Int64s]:
        """(m,) the two codes of each pair, the more common one first."""
        row, column = self.ranks()
        return self.order[row], self.order[column]

    def outer(self, x: Floats) -> Floats:
        """(m,) x_j x_k of each pair, for x (p,) by rank."""
        out = np.empty(self.size)
        for i, part, columns in self.rows():
            np.multiply(x[columns], x[i], out=out[part])
        return out

    def rows(self, first: int = 0, stop: int | None = None) -> Iterator[tuple[int, slice, slice]]:
        """For each rank from `first` on that has pairs: the rank, their places, and the ranks of their partners."""
        for i in range(first, self.order.size if stop is None else stop):
            if self.width[i] > i + 1:
                yield i, slice(int(self.offset[i]), int(self.offset[i + 1])), slice(i + 1, int(self.width[i]))

    def tiles(self) -> Iterator[tuple[int, int, int]]:
        """Ranges of ranks [first, stop) with pairs, and the width of the first: a dense tile each."""
        first = 0
        rows = int((np.diff(self.offset) > 0).sum())
        while first < rows:
            stop = min(rows, first + max(1, _TILE // int(self.width[first] - first)))
            yield first, stop, int(self.width[first])
            first = stop

    def tile(self, values: npt.NDArray[Any], first: int, stop: int, last: int) -> Floats:
        """(stop - first, last - first - 1) the pairs of ranks [first, stop) with ranks first + 1 to last - 1; 0 elsewhere."""
        dense = np.zeros((stop - first, last - first - 1))
        for i, part, columns in self.rows(first, stop):
            dense[i - first, columns.start - first - 1 : columns.stop - first - 1] = values[part]
        return dense

    def times(self, values: npt.NDArray[Any], block: Floats) -> Floats:
        """(p, k) product of the symmetric matrix with these values at tested pairs, (m,), and a (p, k) block."""
        out = np.zeros_like(block)
        for first, stop, last in self.tiles():
            dense = self.tile(values, first, stop, last)
            out[first:stop] += dense @ block[first + 1 : last]
            out[first + 1 : last] += dense.T @ block[first:stop]
        return out


def index_pairs(level: npt.ArrayLike, minimum: float) -> PairIndex:
    """The pairs j < k with a_j a_k >= minimum.

    Products and comparisons of float64, which every machine rounds alike: all parties get the same pairs in the same order.

    Args:
        level: (n,) levels a of the codes, not negative.
        minimum: least expected count of a pair, above 0.

    Raises:
        DataError: no pair is left, or more than 2^24.
    """
    a = np.asarray(level, np.float64)
    order = np.lexsort((np.arange(a.size), -a))
    falling = a[order]
    # Of falling levels, those that reach the minimum with a given one come first; and fewer do, the lower it is.
    width = np.empty(a.size, np.int64)
    reach = a.size
    for i, own in enumerate(falling.tolist()):
        while reach > 0 and own * falling[reach - 1] < minimum:
            reach -= 1
        width[i] = reach
    kept = int(width[0]) if width.size else 0
    width = np.maximum(width[:kept], np.arange(1, kept + 1))
    offset = np.concatenate([np.zeros(1, np.int64), np.cumsum(width - np.arange(1, kept + 1))])
    if not offset[-1]:
        raise DataError(
            f"No pair of codes has an expected count of {minimum:g} or more",
            why="the margins are too small",
            do="Lower the least expected count, or test with more data",
        )
    if offset[-1] > MAX_PAIRS:
        raise DataError(
            f"{int(offset[-1]):,} pairs of codes have an expected count of {minimum:g} or more, at most {MAX_PAIRS:,} are tested",
            do="Raise the least expected count, or test fewer codes",
        )
    return PairIndex(order[:kept].astype(np.int64), width, offset)
