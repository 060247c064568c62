"""SMILE as it was published: every quantity a parameter, fitted by block coordinate ascent.

With X_s scaled to unit mean square, the composite objective is

    F = - sum_s 1/(2 p_s) sum_i |x_i^s - B_s u_i|^2                                     (factor)
        + w [ sum_ik r_ik (log pi_ik + log C_d(kappa) + kappa mu_k'u_i - log r_ik)      (mixture)
              + w_s (sum_(ij) sum_kl r_ik r_jl log P(y_ij | a + b mu_k'mu_l) - ridge)   (similarity)
              + w_r (sum_(ij) log P(y_ij | a_R + u_i' W u_j) - ridge) ]                 (relatedness)

over B_s, unit u_i and mu_k, r on the simplex, a, b, a_R and W. The published model has the four terms with a
weight each; the scaling of the sources is ours, so that a weight means the same whatever the unit of a source.

kappa is held, and chosen by validation. It cannot be fitted here: F is unbounded in (u, mu, kappa), because
u_i -> mu_(z_i) lets kappa -> infinity. A fit that tried ended at a kappa of 10^5 where the truth was 50, and the
accuracy of its embedding fell from .74 to .42. The default fit (`smile.fit_smile`) has no such limit.

Source: Zhang, Duan, Zhou, Xia and Cai, Spherical Mixture Integration for Latent Embedding Alignment across
Multi-Source Feature Spaces, arXiv 2605.08637.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy import linalg
from scipy.special import expit, logsumexp, xlogy

from coordinator.model import alignment, clusters, factor, relations, vmf
from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Index, Presence, Source, View
from coordinator.model.relations import ClusterPairs, Relatedness, Relations
from coordinator.model.fit import SmileFit
from protocol.errors import FitError

_NEGLIGIBLE = 1e-7  # responsibilities below this are dropped
_BLOCK = 1 << 20  # dense entries formed at once
_HALVINGS = 5
_BISECTIONS = 60
_HELD_OUT = 0.2  # share of the pairs, or of the shared rows, that the choice of kappa looks at
_TRIAL = 30  # iterations at each kappa of the grid
_TRIAL_TOL = 1e-3
_FEWEST_HELD_OUT = 20


class _Weights(NamedTuple):
    """Of the last three terms of F: w, w w_s, w w_r."""

    mixture: float
    similarity: float
    relatedness: float


@dataclass(frozen=True, eq=False)
class _Problem:
    """What stays fixed at one kappa."""

    views: tuple[View, ...]
    where: Presence
    prior: sp.csr_array | None
    similar: Relations | None
    graphs: tuple[sp.csr_array, sp.csr_array] | None
    related: Relations | None
    weights: _Weights
    messages: bool
    kappa: float


@dataclass(frozen=True, eq=False)
class _State:
    """All parameters: U, the (r_s, d) loadings, mu, r, (a, b), and (W, a_R)."""

    points: Array
    loadings: tuple[Array, ...]
    centers: Array
    responsibilities: sp.csr_array
    link: tuple[float, float]
    relatedness: Relatedness
    value: float


def fit_plug_in(
    sources: Sequence[Source],
    *,
    n_codes: int,
    n_clusters: int,
    dim: int,
    similar: Relations | None = None,
    related: Relations | None = None,
    prior: sp.csr_array | sp.csr_matrix | None = None,
    seed: int = 0,
    iterations: int = 100,
    tol: float = 1e-4,
    similarity_weight: float = 1.0,
    relatedness_weight: float = 0.3,
    mixture_weight: float | None = None,
    messages: bool = False,
    kappas: Sequence[float] = (10.0, 20.0, 50.0, 100.0, 200.0),
    progress: Callable[[int, float], None] | None = None,
) -> SmileFit:
    """Fit SMILE by the published algorithm, for comparison with `smile.fit_smile`.

    A sweep moves one block at a time: r to the posterior of the vMF mixture, mu along its gradient, (a, b) and
    (W, a_R) by Newton's method, B_s by least squares and u_i to its maximiser on the sphere.

    kappa is the value of the grid under which, after at most 30 sweeps, data that were held out are likeliest: a
    fifth of the similar pairs (log of their predicted probability). Without pairs a fifth of the codes that several sources
    share, each hidden from one of them (squared error of B_s u_i). Without those either, the value nearest to the
    concentration of the clusters that the fit starts from (`clusters.fit_concentration`). The related pairs take no
    part in the choice.

    Args:
        sources: as for `fit_smile`, and so are n_codes, n_clusters, dim, similar, related and prior.
        seed: of the clusters to start from, and of what is held out.
        iterations: at most this many sweeps.
        tol: stop when a sweep gains less than this times n w, where w is the mixture's weight.
        similarity_weight: w_s.
        relatedness_weight: w_r.
        mixture_weight: w. If None the mean over sources of v_s / p_s, with v_s the mean square residual of the
            scaled source at the start: F / w is then a log-likelihood for noise of that variance.
        messages: let the similar pairs move r as well. As published, r follows from pi, mu and u alone, and
            pairs move the centers only. (`simulate_paper`, kappa 20, three seeds: adjusted mutual information .61
            for SVD + k-means, .71 without and .94 with messages at K = 100; .76, .82 and .97 at K = 50.)
        kappas: the grid; with a single value there is nothing to choose.
        progress: called after each sweep of the last fit with its number and F.

    Returns:
        The fit. `history` holds F, which never falls: r and u_i move only as far as F does not fall. (Without that
        guard on r, F fell in a third of the sweeps, and the mutual information ended within .03 of the guarded one's.)
        `posterior` holds r at the fitted u_i, which is too sure of itself: the error of u_i is not in it.

    Raises:
        FitError: as `fit_smile`.
        ValueError: a number out of its range.

    Law: scaling a source, rotating its columns, or reordering codes leaves F unchanged.
    """
    grid = np.asarray(kappas, dtype=np.float64)
    if grid.ndim != 1 or not grid.size or not np.all((grid > 0.0) & np.isfinite(grid)):
        raise ValueError("kappas must be finite numbers above 0, at least one")
    if dim < 2 or n_clusters < 1 or iterations < 1:
        raise ValueError("dim must be at least 2, n_clusters and iterations at least 1")
    if not sources:
        raise FitError("there is no source to fit", do="open at least one site's release first")
    if (
        not (mixture_weight is None or mixture_weight > 0.0)
        or min(similarity_weight, relatedness_weight) < 0.0
    ):
        raise ValueError("mixture_weight must be above 0, and the other weights not below 0")
    views = tuple(factor.compress(source) for source in sources)
    problem = _prepare(views, n_codes, n_clusters, similar, related, prior, messages)
    aligned = alignment.align(problem.views, n_codes, dim)
    points = unit_rows(alignment.filled_svd(problem.views, aligned, dim))
    w = _noise_share(problem.views, points) if mixture_weight is None else mixture_weight
    problem = replace(problem, weights=_Weights(w, w * similarity_weight, w * relatedness_weight))
    problem = _choose_kappa(problem, points, n_clusters, grid, seed)
    state, history = _ascend(problem, _start(problem, points, n_clusters, seed), iterations, tol, progress)
    r = state.responsibilities
    return SmileFit(
        embedding=state.points,
        centers=state.centers,
        labels=np.asarray(r.argmax(axis=1), dtype=np.intp).reshape(-1),
        posterior=np.asarray(r.max(axis=1).toarray()).reshape(-1),
        kappa=problem.kappa,
        relatedness=state.relatedness.matrix,
        history=history,
        noise=tuple(
            part * _unit(v)
            for part, v in zip(_residuals(problem.views, state.points, state.loadings), views, strict=True)
        ),
        responsibilities=r,
        warnings=aligned.warnings,
    )


def _prepare(
    views: tuple[View, ...],
    n_codes: int,
    n_clusters: int,
    similar: Relations | None,
    related: Relations | None,
    prior: sp.csr_array | sp.csr_matrix | None,
    messages: bool,
) -> _Problem:
    alignment.check_connected(views, n_codes)
    for pairs in (similar, related):
        if pairs is not None:
            pairs.check(n_codes)
    problem = _Problem(
        views=tuple(replace(view, scores=view.scores / np.sqrt(_unit(view))) for view in views),
        where=factor.patterns(views, n_codes),
        prior=None if prior is None else clusters.checked_prior(prior, n_codes, n_clusters),
        similar=None,
        graphs=None,
        related=related if related is not None and len(related.pairs) else None,
        weights=_Weights(1.0, 1.0, 1.0),
        messages=messages,
        kappa=1.0,
    )
    return problem if similar is None else _with_similar(problem, similar)


def _with_similar(problem: _Problem, similar: Relations) -> _Problem:
    if not len(similar.pairs):
        return replace(problem, similar=None, graphs=None)
    return replace(problem, similar=similar, graphs=similar.matrices(len(problem.where.pattern)))


def _unit(view: View) -> float:
    """Mean square of a source's entries."""
    return view.energy / (len(view.codes) * view.columns)


def _start(problem: _Problem, points: Array, n_clusters: int, seed: int) -> _State:
    dim = points.shape[1]
    centers, _ = clusters.start_clusters(points, n_clusters, problem.prior, method="k-means", seed=seed)
    relatedness = Relatedness(np.zeros((dim, dim)), 0.0)
    if problem.related is not None:
        relatedness = relations.fit_relatedness(problem.related, points, relatedness)
    state = _State(
        points=points,
        loadings=_loadings(problem.views, points),
        centers=centers,
        responsibilities=_respond(problem, points, centers, None),
        link=(-2.0, 4.0),
        relatedness=relatedness,
        value=-np.inf,
    )
    return replace(state, value=_objective(problem, state))


def _ascend(
    problem: _Problem,
    state: _State,
    iterations: int,
    tol: float,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[_State, tuple[float, ...]]:
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


def _sweep(problem: _Problem, state: _State) -> _State:
    """Each block once; a step that would lower F is shortened."""
    base = state
    state = _move_responsibilities(problem, state)
    pairs = _cluster_pairs(problem, state.responsibilities)
    state = _move_centers(problem, state, pairs)
    if pairs is not None:
        state = replace(state, link=relations.fit_link(pairs, state.centers, state.link))
    state = replace(state, loadings=_loadings(problem.views, state.points))
    if problem.related is not None:
        fitted = relations.fit_relatedness(problem.related, state.points, state.relatedness)
        state = replace(state, relatedness=fitted)
    state = _move_points(problem, state)
    state = replace(state, value=_objective(problem, state))
    # No block lowers F but by rounding, and then the fit has converged.
    return state if state.value >= base.value else base


def _loadings(views: Sequence[View], points: Array) -> tuple[Array, ...]:
    """B_s by least squares, (r_s, d); of least norm where a source's codes do not span the d dimensions."""
    return tuple(
        np.asarray(linalg.lstsq(points[view.codes], view.scores)[0], dtype=np.float64).T for view in views
    )


def _respond(problem: _Problem, points: Array, centers: Array, message: Array | None) -> sp.csr_array:
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


def _move_responsibilities(problem: _Problem, state: _State) -> _State:
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
    base, step = _membership_value(problem, state), 1.0
    for _ in range(_HALVINGS):
        r = sp.csr_array((1.0 - step) * state.responsibilities + step * target)
        moved = replace(state, responsibilities=r)
        if _membership_value(problem, moved) >= base:
            return moved
        step *= 0.5
    return state


def _move_centers(problem: _Problem, state: _State, pairs: ClusterPairs | None) -> _State:
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


def _move_points(problem: _Problem, state: _State) -> _State:
    """All u_i at once.

    Without related pairs, F is -u'A u/2 + c'u in u_i, and its maximiser on the sphere is exact (`_on_sphere`). Related
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
        target[here] = _on_sphere(precision[p], target_of[here])
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


def _on_sphere(precision: Array, linear: Array) -> Array:
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


def _cluster_pairs(problem: _Problem, responsibilities: sp.csr_array) -> ClusterPairs | None:
    return None if problem.graphs is None else relations.cluster_pairs(responsibilities, problem.graphs)


def _membership_value(problem: _Problem, state: _State) -> float:
    """The terms of F in which r takes part."""
    mixture, similarity, _ = problem.weights
    n, dim = state.points.shape
    entry = state.responsibilities.tocoo()
    i, k = (np.asarray(axis, dtype=np.intp) for axis in entry.coords)
    along = problem.kappa * np.sum(np.asarray(state.responsibilities.T @ state.points) * state.centers)
    if problem.prior is None:
        log_prior = -n * np.log(len(state.centers))
    else:
        chance = np.asarray(problem.prior[i, k]).ravel()
        log_prior = float(np.sum(entry.data * np.log(chance)))
    total = along + log_prior - float(np.sum(xlogy(entry.data, entry.data)))
    total = mixture * (total + n * float(vmf.log_normalizer(dim, problem.kappa)))
    pairs = _cluster_pairs(problem, state.responsibilities)
    if pairs is not None:
        fit = relations.similarity_value(pairs, state.centers, state.link)
        total += similarity * (fit - relations.link_penalty(state.link))
    return float(total)


def _noise_share(views: Sequence[View], points: Array) -> float:
    """Mean of v_s / p_s, see `fit_plug_in`; a source that fits exactly counts as one with a little noise."""
    parts = _residuals(views, points, _loadings(views, points))
    return float(np.mean([max(v, 1e-3) / view.columns for v, view in zip(parts, views, strict=True)]))


def _residuals(views: Sequence[View], points: Array, loadings: Sequence[Array]) -> list[float]:
    """Mean square residual of each source's entries, of mean square 1 themselves."""
    return [
        float(np.sum((view.scores - points[view.codes] @ loading.T) ** 2)) / (len(view.codes) * view.columns)
        for view, loading in zip(views, loadings, strict=True)
    ]


def _objective(problem: _Problem, state: _State) -> float:
    """F."""
    residual = _residuals(problem.views, state.points, state.loadings)
    value = -0.5 * sum(len(view.codes) * part for view, part in zip(problem.views, residual, strict=True))
    value += _membership_value(problem, state)
    if problem.related is not None:
        value += problem.weights[2] * relations.relatedness_value(
            problem.related, state.points, state.relatedness
        )
    return float(value)


def _choose_kappa(problem: _Problem, points: Array, n_clusters: int, grid: Array, seed: int) -> _Problem:
    """The problem with the kappa of the grid that `fit_plug_in` describes."""
    if len(grid) == 1:
        return replace(problem, kappa=float(grid[0]))
    rng, whole = np.random.default_rng(seed), problem
    problem = replace(problem, related=None)
    if problem.similar is not None and len(problem.similar.pairs) >= _FEWEST_HELD_OUT:
        scores = [_pairs_score(replace(problem, kappa=float(k)), points, n_clusters, seed) for k in grid]
    elif (hidden := _hidden_rows(problem, rng)) is not None:
        scores = [
            _rows_score(replace(problem, kappa=float(k)), hidden, points.shape, n_clusters, seed)
            for k in grid
        ]
    else:
        n, dim = points.shape
        along = clusters.start_clusters(points, n_clusters, problem.prior, method="k-means", seed=seed)[1]
        freedom = min(n_clusters, clusters.MOST_MEANS * n)
        guess = clusters.fit_concentration(n * along, n, dim, freedom)
        scores = [-abs(float(np.log(k / guess))) for k in grid]
    return replace(whole, kappa=float(grid[int(np.argmax(scores))]))


def _pairs_score(problem: _Problem, points: Array, n_clusters: int, seed: int) -> float:
    """Log-likelihood of a fifth of the similar pairs under the fit to the others."""
    similar = problem.similar
    if similar is None:
        return -np.inf
    out = np.random.default_rng(seed).random(len(similar.pairs)) < _HELD_OUT
    kept, held = (Relations(similar.pairs[part], similar.labels[part]) for part in (~out, out))
    trial = _with_similar(problem, kept)
    state, _ = _ascend(trial, _start(trial, points, n_clusters, seed), _TRIAL, _TRIAL_TOL)
    return _predictive(held, state)


def _predictive(pairs: Relations, state: _State) -> float:
    """sum_(ij) log sum_kl r_ik r_jl P(y_ij | a + b mu_k'mu_l), in blocks of pairs."""
    chance = expit(state.link[0] + state.link[1] * (state.centers @ state.centers.T))
    r, total = state.responsibilities, 0.0
    step = max(1, _BLOCK // len(chance))
    for low in range(0, len(pairs.pairs), step):
        i, j = pairs.pairs[low : low + step].T
        yes = np.asarray(r[j].multiply(np.asarray(r[i] @ chance)).sum(axis=1)).ravel()
        probability = np.where(pairs.labels[low : low + step], yes, 1.0 - yes)
        total += float(np.sum(np.log(np.maximum(probability, 1e-300))))
    return total


def _hidden_rows(problem: _Problem, rng: np.random.Generator) -> tuple[Index, ...] | None:
    """For each view the rows to hide: a fifth of the codes that several hold, each from one of its holders."""
    n = len(problem.where.pattern)
    shared = np.flatnonzero(problem.where.held.sum(axis=1)[problem.where.pattern] > 1)
    if len(shared) < _FEWEST_HELD_OUT:
        return None
    chosen = rng.permutation(shared)[: max(1, int(_HELD_OUT * len(shared)))]
    held = problem.where.held[problem.where.pattern[chosen]]
    loser = np.argmax(np.where(held, rng.random(held.shape), -1.0), axis=1)
    owner = np.full(n, -1)
    owner[chosen] = loser
    return tuple(np.flatnonzero(owner[view.codes] == s) for s, view in enumerate(problem.views))


def _rows_score(
    problem: _Problem, hidden: tuple[Index, ...], shape: tuple[int, ...], n_clusters: int, seed: int
) -> float:
    """Minus the squared error of B_s u_i at rows that the fit did not see."""
    views = tuple(
        replace(view, codes=np.delete(view.codes, rows), scores=np.delete(view.scores, rows, axis=0))
        for view, rows in zip(problem.views, hidden, strict=True)
    )
    n, dim = shape
    trial = replace(problem, views=views, where=factor.patterns(views, n))
    points = unit_rows(alignment.filled_svd(views, alignment.align(views, n, dim), dim))
    state, _ = _ascend(trial, _start(trial, points, n_clusters, seed), _TRIAL, _TRIAL_TOL)
    loss = 0.0
    for view, rows, loading in zip(problem.views, hidden, state.loadings, strict=True):
        error = view.scores[rows] - state.points[view.codes[rows]] @ loading.T
        loss += float(np.sum(error**2)) / view.columns
    return -loss
