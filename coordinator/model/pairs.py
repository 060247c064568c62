"""Pairs of codes on a device: similar pairs speak of clusters, related pairs of vectors.

    logit P(similar ij) = a + b mu_(z_i)'mu_(z_j)        (a code and its synonym)
    logit P(related ij) = a_R + u_i' W u_j,  W = W'      (a drug and its indication)

Both likelihoods are concave in (a, b) and in (W, a_R), which Newton's method fits with a small ridge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from coordinator.model.relations import Relations
from coordinator.model.sparse import Pattern, dense_rows, from_scipy, multiply, row_blocks

_LINK_RIDGE = 0.01
_RELATEDNESS_RIDGE = 1.0
_INTERCEPT_RIDGE = 1e-6
_NEWTON_STEPS = 5  # an iteration; the next one goes on from there
_CONJUGATE_STEPS = 10
_CONJUGATE_TOLERANCE = 0.05
_DENSE_CELLS = 1 << 22  # (n, K) matrices up to this size are dense: BLAS then beats the sparse product


@dataclass(frozen=True, eq=False)
class Similar:
    """Similar pairs: symmetric (n, n) matrices of the positive pairs, and of all pairs."""

    positive: Tensor
    every: Tensor


@dataclass(frozen=True, eq=False)
class SimilarCounts:
    """Expected numbers of pairs, given the responsibilities.

    Args:
        near_positive: (n, K), for code i the expected number of its positive pairs with a code in cluster k.
        near_every: the same over all pairs.
        positive: (K, K) expected number of positive pairs between two clusters, half at each of both places.
        every: the same over all pairs.
    """

    near_positive: Tensor
    near_every: Tensor
    positive: Tensor
    every: Tensor


def similar_on(relations: Relations, n_codes: int, device: torch.device) -> Similar:
    """The similar pairs as sparse tensors."""
    positive, negative = relations.matrices(n_codes)
    return Similar(from_scipy(positive, device), from_scipy((positive + negative).tocsr(), device))


def count(pairs: Similar, pattern: Pattern, responsibilities: Tensor) -> SimilarCounts:
    """Add up pairs by the responsibilities of their two ends."""
    n, n_clusters = pattern.shape
    # Zeros stay out of the sparse products, which cost as much as the other entries.
    kept = responsibilities > 0.0
    pattern = Pattern.at(pattern.row[kept], pattern.column[kept], pattern.shape)
    r, turned = pattern.matrix(responsibilities[kept]), pattern.transposed(responsibilities[kept])
    graphs = (pairs.positive, pairs.every)
    if n * n_clusters <= _DENSE_CELLS:
        r = r.to_dense()
        near = [graph @ r for graph in graphs]
        counts = [turned @ codes for codes in near]
    else:
        near = [multiply(graph, r) for graph in graphs]
        counts = [multiply(turned, codes).to_dense() for codes in near]
    return SimilarCounts(near[0], near[1], 0.5 * counts[0], 0.5 * counts[1])


def similar_value(counts: SimilarCounts, centers: Tensor, link: tuple[float, float]) -> float:
    """E_q of the log-likelihood of the similar pairs: exact, as q factorises over codes."""
    logit = link[0] + link[1] * (centers @ centers.T)
    # log s(x) = x + log s(-x)
    return float(torch.sum(counts.positive * logit) + torch.sum(counts.every * logsigmoid(-logit)))


def similar_message(
    counts: SimilarCounts, pattern: Pattern, centers: Tensor, link: tuple[float, float]
) -> Tensor:
    """What pairs say of each code's cluster, at the pattern's entries.

    Y+ R log s(a + bG) + Y- R log s(-a - bG) = Y+ R (a + bG) + (Y+ + Y-) R log s(-a - bG),  G = mu mu'.
    """
    a, b = link
    unlike = logsigmoid(-(a + b * (centers @ centers.T)))
    message = b * pattern.products(counts.near_positive @ centers, centers)
    for rows in row_blocks(pattern.shape[0], pattern.shape[1]):
        block = dense_rows(counts.near_every, rows) @ unlike
        part = slice(int(pattern.start[rows.start]), int(pattern.start[rows.stop]))
        message[part] += block[pattern.row[part] - rows.start, pattern.column[part]]
    # The number of a code's positive pairs, times a, is the same for all of its clusters and left out.
    return message


def similar_gradient(counts: SimilarCounts, centers: Tensor, link: tuple[float, float]) -> Tensor:
    """Gradient of `similar_value` in the centers, (K, d)."""
    chance = torch.sigmoid(link[0] + link[1] * (centers @ centers.T))
    return 2.0 * link[1] * ((counts.positive - counts.every * chance) @ centers)


def similar_information(
    counts: SimilarCounts, centers: Tensor, link: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """How firmly the similar pairs hold each center: (K,) slope along it, and mean curvature across it."""
    cosine = centers @ centers.T
    chance = torch.sigmoid(link[0] + link[1] * cosine)
    pull = (counts.positive - counts.every * chance) * cosine
    # Pairs inside one cluster do not hold its center: mu_k'mu_k is 1 wherever it lies.
    slope = 2.0 * link[1] * (pull.sum(dim=1) - pull.diagonal())
    weight = 2.0 * counts.every * chance * (1.0 - chance) * (1.0 - cosine**2)
    return slope, link[1] ** 2 * weight.sum(dim=1) / (centers.shape[1] - 1.0)


def fit_link(counts: SimilarCounts, centers: Tensor, link: tuple[float, float]) -> tuple[float, float]:
    """(a, b) by Newton's method: they maximise `similar_value` less `link_penalty`."""
    cosine = centers @ centers.T

    def derivatives(theta: Tensor) -> tuple[float, Tensor, Callable[[Tensor], Tensor]]:
        pair = (float(theta[0]), float(theta[1]))
        chance = torch.sigmoid(pair[0] + pair[1] * cosine)
        value = similar_value(counts, centers, pair) - link_penalty(pair)
        residual, weight = counts.positive - counts.every * chance, counts.every * chance * (1.0 - chance)
        slope = torch.stack([residual.sum(), torch.sum(residual * cosine)]) - _LINK_RIDGE * theta
        m0, m1, m2 = weight.sum(), torch.sum(weight * cosine), torch.sum(weight * cosine**2)
        curvature = torch.stack([torch.stack([m0, m1]), torch.stack([m1, m2])])
        curvature += _LINK_RIDGE * torch.eye(2, dtype=theta.dtype, device=theta.device)
        return value, slope, lambda right: torch.linalg.solve(curvature, right)

    theta = _newton(
        torch.tensor(link, dtype=centers.dtype, device=centers.device), derivatives, _NEWTON_STEPS
    )
    return float(theta[0]), float(theta[1])


def link_penalty(link: tuple[float, float]) -> float:
    """The ridge on (a, b); without it, pairs that a line separates would send them to infinity."""
    return 0.5 * _LINK_RIDGE * (link[0] ** 2 + link[1] ** 2)


@dataclass(frozen=True, eq=False)
class Related:
    """Related pairs: an (n, n) pattern with an entry a pair, how often it is listed, and how often as positive."""

    pattern: Pattern
    listed: Tensor
    positive: Tensor


@dataclass(frozen=True, eq=False)
class Relatedness:
    """The related pairs' parameters: W (d, d) symmetric, and the intercept a_R."""

    matrix: Tensor
    intercept: float


def related_on(relations: Relations, n_codes: int, device: torch.device) -> Related:
    """The related pairs as an upper triangular pattern."""
    ends = np.sort(relations.pairs, axis=1)
    key, place = np.unique(ends[:, 0] * n_codes + ends[:, 1], return_inverse=True)
    listed = np.bincount(place.reshape(-1)).astype(np.float64)
    positive = np.bincount(place.reshape(-1), weights=relations.labels.astype(np.float64))
    row, column, listed_on, positive_on = (
        torch.from_numpy(part).to(device) for part in (key // n_codes, key % n_codes, listed, positive)
    )
    return Related(Pattern.at(row, column, (n_codes, n_codes)), listed_on, positive_on)


def related_value(pairs: Related, mean: Tensor, fitted: Relatedness) -> float:
    """Log-likelihood of the related pairs at the posterior means, less small ridges |W|_F^2 / 2 and 5e-7 a_R^2."""
    logit = _logits(pairs, mean, fitted)
    value = torch.sum(pairs.positive * logit) + torch.sum(pairs.listed * logsigmoid(-logit))
    ridge = _RELATEDNESS_RIDGE * torch.sum(fitted.matrix**2) + _INTERCEPT_RIDGE * fitted.intercept**2
    return float(value - 0.5 * ridge)


def related_evidence(pairs: Related, mean: Tensor, fitted: Relatedness) -> tuple[Tensor, Tensor]:
    """Gradient (n, d) of `related_value` in the means, and the trace (n,) of its curvature by code.

    With v_j = W E[u_j]: sum_j (y_ij - p_ij) v_j, and sum_j p_ij (1 - p_ij) |v_j|^2.
    """
    chance = torch.sigmoid(_logits(pairs, mean, fitted))
    turned = mean @ fitted.matrix
    slope = _both_ways(pairs.pattern, pairs.positive - pairs.listed * chance, turned)
    size = (turned**2).sum(dim=1, keepdim=True)
    return slope, _both_ways(pairs.pattern, pairs.listed * chance * (1.0 - chance), size)[:, 0]


def fit_relatedness(pairs: Related, mean: Tensor, start: Relatedness, steps: int = 1) -> Relatedness:
    """W and a_R by Newton steps, each by conjugate gradients: the Hessian is never formed.

    One inexact step an iteration of the fit is enough, since the next one goes on from there.
    """
    dim = mean.shape[1]

    def adjoint(values: Tensor) -> Tensor:
        half = mean.T @ (pairs.pattern.matrix(values) @ mean)
        return torch.cat([(0.5 * (half + half.T)).reshape(-1), values.sum()[None]])

    def derivatives(theta: Tensor) -> tuple[float, Tensor, Callable[[Tensor], Tensor]]:
        fitted = Relatedness(theta[:-1].reshape(dim, dim), float(theta[-1]))
        logit = _logits(pairs, mean, fitted)
        chance = torch.sigmoid(logit)
        weight = pairs.listed * chance * (1.0 - chance)
        ridge = torch.full_like(theta, _RELATEDNESS_RIDGE)
        ridge[-1] = _INTERCEPT_RIDGE

        def curve(step: Tensor) -> Tensor:
            change = pairs.pattern.products(mean @ step[:-1].reshape(dim, dim), mean) + step[-1]
            return adjoint(weight * change) + ridge * step

        value = torch.sum(pairs.positive * logit) + torch.sum(pairs.listed * logsigmoid(-logit))
        value = value - 0.5 * torch.sum(ridge * theta**2)
        slope = adjoint(pairs.positive - pairs.listed * chance) - ridge * theta
        return float(value), slope, lambda right: _conjugate_gradients(curve, right)

    theta = torch.cat([start.matrix.reshape(-1), start.matrix.new_tensor([start.intercept])])
    theta = _newton(theta, derivatives, steps)
    matrix = theta[:-1].reshape(dim, dim)
    return Relatedness(0.5 * (matrix + matrix.T), float(theta[-1]))


def _both_ways(pattern: Pattern, values: Tensor, right: Tensor) -> Tensor:
    """The symmetric matrix with a pair's value at both of its places, times `right`."""
    return pattern.matrix(values) @ right + pattern.transposed(values) @ right


def _logits(pairs: Related, mean: Tensor, fitted: Relatedness) -> Tensor:
    return fitted.intercept + pairs.pattern.products(mean @ fitted.matrix, mean)


def _conjugate_gradients(curve: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """Solve curve(x) = right for a positive definite `curve` (Hestenes and Stiefel 1952)."""
    x, residual = torch.zeros_like(right), right.clone()
    direction, square = residual.clone(), float(residual @ residual)
    enough = _CONJUGATE_TOLERANCE**2 * square
    for _ in range(_CONJUGATE_STEPS):
        if square <= enough:
            break
        curved = curve(direction)
        step = square / float(direction @ curved)
        x += step * direction
        residual -= step * curved
        new = float(residual @ residual)
        direction = residual + (new / square) * direction
        square = new
    return x


def _newton(
    theta: Tensor,
    derivatives: Callable[[Tensor], tuple[float, Tensor, Callable[[Tensor], Tensor]]],
    steps: int,
) -> Tensor:
    """Maximise a concave function; a step that lowers it is halved, so the value never falls."""
    value, slope, solve = derivatives(theta)
    for _ in range(steps):
        step = solve(slope)
        if float(step @ slope) < 1e-8 * (1.0 + abs(value)):
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
