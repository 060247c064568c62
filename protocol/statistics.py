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

DENSE_UP_TO = 1_000  # rows up to which LAPACK's full decomposition is faster than Lanczos iterations
_ROUNDING = 1e-9  # relative difference between mirrored entries that rounding explains


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
        seed: of the start vector, where Lanczos iterations are used (n above DENSE_UP_TO).

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
    if n <= DENSE_UP_TO or dim >= n // 3:
        values, vectors = linalg.eigh(weights.toarray(), subset_by_index=[max(0, n - dim), n - 1])
    else:
        start = np.random.default_rng(seed).standard_normal(n)
        values, vectors = sparse_linalg.eigsh(weights, k=dim, which="LA", v0=start)
    order = np.argsort(-values, kind="stable")
    order = order[values[order] > values.max() * n * np.finfo(np.float64).eps]
    values, vectors = values[order], vectors[:, order]
    peak = np.argmax(np.abs(vectors), axis=0)
    scores = vectors * (np.sign(vectors[peak, np.arange(values.size)]) * np.sqrt(values))
    norms = np.linalg.norm(scores, axis=1, keepdims=True)
    # What is left below this is rounding in the eigenvectors, and has no direction.
    reached = norms > np.sqrt(values[0]) * 1e-10
    return np.divide(scores, norms, out=np.zeros_like(scores), where=reached).astype(np.float32)


def _upper_triangle(upper):
    triangle = sparse.coo_array(upper)
    triangle.sum_duplicates()
    if triangle.shape[0] != triangle.shape[1] or (triangle.row > triangle.col).any():
        raise ValueError("not an upper triangle")
    return triangle


def _checked_counts(upper):
    triangle = _upper_triangle(upper)
    if not np.isfinite(triangle.data).all() or (triangle.data < 0).any():
        raise ValueError("a negative or non-finite count")
    triangle.eliminate_zeros()
    return triangle


def _margins(triangle):
    above = triangle.row != triangle.col
    n = triangle.shape[0]
    r = np.bincount(triangle.row, triangle.data, n) + np.bincount(triangle.col[above], triangle.data[above], n)
    return r, float(r.sum())


def _upper_pmi(counts):
    t = _checked_counts(counts).astype(np.float64)
    r, total = _margins(t)
    return sparse.coo_array((np.log(t.data) + np.log(total) - np.log(r[t.row]) - np.log(r[t.col]), (t.row, t.col)), shape=t.shape)


def _checked_weights(ppmi, dim):
    if dim < 1:
        raise ValueError("dim below 1")
    return sparse.csr_array(ppmi)
