"""One row a pair of related codes: what the regression selected, and what the tests say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Index = NDArray[np.intp]

DIRECT: Final = "direct"
"""The regression of at least one of the two codes selected the other: related beyond what the codes between them explain."""
INDIRECT: Final = "indirect"
"""Significant, and selected by neither: other codes explain the relation."""
KIN: Final = "family"
"""Significant, and of one family, so that neither code's regression was offered the other."""
RELATIONS: Final = (DIRECT, INDIRECT, KIN)


@dataclass(frozen=True, eq=False)
class Significance:
    """Pairs that were tested.

    Attributes:
        pairs: (m, 2) rows of the codes; a pair comes once, in either order.
        p: (m,) one-sided p-values.
        q: (m,) false-discovery rates at which each pair is just found, within the family of all tests.
    """

    pairs: Index
    p: Array
    q: Array


@dataclass(frozen=True, eq=False)
class Edges:
    """Related pairs, sorted by `left`, then `right`.

    Attributes:
        codes: of the graph, sorted; `left` and `right` are places in it.
        left: (m,) the first code of each pair.
        right: (m,) the second, greater than `left`.
        weight: (m,) mean of the two regression weights; 0 where the regression did not select the pair, NaN where it was not
            offered it (one family).
        sign: int8 (m,) of the weight; of the cosine where the weight is 0 or NaN.
        cosine: (m,) of the codes' vectors.
        p: (m,) NaN where the pair was not tested.
        q: (m,) likewise.
        ends: int8 (m,) how many of the two regressions selected the pair: 0, 1 or 2.
        kin: bool (m,) whether the two are of one family.
    """

    codes: tuple[str, ...]
    left: Index
    right: Index
    weight: Array
    sign: NDArray[np.int8]
    cosine: Array
    p: Array
    q: Array
    ends: NDArray[np.int8]
    kin: NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.left)

    @property
    def relation(self) -> NDArray[np.str_]:
        """(m,) one of `RELATIONS`."""
        return np.where(self.ends > 0, DIRECT, np.where(self.kin, KIN, INDIRECT))

    def where(self, kept: NDArray[np.bool_]) -> Edges:
        """Some of the pairs, among the same codes."""
        columns = {f.name: getattr(self, f.name)[kept] for f in fields(self) if f.name != "codes"}
        return replace(self, **columns)

    def among(self, codes: set[str]) -> Edges:
        """The pairs of which both codes are among the given ones: what an audience may see of the graph."""
        seen = np.array([code in codes for code in self.codes], dtype=bool)
        part = self.where(seen[self.left] & seen[self.right])
        place = np.cumsum(seen) - 1
        left, right = place[part.left], place[part.right]
        kept = tuple(code for code in self.codes if code in codes)
        return replace(part, codes=kept, left=left, right=right)


def merge_edges(
    codes: Sequence[str],
    vectors: ArrayLike,
    weights: sp.csr_array,
    *,
    family: ArrayLike | None = None,
    tested: Significance | None = None,
    q_most: float = 0.05,
) -> Edges:
    """All pairs that the regression selected, and all that are significant.

    Args:
        codes: (n,) different names, in any order.
        vectors: (n, d) that were regressed.
        weights: (n, n) `Selection.weights`.
        family: (n,) as the regression had it.
        tested: p- and q-values of the pairs that were tested; a pair that is not among them has none.
        q_most: the largest q of a pair that is taken in although it was not selected.

    Law: the order of the codes changes nothing.

    Raises:
        ValueError: sizes that differ, a code named twice, a pair tested twice or with itself, or a p or q outside [0, 1].
    """
    n, points = len(codes), np.asarray(vectors, dtype=np.float64)
    if points.shape[:1] != (n,) or weights.shape != (n, n):
        raise ValueError(f"{n} codes do not go with {points.shape} vectors and {weights.shape} weights")
    if len(set(codes)) < n:
        raise ValueError("a code is named twice")
    order = np.array(sorted(range(n), key=codes.__getitem__), dtype=np.intp)
    place = np.empty(n, dtype=np.intp)
    place[order] = np.arange(n)
    selected = _upper(sp.coo_array(weights), place, n)
    test = _tests(tested, place, n)
    keys = np.union1d(selected[0], test[0][test[2] <= q_most])
    left, right = np.divmod(keys, n)
    total, ends = (_looked_up(keys, selected[0], values, 0.0) for values in selected[1:])
    p, q = (_looked_up(keys, test[0], values, np.nan) for values in test[1:])
    labels = np.full(n, -1) if family is None else np.asarray(family)[order]
    kin = (labels[left] == labels[right]) & (labels[left] >= 0)
    cosine = _cosines(points[order], left, right)
    weight = np.where(kin & (ends == 0), np.nan, total / 2.0)
    sign = np.sign(np.where((weight == 0.0) | np.isnan(weight), cosine, weight)).astype(np.int8)
    return Edges(
        tuple(codes[i] for i in order), left, right, weight, sign, cosine, p, q, ends.astype(np.int8), kin
    )


def _upper(weights: sp.coo_array, place: Index, n: int) -> tuple[Index, Array, Array]:
    """Keys of the selected pairs, the sum of their weights, and how many ends selected them."""
    value = np.asarray(weights.data, dtype=np.float64)
    row, column = (place[axis[value != 0.0]] for axis in weights.coords)
    keys, at, ends = np.unique(_keys(row, column, n), return_inverse=True, return_counts=True)
    sums: Array = np.bincount(at, value[value != 0.0], len(keys)).astype(np.float64)
    return keys, sums, ends.astype(np.float64)


def _tests(tested: Significance | None, place: Index, n: int) -> tuple[Index, Array, Array]:
    """Keys of the tested pairs, sorted, with p and q."""
    if tested is None:
        return np.empty(0, dtype=np.intp), np.empty(0), np.empty(0)
    pairs, p, q = np.asarray(tested.pairs).reshape(-1, 2), np.asarray(tested.p), np.asarray(tested.q)
    if not len(pairs) == len(p) == len(q):
        raise ValueError(f"{len(pairs)} tested pairs have {len(p)} p-values and {len(q)} q-values")
    # A NaN is in no interval.
    if not all(((x >= 0.0) & (x <= 1.0)).all() for x in (p, q)):
        raise ValueError("p and q must be between 0 and 1")
    if (pairs[:, 0] == pairs[:, 1]).any():
        raise ValueError("a code was tested with itself")
    keys = _keys(place[pairs[:, 0]], place[pairs[:, 1]], n)
    order = np.argsort(keys, kind="stable")
    if (np.diff(keys[order]) == 0).any():
        raise ValueError("a pair was tested twice")
    return keys[order], p[order], q[order]


def _keys(one: Index, other: Index, n: int) -> Index:
    return np.asarray(np.minimum(one, other) * n + np.maximum(one, other))


def _looked_up(wanted: Index, keys: Index, values: Array, missing: float) -> Array:
    found = np.full(len(wanted), missing)
    at = np.searchsorted(keys, wanted)
    inside = at < len(keys)
    inside[inside] = keys[at[inside]] == wanted[inside]
    found[inside] = values[at[inside]]
    return found


def _cosines(points: Array, left: Index, right: Index, step: int = 1 << 16) -> Array:
    norm = np.linalg.norm(points, axis=1)
    unit = points / np.where(norm == 0.0, 1.0, norm)[:, None]
    # All pairs' vectors at once would be larger than the graph.
    parts = [
        np.einsum("ij,ij->i", unit[left[i : i + step]], unit[right[i : i + step]])
        for i in range(0, len(left), step)
    ]
    return np.concatenate([np.empty(0), *parts])
