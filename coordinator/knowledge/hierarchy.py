"""Similar codes and hard negatives from a hierarchy.

With P the 0/1 matrix of parents, let near(i) be i, its parents and its grandparents: the support of row i of
I + P + P^2. Two codes are

    similar               if near(i) and near(j) meet,
    a hard negative       if they are second cousins (rows i and j of P^3 meet), not similar, and neither is the other's
                          ancestor.

So similar are first cousins (a shared grandparent), an uncle and a nephew (a parent that is the other's grandparent),
and what is closer still: siblings, a parent, a grandparent. Ancestors near the root are shared by codes that have
little in common: kinship counts only through ancestors at least `shared_depth` steps below a root.

Source: the rule of the SMILE paper names first cousins, and a parent that is the other's grandparent, as similar and
second cousins as negatives; that closer kin is similar too, and the depth, are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

_CHUNK = 1 << 16


@dataclass(frozen=True, eq=False)
class Kin:
    """Pairs of kin.

    Attributes:
        similar: (m, 2), the smaller node first, sorted.
        negative: (k, 2), the same.
        drawn: families of which only a sample was taken.
    """

    similar: Index
    negative: Index
    drawn: int


def parent_matrix(children: Index, parents: Index, n: int) -> sp.csr_array:
    """(n, n) with a 1 for each parent of each node; a node that is its own parent is left out."""
    apart = children != parents
    rows, columns = children[apart], parents[apart]
    matrix = sp.csr_array((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=(n, n))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def without_cycles(parents: sp.csr_array) -> tuple[sp.csr_array, Index]:
    """The hierarchy less every link inside a cycle, and the (m, 2) links that were taken out.

    Links inside a strongly connected component are those on some cycle: what remains has none.
    """
    _, component = connected_components(parents, directed=True, connection="strong")
    link = parents.tocoo()
    child, parent = (np.asarray(axis, dtype=np.int64) for axis in link.coords)
    bad = component[child] == component[parent]
    kept = parent_matrix(child[~bad], parent[~bad], parents.shape[0])
    return kept, np.stack([child[bad], parent[bad]], axis=1)


def depth_below_root(parents: sp.csr_array) -> Index:
    """(n,) fewest steps to a node without parents, which has depth 0.

    Args:
        parents: (n, n) without cycles.
    """
    children = sp.csr_array(parents.T)
    depth = np.where(np.diff(parents.indptr) == 0, 0, -1).astype(np.int64)
    front: Index = np.flatnonzero(depth == 0).astype(np.int64)
    step = 0
    while front.size:
        step += 1
        below = np.unique(children[front].indices).astype(np.int64)
        front = below[depth[below] < 0]
        depth[front] = step
    return depth


def kin(
    parents: sp.csr_array,
    *,
    wanted: Mask | None = None,
    shared_depth: int = 0,
    most_per_family: int | None = None,
    seed: int = 0,
) -> Kin:
    """All similar pairs and hard negatives, or a sample of them where a family is large.

    A family are the nodes that share one ancestor in the way that the rule counts. Of a family with more pairs than
    `most_per_family`, that many are drawn, so 10,000 siblings give no 50 M pairs.

    Args:
        parents: (n, n) without cycles.
        wanted: (n,) nodes that may be in a pair; all of them if None. Others still join their descendants.
        shared_depth: least depth of an ancestor that makes kin.
        most_per_family: similar pairs, and negatives, drawn in one family; all of them if None.
        seed: of the draw.

    Laws: no pair is in both lists; without a limit both are exact, whatever the seed; with one, both are subsets;
    renumbering the nodes commutes with it when nothing is drawn.
    """
    n = parents.shape[0]
    kept = np.ones(n, dtype=bool) if wanted is None else wanted
    shared = depth_below_root(parents) >= shared_depth
    identity = sp.eye_array(n, format="csr", dtype=np.int32)
    second = _support(parents @ parents)
    third = _support(second @ parents)
    near = _columns(_support(identity + parents + second), shared)
    far = _columns(third, shared)
    rng = np.random.default_rng(seed)
    similar, drawn = _within_families(near, kept, most_per_family, rng)
    candidates, more = _within_families(far, kept, most_per_family, rng)
    negative = _second_cousins(candidates, near, parents)
    return Kin(similar, negative, drawn + more)


def _second_cousins(pairs: Index, near: sp.csr_array, parents: sp.csr_array) -> Index:
    """Those of the pairs that are not similar, and of which neither is the other's ancestor."""
    if not len(pairs):
        return pairs
    above = _ancestors(parents, np.unique(pairs))
    good = np.ones(len(pairs), dtype=bool)
    for low in range(0, len(pairs), _CHUNK):
        part = slice(low, low + _CHUNK)
        i, j = pairs[part].T
        meet = np.asarray((near[i].multiply(near[j])).sum(axis=1)).ravel() > 0
        line = _entries(above, i, j) | _entries(above, j, i)
        good[part] = ~meet & ~line
    return pairs[good]


def _entries(matrix: sp.csr_array, rows: Index, columns: Index) -> Mask:
    """(m,) whether the matrix has an entry at each place."""
    m, n = len(rows), matrix.shape[1]
    place = sp.csr_array((np.ones(m, np.int32), columns, np.arange(m + 1)), shape=(m, n))
    return np.asarray(matrix[rows].multiply(place).sum(axis=1)).ravel() > 0


def _ancestors(parents: sp.csr_array, nodes: Index) -> sp.csr_array:
    """(n, n) with a 1 for every ancestor of the nodes; other rows are empty."""
    n = parents.shape[0]
    start = sp.csr_array((np.ones(len(nodes), np.int32), (nodes, nodes)), shape=(n, n))
    front = found = _support(start @ parents)
    while front.nnz:
        front = _support(front @ parents)
        found = _support(found + front)
    return found


def _within_families(
    member: sp.csr_array, wanted: Mask, most: int | None, rng: np.random.Generator
) -> tuple[Index, int]:
    """(m, 2) distinct pairs of wanted rows that have a column in common, and how many columns were sampled."""
    n = member.shape[0]
    families = sp.csc_array(member)
    found, drawn = [np.empty(0, dtype=np.int64)], 0
    # A family of one has no pair; most columns are leaves, and their own only member.
    for column in np.flatnonzero(np.diff(families.indptr) > 1):
        rows = np.asarray(
            families.indices[families.indptr[column] : families.indptr[column + 1]], dtype=np.int64
        )
        rows = np.sort(rows[wanted[rows]])
        count = len(rows) * (len(rows) - 1) // 2
        if most is not None and count > most:
            number = np.sort(rng.choice(count, most, replace=False))
            drawn += 1
        else:
            number = np.arange(count)
        first, last = _pair_of(number, len(rows))
        found.append(rows[first] * n + rows[last])
    key = np.unique(np.concatenate(found))
    return np.stack([key // n, key % n], axis=1), drawn


def _pair_of(number: Index, size: int) -> tuple[Index, Index]:
    """The `number`-th of the pairs (0, 1), (0, 2), (1, 2), (0, 3), ... of `size` things, smaller first."""
    last = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    # The root is rounded: mend by one where it is off.
    last += last * (last + 1) // 2 <= number
    last -= last * (last - 1) // 2 > number
    return number - last * (last - 1) // 2, np.minimum(last, size - 1)


def _columns(matrix: sp.csr_array, kept: Mask) -> sp.csr_array:
    """The matrix with the other columns empty."""
    entry = matrix.tocoo()
    inside = kept[entry.coords[1]]
    rows, columns = (axis[inside] for axis in entry.coords)
    return sp.csr_array((entry.data[inside], (rows, columns)), shape=matrix.shape)


def _support(matrix: sp.csr_array) -> sp.csr_array:
    """1 where the matrix is not 0."""
    out = sp.csr_array(matrix)
    out.sum_duplicates()
    out.data = np.ones_like(out.data)
    return out
