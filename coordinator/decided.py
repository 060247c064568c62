"""Decisions of people as pairs of rows of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.model.factor import Index


@dataclass(frozen=True, eq=False)
class Cells:
    """Decisions as rows of a fit; a row that has no standard code of its own, and a row that has one.

    Attributes:
        same: (k, 2) the standard row is the local row's.
        differ: (k, 2) it is not.
        none: (k,) local rows that no standard row is right for.
    """

    same: Index
    differ: Index
    none: Index

    def barred(self, rows: Index, columns: Index) -> NDArray[np.bool_]:
        """(n, m) pairs of these increasing rows that are settled to differ."""
        found = np.zeros((len(rows), len(columns)), dtype=bool)
        at = places(self.differ, rows, columns)
        found[at[:, 0], at[:, 1]] = True
        found[np.isin(rows, self.none)] = True
        return found


NO_CELLS: Final = Cells(np.empty((0, 2), np.intp), np.empty((0, 2), np.intp), np.empty(0, np.intp))


def places(cells: Index, rows: Index, columns: Index) -> NDArray[np.intp]:
    """(k, 2) places of cells in a matrix of these increasing rows and columns; those outside are left out."""
    if not len(cells) or not len(rows) or not len(columns):
        return np.empty((0, 2), np.intp)
    place = [
        np.minimum(np.searchsorted(axis, cells[:, i]), len(axis) - 1)
        for i, axis in enumerate((rows, columns))
    ]
    held = (rows[place[0]] == cells[:, 0]) & (columns[place[1]] == cells[:, 1])
    return np.asarray(np.stack(place, axis=1)[held], dtype=np.intp)
