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
import torch

from coordinator.model import alignment, factor, loadings, pairs, search, support
from coordinator.model.clusters import checked_prior, fit_concentration
from coordinator.model.factor import Array, Source, View
from coordinator.model.fit import SmileFit
from coordinator.model.plugin import fit_plug_in
from coordinator.model.relations import Relations
from coordinator.model.terms import Term
from coordinator.model.variational import Problem, State, free_means, iterate, start
from protocol.errors import FitError

_TRIAL = 10  # iterations from each start, after which the bounds are compared
_CHOSEN_EVERY = 5  # iterations between two choices of the clusters that a code may belong to
_AXES = 3  # axes of a source that are kept, in units of d, and
_MORE_AXES = 20  # so many more: noise beyond these says nothing of the signal's directions
_MANY_CODES = 4_000  # above this, one start is tried, since it costs as much as the fit
_SMALL = 4_000_000  # codes times clusters up to which the search takes ten rounds,
_LARGE = 10_000_000  # and up to which it takes two


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
    tol: float = 1e-4,
    similarity_weight: float = 1.0,
    relatedness_weight: float = 0.3,
    terms: Sequence[Term] = (),
    exponent: float | None = None,
    starts: Sequence[str] | None = None,
    rounds: int | None = None,
    most: int = 64,
    device: str = "cpu",
    names: Sequence[str] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> SmileFit:
    """Fit SMILE to embeddings of different sources.

    The start is the SVD of the sources aligned through shared codes (`alignment`) and clusters of it. Then
    each iteration maximises the bound

        E_q[log p(X | u) + log p(u, z) + w_s log p(similar | z)] + w_r log p(related | E_q[u]) + entropy of q
        - f (log C_d(kappa) + kappa) - ridges

    over the parameters for the current posterior q, and then moves q. The line on f restricts the likelihood to
    what the f fitted means leave (`clusters.fit_concentration`). All terms are exact for q but one: the related
    pairs, and `terms`, enter at the posterior means. The move of q comes from a fixed point of the bound and usually raises
    it, but no theorem says so: a move that lowers it is halved, up to five times, and then rejected. At the
    maximum that is reached, clusters are merged and split (`search`), and what raises the bound is kept. So
    `history` never falls; that it ends at the global maximum is not guaranteed.

    Args:
        sources: at least one; codes held by several sources tie these together.
        n_codes: n, the size of the union vocabulary; every code is in some source.
        n_clusters: K.
        dim: d >= 2, at most the number of dimensions that the sources span.
        similar: synonym pairs, positive and negative.
        related: related pairs, positive and negative.
        prior: (n, K) sparse pi, rows sum to 1; a row with a single 1 is an anchor. Uniform without it.
        fit: "variational", or "plug-in" for the published algorithm (`plugin.fit_plug_in`, which takes no
            notice of `tol`, `exponent`, `starts`, `rounds`, `most`, `device` and `names`).
        seed: of the random numbers that the k-means starts and empty clusters use.
        iterations: at most this many before the search, and as many after it.
        tol: stop when an iteration gains less than this, in nats a code and dimension.
        similarity_weight: w_s, the weight of the similar pairs.
        relatedness_weight: w_r, the weight of the related pairs.
        terms: what else is known of the codes' vectors (`terms.Term`); their values are added to the bound.
        exponent: column scaling of the sources (`factor.View.rescaled`); chosen on shared codes if None.
        starts: ways to find the clusters to start from (`clusters.start_clusters`); ten iterations are run
            from each, and the fit goes on from the one with the greatest bound. By default all three, and above
            4,000 codes average linkage alone.
        rounds: of the search, at most; by default 10, 2 for more than 4 million codes times clusters, and none
            above 10 million.
        most: where the prior allows a code more clusters than this, its likeliest ones are kept.
        device: of the tensors, as torch names it: "cpu" or "cuda". The search runs on the host.
        names: the codes' names, for messages.
        progress: called after each iteration with its number and the bound.

    Raises:
        FitError: the sources cannot be aligned, a code, pair or prior row is unusable, or there is no such device.
        ValueError: an unknown `fit` or start, or a number out of its range.

    Laws: the fit does not depend on the rotation of a source's columns, nor on the order of codes, sources
    or clusters, up to a common rotation.
    """
    if fit not in ("variational", "plug-in"):
        raise ValueError(f"a fit is 'variational' or 'plug-in', not {fit!r}")
    if dim < 2 or n_clusters < 1 or iterations < 1 or most < 2:
        raise ValueError("dim and most must be at least 2, n_clusters and iterations at least 1")
    if fit == "plug-in":
        if terms:
            raise ValueError("terms need the variational fit")
        return fit_plug_in(
            sources,
            n_codes=n_codes,
            n_clusters=n_clusters,
            dim=dim,
            similar=similar,
            related=related,
            prior=prior,
            seed=seed,
            iterations=iterations,
            similarity_weight=similarity_weight,
            relatedness_weight=relatedness_weight,
            progress=progress,
        )
    if names is not None and len(names) != n_codes:
        raise ValueError(f"{len(names)} names do not go with {n_codes} codes")
    views, chosen = _views(sources, n_codes, dim, exponent, names)
    for relations in (similar, related):
        if relations is not None:
            relations.check(n_codes)
    similar = similar if similar is not None and len(similar.pairs) else None
    related = related if related is not None and len(related.pairs) else None
    on = _device(device)
    checked = None if prior is None else checked_prior(prior, n_codes, n_clusters)
    allowed = support.allowed(checked, n_codes, n_clusters, most)
    data, where = loadings.to_device(views, factor.patterns(views, n_codes), on)
    problem = Problem(
        data=data,
        where=where,
        prior=checked,
        whole=None if allowed is None else support.whole(allowed, on),
        n_clusters=n_clusters,
        most=min(most, n_clusters),
        similar=None if similar is None else pairs.similar_on(similar, n_codes, on),
        similarity_weight=similarity_weight,
        related=None if related is None else pairs.related_on(related, n_codes, on),
        relatedness_weight=relatedness_weight,
        terms=tuple(terms),
    )
    aligned = alignment.align(views, n_codes, dim)
    points = alignment.unit_rows(alignment.filled_svd(views, aligned, dim))
    if starts is None:
        starts = ("average", "k-means", "spherical") if n_codes <= _MANY_CODES else ("average",)
    run = _Run(problem, tol * n_codes * dim, progress)
    state = run.climb(run.best_start(points, starts, seed), iterations)
    state = _searched(run, state, similar, n_codes, rounds, iterations)
    return _result(problem, state, tuple(run.history), chosen, aligned.warnings)


def _searched(
    run: _Run, state: State, similar: Relations | None, n_codes: int, rounds: int | None, iterations: int
) -> State:
    """The state after merging and splitting clusters, and after the climb from there."""
    n_clusters = run.problem.n_clusters
    if rounds is None:
        cells = n_codes * n_clusters
        rounds = 10 if cells <= _SMALL else 2 if cells <= _LARGE else 0
    if not rounds or n_clusters <= 2:
        return state
    graphs = None
    if similar is not None:
        positive, negative = similar.matrices(n_codes)
        graphs = (positive, sp.csr_array(positive + negative))
    tries = max(30, n_clusters // 20)
    for better in search.improve(run.problem, state, graphs, rounds=rounds, tries=tries):
        state = better
        run.note(state)
    return run.climb(state, iterations)


class _Run:
    """Iterations with their history."""

    def __init__(self, problem: Problem, tol: float, progress: Callable[[int, float], None] | None) -> None:
        self.problem, self.tol, self.progress = problem, tol, progress
        self.history: list[float] = []
        self.done = 0

    def note(self, state: State) -> None:
        """Write down a step that counts."""
        self.history.append(state.bound)
        self._tell(state)

    def best_start(self, points: Array, methods: Sequence[str], seed: int) -> State:
        """A few iterations from the clusters that each method finds; the state of greatest bound.

        In these iterations the effective number of means still moves.
        """
        best: State | None = None
        for method in methods:
            state = start(self.problem, points, self.problem.n_clusters, method, seed)
            for _ in range(_TRIAL):
                state = iterate(self.problem, state, settled=False, choose=self._chooses())
                self._tell(state)
            if best is None or state.bound > best.bound:
                best = state
        if best is None:
            raise ValueError("starts must name at least one method")
        self.history.append(best.bound)
        return best

    def climb(self, state: State, iterations: int) -> State:
        """Iterate until the bound gains too little."""
        for _ in range(iterations):
            before = state.bound
            chose = self._chooses()
            state = iterate(self.problem, state, settled=True, choose=chose)
            self.note(state)
            if state.bound - before < self.tol:
                break
        return state

    def _chooses(self) -> bool:
        return self.done % _CHOSEN_EVERY == 0

    def _tell(self, state: State) -> None:
        if self.progress is not None:
            self.progress(self.done, state.bound)
        self.done += 1


def _views(
    sources: Sequence[Source],
    n_codes: int,
    dim: int,
    exponent: float | None,
    names: Sequence[str] | None,
) -> tuple[tuple[View, ...], float]:
    if not sources:
        raise FitError("there is no source to fit", do="open at least one site's release first")
    views = tuple(factor.compress(source, _AXES * dim + _MORE_AXES) for source in sources)
    alignment.check_connected(views, n_codes, names)
    chosen = alignment.choose_exponent(views, n_codes, dim) if exponent is None else exponent
    return tuple(view.rescaled(chosen) for view in views), chosen


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("the fit needs float64 and sparse matrices, which cpu and cuda have")  # noqa: TRY301
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FitError(
            f"there is no device {name!r} to fit on",
            why=str(error).splitlines()[0],
            do="use 'cpu', or install a torch that was built for the device",
        ) from None
    return device


def _result(
    problem: Problem, state: State, history: tuple[float, ...], exponent: float, warnings: tuple[str, ...]
) -> SmileFit:
    parameters, m, q = state.parameters, state.belief.moments, state.belief.q
    r = q.support.pattern.to_scipy(q.responsibilities)
    r.eliminate_zeros()
    # Around the codes' own mean direction: pairs may have drawn a center away from it.
    along = float(torch.linalg.vector_norm(m.cluster, dim=1).sum())
    freedom = free_means(problem, parameters, state.belief)
    return SmileFit(
        embedding=alignment.unit_rows(m.mean.cpu().numpy()),
        centers=parameters.centers.cpu().numpy(),
        labels=np.asarray(r.argmax(axis=1), dtype=np.intp).reshape(-1),
        posterior=np.asarray(r.max(axis=1).toarray()).reshape(-1),
        kappa=fit_concentration(along, m.mean.shape[0], m.mean.shape[1], freedom),
        relatedness=parameters.relatedness.matrix.cpu().numpy(),
        history=history,
        noise=parameters.loadings.noise,
        responsibilities=r,
        exponent=exponent,
        warnings=warnings,
    )
