"""Statistics that every party defines in the same way: margins, PMI, PPMI and the eigen-embedding.

Co-occurrence counts come as the upper triangle T, diagonal included, of a symmetric matrix
C = T + T' - diag T. What is derived from them (PMI, PPMI) is the full symmetric matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from protocol.eigen import leading_eigenpairs

SparseMatrix = sparse.csr_array[Any, tuple[int, int]]
SparseFloat = sparse.csr_array[np.float64, tuple[int, int]]

_ROUNDING = (
    1e-9  # difference between a matrix and its transpose, relative to the matrix, that rounding explains
)
_NEGLIGIBLE = 1e-12  # part of the largest eigenvalue below which an eigenvalue is zero and rounding
_CHUNK = 1 << 20  # entries that are worked on at a time, so that temporary arrays stay in the cache


def symmetric(upper: SparseMatrix) -> SparseMatrix:
    """The symmetric matrix T + T' - diag T of an upper triangle T, entries of the same type.

    Stored zeros stay stored.

    Raises:
        ValueError: not square, or an entry below the diagonal.
    """
    return _mirrored(_upper_triangle(upper))


def margins(upper: SparseMatrix) -> tuple[NDArray[np.float64], float]:
    """Row sums r = C 1 (n,) and total N = 1'C 1 of a symmetric count matrix, from its upper triangle.

    Exact for integer counts with a total below 2^53.

    Raises:
        ValueError: not an upper triangle, or a negative or non-finite count.
    """
    return _margins(_checked_counts(upper))


def pmi(counts: SparseMatrix) -> SparseFloat:
    """Pointwise mutual information of the observed pairs, in nats, unclipped.

    log(C_jk N / (r_j r_k)), with r = C 1 and N = 1'C 1.

    Args:
        counts: upper triangle of a symmetric (n, n) count matrix, diagonal included.

    Returns:
        The full symmetric (n, n) matrix with one stored entry for every count above 0. A stored zero is
        a pair as frequent as chance; an entry that is not stored was never observed.

    Raises:
        ValueError: not an upper triangle, or a negative or non-finite count.

    Law: scaling all counts by a constant leaves the result unchanged, up to rounding.
    Source: Church and Hanks 1990; ARCH section 2.3.
    """
    return _mirrored(_upper_pmi(counts))


def ppmi(counts: SparseMatrix, *, shift: float = 1.0) -> SparseFloat:
    """Positive pointwise mutual information of co-occurrence counts, in nats.

    max(0, log(C_jk N / (r_j r_k)) - log shift), with r = C 1 and N = 1'C 1.

    Args:
        counts: upper triangle of a symmetric (n, n) count matrix, diagonal included.
        shift: the k of shifted PPMI; 1 means no shift.

    Returns:
        The full symmetric (n, n) matrix; only entries above 0 are stored.

    Raises:
        ValueError: not an upper triangle, a negative or non-finite count, or a shift that is not positive.

    Law: scaling all counts by a constant leaves the result unchanged, up to rounding.
    Source: Levy and Goldberg 2014; ARCH section 2.3.
    """
    if not (np.isfinite(shift) and shift > 0):
        raise ValueError(f"shift is {shift}; it must be a positive number")
    weights = _upper_pmi(counts)
    weights.data -= np.log(shift)
    np.maximum(weights.data, 0.0, out=weights.data)
    weights.eliminate_zeros()
    return _mirrored(weights)


def nonempty(matrix: SparseMatrix | NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows hold any entry other than zero, bool (n,): of a PPMI matrix, or of an embedding."""
    if isinstance(matrix, np.ndarray):
        return np.asarray(matrix.any(axis=1))
    stored = sparse.csr_array(matrix)
    held = np.diff(stored.indptr) > 0
    if not stored.data.all():
        held[held] = np.logical_or.reduceat(stored.data != 0, stored.indptr[:-1][held])
    return np.asarray(held)


def embed(ppmi: SparseFloat, dim: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Embedding of codes from the leading positive eigenpairs of a symmetric weight matrix.

    V = U sqrt(L) with M U = U L, eigenvalues in falling order, then every row is brought to unit norm. Negative
    eigenvalues, to which a truncated SVD would give columns, have no part in it. Of each eigenvector
    the entry of largest magnitude is positive. The same input and seed give the same bits on the same machine.

    Args:
        ppmi: full symmetric (n, n) matrix without an empty row (`nonempty` tells).
        dim: columns that are wanted; there are fewer when fewer eigenvalues are positive.
        seed: of the start vector, where Lanczos iterations are used (large n, few dimensions).

    Returns:
        float32 (n, <= dim) with unit rows. A row is zero if the code has no part in the leading eigenvectors:
        its connected component has only smaller eigenvalues than those kept. More dimensions reach it.

    Raises:
        ValueError: dim below 1; a matrix that is not square, symmetric and finite; an empty row, by number.

    Law: relabelling the codes relabels the rows; V V' is the nearest positive semidefinite matrix of rank dim,
        before the rows are normalised.
    Source: Levy and Goldberg 2014; ARCH section 2.3; Lehoucq, Sorensen and Yang 1998 (ARPACK).
    """
    weights = _checked_weights(ppmi, dim)
    n = weights.shape[0]
    if n == 0:
        return np.empty((0, 0), np.float32)
    if _dense_is_faster(n, dim):
        kept = [max(0, n - dim), n - 1]
        values, vectors = linalg.eigh(weights.toarray(), subset_by_index=kept, overwrite_a=True)
    else:
        # Lanczos on the algebraic end, not a randomised SVD: that one orders by magnitude, so that negative
        # eigenvalues took up to half of 300 columns, and PPMI spectra fall too slowly for its few iterations.
        values, vectors = leading_eigenpairs(weights, dim, seed=seed)  # type: ignore[assignment]
    order = np.argsort(-values, kind="stable")
    order = order[values[order] > values.max() * _NEGLIGIBLE]
    values, vectors = values[order], np.asarray(vectors[:, order], np.float64)
    peak = np.argmax(np.abs(vectors), axis=0)
    signs = np.sign(vectors[peak, np.arange(values.size)])
    scores = vectors * (signs * np.sqrt(values))
    norms = np.linalg.norm(scores, axis=1, keepdims=True)
    # A smaller norm is rounding in the eigenvectors, and has no direction.
    reached = norms > np.sqrt(values[0]) * 1e-10
    unit = np.divide(scores, norms, out=np.zeros_like(scores), where=reached)
    return np.asarray(unit, np.float32)


def _dense_is_faster(n: int, dim: int) -> bool:
    """Whether LAPACK (time as n^3) beats block Lanczos (about n dim^2); measured break-even near n = 7 dim.

    Above 4,000 rows the dense matrix and its workspace would take more memory than the basis does.
    """
    return dim >= n or n <= max(1_000, min(7 * dim, 4_000))


def _checked_weights(matrix: SparseMatrix, dim: int) -> SparseFloat:
    """The matrix as float64, or a ValueError that says why it cannot be embedded."""
    if dim < 1:
        raise ValueError(f"dim is {dim}; it must be 1 or more")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the matrix to embed must be square, not {matrix.shape}")
    weights = sparse.csr_array(matrix)
    if weights.dtype != np.float64:
        weights = sparse.csr_array(weights.astype(np.float64))
    # Extremes carry a NaN along, and need no array as long as the matrix.
    if weights.nnz and not (weights.data.min() >= 0 and np.isfinite(weights.data.max())):
        raise ValueError("a weight is negative or not finite; PPMI has neither")
    empty = np.flatnonzero(~nonempty(weights))
    if empty.size:
        raise ValueError(
            f"row {empty[0]} is empty ({empty.size} in all); leave such codes out before embedding"
        )
    if not _is_symmetric(weights):
        raise ValueError(
            "the matrix to embed is not symmetric; an upper triangle must go through `symmetric`"
        )
    return weights


def _is_symmetric(weights: SparseFloat) -> bool:
    """Whether M x = M'x for a random x > 0: two products, where a transpose would be a second matrix.

    Differences between mirrored entries cancel in such a product with probability zero.
    """
    n = weights.shape[0]
    x = np.random.default_rng(n).uniform(1.0, 2.0, n)
    with np.errstate(over="ignore", invalid="ignore"):
        forth, back = np.asarray(weights @ x), np.asarray(x @ weights)
        return bool(np.abs(forth - back).max(initial=0.0) <= _ROUNDING * forth.max(initial=0.0))


def _upper_pmi(counts: SparseMatrix) -> SparseFloat:
    """Upper triangle of the PMI, one stored entry for each count above 0."""
    triangle = _checked_counts(counts)
    row_sums, total = _margins(triangle)
    with np.errstate(divide="ignore"):
        log_sums, log_total = np.log(row_sums), np.log(total)
    data = np.empty(triangle.nnz)
    for part, row in _entries(triangle):
        # Grouped so that the two codes of a pair enter alike: relabelling codes changes no bit.
        expected = log_sums[row] + log_sums[triangle.indices[part]]
        np.log(triangle.data[part], out=data[part])
        data[part] += log_total
        data[part] -= expected
    # Its own indices: what is done to the result must not reach the counts.
    parts = (data, triangle.indices.copy(), triangle.indptr.copy())
    return sparse.csr_array(parts, shape=triangle.shape)


def _margins(triangle: SparseFloat) -> tuple[NDArray[np.float64], float]:
    """Row sums and total of C from its checked upper triangle."""
    ones = np.ones(triangle.shape[0])
    row_sums = triangle @ ones + ones @ triangle - triangle.diagonal()
    return row_sums, float(row_sums.sum())


def _checked_counts(counts: SparseMatrix) -> SparseFloat:
    """The counts above 0 as float64 upper triangle; may share memory with the argument."""
    triangle = _upper_triangle(counts)
    data = triangle.data.astype(np.float64, copy=False)
    if data.size and not (data.min() >= 0 and np.isfinite(data.max())):
        at = int(np.flatnonzero(~(np.isfinite(data) & (data >= 0)))[0])
        row = int(np.searchsorted(triangle.indptr, at, side="right")) - 1
        cell = f"({row}, {triangle.indices[at]})"
        raise ValueError(f"the count at {cell} is {data[at]}; counts must be finite and not negative")
    checked = sparse.csr_array((data, triangle.indices, triangle.indptr), shape=triangle.shape, copy=False)
    if not data.all():
        checked = checked.copy()
        checked.eliminate_zeros()
    return checked


def _upper_triangle(upper: SparseMatrix) -> SparseMatrix:
    """An upper triangle with sorted rows, each cell once; the argument is left as it is."""
    stored = sparse.csr_array(upper)
    if stored.shape[0] != stored.shape[1]:
        raise ValueError(f"a symmetric matrix is square, not {stored.shape}")
    if not stored.has_canonical_format:
        stored = stored.copy()
        stored.sum_duplicates()
    # The first cell of a row is its leftmost.
    held = np.flatnonzero(np.diff(stored.indptr))
    if (stored.indices[stored.indptr[held]] < held).any():
        raise ValueError("only the upper triangle is expected, and there are entries below the diagonal")
    return stored


def _mirrored(triangle: SparseMatrix) -> SparseMatrix:
    """T + T' - diag T of an upper triangle in canonical form, stored zeros and all.

    The columns of T, read as rows, lie left of the diagonal, and the rows of T from it on, both in order: the
    result needs no sorting, and no memory beside T but T'.
    """
    n = triangle.shape[0]
    columns = sparse.csc_array(triangle)
    held = np.flatnonzero(np.diff(triangle.indptr))
    left = np.diff(columns.indptr).astype(np.int64)
    left[held] -= (
        triangle.indices[triangle.indptr[held]] == held
    )  # the diagonal, in both, comes from the rows
    pointers = np.zeros(n + 1, np.int64)
    np.cumsum(left + np.diff(triangle.indptr), out=pointers[1:])
    kind = np.int32 if pointers[-1] < 2**31 else np.int64
    indices, data = np.empty(pointers[-1], kind), np.empty(pointers[-1], triangle.dtype)
    moves = (pointers[:-1] - columns.indptr[:-1], pointers[:-1] + left - triangle.indptr[:-1])
    for source, move in zip((columns, triangle), moves, strict=True):
        for part, row in _entries(source):
            target = np.arange(part.start, part.stop) + move[row]
            found, values = source.indices[part], source.data[part]
            if source is columns:
                below = found < row
                target, found, values = target[below], found[below], values[below]
            indices[target], data[target] = found, values
    full = sparse.csr_array((data, indices, pointers.astype(kind)), shape=(n, n), copy=False)
    full.has_canonical_format = True
    return full


def _entries(matrix: Any) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Stretches of the stored entries, with the row of each (the column, in a matrix stored by columns)."""
    ends = np.asarray(matrix.indptr, np.int64)
    for start in range(0, int(ends[-1]), _CHUNK):
        stop = min(start + _CHUNK, int(ends[-1]))
        first, last = np.searchsorted(ends, start, side="right") - 1, np.searchsorted(ends, stop, side="left")
        inside = np.clip(ends[first : last + 1], start, stop)
        yield slice(start, stop), np.repeat(np.arange(first, last), inside[1:] - inside[:-1])
