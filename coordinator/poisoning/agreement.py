"""How well sites agree on which codes are alike.

Each site's coordinates are rotated at will, so vectors of two sites cannot be compared. Cosines between codes
can: the cosines among the codes that two sites share are two measurements of the same likeness, whatever the
rotation. Codes are shared by CURIE and by anchors (rows of the union vocabulary).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.release import COOCCURRENCE

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

LEAST_SHARED = 10
"""Shared codes below which two sites are not compared."""
LEAST_COSINES = 20
"""Cosines below which a code is not judged."""
_MOST = 1_000  # codes whose cosines are formed; more tell no more
_GROUPS = 10  # of the jackknife
_BLOCK = 256  # rows judged at once


@dataclass(frozen=True, eq=False)
class Rater:
    """One source of a site: which rows of the union vocabulary it holds, and their directions.

    Attributes:
        site: number of the site.
        rows: (m,) increasing rows of the union vocabulary.
        vectors: (m, p) unit rows; a zero row stays zero.
        view: what it was made of; likeness in one view is no measure of likeness in another.
    """

    site: int
    rows: Index
    vectors: Array
    view: str = COOCCURRENCE


class Agreement(NamedTuple):
    """How well two raters agree.

    Attributes:
        one, other: numbers of the raters.
        r: correlation of the cosines among their shared codes.
        error: its standard error.
        shared: number of shared codes.
    """

    one: int
    other: int
    r: float
    error: float
    shared: int


def agreements(raters: Sequence[Rater]) -> tuple[Agreement, ...]:
    """Every two raters of one view at different sites that share at least `LEAST_SHARED` codes."""
    found = []
    for a, one in enumerate(raters):
        for b in range(a + 1, len(raters)):
            other = raters[b]
            shared, i, j = np.intersect1d(one.rows, other.rows, return_indices=True)
            if one.site == other.site or one.view != other.view or len(shared) < LEAST_SHARED:
                continue
            r, error = correlation(one.vectors[i], other.vectors[j])
            found.append(Agreement(a, b, r, error, len(shared)))
    return tuple(found)


def correlation(one: Array, other: Array) -> tuple[float, float]:
    """Pearson correlation of the cosines among the same codes in two embeddings, and its standard error.

    Args:
        one: (m, p) unit rows.
        other: (m, q) unit rows of the same codes.

    Returns:
        r, 0 where either side is constant; and its delete-group jackknife error over codes, not over pairs:
        pairs that have a code in common are not independent.

    Laws: a rotation of either side changes nothing; the two sides can be exchanged.
    """
    pick = _spread(len(one), _MOST)
    left, right = one[pick] @ one[pick].T, other[pick] @ other[pick].T
    whole = _off_diagonal(left, right)
    group = np.arange(len(pick)) % _GROUPS
    parts = []
    for g in range(_GROUPS):
        kept = group != g
        parts.append(_off_diagonal(left[np.ix_(kept, kept)], right[np.ix_(kept, kept)]))
    spread = np.array(parts) - np.mean(parts)
    return whole, float(np.sqrt((_GROUPS - 1) / _GROUPS * np.sum(spread**2)))


def profiles(one: Array, other: Array) -> Array:
    """(m,) for each code, the correlation of its cosines with the other codes in two embeddings of the same codes.

    Law: a rotation of either side changes nothing.
    """
    pick = _spread(len(one), _MOST)
    found = np.empty(len(one))
    for low in range(0, len(one), _BLOCK):
        rows = np.arange(low, min(low + _BLOCK, len(one)))
        left, right = one[rows] @ one[pick].T, other[rows] @ other[pick].T
        use = rows[:, None] != pick[None, :]
        found[rows] = _row_correlation(left, right, use)
    return found


class Judged(NamedTuple):
    """Codes of one rater beside the other sites.

    Attributes:
        rows: (k,) rows of the union vocabulary that another site holds too.
        r: (k,) agreement; nan where fewer than `LEAST_COSINES` cosines can be compared.
        witnesses: (k,) number of other sites that hold the row.
    """

    rows: Index
    r: Array
    witnesses: Index


def judge_rows(raters: Sequence[Rater], which: int, n_rows: int) -> Judged:
    """Each shared code's cosines with the other shared codes, against the median of the other sites.

    The reference of a pair of codes is the median, over the other sites that hold both, of their cosine;
    each site's cosines are standardised before, since noise shortens them by more at one site than at another.

    Args:
        raters: all of them.
        which: the one that is judged.
        n_rows: rows of the union vocabulary.
    """
    own = raters[which]
    others = [r for r in raters if r.site != own.site and r.view == own.view]
    place = np.full((len(others), n_rows), -1, dtype=np.intp)
    for t, other in enumerate(others):
        place[t, other.rows] = np.arange(len(other.rows))
    sites = np.array([other.site for other in others], dtype=np.intp)
    held = place[:, own.rows] >= 0
    count = np.array([len(set(sites[column].tolist())) for column in held.T], dtype=np.intp)
    chosen = np.flatnonzero(count > 0)
    rows, witnesses = own.rows[chosen], count[chosen]
    # Codes that many sites hold come first: their reference is the surest.
    columns = np.sort(np.argsort(-witnesses, kind="stable")[:_MOST])
    scale = [_scale(other, place[t, rows[columns]]) for t, other in enumerate(others)]
    r = np.full(len(rows), np.nan)
    vectors = own.vectors[chosen]
    for low in range(0, len(rows), _BLOCK):
        block = np.arange(low, min(low + _BLOCK, len(rows)))
        stack = np.full((len(others), len(block), len(columns)), np.nan)
        for t, other in enumerate(others):
            i, j = place[t, rows[block]], place[t, rows[columns]]
            cosines = other.vectors[i[i >= 0]] @ other.vectors[j[j >= 0]].T
            stack[t][np.ix_(i >= 0, j >= 0)] = (cosines - scale[t][0]) / scale[t][1]
        reference = _median(stack)
        use = np.isfinite(reference) & (block[:, None] != columns[None, :])
        found = _row_correlation(vectors[block] @ vectors[columns].T, np.where(use, reference, 0.0), use)
        r[block] = np.where(use.sum(axis=1) >= LEAST_COSINES, found, np.nan)
    return Judged(rows, r, witnesses)


def robust_scores(r: Array) -> Array:
    """Robust z of agreements, Fisher-transformed: distance from their median in units of 1.4826 MAD; nan stays nan.

    Source: Fisher 1915; Rousseeuw and Croux 1993.
    """
    value = np.arctanh(np.clip(r, -0.999999, 0.999999))
    if not np.isfinite(value).any():
        return value
    center = np.nanmedian(value)
    scale = 1.4826 * float(np.nanmedian(np.abs(value - center)))
    return np.asarray((value - center) / max(scale, 1e-6))


def _scale(rater: Rater, place: Index) -> tuple[float, float]:
    """Mean and standard deviation of a rater's cosines among the codes that serve as columns."""
    vectors = rater.vectors[place[place >= 0]]
    if len(vectors) < 2:
        return 0.0, 1.0
    values = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
    return float(values.mean()), max(float(values.std()), 1e-12)


def _median(stack: Array) -> Array:
    """Median over the first axis of what is there; nan where nothing is."""
    there = np.isfinite(stack).any(axis=0)
    found = np.full(stack.shape[1:], np.nan)
    found[there] = np.nanmedian(stack[:, there], axis=0)
    return found


def _off_diagonal(left: Array, right: Array) -> float:
    upper = np.triu_indices(len(left), 1)
    x, y = left[upper], right[upper]
    x, y = x - x.mean(), y - y.mean()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 1e-12 else 0.0


def _row_correlation(left: Array, right: Array, use: npt.NDArray[np.bool_]) -> Array:
    """Pearson correlation of each row over the columns in use; 0 where either side is constant."""
    n = np.maximum(use.sum(axis=1, keepdims=True), 1)
    x, y = np.where(use, left, 0.0), np.where(use, right, 0.0)
    x = np.where(use, x - x.sum(axis=1, keepdims=True) / n, 0.0)
    y = np.where(use, y - y.sum(axis=1, keepdims=True) / n, 0.0)
    size = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return np.asarray(np.where(size > 1e-12, np.sum(x * y, axis=1) / np.maximum(size, 1e-12), 0.0))


def _spread(n: int, most: int) -> Index:
    """At most so many of 0 ... n - 1, evenly spread."""
    return np.arange(n) if n <= most else np.unique(np.linspace(0, n - 1, most).astype(np.intp))
