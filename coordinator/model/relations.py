"""Pairs of codes: similar pairs speak of clusters, related pairs of embeddings.

    logit P(similar ij) = a + b mu_(z_i)'mu_(z_j)        (a code and its synonym)
    logit P(related ij) = a_R + u_i' W u_j,  W = W'      (a drug and its indication)

Both likelihoods are concave in their parameters, which Newton's method fits with a small ridge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import expit, log_expit

from coordinator.model.factor import Array, Index
from protocol.errors import FitError

_LINK_RIDGE = 0.01
_RELATEDNESS_RIDGE = 1.0
_NEWTON_STEPS = 20


@dataclass(frozen=True, eq=False)
class Relations:
    """Pairs of codes that are known to be related, or known not to be.

    Args:
        pairs: (m, 2) rows of the union vocabulary, two different ones each.
        labels: (m,) True for a positive pair.

    Raises:
        FitError: wrong shapes, or a pair of a code with itself.
    """

    pairs: Index
    labels: NDArray[np.bool_]

    def __post_init__(self) -> None:
        pairs, labels = np.asarray(self.pairs), np.asarray(self.labels)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or labels.shape != pairs.shape[:1]:
            raise FitError(f"pairs of shape {pairs.shape} do not go with labels of shape {labels.shape}")
        if not np.issubdtype(pairs.dtype, np.integer) or np.any(pairs[:, 0] == pairs[:, 1]):
            raise FitError("a pair must name two different codes by whole numbers")
        object.__setattr__(self, "pairs", pairs.astype(np.intp))
        object.__setattr__(self, "labels", labels.astype(bool))

    def check(self, n_codes: int) -> None:
        """Raise FitError for a code outside the vocabulary."""
        if self.pairs.size and (self.pairs.min() < 0 or self.pairs.max() >= n_codes):
            raise FitError(f"a pair names a code outside the vocabulary of {n_codes} codes")

    def matrices(self, n_codes: int) -> tuple[sp.csr_array, sp.csr_array]:
        """Symmetric (n, n) matrices Y+ and Y- of positive and negative pairs."""
        return self.symmetric(self.labels, n_codes), self.symmetric(~self.labels, n_codes)

    def symmetric(self, values: NDArray[np.generic], n_codes: int) -> sp.csr_array:
        """(n, n) matrix with a pair's value at both of its places."""
        i, j = self.pairs.T
        half = sp.csr_array((values.astype(np.float64), (i, j)), shape=(n_codes, n_codes))
        half.eliminate_zeros()
        return sp.csr_array(half + half.T)


@dataclass(frozen=True, eq=False)
class ClusterPairs:
    """Expected numbers of pairs between clusters: R'Y+R / 2 and R'Y-R / 2, each (K, K) symmetric."""

    positive: Array
    negative: Array


def cluster_pairs(responsibilities: sp.csr_array, graphs: tuple[sp.csr_array, sp.csr_array]) -> ClusterPairs:
    """Add up pairs by the responsibilities of their two ends."""
    # Dense once it is full: BLAS then beats the sparse product.
    n, n_clusters = responsibilities.shape
    if responsibilities.nnz > 0.1 * n * n_clusters:
        dense = responsibilities.toarray()
        return ClusterPairs(*(0.5 * (dense.T @ (graph @ dense)) for graph in graphs))
    left = responsibilities.T.tocsr()
    return ClusterPairs(*(0.5 * sp.csr_array(left @ graph @ responsibilities).toarray() for graph in graphs))


def similarity_value(counts: ClusterPairs, centers: Array, link: tuple[float, float]) -> float:
    """E_q of the log-likelihood of the similar pairs: exact, as q factorises over codes."""
    logit = link[0] + link[1] * (centers @ centers.T)
    return float(np.sum(counts.positive * log_expit(logit)) + np.sum(counts.negative * log_expit(-logit)))


def similarity_message(
    responsibilities: sp.csr_array,
    graphs: tuple[sp.csr_array, sp.csr_array],
    centers: Array,
    link: tuple[float, float],
) -> Array:
    """What pairs say of each code's cluster: Y+ R log s(a + bG) + Y- R log s(-a - bG), (n, K), G = mu mu'."""
    logit = link[0] + link[1] * (centers @ centers.T)
    positive = (graphs[0] @ responsibilities) @ log_expit(logit)
    return np.asarray(positive + (graphs[1] @ responsibilities) @ log_expit(-logit))


def fit_link(counts: ClusterPairs, centers: Array, link: tuple[float, float]) -> tuple[float, float]:
    """(a, b) by Newton's method: they maximise `similarity_value` less `link_penalty`."""
    cosine = centers @ centers.T
    positive, total = counts.positive, counts.positive + counts.negative

    def derivatives(theta: Array) -> tuple[float, Array, Callable[[Array], Array]]:
        chance = expit(theta[0] + theta[1] * cosine)
        pair = (float(theta[0]), float(theta[1]))
        value = similarity_value(counts, centers, pair) - link_penalty(pair)
        residual, weight = positive - total * chance, total * chance * (1.0 - chance)
        slope = np.array([residual.sum(), np.sum(residual * cosine)]) - _LINK_RIDGE * theta
        moments = [float(np.sum(weight * cosine**power)) for power in range(3)]
        curvature = np.array([moments[:2], moments[1:]]) + _LINK_RIDGE * np.eye(2)
        return value, slope, lambda right: np.asarray(np.linalg.solve(curvature, right), dtype=np.float64)

    a, b = _newton(np.array(link), derivatives)
    return float(a), float(b)


def link_penalty(link: tuple[float, float]) -> float:
    """The ridge on (a, b); without it, pairs that a line separates would send them to infinity."""
    return 0.5 * _LINK_RIDGE * (link[0] ** 2 + link[1] ** 2)


def similarity_gradient(counts: ClusterPairs, centers: Array, link: tuple[float, float]) -> Array:
    """Gradient of `similarity_value` in the centers, (K, d)."""
    chance = expit(link[0] + link[1] * (centers @ centers.T))
    residual = counts.positive - (counts.positive + counts.negative) * chance
    return np.asarray(2.0 * link[1] * (residual @ centers))


@dataclass(frozen=True, eq=False)
class Relatedness:
    """The related pairs' parameters: W (d, d) symmetric, and the intercept a_R."""

    matrix: Array
    intercept: float


def relatedness_value(pairs: Relations, mean: Array, fitted: Relatedness) -> float:
    """Log-likelihood of the related pairs at the posterior means, less |W|_F^2 / 2."""
    logit = _logits(pairs, mean, fitted)
    signed = np.where(pairs.labels, logit, -logit)
    return float(np.sum(log_expit(signed)) - 0.5 * _RELATEDNESS_RIDGE * np.sum(fitted.matrix**2))


def relatedness_evidence(pairs: Relations, mean: Array, fitted: Relatedness) -> tuple[Array, Array]:
    """Gradient (n, d) of `relatedness_value` in the means, and the trace (n,) of its curvature by code.

    With v_j = W E[u_j]: sum_j (y_ij - p_ij) v_j, and sum_j p_ij (1 - p_ij) |v_j|^2.
    """
    chance = expit(_logits(pairs, mean, fitted))
    turned = mean @ fitted.matrix
    slope = pairs.symmetric(pairs.labels - chance, len(mean)) @ turned
    trace = pairs.symmetric(chance * (1.0 - chance), len(mean)) @ np.sum(turned**2, axis=1)
    return np.asarray(slope), np.asarray(trace)


def fit_relatedness(pairs: Relations, mean: Array, start: Relatedness) -> Relatedness:
    """W and a_R by Newton's method, each step by conjugate gradients: the Hessian is never formed."""
    dim = mean.shape[1]
    left, right = mean[pairs.pairs[:, 0]], mean[pairs.pairs[:, 1]]

    def adjoint(values: Array) -> Array:
        half = left.T @ (values[:, None] * right)
        return np.append(0.5 * (half + half.T), values.sum())

    def derivatives(theta: Array) -> tuple[float, Array, Callable[[Array], Array]]:
        fitted = Relatedness(theta[:-1].reshape(dim, dim), float(theta[-1]))
        chance = expit(_logits(pairs, mean, fitted))
        weight = chance * (1.0 - chance)
        ridge = np.append(np.full(dim * dim, _RELATEDNESS_RIDGE), 1e-6)

        def curve(step: Array) -> Array:
            step = step.ravel()
            change = np.sum((left @ step[:-1].reshape(dim, dim)) * right, axis=1) + step[-1]
            return adjoint(weight * change) + ridge * step

        def solve(slope: Array) -> Array:
            operator = LinearOperator((len(slope), len(slope)), matvec=curve, dtype=np.float64)
            return np.asarray(cg(operator, slope, rtol=1e-3, maxiter=50)[0])

        slope = adjoint(pairs.labels - chance) - ridge * theta
        return relatedness_value(pairs, mean, fitted) - 5e-7 * theta[-1] ** 2, slope, solve

    theta = _newton(np.append(start.matrix, start.intercept), derivatives)
    matrix = theta[:-1].reshape(dim, dim)
    return Relatedness(0.5 * (matrix + matrix.T), float(theta[-1]))


def _logits(pairs: Relations, mean: Array, fitted: Relatedness) -> Array:
    i, j = pairs.pairs.T
    return np.asarray(fitted.intercept + np.sum((mean[i] @ fitted.matrix) * mean[j], axis=1))


def _newton(
    theta: Array, derivatives: Callable[[Array], tuple[float, Array, Callable[[Array], Array]]]
) -> Array:
    """Maximise a concave function; a step that lowers it is halved, so the value never falls."""
    value, slope, solve = derivatives(theta)
    for _ in range(_NEWTON_STEPS):
        step = solve(slope)
        gain = float(step @ slope)
        if gain < 1e-8 * (1.0 + abs(value)):
            break
        for _ in range(30):
            new = derivatives(theta + step)
            if new[0] >= value:
                break
            step = 0.5 * step
        else:
            break
        theta = theta + step
        value, slope, solve = new
    return theta
