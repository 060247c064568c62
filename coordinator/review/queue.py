"""What to look at first: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from coordinator.exports.table import Entry
from coordinator.review.standing import Standing, State

MAX_PAGE: Final = 1000


@dataclass(frozen=True)
class Task:
    """A code that waits for somebody.

    Attributes:
        code: the CURIE.
        entry: what the release says of it.
        standing: as the reviewer may see it.
        doubt: bits that the answer to "is this target right?" is worth, see `doubts`.
    """

    code: str
    entry: Entry
    standing: Standing
    doubt: float


@dataclass(frozen=True)
class Progress:
    """How far the review of a release is.

    Attributes:
        counts: state -> codes outside the standard system.
        total: of them.
        records: of the whole log.
    """

    counts: Mapping[State, int]
    total: int
    records: int

    @property
    def settled(self) -> int:
        """Codes that were accepted or rejected."""
        return self.counts["accepted"] + self.counts["rejected"]


def doubts(probability: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Entropy, in bits, of whether each target is right: what one learns on average by looking.

    -p log2 p - (1 - p) log2 (1 - p); 1 at p = 1/2, 0 at 0 and 1. It is the expected value of an answer as far as that can be
    known: what a wrong mapping costs differs between the studies that use the map, so nothing else weighs.

    Source: Lewis and Gale 1994, uncertainty sampling; for a binary answer entropy and closeness to 1/2 give one order.
    """
    p = np.asarray(probability, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        both = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    return np.asarray(np.where((p > 0) & (p < 1), both, 0.0))
