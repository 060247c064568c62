"""What makes a statistic one that can be summed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.study import StudySpec

if TYPE_CHECKING:
    from protocol.sums.proposal import SumProposal


class CellIndex(NamedTuple):
    """Agreed pairs of codes, both (m,) int32 rows of the vocabulary."""

    row: npt.NDArray[np.int32]
    column: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Shape:
    """What a proposal asks for, derived anew by each party.

    Attributes:
        cells: of the vector.
        pairs: of codes that the cells are of; None where they are of single codes.
        digests: of what decides the cells' meaning besides the vocabulary, by name; sums over the same data are the same
            if these are.
    """

    cells: int
    pairs: CellIndex | None = None
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """One statistic.

    Attributes:
        what: is summed, for people.
        given: fields of the proposal that hold what the statistic follows from, besides the vocabulary; no other may be there.
        shape: of a proposal under a study; raises DataError where what is given allows no such sum.
        unfit: why a study cannot have it summed, in clauses; none if it can.
        check: raises ValueError where the fields given do not fit together.
        pair_floor: whether pairs of too few patients enter as zero; where not, only codes do.
        reveals: to those who learn the total, beyond the total; for people, empty for nothing.
    """

    what: str
    given: frozenset[str]
    shape: Callable[[SumProposal, StudySpec], Shape]
    unfit: Callable[[StudySpec], tuple[str, ...]] = lambda study: ()
    check: Callable[[SumProposal], None] = lambda proposal: None
    pair_floor: bool = True
    reveals: str = ""
