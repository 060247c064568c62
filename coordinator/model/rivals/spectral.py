"""Leading singular and eigenvectors, by the cheapest LAPACK route that keeps them accurate."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.utils.extmath import randomized_svd

from coordinator.model.factor import Array

_LARGEST_GRAM = 4000  # rows; the eigenvectors of a larger Gram matrix cost more than a randomised SVD
_ILL_CONDITIONED = 1e-4  # a Gram matrix squares the condition: below this the SVD itself is taken
_NUMERICAL_RANK = 1e-8


class Svd(NamedTuple):
    """X = left diag(singular) right', truncated.

    Args:
        left: (n, k) orthonormal columns, the largest entry of each positive.
        singular: (k,) positive, decreasing.
        right: (p, k) orthonormal columns.
    """

    left: Array
    singular: Array
    right: Array

    @property
    def scores(self) -> Array:
        """(n, k) X in its principal axes."""
        return self.left * self.singular


def truncated_svd(matrix: Array, rank: int) -> Svd:
    """The `rank` leading singular triples, or as many as the matrix has above 1e-8 of the first.

    The eigenvectors of the smaller Gram matrix where it has at most 4,000 rows, else randomised subspace
    iteration (Halko, Martinsson and Tropp 2011), which is the only case that is not exact.
    """
    small, k = min(matrix.shape), min(rank, *matrix.shape)
    if small > _LARGEST_GRAM and 4 * k < small:
        left, singular, right = randomized_svd(matrix, k, n_oversamples=k // 4 + 10, n_iter=6, random_state=0)
        right = right.T
    else:
        tall = matrix.shape[0] >= matrix.shape[1]
        gram = matrix.T @ matrix if tall else matrix @ matrix.T
        value, vector = linalg.eigh(gram, subset_by_index=[small - k, small - 1], check_finite=False)
        singular, vector = np.sqrt(np.maximum(value[::-1], 0.0)), vector[:, ::-1]
        if singular[-1] <= _ILL_CONDITIONED * singular[0]:
            left, singular, right = linalg.svd(matrix, full_matrices=False, check_finite=False)
            left, singular, right = left[:, :k], singular[:k], right[:k].T
        else:
            other = (matrix @ vector if tall else matrix.T @ vector) / singular
            left, right = (other, vector) if tall else (vector, other)
    kept = int(np.sum(singular > _NUMERICAL_RANK * singular[0]))
    left, singular, right = left[:, :kept], singular[:kept], right[:, :kept]
    sign = np.sign(left[np.abs(left).argmax(axis=0), np.arange(kept)]) if kept else np.ones(0)
    return Svd(left * sign, singular, right * sign)


def leading_eigenvectors(apply: Callable[[Array], Array], size: int, rank: int) -> Array:
    """Eigenvectors of the `rank` largest eigenvalues, times the roots of these; rounding and below count as zero.

    Args:
        apply: the product of a symmetric (size, size) matrix with a (size, k) one.
        size: rows of the matrix.
        rank: number of eigenvectors.

    Returns:
        (size, min(rank, size)).
    """
    if 3 * rank + 20 > size:
        value, vector = linalg.eigh(apply(np.eye(size)))
        value, vector = value[-rank:], vector[:, -rank:]
    else:

        def product(v: Array) -> Array:
            return apply(v.reshape(size, -1)).reshape(v.shape)

        operator = LinearOperator((size, size), matvec=product, matmat=product, dtype=np.float64)
        value, vector = eigsh(operator, k=rank, which="LA", v0=np.random.default_rng(0).standard_normal(size))
        order = np.argsort(value)
        value, vector = value[order], vector[:, order]
    value = np.where(value > _NUMERICAL_RANK * value[-1], value, 0.0)
    return np.asarray(vector[:, ::-1] * np.sqrt(value[::-1]))


def rotation(source: Array, target: Array) -> Array:
    """The orthogonal T (a partial isometry where the widths differ) that minimises |source T - target|."""
    left, _, right = linalg.svd(source.T @ target, full_matrices=False, check_finite=False)
    return np.asarray(left @ right)
