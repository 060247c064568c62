"""GloVe of co-occurrence counts, held near a given embedding.

    J = sum_(i != j, X_ij > 0) f(X_ij) (w_i'v_j + b_i + c_j - log X_ij)^2 + sum_i l_i (|w_i - w_i^0|^2 + |v_i - w_i^0|^2)

with f(x) = min(1, (x / x_max)^.75). Given v and c, J is a ridge regression in each (w_i, b_i) by itself, and likewise the
other way round: alternating least squares solves each exactly, needs no learning rate, and J never rises. The result is
(w + v) / 2.

The penalty is *per code*, l_i = l, or *per pair*, l_i = l sum_j f(X_ij): per code, a rare code stays near its place in
the ontology and a common one goes where the counts say, as a prior of one variance for all codes would have it; per
pair, all are held alike.

Source: Pennington, Socher and Manning 2014; KEEP (Elhussein et al. 2025). That v is held as w is, and the solver, are
ours: without it, v_j of a code with fewer pairs than dimensions is not determined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv
from threadpoolctl import threadpool_limits

from protocol.statistics import symmetric

Array = NDArray[np.float64]
Per = Literal["code", "pair"]


@dataclass(frozen=True, eq=False)
class GloveFit:
    """A fit.

    Attributes:
        words: (n, d) w.
        contexts: (n, d) v.
        word_bias: (n,) b.
        context_bias: (n,) c.
        history: J after each half of a sweep.
    """

    words: Array
    contexts: Array
    word_bias: Array
    context_bias: Array
    history: tuple[float, ...]

    @property
    def vectors(self) -> Array:
        """(n, d), (w + v) / 2."""
        return np.asarray((self.words + self.contexts) / 2.0)


def fit_glove(
    counts: sp.csr_array,
    initial: NDArray[np.floating],
    *,
    penalty: float,
    per: Per = "code",
    exponent: float = 0.75,
    quantile: float = 0.75,
    sweeps: int = 30,
    tol: float = 1e-3,
) -> GloveFit:
    """Fit vectors to the logarithms of counts, from an embedding on and near it.

    Args:
        counts: upper triangle of a symmetric (n, n) count matrix; the diagonal is not used.
        initial: (n, d) w^0, where the fit starts, too; a zero row holds a code near zero.
        penalty: l, above 0.
        per: what the penalty is per.
        exponent: of the weights f.
        quantile: x_max is this quantile of the counts above 0.
        sweeps: at most.
        tol: stop when a sweep lowers J by less than this share.

    Raises:
        ValueError: shapes differ, a penalty that is not positive, or a negative count.

    Laws: `history` never rises; rotating `initial` rotates the vectors; a code without pairs keeps its initial row.
    """
    full = sp.csr_array(symmetric(counts).astype(np.float64))
    full.setdiag(0.0)
    full.eliminate_zeros()
    n = full.shape[0]
    start = np.array(initial, dtype=np.float64)
    if start.ndim != 2 or start.shape[0] != n:
        raise ValueError(f"an initial embedding of shape {start.shape} does not go with {n} codes")
    if not (np.isfinite(penalty) and penalty > 0):
        raise ValueError(f"penalty is {penalty}; it must be a positive number")
    if not full.nnz:
        return GloveFit(start, start, np.zeros(n), np.zeros(n), (0.0,))
    if full.data.min() < 0:
        raise ValueError("a count is negative")
    weight = np.minimum(1.0, (full.data / np.quantile(full.data, quantile)) ** exponent)
    mass = np.bincount(np.repeat(np.arange(n), np.diff(full.indptr)), weight, n)
    held = np.asarray(penalty * (mass if per == "pair" else np.ones(n)), np.float64)
    problem = _Problem(full.indptr, full.indices, weight, np.log(full.data), start, held)
    with threadpool_limits(1, user_api="blas"):
        return _alternate(problem, sweeps, tol)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Cells by rows: row i's lie at [pointer[i], pointer[i + 1])."""

    pointer: NDArray[np.int32]
    column: NDArray[np.int32]
    weight: Array
    log_count: Array
    start: Array
    held: Array

    def half(self, other: Array, bias: Array) -> tuple[Array, Array, float]:
        """The best vectors and biases of one side given those of the other, and that side's part of J."""
        n, dim = self.start.shape
        vectors, biases, value = self.start.copy(), np.zeros(n), 0.0
        ridge = np.arange(dim)
        plain = np.ones((n, dim + 1), np.float32)
        plain[:, :dim] = other
        root = np.sqrt(self.weight)
        for i in range(n):
            cells = slice(self.pointer[i], self.pointer[i + 1])
            if cells.start == cells.stop:
                continue
            column, f = self.column[cells], self.weight[cells]
            # Roots of f on both factors: the product is symmetric, and half the work.
            design = plain[column]
            # In the difference from w^0 the ridge is an ordinary one.
            target = self.log_count[cells] - bias[column] - design[:, :dim] @ self.start[i]
            design *= root[cells, None]
            gram = np.asarray(design.T @ design, np.float64)
            gram[ridge, ridge] += self.held[i]
            right = np.asarray((target * root[cells]) @ design, np.float64)
            _, found, failed = dposv(gram, right)
            if failed:
                raise ValueError(f"the equations of code {i} are singular: the penalty is too small")
            vectors[i] += found[:dim]
            biases[i] = found[dim]
            value += float(f @ target**2 - right @ found)
        return vectors, biases, value

    def anchor(self, vectors: Array) -> float:
        """The penalty of one side."""
        return float(self.held @ np.square(vectors - self.start).sum(axis=1))


def _alternate(problem: _Problem, sweeps: int, tol: float) -> GloveFit:
    w = v = problem.start
    b = c = np.zeros(len(v))
    history: list[float] = []
    for _ in range(sweeps):
        w, b, value = problem.half(v, c)
        history.append(value + problem.anchor(v))
        v, c, value = problem.half(w, b)
        history.append(value + problem.anchor(w))
        if len(history) > 2 and history[-3] - history[-1] <= tol * history[-1]:
            break
    return GloveFit(w, v, b, c, tuple(history))
