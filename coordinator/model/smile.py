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
import numpy as np
import scipy.sparse as sp

from coordinator.model import alignment, factor
from coordinator.model.clusters import checked_prior
from coordinator.model.factor import Array, Source
from coordinator.model.fit import SmileFit
from coordinator.model.relations import Relations
from coordinator.model.variational import Problem, State, iterate, start
from protocol.errors import FitError

_TRIAL = 10  # iterations from each start, after which the bounds are compared


def fit_smile(
    sources: Sequence[Source],
    *,
    n_codes: int,
    n_clusters: int,
    dim: int,
    similar: Relations | None = None,
    related: Relations | None = None,
    prior: sp.csr_array | sp.csr_matrix | None = None,
    fit: str = "variational",
    seed: int = 0,
    iterations: int = 100,
    tol: float = 1e-3,
    similarity_weight: float = 1.0,
    relatedness_weight: float = 0.3,
    exponent: float | None = None,
    starts: Sequence[str] = ("average", "k-means", "spherical"),
    progress: Callable[[int, float], None] | None = None,
) -> SmileFit:
    """Fit SMILE to embeddings of different sources.

    The start is the SVD of the sources aligned through shared codes (`alignment`) and clusters of it. Then
    each iteration maximises the bound

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
        iterations: at most this many after the start is chosen.
        tol: stop when an iteration gains less than this, in nats a code.
        similarity_weight: w_s, the weight of the similar pairs.
        relatedness_weight: w_r, the weight of the related pairs.
        exponent: column scaling of the sources (`factor.View.rescaled`); chosen on shared codes if None.
        starts: ways to find the clusters to start from (`clusters.start_clusters`); ten iterations are run
            from each, and the fit goes on from the one with the greatest bound.
        progress: called after each iteration with its number and the bound.

    Raises:
        FitError: the sources cannot be aligned, or a code, pair or prior row is unusable.
        ValueError: an unknown `fit` or start, or a number out of its range.

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
    points = alignment.unit_rows(alignment.filled_svd(problem.views, aligned, dim))
    state, done = _best_start(problem, points, n_clusters, starts, seed, progress)
    history = [state.bound]
    for iteration in range(iterations):
        state = iterate(problem, state, settled=True)
        history.append(state.bound)
        if progress is not None:
            progress(done + iteration, state.bound)
        if history[-1] - history[-2] < tol * n_codes:
            break
    parameters, belief = state.parameters, state.belief
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
    prior: sp.csr_array | sp.csr_matrix | None,
    similarity_weight: float,
    relatedness_weight: float,
    exponent: float | None,
) -> tuple[Problem, float]:
    if not sources:
        raise FitError("there is no source to fit", do="open at least one site's release first")
    views = tuple(factor.compress(source) for source in sources)
    alignment.check_connected(views, n_codes)
    chosen = alignment.choose_exponent(views, n_codes, dim) if exponent is None else exponent
    for pairs in (similar, related):
        if pairs is not None:
            pairs.check(n_codes)
    problem = Problem(
        views=tuple(view.rescaled(chosen) for view in views),
        where=factor.patterns(views, n_codes),
        prior=None if prior is None else checked_prior(prior, n_codes, n_clusters),
        similar=similar if similar is not None and len(similar.pairs) else None,
        graphs=similar.matrices(n_codes) if similar is not None and len(similar.pairs) else None,
        similarity_weight=similarity_weight,
        related=related if related is not None and len(related.pairs) else None,
        relatedness_weight=relatedness_weight,
    )
    return problem, chosen


def _best_start(
    problem: Problem,
    points: Array,
    n_clusters: int,
    methods: Sequence[str],
    seed: int,
    progress: Callable[[int, float], None] | None,
) -> tuple[State, int]:
    """A few iterations from the clusters that each method finds; the state of greatest bound, and their number.

    In these iterations the effective number of means still moves.
    """
    best: State | None = None
    done = 0
    for method in methods:
        state = start(problem, points, n_clusters, method, seed)
        for _ in range(_TRIAL):
            state = iterate(problem, state, settled=False)
            if progress is not None:
                progress(done, state.bound)
            done += 1
        if best is None or state.bound > best.bound:
            best = state
    if best is None:
        raise ValueError("starts must name at least one method")
    return best, done
