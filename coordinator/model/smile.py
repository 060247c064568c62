"""SMILE: one spherical embedding of the codes of all sources, their synonym clusters, and relatedness.

    x_i^s = B_s u_i + e,  e ~ N(0, sigma_s^2 I)              (factor)
    u_i ~ sum_k pi_ik vMF(mu_k, kappa)                       (mixture)
    logit P(similar ij) = a + b mu_(z_i)'mu_(z_j)            (similarity)
    logit P(related ij) = a_R + u_i' W u_j                   (relatedness)

Fitting u, mu and kappa together as parameters is unbounded (u_i -> mu_(z_i), kappa -> infinity). Here u_i is
a latent variable with a posterior, and the fit is variational expectation-maximisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from coordinator.model import alignment, clusters, factor, relations
from coordinator.model.clusters import Moments, Posterior
from coordinator.model.factor import Array, Index, Loadings, Presence, Source, View
from coordinator.model.relations import Relatedness, Relations
from protocol.errors import FitError

_SETTLE = 10  # first iterations, in which the effective number of means still moves
_HALVINGS = 5


@dataclass(frozen=True, eq=False)
class SmileFit:
    """A fitted SMILE model.

    Args:
        embedding: (n, d) unit rows, the directions of E[u_i].
        centers: (K, d) unit rows, mu_k.
        labels: (n,) the most probable cluster of each code.
        posterior: (n,) its probability, in (0, 1].
        kappa: concentration of codes around their cluster's center.
        relatedness: (d, d) symmetric W; zero when no related pairs were given.
        history: the bound after each iteration since the number of means has settled. It never falls.
        noise: sigma_s^2 of each source, after the column scaling `exponent`.
        responsibilities: (n, K) csr, rows sum to 1, tiny entries dropped.
        exponent: the column scaling that was chosen, see `factor.View.rescaled`.
        warnings: what the reader of the result should know, in sentences.
    """

    embedding: Array
    centers: Array
    labels: Index
    posterior: Array
    kappa: float
    relatedness: Array
    history: tuple[float, ...]
    noise: tuple[float, ...]
    responsibilities: sp.csr_array
    exponent: float = 1.0
    warnings: tuple[str, ...] = ()

    def similarity(self, pairs: Index) -> Array:
        """cos(u_i, u_j) of (m, 2) pairs of codes."""
        return np.asarray(np.sum(self.embedding[pairs[:, 0]] * self.embedding[pairs[:, 1]], axis=1))

    def relatedness_score(self, pairs: Index) -> Array:
        """cos(u_i, W u_j) of (m, 2) pairs of codes; 0 where W u_j is zero."""
        turned = alignment.unit_rows(self.embedding[pairs[:, 1]] @ self.relatedness)
        return np.asarray(np.sum(self.embedding[pairs[:, 0]] * turned, axis=1))


@dataclass(frozen=True, eq=False)
class _Problem:
    """What stays fixed during a fit."""

    views: tuple[View, ...]
    where: Presence
    prior: sp.csr_array | None
    similar: Relations | None
    graphs: tuple[sp.csr_array, sp.csr_array] | None
    similarity_weight: float
    related: Relations | None
    relatedness_weight: float


@dataclass(frozen=True, eq=False)
class _Parameters:
    loadings: Loadings
    centers: Array
    kappa: float
    freedom: float
    link: tuple[float, float]
    relatedness: Relatedness


@dataclass(frozen=True, eq=False)
class _Belief:
    """A posterior with what is computed from it once."""

    q: Posterior
    moments: Moments
    pairs: relations.ClusterPairs | None


def fit_smile(
    sources: Sequence[Source],
    *,
    n_codes: int,
    n_clusters: int,
    dim: int,
    similar: Relations | None = None,
    related: Relations | None = None,
    prior: sp.sparray | sp.spmatrix | None = None,
    fit: str = "variational",
    seed: int = 0,
    iterations: int = 100,
    tol: float = 1e-3,
    similarity_weight: float = 1.0,
    relatedness_weight: float = 0.3,
    exponent: float | None = None,
    start: str = "average",
    progress: Callable[[int, float], None] | None = None,
) -> SmileFit:
    """Fit SMILE to embeddings of different sources.

    The start is the SVD of the sources aligned through shared codes (`alignment`) and average-linkage
    clusters of it. Then each iteration maximises the bound

        E_q[log p(X | u) + log p(u, z) + w_s log p(similar | z)] + w_r log p(related | E_q[u]) + entropy of q
        - f (log C_d(kappa) + kappa) - ridges

    over the parameters for the current posterior q, and then moves q. The line on f restricts the likelihood to
    what the f fitted means leave (`clusters.fit_concentration`). All terms are exact for q but one: the related
    pairs enter at the posterior means. The move of q comes from a fixed point of the bound and usually raises
    it, but no theorem says so: a move that lowers it is halved, up to five times, and then rejected. So
    `history` never falls; that it ends at the global maximum is not guaranteed.

    Args:
        sources: at least one; codes held by several sources tie these together.
        n_codes: n, the size of the union vocabulary; every code is in some source.
        n_clusters: K.
        dim: d >= 2, at most the number of dimensions that the sources span.
        similar: synonym pairs, positive and negative.
        related: related pairs, positive and negative.
        prior: (n, K) sparse pi, rows sum to 1; a row with a single 1 is an anchor. Uniform without it.
        fit: "variational".
        seed: of the random numbers that the k-means starts and empty clusters use.
        iterations: at most this many.
        tol: stop when an iteration gains less than this, in nats a code.
        similarity_weight: w_s, the weight of the similar pairs.
        relatedness_weight: w_r, the weight of the related pairs.
        exponent: column scaling of the sources (`factor.View.rescaled`); chosen on shared codes if None.
        start: "average", "k-means" or "spherical": how the clusters to start from are found.
        progress: called after each iteration with its number and the bound.

    Raises:
        FitError: the sources cannot be aligned, or a code, pair or prior row is unusable.
        ValueError: an unknown `fit` or `start`, or a number out of its range.

    Laws: the fit does not depend on the rotation of a source's columns, nor on the order of codes, sources
    or clusters, up to a common rotation.
    """
    if fit != "variational":
        raise ValueError(f"fit='variational' is the only fit for now, not {fit!r}")
    if dim < 2 or n_clusters < 1 or iterations < 1:
        raise ValueError("dim must be at least 2, n_clusters and iterations at least 1")
    problem, chosen = _prepare(
        sources,
        n_codes,
        n_clusters,
        dim,
        similar,
        related,
        prior,
        similarity_weight,
        relatedness_weight,
        exponent,
    )
    aligned = alignment.align(problem.views, n_codes, dim)
    points = alignment.fix_metric(alignment.filled_svd(problem.views, aligned, dim))
    parameters, belief = _start(problem, points, n_clusters, start, seed)
    history: list[float] = []
    for iteration in range(iterations):
        settled = iteration >= min(_SETTLE, iterations - 1)
        parameters = _maximise(problem, parameters, belief, settled=settled)
        belief, bound = _improve(problem, parameters, belief)
        if progress is not None:
            progress(iteration, bound)
        if settled:
            history.append(bound)
        if len(history) > 1 and history[-1] - history[-2] < tol * n_codes:
            break
    r = belief.q.responsibilities
    return SmileFit(
        embedding=alignment.unit_rows(belief.moments.mean),
        centers=parameters.centers,
        labels=np.asarray(r.argmax(axis=1), dtype=np.intp).reshape(-1),
        posterior=np.asarray(r.max(axis=1).toarray()).reshape(-1),
        kappa=parameters.kappa,
        relatedness=parameters.relatedness.matrix,
        history=tuple(history),
        noise=parameters.loadings.noise,
        responsibilities=r,
        exponent=chosen,
        warnings=aligned.warnings,
    )


def _prepare(
    sources: Sequence[Source],
    n_codes: int,
    n_clusters: int,
    dim: int,
    similar: Relations | None,
    related: Relations | None,
    prior: sp.sparray | sp.spmatrix | None,
    similarity_weight: float,
    relatedness_weight: float,
    exponent: float | None,
) -> tuple[_Problem, float]:
    if not sources:
        raise FitError("there is no source to fit", do="open at least one site's release first")
    views = tuple(factor.compress(source) for source in sources)
    alignment.check_connected(views, n_codes)
    chosen = alignment.choose_exponent(views, n_codes, dim) if exponent is None else exponent
    for pairs in (similar, related):
        if pairs is not None:
            pairs.check(n_codes)
    problem = _Problem(
        views=tuple(view.rescaled(chosen) for view in views),
        where=factor.patterns(views, n_codes),
        prior=None if prior is None else _checked_prior(prior, n_codes, n_clusters),
        similar=similar if similar is not None and len(similar.pairs) else None,
        graphs=similar.matrices(n_codes) if similar is not None and len(similar.pairs) else None,
        similarity_weight=similarity_weight,
        related=related if related is not None and len(related.pairs) else None,
        relatedness_weight=relatedness_weight,
    )
    return problem, chosen


def _checked_prior(prior: sp.sparray | sp.spmatrix, n_codes: int, n_clusters: int) -> sp.csr_array:
    checked = sp.csr_array(prior, dtype=np.float64)
    checked.eliminate_zeros()
    if checked.shape != (n_codes, n_clusters):
        raise FitError(f"the prior has shape {checked.shape}, not ({n_codes}, {n_clusters})")
    off = np.abs(np.asarray(checked.sum(axis=1)).ravel() - 1.0) > 1e-6
    if off.any() or not np.isfinite(checked.data).all() or np.any(checked.data < 0.0):
        row = int(np.flatnonzero(off)[0]) if off.any() else "with a negative value"
        raise FitError(f"row {row} of the prior is not a probability distribution over clusters")
    return checked


def _start(
    problem: _Problem, points: Array, n_clusters: int, method: str, seed: int
) -> tuple[_Parameters, _Belief]:
    """Parameters from the start embedding taken as exact, and a first posterior."""
    n, dim = points.shape
    second = np.stack(
        [
            points[problem.where.pattern == p].T @ points[problem.where.pattern == p]
            for p in range(len(problem.where.held))
        ]
    )
    # Rows without noise in them can be fewer than the dimensions.
    second += 1e-6 * n * np.eye(dim) / dim
    centers, along = clusters.start_clusters(points, n_clusters, problem.prior, method=method, seed=seed)
    parameters = _Parameters(
        loadings=factor.fit_loadings(problem.views, problem.where, points, second),
        centers=centers,
        kappa=clusters.fit_concentration(n * along, n, dim, min(n_clusters, 0.9 * n)),
        freedom=0.0,
        link=(-2.0, 4.0),
        relatedness=Relatedness(np.zeros((dim, dim)), 0.0),
    )
    if problem.related is not None:
        fitted = relations.fit_relatedness(problem.related, points, parameters.relatedness)
        parameters = replace(parameters, relatedness=fitted)
    q = _propose(problem, parameters, points, None)
    return parameters, _believe(problem, q)


def _believe(problem: _Problem, q: Posterior) -> _Belief:
    pairs = None if problem.graphs is None else relations.cluster_pairs(q.responsibilities, problem.graphs)
    return _Belief(q, clusters.moments(q, problem.where, problem.prior), pairs)


def _maximise(problem: _Problem, old: _Parameters, belief: _Belief, *, settled: bool) -> _Parameters:
    """The M-step: each parameter maximises the bound for the current posterior."""
    m = belief.moments
    n, dim = m.mean.shape
    centers = _move_centers(problem, old, belief)
    freedom = old.freedom if settled and old.freedom else m.freedom
    link, relatedness = old.link, old.relatedness
    if belief.pairs is not None:
        link = relations.fit_link(belief.pairs, centers, link)
    if problem.related is not None:
        relatedness = relations.fit_relatedness(problem.related, m.mean, relatedness)
    return _Parameters(
        loadings=factor.fit_loadings(problem.views, problem.where, m.mean, m.second),
        centers=centers,
        kappa=clusters.fit_concentration(float(np.sum(centers * m.cluster)), n, dim, freedom),
        freedom=freedom,
        link=link,
        relatedness=relatedness,
    )


def _move_centers(problem: _Problem, old: _Parameters, belief: _Belief) -> Array:
    """mu_k along sum_i r_ik E[u_i | k]; a cluster without codes keeps its center.

    With similar pairs, which depend on the centers too, a step that lowers the sum of both terms is halved.
    """
    sums = belief.moments.cluster
    filled = belief.moments.size > 1e-9
    target = np.where(filled[:, None], alignment.unit_rows(sums), old.centers)
    if belief.pairs is None:
        return target
    pairs, weight = belief.pairs, problem.similarity_weight

    def value(centers: Array) -> float:
        return old.kappa * float(np.sum(centers * sums)) + weight * relations.similarity_value(
            pairs, centers, old.link
        )

    base, step = value(old.centers), 1.0
    for _ in range(_HALVINGS + 1):
        moved = alignment.unit_rows((1.0 - step) * old.centers + step * target)
        if value(moved) >= base:
            return moved
        step *= 0.5
    return old.centers


def _propose(problem: _Problem, parameters: _Parameters, mean: Array, old: Posterior | None) -> Posterior:
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


def _improve(problem: _Problem, parameters: _Parameters, belief: _Belief) -> tuple[_Belief, float]:
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


def _bound(problem: _Problem, parameters: _Parameters, belief: _Belief) -> float:
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
