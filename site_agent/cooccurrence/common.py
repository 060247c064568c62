"""The commonest codes: half of all pairs are between a few of them, and those are counted in place.

Their table is dense, and the pairs in it that are hit most lie side by side, in the cache. The pair of the a-th and the
b-th commonest code, b <= a, is cell a (a + 1) / 2 + b, so that it begins with the commonest ones, whatever its size.

Source: frequencies of codes fall about as 1 / rank (Zipf): of 20,000 codes, 1,000 make 51 % of
the pairs and 7 % of the cells.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

_MOST = 1000  # codes: a table of 4 MB, which the processor's cache holds; twice as many gain nothing
_SAMPLE = 2**20  # events that say which codes are common


class Common(NamedTuple):
    """The commonest codes and a table of their pairs for each thread.

    Attributes:
        code: (n,) the commonest first.
        rank: (n_codes,) place of each code there; n if it is not.
        table: (threads, n (n + 1) / 2) event pairs in the low 32 bits, in the high ones a number of the latest patient.
        repeats: event pairs of a cell beyond a patient's first: the others are its patients.
    """

    code: NDArray[np.int32]
    rank: NDArray[np.int32]
    table: NDArray[np.uint64]
    repeats: NDArray[np.uint32]

    @classmethod
    def of(cls, code: NDArray[np.int32], n_codes: int, threads: int, cells: int) -> Self:
        """Chosen by a sample of the events; a thread's cells are no more than its part of `cells`, or the events.

        The choice decides how long the counting takes, and nothing else.
        """
        n = min(_MOST, n_codes, isqrt(max(0, min(cells // threads, code.size))))
        often = np.bincount(code[:: code.size // _SAMPLE + 1], minlength=n_codes)
        top = np.argpartition(often, n_codes - n)[n_codes - n :] if n else np.empty(0, np.int64)
        top = top[np.argsort(-often[top], kind="stable")]
        rank = np.full(n_codes, n, np.int32)
        rank[top] = np.arange(n)
        shape = (threads, n * (n + 1) // 2)
        return cls(top.astype(np.int32), rank, np.zeros(shape, np.uint64), np.zeros(shape, np.uint32))

    def clear(self) -> None:
        """Forget what was counted."""
        self.table[:] = 0
        self.repeats[:] = 0
