"""Leading eigenpairs of a large sparse symmetric matrix: block Lanczos in single precision, ARPACK behind it.

A product of the sparse matrix with 16 vectors at once costs about four times that with one: entries and indices
are read once, and in single precision the entries are half as long. Hence blocks, where ARPACK takes one vector at
a time, and a basis long enough to converge without many restarts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse import linalg as sparse_linalg
from threadpoolctl import threadpool_limits

SparseMatrix = sparse.csr_array[Any, tuple[int, int]]
Array = NDArray[np.float64]
Pairs = tuple[Array, NDArray[np.floating[Any]]]
Vectors = NDArray[np.float32]

BLOCK = 16  # vectors in a product
TOLERANCE = 2e-6  # of the largest eigenvalue: residual that every pair returned keeps, as measured
_AIM = 1e-7  # of the largest eigenvalue: estimated residual at which iterations end
_NOISE = 3e-7  # of the largest eigenvalue: what single precision leaves of a product that should be zero
_RESOLVED = 1e-4  # of the largest eigenvalue: smaller ones are left to double precision
_BASIS = 7  # columns of the basis before a restart, for each pair wanted
_PATIENCE = 6  # products, for each column of the basis, after which ARPACK takes over
_PROBE = 6  # blocks from a fresh start that must find no eigenvalue above those kept
_ROWS = 2048  # rows of the basis that a thread works on at a time
_CHUNK = 1 << 19  # entries of the matrix that a thread multiplies at a time


def leading_eigenpairs(matrix: SparseMatrix, k: int, *, seed: int = 0) -> Pairs:
    """The k algebraically largest eigenvalues of a symmetric matrix, falling, and their eigenvectors.

    Every pair satisfies |M u - l u| <= TOLERANCE * l_1 with |u| = 1; an eigenvector is then off by about that
    over the distance of its eigenvalue to the others. Where single precision cannot reach this (no convergence, or an
    eigenvalue near zero beside the largest), ARPACK computes all pairs in double precision.

    The same matrix and seed give the same bits on the same machine, with any number of threads; from ARPACK, the
    number of BLAS threads may show in the last bits.

    Args:
        matrix: symmetric (n, n), finite, with a positive entry; k < n.
        k: pairs that are wanted, 1 or more.
        seed: of the start block.

    Returns:
        values float64 (k,) and vectors (n, k), float32 or, from ARPACK, float64.

    Source: Golub and Underwood 1977 (block Lanczos); Wu and Simon 2000 (thick restart);
        Lehoucq, Sorensen and Yang 1998 (ARPACK).
    """
    found = _block_lanczos(matrix, k, seed)
    if found is not None:
        return found
    # Both the start vector and the restarts draw from the seed: else a matrix of low rank differs by run.
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(matrix.shape[0])
    values, vectors = sparse_linalg.eigsh(matrix.astype(np.float64), k=k, which="LA", v0=start, rng=rng)
    order = np.argsort(-values, kind="stable")
    return values[order], vectors[:, order]


def _block_lanczos(matrix: SparseMatrix, k: int, seed: int) -> Pairs | None:
    """The pairs, or None where single precision does not reach them."""
    n = matrix.shape[0]
    columns = min(max(_BASIS * k, k + 16 * BLOCK), n - 2 * BLOCK) // BLOCK * BLOCK
    if columns < k + (_PROBE + 2) * BLOCK:
        return None
    with _one_blas_thread(), _Product(matrix) as product:
        krylov = _Krylov(product, columns, np.random.default_rng(seed))
        while _converge(krylov, k, most=_PATIENCE * columns):
            values, vectors = krylov.ritz(k)[0], krylov.vectors(k)
            if values[-1] < _RESOLVED * values[0]:
                return None
            # Copies of an eigenvalue of high multiplicity may hide from one start block: what has converged
            # must stand against another one.
            krylov.restart(k, fresh=True)
            for _ in range(_PROBE):
                krylov.step()
            if (krylov.ritz(k)[0] - values).max() <= TOLERANCE * values[0]:
                reached = _residual(product, values, vectors) <= TOLERANCE * values[0]
                return (values * product.scale, vectors) if reached else None
    return None


def _converge(krylov: _Krylov, k: int, *, most: int) -> bool:
    """Iterate until the residuals of the k leading pairs are estimated to be small enough, or `most` products."""
    before: tuple[int, float] | None = None
    check = krylov.size + 2 * k
    while krylov.products < most:
        while krylov.size < check and not krylov.full:
            krylov.step()
        left = math.log(max(krylov.estimate(k), 1e-30) / _AIM)
        if left <= 0:
            values, residuals = krylov.ritz(k)
            left = math.log(max(float(residuals.max() / np.abs(values[0])), 1e-30) / _AIM)
        if left <= 0:
            return True
        if krylov.full:
            krylov.restart(k + min(k // 2, 4 * BLOCK), fresh=False)
            before, check = None, krylov.size + k
            continue
        # A check costs as much as a few blocks. Convergence gathers pace, so half of what the last stretch
        # foretells is safe to leave out.
        ahead = krylov.size // 6
        if before is not None and before[1] > left:
            ahead = min(ahead, int(left * (krylov.size - before[0]) / (before[1] - left) / 2))
        before, check = (krylov.size, left), krylov.size + max(ahead, 2 * BLOCK)
    return False


def _residual(product: _Product, values: Array, vectors: Vectors) -> float:
    """The largest |M u - l u|, from products with the vectors themselves."""
    worst = 0.0
    for first in range(0, values.size, BLOCK):
        block = vectors[:, first : first + BLOCK]
        difference = product(block) - block * values[first : first + BLOCK].astype(np.float32)
        worst = max(worst, float(np.linalg.norm(difference, axis=0).max()))
    return worst


class _Krylov:
    """An orthonormal basis Q that grows by blocks, and T = Q'MQ.

    `basis` (n, columns + BLOCK) holds `size` columns that have been multiplied by M, and the next block after them;
    `projected` is T with the coupling to that block.
    """

    def __init__(self, product: _Product, columns: int, rng: np.random.Generator) -> None:
        self.columns = columns
        self.size = 0
        self.products = 0
        self._product = product
        self._rng = rng
        self._basis = np.zeros((product.n, columns + BLOCK), np.float32, order="F")
        self._projected = np.zeros((columns + BLOCK, columns + BLOCK))
        self._coupled = 0  # first column that the next block is coupled with
        self._largest = 0.0  # entry of T so far
        self._restarted = False  # until then T is a band
        self._solved: tuple[int, Array, Array] | None = None  # Ritz pairs of T as it stands
        self._basis[:, :BLOCK] = self._fresh(0, BLOCK)

    @property
    def full(self) -> bool:
        """Whether the basis has no room for another step."""
        return self.size + BLOCK > self.columns

    def step(self) -> None:
        """Multiply the next block, and leave the one after it."""
        old, new = self.size, self.size + BLOCK
        block = self._basis[:, old:new]
        image = self._product(block)
        near = slice(self._coupled, old)
        image -= self._basis[:, near] @ self._projected[near, old:new].astype(np.float32)
        within = block.T @ image
        image -= block @ within
        self._project_out(image, new)
        self._projected[old:new, old:new] = (within + within.T) / 2
        self._largest = max(self._largest, float(np.abs(within).max()))
        self._coupled, self.size, self._solved = old, new, None
        self.products += BLOCK
        self._append(image)

    def ritz(self, k: int) -> tuple[Array, Array]:
        """The k largest Ritz values, falling, and their residuals, both (k,)."""
        values, weights = self._eigen(k)
        coupling = self._projected[self.size : self.size + BLOCK, : self.size]
        return values, np.linalg.norm(coupling @ weights, axis=0)

    def estimate(self, k: int) -> float:
        """The residual of the k-th largest Ritz value over the largest, at a fraction of the price of `ritz`."""
        if self._restarted:
            values, residuals = self.ritz(k)
            return float(residuals.max() / np.abs(values[0]))
        size, width = self.size, BLOCK
        band = np.zeros((2 * width + 1, size))
        for i in range(width + 1):
            band[width + i, : size - i] = band[width - i, i:] = self._projected[:size, :size].diagonal(-i)
        values = np.asarray(linalg.eigvals_banded(band[width:], lower=True, check_finite=False))
        band[width] -= values[-k] + 3e-13 * np.abs(values).max()  # beside it, lest the matrix be singular
        weights = np.ones(size)
        for _ in range(2):  # inverse iteration
            weights = np.asarray(
                linalg.solve_banded((width, width), band, weights, check_finite=False), np.float64
            )
            weights /= np.linalg.norm(weights)
        last = self._projected[size : size + BLOCK, size - BLOCK : size] @ weights[-BLOCK:]
        return float(np.linalg.norm(last) / np.abs(values[-1]))

    def vectors(self, k: int) -> Vectors:
        """The Ritz vectors of the k largest Ritz values, float32 (n, k)."""
        _, weights = self._eigen(k)
        return np.asarray(self._basis[:, : self.size] @ weights.astype(np.float32))

    def restart(self, keep: int, *, fresh: bool) -> None:
        """Shrink the basis to `keep` Ritz vectors, and the residual block or a fresh one."""
        values, weights = self._eigen(keep)
        residual = slice(self.size, self.size + BLOCK)
        block = self._basis[:, residual].copy()
        coupling = self._projected[residual, : self.size] @ weights
        self._basis[:, :keep] = self._basis[:, : self.size] @ weights.astype(np.float32)
        self._projected[:] = 0.0
        self._projected[range(keep), range(keep)] = values
        self.size, self._coupled, self._solved, self._restarted = keep, 0, None, True
        new = slice(keep, keep + BLOCK)
        if fresh:
            self._basis[:, new] = self._fresh(keep, BLOCK)
        else:
            self._basis[:, new] = block
            self._projected[new, :keep], self._projected[:keep, new] = coupling, coupling.T

    def _eigen(self, k: int) -> tuple[Array, Array]:
        """The k leading eigenpairs of T, values falling; the last answer is kept, for it is asked for repeatedly."""
        if self._solved is None or self._solved[0] != k:
            inside = self._projected[: self.size, : self.size]
            kept = (self.size - k, self.size - 1)
            values, weights = linalg.eigh(inside, subset_by_index=kept, check_finite=False)
            self._solved = (k, values[::-1], weights[:, ::-1])
        return self._solved[1:]

    def _append(self, image: Vectors) -> None:
        """Make the image, orthogonal to the basis, its next block."""
        old, size = self.size - BLOCK, self.size
        block, coupling = linalg.qr(image, mode="economic", check_finite=False)
        strength = np.abs(coupling.diagonal())
        self._largest = max(self._largest, float(strength.max()))
        lost = strength <= _NOISE * self._largest
        if strength.min() < 0.01 * strength.max():
            # Division by a small length has magnified what was left along the basis.
            self._project_out(block, size)
        self._basis[:, size : size + BLOCK] = block
        if lost.any():
            # The Krylov space is exhausted in these directions.
            coupling[lost] = 0.0
            kept = size + BLOCK - int(lost.sum())
            self._basis[:, size:kept] = block[:, ~lost]
            self._basis[:, kept : size + BLOCK] = self._fresh(kept, int(lost.sum()))
            coupling = np.vstack([coupling[~lost], coupling[lost]])
        self._projected[size : size + BLOCK, old:size] = coupling
        self._projected[old:size, size : size + BLOCK] = coupling.T

    def _fresh(self, size: int, count: int) -> Vectors:
        """Random directions orthogonal to the first `size` columns of the basis."""
        block = self._rng.standard_normal((self._basis.shape[0], count)).astype(np.float32)
        for _ in range(2):
            self._project_out(block, size)
            block = linalg.qr(block, mode="economic", check_finite=False)[0]
        return block

    def _project_out(self, block: Vectors, size: int) -> None:
        """Take from a block, in place, what lies along the first `size` columns of the basis."""
        known = self._basis[:, :size]
        parts = self._product.share(lambda rows: known[rows].T @ block[rows])
        along = np.sum(parts, axis=0)

        def subtract(rows: slice) -> None:
            block[rows] -= known[rows] @ along

        self._product.share(subtract)


class _Product:
    """M X / max|M| in single precision, rows in chunks over the cores.

    Each row is summed by one thread in the order of its entries: the bits do not depend on the number of threads.
    Scaled, because weights in any unit must fit into single precision.
    """

    def __init__(self, matrix: SparseMatrix) -> None:
        self.n = matrix.shape[0]
        self.scale = float(max(matrix.data.max(), -matrix.data.min()))
        data = np.empty(matrix.data.size, np.float32)
        np.divide(matrix.data, self.scale, out=data, casting="same_kind")
        ends = np.searchsorted(matrix.indptr, np.arange(_CHUNK, matrix.nnz, _CHUNK))
        bounds = np.unique(np.concatenate([[0], ends, [self.n]]))
        self._chunks = [(slice(a, b), _rows(matrix, data, a, b)) for a, b in pairwise(bounds.tolist())]
        self._pool = ThreadPoolExecutor(_threads())

    def __enter__(self) -> _Product:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()

    def __call__(self, block: Vectors) -> Vectors:
        """The product with (n, m) vectors."""
        rows = np.ascontiguousarray(block)
        out = np.empty_like(rows)

        def multiply(chunk: tuple[slice, SparseMatrix]) -> None:
            out[chunk[0]] = chunk[1] @ rows

        for _ in self._pool.map(multiply, self._chunks):
            pass
        return out

    def share(self, work: Callable[[slice], Any]) -> list[Any]:
        """What a function gives for each stretch of rows, in their order, however many threads share the work."""
        stretches = [slice(i, min(i + _ROWS, self.n)) for i in range(0, self.n, _ROWS)]
        return list(self._pool.map(work, stretches))


def _rows(matrix: SparseMatrix, data: Vectors, first: int, last: int) -> SparseMatrix:
    """Rows of a matrix with other data, sharing memory."""
    start, end = int(matrix.indptr[first]), int(matrix.indptr[last])
    pointers = matrix.indptr[first : last + 1] - matrix.indptr[first]
    parts = (data[start:end], matrix.indices[start:end], pointers)
    return sparse.csr_array(parts, shape=(last - first, matrix.shape[1]), copy=False)


def _one_blas_thread() -> AbstractContextManager[object]:
    """Holds BLAS to one thread: the cores are shared out by rows here.

    BLAS splits blocks this narrow badly, and on a busy machine waits for itself: ten times as long was measured.
    """
    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits


def _threads() -> int:
    """Cores that this process may use; OMP_NUM_THREADS lowers it, as it does for BLAS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores
