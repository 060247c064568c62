"""Sums of counts of codes and of pairs of codes.

    margins   patients of each code (n), row sums of C of each code (n), patients (1)
    cells     C_jk of the agreed pairs j <= k, by row and then by column

In a differentially private study, where nothing bounds what one patient adds to C, distinct patients stand for pairs of
events: in `cells` those of the pair, in `margins` those of the code once more in place of its row sum.

C is the symmetric matrix of co-occurring pairs of events over V. The agreed pairs are those
whose count, expected from the pooled margins r, is large enough: r_j r_k / sum(r) >= minimum.
Both sides derive them by `agreed_cells`, so a site can check what it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from pydantic import Field

from protocol.canonical import digest
from protocol.errors import DataError
from protocol.messages import Message
from protocol.secure_sum.fixed import Int64Vector
from protocol.secure_sum.state import need
from protocol.study import StudySpec
from protocol.sums.kind import CellIndex, Kind, Shape

if TYPE_CHECKING:
    from protocol.sums.proposal import SumProposal

MAX_AGREED = 1 << 24
"""Pairs of codes in one sum: a vector of 128 MiB."""


class PooledMargins(Message):
    """The outcome of the sum of margins, from which the pairs of the next sum follow."""

    code_patients: tuple[int, ...] = Field(description="(n,) sums of the sites' distinct patients of a code.")
    rows: tuple[int, ...] = Field(description="(n,) row sums of C, the pairs of events that a code is in.")
    patients: int = Field(description="Sum of the sites' patients.")


def agreed_cells(rows: npt.ArrayLike, minimum: int, total: int | None = None) -> CellIndex:
    """The pairs j <= k with r_j r_k >= minimum * total, in order of j, then of k.

    Products are of float64, which every machine rounds alike, so all parties get the same pairs.
    Negative margins, which noise can make, count as zero.

    Args:
        rows: (n,) pooled row sums r.
        minimum: least expected count of a pair, r_j r_k / total.
        total: sum(r) unless given, as the number of patients where r counts the patients of each code.

    Raises:
        DataError: no pair is left, or more than 2^24.
    """
    r = np.maximum(np.asarray(rows, dtype=np.float64), 0.0)
    whole = float(r.sum()) if total is None else float(max(total, 1))
    bound = max(minimum * whole, np.finfo(np.float64).tiny)
    found, size = [], 0
    for j in np.flatnonzero(r):
        columns = (np.flatnonzero(r[j] * r[j:] >= bound) + j).astype(np.int32)
        size += len(columns)
        if size > MAX_AGREED:
            raise DataError(
                f"More than {MAX_AGREED:,} pairs of codes have an expected count of {minimum} or more",
                do="Raise sharing.minimum_expected in the study, or sum over fewer codes",
            )
        found.append((np.full(len(columns), j, dtype=np.int32), columns))
    if not size:
        raise DataError(
            f"No pair of codes has an expected count of {minimum} or more",
            why="the pooled margins are too small",
            do="Lower sharing.minimum_expected in the study, or sum again with more data",
        )
    return CellIndex(np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found]))


def read_margins(values: Int64Vector) -> PooledMargins:
    """Margins from their vector (2n + 1,)."""
    codes = (len(values) - 1) // 2
    return PooledMargins(
        code_patients=tuple(values[:codes].tolist()),
        rows=tuple(values[codes : 2 * codes].tolist()),
        patients=int(values[-1]),
    )


def _check(proposal: SumProposal) -> None:
    margins = proposal.margins
    if margins is not None and not (
        len(margins.code_patients) == len(margins.rows) == len(proposal.vocabulary)
    ):
        raise ValueError("the pooled margins are of another vocabulary")


def _of_margins(proposal: SumProposal, study: StudySpec) -> Shape:
    return Shape(cells=2 * len(proposal.vocabulary) + 1, digests={"pairs": ""})


def _of_cells(proposal: SumProposal, study: StudySpec) -> Shape:
    margins = need(proposal.margins)
    total = margins.patients if study.differential_privacy.enabled else None
    pairs = agreed_cells(margins.rows, study.sharing.minimum_expected, total)
    said = digest(pairs.row.astype("<i4").tobytes() + pairs.column.astype("<i4").tobytes())
    return Shape(cells=len(pairs.row), pairs=pairs, digests={"pairs": said})


MARGINS = Kind(
    what="patients and co-occurrences of each code",
    given=frozenset(),
    shape=_of_margins,
)
CELLS = Kind(
    what="co-occurrences of agreed pairs of codes",
    given=frozenset({"margins"}),
    shape=_of_cells,
    check=_check,
)
