"""Variational expectation-maximisation of SMILE: one iteration, and the bound that it raises.

The M-step maximises the bound over the parameters for the current posterior, the E-step moves the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from coordinator.model import alignment, clusters, factor, relations
from coordinator.model.clusters import Moments, Posterior
from coordinator.model.factor import Array, Loadings, Presence, View
from coordinator.model.relations import Relatedness, Relations

_HALVINGS = 5
_EMPTY = 1e-9  # expected codes in a cluster below which it keeps its center


@dataclass(frozen=True, eq=False)
class Problem:
    """What stays fixed during a fit.

    Args:
        views: the sources in their principal axes.
        where: which source holds which code.
        prior: (n, K) pi, or None for a uniform one.
        similar: synonym pairs, and `graphs`, their (n, n) matrices.
        graphs: see `Relations.matrices`.
        similarity_weight: of the similar pairs in the bound.
        related: related pairs.
        relatedness_weight: of the related pairs in the bound.
    """

    views: tuple[View, ...]
    where: Presence
    prior: sp.csr_array | None
    similar: Relations | None
    graphs: tuple[sp.csr_array, sp.csr_array] | None
    similarity_weight: float
    related: Relations | None
    relatedness_weight: float


@dataclass(frozen=True, eq=False)
class Parameters:
    """Point estimates.

    Args:
        loadings: B_s and sigma_s^2.
        centers: (K, d) mu.
        kappa: concentration.
        freedom: f, the effective number of means, see `clusters.fit_concentration`.
        link: (a, b) of the similar pairs.
        relatedness: W and a_R of the related pairs.
    """

    loadings: Loadings
    centers: Array
    kappa: float
    freedom: float
    link: tuple[float, float]
    relatedness: Relatedness


@dataclass(frozen=True, eq=False)
class Belief:
    """A posterior with what is computed from it once."""

    q: Posterior
    moments: Moments
    pairs: relations.ClusterPairs | None


@dataclass(frozen=True, eq=False)
class State:
    """Parameters and posterior after an iteration, and the bound at both."""

    parameters: Parameters
    belief: Belief
    bound: float


def start(problem: Problem, points: Array, n_clusters: int, method: str, seed: int) -> State:
    """Parameters from the start embedding taken as exact, and a first posterior."""
    n, dim = points.shape
    pattern = problem.where.pattern
    second = np.stack([points[pattern == p].T @ points[pattern == p] for p in range(len(problem.where.held))])
    # A source can hold fewer codes than there are dimensions.
    second += 1e-6 * n * np.eye(dim) / dim
    centers, along = clusters.start_clusters(points, n_clusters, problem.prior, method=method, seed=seed)
    freedom = min(n_clusters, clusters.MOST_MEANS * n)
    relatedness = Relatedness(np.zeros((dim, dim)), 0.0)
    if problem.related is not None:
        relatedness = relations.fit_relatedness(problem.related, points, relatedness)
    parameters = Parameters(
        loadings=factor.fit_loadings(problem.views, problem.where, points, second),
        centers=centers,
        kappa=clusters.fit_concentration(n * along, n, dim, freedom),
        freedom=freedom,
        link=(-2.0, 4.0),
        relatedness=relatedness,
    )
    belief = _believe(problem, _propose(problem, parameters, points, None))
    return State(parameters, belief, _bound(problem, parameters, belief))


def iterate(problem: Problem, state: State, *, settled: bool) -> State:
    """One M-step and one E-step.

    Args:
        problem: what is fitted.
        state: where it stands.
        settled: keep the effective number of means; only then can the bounds of iterations be compared.

    Law: if settled, the bound does not fall.
    """
    parameters = _maximise(problem, state.parameters, state.belief, settled=settled)
    belief, bound = _improve(problem, parameters, state.belief)
    return State(parameters, belief, bound)


def _believe(problem: Problem, q: Posterior) -> Belief:
    pairs = None if problem.graphs is None else relations.cluster_pairs(q.responsibilities, problem.graphs)
    return Belief(q, clusters.moments(q, problem.where, problem.prior), pairs)


def _maximise(problem: Problem, old: Parameters, belief: Belief, *, settled: bool) -> Parameters:
    """The M-step: each parameter maximises the bound for the current posterior."""
    m = belief.moments
    n, dim = m.mean.shape
    centers = _move_centers(problem, old, belief)
    freedom = old.freedom if settled else m.freedom
    link, relatedness = old.link, old.relatedness
    if belief.pairs is not None:
        link = relations.fit_link(belief.pairs, centers, link)
    if problem.related is not None:
        relatedness = relations.fit_relatedness(problem.related, m.mean, relatedness)
    return Parameters(
        loadings=factor.fit_loadings(problem.views, problem.where, m.mean, m.second),
        centers=centers,
        kappa=clusters.fit_concentration(float(np.sum(centers * m.cluster)), n, dim, freedom),
        freedom=freedom,
        link=link,
        relatedness=relatedness,
    )


def _move_centers(problem: Problem, old: Parameters, belief: Belief) -> Array:
    """mu_k along sum_i r_ik E[u_i | k]; a cluster without codes keeps its center.

    The similar pairs depend on the centers too and add their gradient; then a step that lowers the sum of
    both terms is halved.
    """
    sums = belief.moments.cluster
    if belief.pairs is None:
        filled = belief.moments.size > _EMPTY
        return np.where(filled[:, None], alignment.unit_rows(sums), old.centers)
    pairs, weight = belief.pairs, problem.similarity_weight

    def value(centers: Array) -> float:
        return old.kappa * float(np.sum(centers * sums)) + weight * relations.similarity_value(
            pairs, centers, old.link
        )

    slope = old.kappa * sums + weight * relations.similarity_gradient(pairs, old.centers, old.link)
    target = np.where(np.any(slope != 0.0, axis=1)[:, None], alignment.unit_rows(slope), old.centers)
    base, step = value(old.centers), 1.0
    for _ in range(_HALVINGS + 1):
        moved = alignment.unit_rows((1.0 - step) * old.centers + step * target)
        if value(moved) >= base:
            return moved
        step *= 0.5
    return old.centers


def _propose(problem: Problem, parameters: Parameters, mean: Array, old: Posterior | None) -> Posterior:
    """The E-step: evidence, then responsibilities with u integrated out.

    On the sphere u'A u / 2 is replaced by its tangent at E[u_i] with A_i - t_i I in place of A_i, which turns
    the evidence into h_i = b_i - A_i E[u_i] + t_i E[u_i]. With t_i the mean eigenvalue the fixed point is
    stationary for the bound (up to 1/|eta|), because the spread of a vMF is the same in all directions. The
    largest eigenvalue is the step length that does not overshoot, so h moves the fraction mean / largest of
    the way. Related pairs add their gradient to h, and their curvature to A_i only through its trace.
    """
    precision, linear = factor.evidence(problem.views, problem.where, parameters.loadings)
    pattern, dim = problem.where.pattern, mean.shape[1]
    slope = linear
    for p in range(len(precision)):
        slope[pattern == p] -= mean[pattern == p] @ precision[p]
    typical = (np.trace(precision, axis1=1, axis2=2) / dim)[pattern]
    largest = np.linalg.eigvalsh(precision)[:, -1][pattern]
    if problem.related is not None:
        extra, trace = relations.relatedness_evidence(problem.related, mean, parameters.relatedness)
        slope += problem.relatedness_weight * extra
        typical = typical + problem.relatedness_weight * trace / dim
        largest = largest + problem.relatedness_weight * trace
    evidence = slope + typical[:, None] * mean
    pull = parameters.kappa * parameters.centers
    message = None
    if old is not None:
        fraction = (typical / largest)[:, None]
        evidence = old.evidence + fraction * (evidence - old.evidence)
        if problem.graphs is not None:
            message = problem.similarity_weight * relations.similarity_message(
                old.responsibilities, problem.graphs, parameters.centers, parameters.link
            )
    return Posterior(evidence, pull, clusters.respond(evidence, pull, problem.prior, message))


def _improve(problem: Problem, parameters: Parameters, belief: Belief) -> tuple[Belief, float]:
    """Move the posterior; halve a move that lowers the bound, and keep the old posterior if none helps."""
    base = _bound(problem, parameters, belief)
    proposal = _propose(problem, parameters, belief.moments.mean, belief.q)
    step = 1.0
    for _ in range(_HALVINGS + 1):
        q = proposal if step == 1.0 else belief.q.towards(proposal, step)
        moved = _believe(problem, q)
        bound = _bound(problem, parameters, moved)
        if bound >= base:
            return moved, bound
        step *= 0.5
    return belief, base


def _bound(problem: Problem, parameters: Parameters, belief: Belief) -> float:
    m = belief.moments
    bound = factor.expected_log_likelihood(
        problem.views, problem.where, parameters.loadings, m.mean, m.second
    ) + clusters.mixture_bound(m, parameters.centers, parameters.kappa, parameters.freedom)
    if belief.pairs is not None:
        bound += problem.similarity_weight * (
            relations.similarity_value(belief.pairs, parameters.centers, parameters.link)
            - relations.link_penalty(parameters.link)
        )
    if problem.related is not None:
        bound += problem.relatedness_weight * relations.relatedness_value(
            problem.related, m.mean, parameters.relatedness
        )
    return bound
