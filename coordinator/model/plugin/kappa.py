"""The choice of kappa for the plug-in fit, by data that were held out of a short fit at each value of a grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from scipy.special import expit

from coordinator.model import alignment, clusters, factor
from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Index
from coordinator.model.loadings import to_device
from coordinator.model.plugin.ascent import ascend, start
from coordinator.model.plugin.objective import CPU, Problem, State, memberships, with_similar
from coordinator.model.relations import Relations

_HELD_OUT = 0.2  # share of the pairs, or of the shared rows, that the choice looks at
_TRIAL = 30  # iterations at each kappa of the grid
_TRIAL_TOL = 1e-3
_FEWEST_HELD_OUT = 20
_BLOCK = 1 << 20  # dense entries formed at once


def with_kappa(problem: Problem, points: Array, n_clusters: int, grid: Array, seed: int) -> Problem:
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


def _pairs_score(problem: Problem, points: Array, n_clusters: int, seed: int) -> float:
    """Log-likelihood of a fifth of the similar pairs under the fit to the others."""
    similar = problem.similar
    if similar is None:
        return -np.inf
    out = np.random.default_rng(seed).random(len(similar.pairs)) < _HELD_OUT
    kept, held = (Relations(similar.pairs[part], similar.labels[part]) for part in (~out, out))
    trial = with_similar(problem, kept)
    state, _ = ascend(trial, start(trial, points, n_clusters, seed), _TRIAL, _TRIAL_TOL)
    return _predictive(held, memberships(trial, state), state)


def _predictive(pairs: Relations, r: sp.csr_array, state: State) -> float:
    """sum_(ij) log sum_kl r_ik r_jl P(y_ij | a + b mu_k'mu_l), in blocks of pairs."""
    chance = expit(state.link[0] + state.link[1] * (state.centers @ state.centers.T).numpy())
    total = 0.0
    step = max(1, _BLOCK // len(chance))
    for low in range(0, len(pairs.pairs), step):
        i, j = pairs.pairs[low : low + step].T
        yes = np.asarray(r[j].multiply(np.asarray(r[i] @ chance)).sum(axis=1)).ravel()
        probability = np.where(pairs.labels[low : low + step], yes, 1.0 - yes)
        total += float(np.sum(np.log(np.maximum(probability, 1e-300))))
    return total


def _hidden_rows(problem: Problem, rng: np.random.Generator) -> tuple[Index, ...] | None:
    """For each view the rows to hide: a fifth of the codes that several hold, each from one of its holders."""
    n = len(problem.where.pattern)
    where = factor.patterns(problem.views, n)
    shared = np.flatnonzero(where.held.sum(axis=1)[where.pattern] > 1)
    if len(shared) < _FEWEST_HELD_OUT:
        return None
    chosen = rng.permutation(shared)[: max(1, int(_HELD_OUT * len(shared)))]
    held = where.held[where.pattern[chosen]]
    loser = np.argmax(np.where(held, rng.random(held.shape), -1.0), axis=1)
    owner = np.full(n, -1)
    owner[chosen] = loser
    return tuple(np.flatnonzero(owner[view.codes] == s) for s, view in enumerate(problem.views))


def _rows_score(
    problem: Problem, hidden: tuple[Index, ...], shape: tuple[int, ...], n_clusters: int, seed: int
) -> float:
    """Minus the squared error of B_s u_i at rows that the fit did not see."""
    views = tuple(
        replace(view, codes=np.delete(view.codes, rows), scores=np.delete(view.scores, rows, axis=0))
        for view, rows in zip(problem.views, hidden, strict=True)
    )
    n, dim = shape
    data, where = to_device(views, factor.patterns(views, n), CPU)
    trial = replace(problem, views=views, data=data, where=where)
    points = unit_rows(alignment.filled_svd(views, alignment.align(views, n, dim), dim))
    state, _ = ascend(trial, start(trial, points, n_clusters, seed), _TRIAL, _TRIAL_TOL)
    loss = 0.0
    for source, rows, loading in zip(problem.data, hidden, state.loadings.matrices, strict=True):
        error = source.scores[rows] - state.points[source.codes[rows]] @ loading.T
        loss += float((error**2).sum()) / source.columns
    return -loss
