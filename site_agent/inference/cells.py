"""Pair counts as vectors over the tested pairs, what of them is withheld, and what is expected of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy import sparse

from protocol.inference import HalfCounts, Margins, fit_margins
from protocol.pair_index import Floats, Int64s, PairIndex
from site_agent.cooccurrence import PairCounts

Bools = npt.NDArray[np.bool_]


def code_rows(counts: PairCounts, codes: Bools | None = None) -> Int64s:
    """(n,) pairs of each code with other codes, from a site's counts; codes that are withheld have none and give none.

    Cells below the floor of pairs are in it: of a sum over all partners no one learns a single one, and without them
    expected counts would be too low, and what is related to what found too often.

    Args:
        counts: over the vocabulary.
        codes: (n,) which codes the site does not withhold; all if None.
    """
    return _rows(counts.events, np.ones(counts.code_patients.size, np.bool_) if codes is None else codes)


def _rows(upper: sparse.csr_array[Any, tuple[int, int]], codes: Bools) -> Int64s:
    rows = np.zeros(upper.shape[0], np.int64)
    _add_rows(upper.indptr, upper.indices, upper.data, codes, rows)
    return rows


def packed(
    matrix: sparse.csr_array[Any, tuple[int, int]], pairs: PairIndex, out: Int64s | None = None
) -> Int64s:
    """(m,) values of an upper triangle at the tested pairs; written to `out` if it is given."""
    values = np.zeros(pairs.size, np.int64) if out is None else out
    values[:] = 0
    rank = pairs.rank(matrix.shape[0])
    _pack(matrix.indptr, matrix.indices, matrix.data, rank, pairs.width, pairs.offset, values)
    return values


class Shown(NamedTuple):
    """Which codes and pairs a site shows.

    Attributes:
        codes: (n,) codes with enough patients.
        steady: (m,) pairs with so many patients expected that chance hardly takes them below the floor. The site takes part in
            no other: what was left of them by the floor would be those that are high by chance.
        pairs: (m,) steady pairs that do have enough patients; the others go out as zero.
    """

    codes: Bools
    steady: Bools
    pairs: Bools


def shown(
    total: PairCounts, pairs: PairIndex, *, min_code_patients: int = 0, min_pair_patients: int = 0
) -> Shown:
    """What a site shows under its floors.

    A pair's expected patients follow from the margins of the patients of all pairs, never from its own: whether the site takes
    part in a pair must not depend on chance. Three standard deviations of a Poisson number are kept from the floor.

    Raises:
        DataError: expected numbers cannot be fitted.
    """
    codes = np.asarray(total.code_patients >= min_code_patients)
    row, column = pairs.codes()
    steady = np.asarray(codes[row] & codes[column])
    if min_pair_patients > 0:
        least = (1.5 + np.sqrt(2.25 + min_pair_patients)) ** 2  # x - 3 sqrt(x) is the floor
        patients = fit_margins(_rows(total.pair_patients, codes)).level[pairs.order]
        steady &= pairs.outer(patients) >= least
    return Shown(codes, steady, steady & (packed(total.pair_patients, pairs) >= min_pair_patients))


def expected_counts(margins: Margins, pairs: PairIndex, steady: Bools) -> Floats:
    """(m,) a site's expected counts of the tested pairs; 0 where it takes no part."""
    return np.where(steady, pairs.outer(margins.level[pairs.order]), 0.0)


def half_counts(halves: Sequence[PairCounts], pairs: PairIndex, show: Shown) -> HalfCounts:
    """Counts and expected counts of two random halves of a site's patients (`CountRuns.half`), and expected ones of all.

    A pair is shown or not by its patients in both halves: a floor on each would cut twice.

    Raises:
        DataError: expected counts cannot be fitted.
    """
    counts = np.stack([np.where(show.pairs, packed(half.events, pairs), 0) for half in halves])
    rows = [code_rows(half, show.codes) for half in halves]
    expected = [expected_counts(fit_margins(r), pairs, show.steady) for r in (*rows, rows[0] + rows[1])]
    return HalfCounts(counts, np.stack(expected))


@njit(cache=True, nogil=True)
def _add_rows(pointer: Any, column: Any, data: Any, keep: Any, rows: Any) -> None:
    for j in range(pointer.size - 1):
        if not keep[j]:
            continue
        for at in range(pointer[j], pointer[j + 1]):
            k = column[at]
            if k != j and keep[k]:
                rows[j] += data[at]
                rows[k] += data[at]


@njit(cache=True, nogil=True)
def _pack(pointer: Any, column: Any, data: Any, rank: Any, width: Any, offset: Any, out: Any) -> None:
    for j in range(pointer.size - 1):
        if rank[j] == width.size:
            continue
        for at in range(pointer[j], pointer[j + 1]):
            low, high = min(rank[j], rank[column[at]]), max(rank[j], rank[column[at]])
            if low < high < width[low]:
                out[offset[low] + high - low - 1] = data[at]
