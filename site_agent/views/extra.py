"""Views of a consortium's own making: a function of the counts that passed the floors, and what may leave of its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from protocol.arrays import IntVector
from protocol.errors import DataError
from protocol.release import SourceView
from site_agent.gate import KeptCounts

Array = NDArray[np.float64]
_NOTHING = 1e-9  # length of a row, beside the longest, below which it has no direction


@dataclass(frozen=True, eq=False)
class CodeCounts:
    """All that a view is made of: what passed the floors, and nothing else of a site's patients.

    Attributes:
        codes: n CURIEs, those that leave.
        events: upper triangle (n, n) of their co-occurrences, int64; pairs below the floor are zero.
        patients: (n,) distinct patients of each code, rounded as they leave.
    """

    codes: tuple[str, ...]
    events: sp.csr_array
    patients: IntVector


MakeView = Callable[[CodeCounts, int, int], object]
"""(counts, most columns that may leave, seed) -> (n, p) numbers; a row of zeros says nothing of its code."""


def extra_view(
    name: str,
    make: MakeView,
    kept: KeptCounts,
    codes: tuple[str, ...],
    *,
    columns: Callable[[int], int],
    seed: int,
) -> SourceView | None:
    """A view by somebody's function, in unit rows and no more columns than may leave.

    Rows of zeros are left out. Of more columns than may leave, those of the leading singular values are kept.

    Args:
        name: the view's.
        make: the function; what it is given is a copy, so it can change nothing of the release but its own view.
        kept: counts after suppression.
        codes: the site's whole code list, CURIEs.
        columns: the most columns that may leave of a view of so many codes (`allowed_columns`).
        seed: of the function's random numbers.

    Returns:
        None where the view holds so few codes that fewer than two columns may leave.

    Raises:
        DataError: the function fails, or returns anything but finite numbers, a row a code.
    """
    named = tuple(codes[r] for r in kept.rows)
    given = CodeCounts(named, kept.events.copy(), kept.code_patients.copy())
    try:
        matrix = np.array(make(given, columns(len(named)), seed), dtype=np.float64)
    except (Exception, SystemExit) as error:
        raise DataError(
            f"The view {name} could not be made",
            why=f"{type(error).__name__}: {str(error)[:300]}",
            do="Tell whoever wrote it; without its line under [views] in site.toml the release leaves without it",
        ) from error
    if matrix.ndim != 2 or len(matrix) != len(named) or not np.isfinite(matrix).all():
        raise DataError(
            f"The view {name} is not a table of finite numbers with a row for each of {len(named)} codes",
            why=f"its shape is {matrix.shape}",
            do="Tell whoever wrote it; without its line under [views] in site.toml the release leaves without it",
        )
    rows = np.arange(len(named), dtype=np.int32)
    while True:
        length = np.linalg.norm(matrix, axis=1)
        held = length > _NOTHING * length.max(initial=0.0)
        rows, matrix = rows[held], matrix[held] / length[held, None]
        most = columns(len(rows))
        if most < 2:
            return None
        if matrix.shape[1] <= most:
            return SourceView(name, rows, matrix.astype(np.float32))
        matrix = _leading(matrix, most)


def _leading(matrix: Array, dim: int) -> Array:
    u, s, _ = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(u[:, :dim] * s[:dim])
