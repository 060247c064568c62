"""Block coordinate ascent on the objective F: a start, and sweeps that move one block of parameters at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from scipy import linalg
from scipy.special import logsumexp

from coordinator.model import clusters, relations
from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array
from coordinator.model.plugin.objective import (
    Problem,
    State,
    loadings_of,
    membership_value,
    objective,
    pairs_of_clusters,
)
from coordinator.model.relations import ClusterPairs, Relatedness

_NEGLIGIBLE = 1e-7  # responsibilities below this are dropped
_BLOCK = 1 << 20  # dense entries formed at once
_HALVINGS = 5
_BISECTIONS = 60


def start(problem: Problem, points: Array, n_clusters: int, seed: int) -> State:
    """The parameters that k-means of the points gives, (n, d) unit rows."""
    dim = points.shape[1]
    centers, _ = clusters.start_clusters(points, n_clusters, problem.prior, method="k-means", seed=seed)
    relatedness = Relatedness(np.zeros((dim, dim)), 0.0)
    if problem.related is not None:
        relatedness = relations.fit_relatedness(problem.related, points, relatedness)
    state = State(
        points=points,
        loadings=loadings_of(problem.views, points),
        centers=centers,
        responsibilities=_respond(problem, points, centers, None),
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
    pairs = pairs_of_clusters(problem, state.responsibilities)
    state = _move_centers(problem, state, pairs)
    if pairs is not None:
        state = replace(state, link=relations.fit_link(pairs, state.centers, state.link))
    state = replace(state, loadings=loadings_of(problem.views, state.points))
    if problem.related is not None:
        fitted = relations.fit_relatedness(problem.related, state.points, state.relatedness)
        state = replace(state, relatedness=fitted)
    state = _move_points(problem, state)
    state = replace(state, value=objective(problem, state))
    # No block lowers F but by rounding, and then the fit has converged.
    return state if state.value >= base.value else base


def _respond(problem: Problem, points: Array, centers: Array, message: Array | None) -> sp.csr_array:
    """r_ik proportional to pi_ik exp(kappa mu_k'u_i + message_ik)."""
    n, n_clusters = len(points), len(centers)
    step = max(1, _BLOCK // n_clusters)
    blocks = []
    for low in range(0, n, step):
        rows = slice(low, min(low + step, n))
        score = problem.kappa * (points[rows] @ centers.T)
        score += clusters.log_prior_rows(problem.prior, rows, n_clusters)
        if message is not None:
            score += message[rows]
        score = np.exp(score - logsumexp(score, axis=1, keepdims=True))
        score[score < _NEGLIGIBLE] = 0.0
        blocks.append(sp.csr_array(score / score.sum(axis=1, keepdims=True)))
    return sp.csr_array(sp.vstack(blocks, format="csr"))


def _move_responsibilities(problem: Problem, state: State) -> State:
    """The E-step, r_ik proportional to pi_ik exp(kappa mu_k'u_i); with similar pairs, halved where F would fall.

    With messages, the similar pairs' part of F, quadratic in r, is linearised and takes part. The rest is concave, so F
    rises in the direction of that maximiser.
    """
    weights, message = problem.weights, None
    if problem.graphs is not None and problem.messages:
        message = (weights.similarity / weights.mixture) * relations.similarity_message(
            state.responsibilities, problem.graphs, state.centers, state.link
        )
    target = _respond(problem, state.points, state.centers, message)
    if problem.graphs is None:
        return replace(state, responsibilities=target)
    base, step = membership_value(problem, state), 1.0
    for _ in range(_HALVINGS):
        r = sp.csr_array((1.0 - step) * state.responsibilities + step * target)
        moved = replace(state, responsibilities=r)
        if membership_value(problem, moved) >= base:
            return moved
        step *= 0.5
    return state


def _move_centers(problem: Problem, state: State, pairs: ClusterPairs | None) -> State:
    """mu_k along its gradient, normalised; with similar pairs, a step that lowers F is halved."""
    mixture, similarity, _ = problem.weights
    pull = mixture * problem.kappa * np.asarray(state.responsibilities.T @ state.points)

    def value(centers: Array) -> float:
        total = float(np.sum(pull * centers))
        return (
            total
            if pairs is None
            else total + similarity * relations.similarity_value(pairs, centers, state.link)
        )

    slope = pull
    if pairs is not None:
        slope = pull + similarity * relations.similarity_gradient(pairs, state.centers, state.link)
    target = np.where(np.any(slope != 0.0, axis=1)[:, None], unit_rows(slope), state.centers)
    return replace(state, centers=_uphill(state.centers, target, value))


def _move_points(problem: Problem, state: State) -> State:
    """All u_i at once.

    Without related pairs, F is -u'A u/2 + c'u in u_i, and its maximiser on the sphere is exact (`on_sphere`). Related
    pairs add their gradient and, as their curvature, its trace; then a step that lowers F is halved.
    """
    mixture, _, relatedness = problem.weights
    linear = mixture * problem.kappa * np.asarray(state.responsibilities @ state.centers)
    precision = np.zeros((len(problem.where.held), state.points.shape[1], state.points.shape[1]))
    for s, (view, loading) in enumerate(zip(problem.views, state.loadings, strict=True)):
        linear[view.codes] += view.scores @ loading / view.columns
        precision[problem.where.held[:, s]] += loading.T @ loading / view.columns
    target_of = linear
    if problem.related is not None:
        slope, trace = relations.relatedness_evidence(problem.related, state.points, state.relatedness)
        target_of = linear + relatedness * (slope + trace[:, None] * state.points)
    target = np.empty_like(state.points)
    for p in range(len(precision)):
        here = problem.where.pattern == p
        target[here] = on_sphere(precision[p], target_of[here])
    if problem.related is None:
        return replace(state, points=target)
    related = problem.related

    def value(points: Array) -> float:
        curve = sum(
            float(
                np.sum(
                    (points[problem.where.pattern == p] @ precision[p]) * points[problem.where.pattern == p]
                )
            )
            for p in range(len(precision))
        )
        along = float(np.sum(linear * points)) - 0.5 * curve
        return along + relatedness * relations.relatedness_value(related, points, state.relatedness)

    return replace(state, points=_uphill(state.points, target, value))


def _uphill(old: Array, target: Array, value: Callable[[Array], float]) -> Array:
    """The first of ever shorter steps from old to target, rows on the sphere, that does not lower value."""
    base, step = value(old), 1.0
    for _ in range(_HALVINGS):
        moved = unit_rows((1.0 - step) * old + step * target)
        if value(moved) >= base:
            return moved
        step *= 0.5
    return old


def on_sphere(precision: Array, linear: Array) -> Array:
    """Unit rows u that maximise c_i'u - u'A u / 2: u = (A + t I)^-1 c_i with the t that makes |u| = 1.

    |u| falls in t above minus the least eigenvalue of A, so t is found by bisection (Moré and Sorensen 1983).
    """
    eigenvalue, vector = linalg.eigh(precision)
    turned = linear @ vector
    size = np.linalg.norm(turned, axis=1)
    low = np.full(len(turned), -eigenvalue[0])
    high = low + size
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        with np.errstate(divide="ignore", invalid="ignore"):
            long = np.sum((turned / (eigenvalue + middle[:, None])) ** 2, axis=1) > 1.0
        low, high = np.where(long, middle, low), np.where(long, high, middle)
    gap = np.maximum(eigenvalue + high[:, None], 1e-300)
    return unit_rows((turned / gap) @ vector.T)
