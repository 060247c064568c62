"""The published fit of SMILE, whole: prepare, choose kappa, sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch

from coordinator.model import alignment, clusters, factor, pairs, support
from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Source, View
from coordinator.model.fit import SmileFit
from coordinator.model.loadings import Data, to_device
from coordinator.model.plugin.ascent import ascend, start
from coordinator.model.plugin.kappa import with_kappa
from coordinator.model.plugin.objective import (
    CPU,
    Problem,
    Weights,
    loadings_of,
    mean_square,
    memberships,
    residuals,
    with_similar,
)
from coordinator.model.relations import Relations
from protocol.errors import FitError


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
    w = _noise_share(problem.data, points) if mixture_weight is None else mixture_weight
    problem = replace(problem, weights=Weights(w, w * similarity_weight, w * relatedness_weight))
    problem = with_kappa(problem, points, n_clusters, grid, seed)
    state, history = ascend(problem, start(problem, points, n_clusters, seed), iterations, tol, progress)
    r = memberships(problem, state)
    return SmileFit(
        embedding=state.points.numpy(),
        centers=state.centers.numpy(),
        labels=np.asarray(r.argmax(axis=1), dtype=np.intp).reshape(-1),
        posterior=np.asarray(r.max(axis=1).toarray()).reshape(-1),
        kappa=problem.kappa,
        relatedness=state.relatedness.matrix.numpy(),
        history=history,
        noise=tuple(
            part * mean_square(v)
            for part, v in zip(residuals(problem.data, state.points, state.loadings), views, strict=True)
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
) -> Problem:
    alignment.check_connected(views, n_codes)
    for listed in (similar, related):
        if listed is not None:
            listed.check(n_codes)
    views = tuple(replace(view, scores=view.scores / np.sqrt(mean_square(view))) for view in views)
    data, where = to_device(views, factor.patterns(views, n_codes), CPU)
    checked = None if prior is None else clusters.checked_prior(prior, n_codes, n_clusters)
    problem = Problem(
        views=views,
        data=data,
        where=where,
        prior=checked,
        support=support.whole(_uniform(n_codes, n_clusters) if checked is None else checked, CPU),
        similar=None,
        graphs=None,
        related=None
        if related is None or not len(related.pairs)
        else pairs.related_on(related, n_codes, CPU),
        weights=Weights(1.0, 1.0, 1.0),
        messages=messages,
        kappa=1.0,
    )
    return problem if similar is None else with_similar(problem, similar)


def _uniform(n_codes: int, n_clusters: int) -> sp.csr_array:
    return sp.csr_array(np.full((n_codes, n_clusters), 1.0 / n_clusters))


def _noise_share(data: Sequence[Data], points: Array) -> float:
    """Mean of v_s / p_s, see `fit_plug_in`; a source that fits exactly counts as one with a little noise."""
    at = torch.from_numpy(points)
    parts = residuals(data, at, loadings_of(data, at))
    return float(np.mean([max(v, 1e-3) / source.columns for v, source in zip(parts, data, strict=True)]))
