"""Statistics that every party defines in the same way: margins, PMI, PPMI and the eigen-embedding.

Co-occurrence counts come as the upper triangle T, diagonal included, of a symmetric matrix
C = T + T' - diag T. What is derived from them (PMI, PPMI) is the full symmetric matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse import linalg as sparse_linalg

SparseMatrix = sparse.csr_array[Any, tuple[int, int]]
SparseFloat = sparse.csr_array[np.float64, tuple[int, int]]
SparseTriplets = sparse.coo_array[Any, tuple[int, int]]

_ROUNDING = 1e-9  # relative difference between mirrored entries that rounding explains
_NEGLIGIBLE = 1e-12  # part of the largest eigenvalue below which an eigenvalue is zero and rounding


def symmetric(upper: SparseMatrix) -> SparseMatrix:
    """The symmetric matrix T + T' - diag T of an upper triangle T, entries of the same type.

    Stored zeros stay stored.

    Raises:
        ValueError: not square, or an entry below the diagonal.
    """
    triangle = _upper_triangle(upper)
    above = triangle.row != triangle.col
    row = np.concatenate([triangle.row, triangle.col[above]])
    col = np.concatenate([triangle.col, triangle.row[above]])
    data = np.concatenate([triangle.data, triangle.data[above]])
    full = sparse.coo_array((data, (row, col)), shape=triangle.shape).tocsr()
    full.sort_indices()
    return full


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
    return symmetric(_upper_pmi(counts))


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
    weights.data = np.maximum(weights.data - np.log(shift), 0.0)
    weights.eliminate_zeros()
    return symmetric(weights)


def nonempty(matrix: SparseMatrix | NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows hold any entry other than zero, bool (n,): of a PPMI matrix, or of an embedding."""
    if isinstance(matrix, np.ndarray):
        return np.asarray(matrix.any(axis=1))
    stored = sparse.csr_array(matrix)
    row = np.repeat(np.arange(stored.shape[0]), np.diff(stored.indptr))
    return np.asarray(np.bincount(row[stored.data != 0], minlength=stored.shape[0]) > 0)


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
        # Both the start vector and the restarts draw from the seed: else a matrix of low rank differs by run.
        rng = np.random.default_rng(seed)
        values, vectors = sparse_linalg.eigsh(weights, k=dim, which="LA", v0=rng.standard_normal(n), rng=rng)
    order = np.argsort(-values, kind="stable")
    order = order[values[order] > values.max() * _NEGLIGIBLE]
    values, vectors = values[order], vectors[:, order]
    peak = np.argmax(np.abs(vectors), axis=0)
    signs = np.sign(vectors[peak, np.arange(values.size)])
    scores = vectors * (signs * np.sqrt(values))
    norms = np.linalg.norm(scores, axis=1, keepdims=True)
    # A smaller norm is rounding in the eigenvectors, and has no direction.
    reached = norms > np.sqrt(values[0]) * 1e-10
    unit = np.divide(scores, norms, out=np.zeros_like(scores), where=reached)
    return np.asarray(unit, np.float32)


def _dense_is_faster(n: int, dim: int) -> bool:
    """Whether LAPACK (time as n^3) beats Lanczos (as n dim^2); measured break-even near n = 16 dim.

    Above 8,000 rows the dense matrix and its workspace would take more than a gigabyte.
    """
    return dim >= n or n <= max(1_000, min(16 * dim, 8_000))


def _checked_weights(matrix: SparseMatrix, dim: int) -> SparseFloat:
    """The matrix as float64, or a ValueError that says why it cannot be embedded."""
    if dim < 1:
        raise ValueError(f"dim is {dim}; it must be 1 or more")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the matrix to embed must be square, not {matrix.shape}")
    weights = sparse.csr_array(matrix.astype(np.float64))
    if not np.isfinite(weights.data).all() or (weights.data < 0).any():
        raise ValueError("a weight is negative or not finite; PPMI has neither")
    empty = np.flatnonzero(~nonempty(weights))
    if empty.size:
        raise ValueError(
            f"row {empty[0]} is empty ({empty.size} in all); leave such codes out before embedding"
        )
    difference = sparse.csr_array(weights - weights.T)
    if np.abs(difference.data).max(initial=0.0) > _ROUNDING * weights.data.max(initial=0.0):
        raise ValueError(
            "the matrix to embed is not symmetric; an upper triangle must go through `symmetric`"
        )
    return weights


def _upper_pmi(counts: SparseMatrix) -> SparseFloat:
    """Upper triangle of the PMI, one stored entry for each count above 0."""
    triangle = _checked_counts(counts)
    row_sums, total = _margins(triangle)
    with np.errstate(divide="ignore"):
        log_sums, log_total = np.log(row_sums), np.log(total)
    # Grouped so that the two codes of a pair enter alike: relabelling codes changes no bit.
    data = (np.log(triangle.data) + log_total) - (log_sums[triangle.row] + log_sums[triangle.col])
    return sparse.csr_array((data, (triangle.row, triangle.col)), shape=triangle.shape)


def _margins(triangle: SparseTriplets) -> tuple[NDArray[np.float64], float]:
    """Row sums and total of C from checked triplets of its upper triangle."""
    n = triangle.shape[0]
    above = triangle.row != triangle.col
    below = np.bincount(triangle.col[above], weights=triangle.data[above], minlength=n)
    row_sums = np.asarray(np.bincount(triangle.row, weights=triangle.data, minlength=n) + below, np.float64)
    return row_sums, float(row_sums.sum())


def _checked_counts(counts: SparseMatrix) -> SparseTriplets:
    """The counts above 0 as float64 triplets of the upper triangle."""
    triangle = _upper_triangle(counts)
    data = triangle.data.astype(np.float64)
    if not np.isfinite(data).all() or (data < 0).any():
        at = int(np.flatnonzero(~(np.isfinite(data) & (data >= 0)))[0])
        cell = f"({triangle.row[at]}, {triangle.col[at]})"
        raise ValueError(f"the count at {cell} is {data[at]}; counts must be finite and not negative")
    keep = data > 0
    return sparse.coo_array((data[keep], (triangle.row[keep], triangle.col[keep])), shape=triangle.shape)


def _upper_triangle(upper: SparseMatrix) -> SparseTriplets:
    """The triplets of an upper triangle, each cell once; the argument is left as it is."""
    stored = sparse.csr_array(upper)
    if stored.shape[0] != stored.shape[1]:
        raise ValueError(f"a symmetric matrix is square, not {stored.shape}")
    if not stored.has_canonical_format:
        stored = stored.copy()
        stored.sum_duplicates()
    triangle = stored.tocoo()
    if (triangle.row > triangle.col).any():
        raise ValueError("only the upper triangle is expected, and there are entries below the diagonal")
    return triangle
