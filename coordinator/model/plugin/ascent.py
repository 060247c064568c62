"""Block coordinate ascent on the objective F: a start, and sweeps that move one block of parameters at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from coordinator.model import clusters, pairs
from coordinator.model.factor import Array
from coordinator.model.loadings import evidence
from coordinator.model.pairs import Relatedness
from coordinator.model.plugin.objective import (
    Problem,
    State,
    count,
    loadings_of,
    membership_value,
    objective,
)

_NEGLIGIBLE = 1e-7  # responsibilities below this are dropped
_NEWTON_STEPS = 20
_HALVINGS = 5
_BISECTIONS = 60


def start(problem: Problem, points: Array, n_clusters: int, seed: int) -> State:
    """The parameters that k-means of the points gives, (n, d) unit rows."""
    dim = points.shape[1]
    found, _ = clusters.start_clusters(points, n_clusters, problem.prior, method="k-means", seed=seed)
    at, centers = torch.from_numpy(points), torch.from_numpy(found)
    relatedness = Relatedness(at.new_zeros((dim, dim)), 0.0)
    if problem.related is not None:
        relatedness = pairs.fit_relatedness(problem.related, at, relatedness, _NEWTON_STEPS)
    r = _respond(problem, at, centers, None)
    state = State(
        points=at,
        loadings=loadings_of(problem.data, at),
        centers=centers,
        responsibilities=r,
        counts=count(problem, r),
        link=(-2.0, 4.0),
        relatedness=relatedness,
        value=-np.inf,
    )
    return replace(state, value=objective(problem, state))


def ascend(
    problem: Problem,
    state: State,
    iterations: int,
    tol: float,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[State, tuple[float, ...]]:
    """Sweeps until one gains too little; the state, and F at the start and after each."""
    history = [state.value]
    for iteration in range(iterations):
        state = _sweep(problem, state)
        history.append(state.value)
        if progress is not None:
            progress(iteration, state.value)
        if history[-1] - history[-2] < tol * problem.weights.mixture * len(state.points):
            break
    return state, tuple(history)


def _sweep(problem: Problem, state: State) -> State:
    """Each block once; a step that would lower F is shortened."""
    base = state
    state = _move_responsibilities(problem, state)
    state = _move_centers(problem, state)
    if state.counts is not None:
        state = replace(state, link=pairs.fit_link(state.counts, state.centers, state.link))
    state = replace(state, loadings=loadings_of(problem.data, state.points))
    if problem.related is not None:
        fitted = pairs.fit_relatedness(problem.related, state.points, state.relatedness, _NEWTON_STEPS)
        state = replace(state, relatedness=fitted)
    state = _move_points(problem, state)
    state = replace(state, value=objective(problem, state))
    # No block lowers F but by rounding, and then the fit has converged.
    return state if state.value >= base.value else base


def _respond(problem: Problem, points: Tensor, centers: Tensor, message: Tensor | None) -> Tensor:
    """r_ik proportional to pi_ik exp(kappa mu_k'u_i + message_ik), at the support's entries."""
    on = problem.support.pattern
    score = problem.support.log_prior + problem.kappa * on.products(points, centers)
    r = on.softmax(score if message is None else score + message)
    r = torch.where(r < _NEGLIGIBLE, 0.0, r)
    return r / on.row_sums(r)[on.row]


def _move_responsibilities(problem: Problem, state: State) -> State:
    """The E-step, r_ik proportional to pi_ik exp(kappa mu_k'u_i); with similar pairs, halved where F would fall.

    With messages, the similar pairs' part of F, quadratic in r, is linearised and takes part. The rest is concave, so F
    rises in the direction of that maximiser.
    """
    weights, message = problem.weights, None
    if state.counts is not None and problem.messages:
        message = (weights.similarity / weights.mixture) * pairs.similar_message(
            state.counts, problem.support.pattern, state.centers, state.link
        )
    target = _respond(problem, state.points, state.centers, message)
    if state.counts is None:
        return replace(state, responsibilities=target)
    base, step = membership_value(problem, state), 1.0
    for _ in range(_HALVINGS):
        r = (1.0 - step) * state.responsibilities + step * target
        moved = replace(state, responsibilities=r, counts=count(problem, r))
        if membership_value(problem, moved) >= base:
            return moved
        step *= 0.5
    return state


def _move_centers(problem: Problem, state: State) -> State:
    """mu_k along its gradient, normalised; with similar pairs, a step that lowers F is halved."""
    mixture, similarity, _ = problem.weights
    counts, turned = state.counts, problem.support.pattern.transposed(state.responsibilities)
    pull = mixture * problem.kappa * (turned @ state.points)

    def value(centers: Tensor) -> float:
        along = float(torch.sum(pull * centers))
        return (
            along if counts is None else along + similarity * pairs.similar_value(counts, centers, state.link)
        )

    slope = pull
    if counts is not None:
        slope = pull + similarity * pairs.similar_gradient(counts, state.centers, state.link)
    target = torch.where((slope != 0.0).any(dim=1, keepdim=True), _unit_rows(slope), state.centers)
    return replace(state, centers=_uphill(state.centers, target, value))


def _move_points(problem: Problem, state: State) -> State:
    """All u_i at once.

    Without related pairs, F is -u'A u/2 + c'u in u_i, and its maximiser on the sphere is exact (`on_sphere`). Related
    pairs add their gradient and, as their curvature, its trace; then a step that lowers F is halved.
    """
    mixture, _, relatedness = problem.weights
    precision, linear = evidence(problem.data, problem.where, state.loadings)
    pull = problem.support.pattern.matrix(state.responsibilities) @ state.centers
    linear = linear + mixture * problem.kappa * pull
    target_of, related = linear, problem.related
    if related is not None:
        slope, trace = pairs.related_evidence(related, state.points, state.relatedness)
        target_of = linear + relatedness * (slope + trace[:, None] * state.points)
    members = [problem.where.pattern == p for p in range(len(precision))]
    target = torch.empty_like(state.points)
    for a, here in zip(precision, members, strict=True):
        target[here] = on_sphere(a, target_of[here])
    if related is None:
        return replace(state, points=target)

    def value(points: Tensor) -> float:
        total = torch.sum(linear * points)
        for a, here in zip(precision, members, strict=True):
            total -= 0.5 * torch.sum((points[here] @ a) * points[here])
        return float(total) + relatedness * pairs.related_value(related, points, state.relatedness)

    return replace(state, points=_uphill(state.points, target, value))


def _uphill(old: Tensor, target: Tensor, value: Callable[[Tensor], float]) -> Tensor:
    """The first of ever shorter steps from old to target, rows on the sphere, that does not lower value."""
    base, step = value(old), 1.0
    for _ in range(_HALVINGS):
        moved = _unit_rows((1.0 - step) * old + step * target)
        if value(moved) >= base:
            return moved
        step *= 0.5
    return old


def on_sphere(precision: Tensor, linear: Tensor) -> Tensor:
    """Unit rows u that maximise c_i'u - u'A u / 2: u = (A + t I)^-1 c_i with the t that makes |u| = 1.

    |u| falls in t above minus the least eigenvalue of A, so t is found by bisection (Moré and Sorensen 1983).
    """
    eigenvalue, vector = torch.linalg.eigh(precision)
    turned = linear @ vector
    low = -eigenvalue[0].expand(len(turned))
    high = low + torch.linalg.vector_norm(turned, dim=1)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        long = ((turned / (eigenvalue + middle[:, None])) ** 2).sum(dim=1) > 1.0
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    gap = (eigenvalue + high[:, None]).clamp_min(1e-300)
    return _unit_rows((turned / gap) @ vector.T)


def _unit_rows(rows: Tensor) -> Tensor:
    """Rows divided by their norms; a zero row stays zero."""
    return torch.nn.functional.normalize(rows, dim=1, eps=1e-300)
