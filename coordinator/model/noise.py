"""What in a source is shared and what is its own: factor analysis with a full noise covariance a source.

A site's embedding of a code differs from another site's in more than white noise: directions in which
the site's case mix or coding habits speak are noisy for whoever compares codes across sites. Rows that two
sources share show which directions those are. Maximum likelihood for

    x_i^s = B_s u_i + e,   e ~ N(0, Psi_s),   u_i ~ N(0, I)

with sources that hold different rows learns Psi_s; with two sources that share every row this is
probabilistic canonical correlation analysis. Multiplying a source by Psi_s^(-1/2) then makes its noise
white, which is what the factor term of SMILE assumes.

Source: Bach and Jordan 2005, "A probabilistic interpretation of canonical correlation analysis"; missing
sources and the inverse-Wishart shrinkage of Psi_s are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coordinator.model import alignment
from coordinator.model.factor import Array, Source, View, compress, patterns

WHITE_SWEEPS = 5
"""First sweeps with Psi_s a multiple of I: a full covariance at a poor start would swallow signal as noise."""


@dataclass(frozen=True)
class NoiseModel:
    """The fitted factor model.

    Attributes:
        embedding: (n, d) posterior means of u, not normalised.
        precision: for each source (p_s, p_s), the inverse of Psi_s.
        bound: log likelihood after each sweep, up to a constant, with the prior of Psi_s.
    """

    embedding: Array
    precision: tuple[Array, ...]
    bound: tuple[float, ...]


def fit_noise(
    views: Sequence[View],
    start: Array,
    *,
    sweeps: int = 60,
    prior_rows: float | None = None,
    tol: float = 1e-6,
) -> NoiseModel:
    """Expectation-maximisation from a start embedding.

    Args:
        views: sources; their rows are rows of `start`.
        start: (n, d) with rows of about unit length; d must be below every p_s, or each code that only one
            source holds explains its row without any noise.
        prior_rows: weight of the prior that Psi_s is a multiple of I, in rows; by default 2 p_s.
        tol: stop when the log likelihood a row gains less than this in a sweep.

    Law: with Psi_s full, the penalised log likelihood does not fall from one sweep to the next.
    """
    n, d = start.shape
    present, which = patterns(views, n)
    sizes = np.bincount(which, minlength=len(present))
    mean = start * np.sqrt(d)
    cover: Array = np.zeros((len(present), d, d))
    history: list[float] = []
    precision: tuple[Array, ...] = ()
    levels = np.ones(len(views))
    weights = [2.0 * view.scores.shape[1] if prior_rows is None else prior_rows for view in views]
    for sweep in range(sweeps):
        loadings, noise = [], []
        for s, view in enumerate(views):
            held = (sizes * present[:, s]).astype(np.float64)
            second = mean[view.codes].T @ mean[view.codes] + np.tensordot(held, cover, axes=1)
            loading, rest = _regress(view.scores, mean[view.codes], second)
            loadings.append(loading)
            if sweep < WHITE_SWEEPS:
                levels[s] = max(float(np.trace(rest)) / (len(view.codes) * len(rest)), 1e-10)
                noise.append(levels[s] * np.eye(len(rest)))
            else:
                noise.append(_covariance(rest, len(view.codes), weights[s], levels[s]))
        precision = tuple(np.asarray(np.linalg.inv(psi), dtype=np.float64) for psi in noise)
        evidence = np.zeros((n, d))
        gram = [b.T @ p @ b for b, p in zip(loadings, precision, strict=True)]
        for view, b, p in zip(views, loadings, precision, strict=True):
            evidence[view.codes] += view.scores @ p @ b
        total = np.eye(d) + np.tensordot(present.astype(np.float64), np.array(gram), axes=1)
        cover = np.asarray(np.linalg.inv(total), dtype=np.float64)
        for k in range(len(present)):
            mean[which == k] = evidence[which == k] @ cover[k]
        history.append(
            _log_likelihood(views, precision, noise, evidence, mean, cover, sizes, weights, levels)
        )
        if sweep > WHITE_SWEEPS and history[-1] - history[-2] < tol * n:
            break
    return NoiseModel(mean, precision, tuple(history[WHITE_SWEEPS:]))


def whiten_sources(sources: Sequence[Source], n_codes: int, dim: int) -> list[Source]:
    """Sources whose noise is white: each row multiplied by Psi_s^(-1/2) of a d-dimensional noise model.

    Args:
        sources: connected through shared codes.
        n_codes: rows of the union vocabulary.
        dim: d, below every p_s.

    Raises:
        FitError: the sources share no path of codes, or span fewer than dim dimensions.
    """
    views = [compress(source) for source in sources]
    alignment.check_connected(views, n_codes)
    start = alignment.filled_svd(views, alignment.align(views, n_codes, dim), dim)
    model = fit_noise(views, alignment.unit_rows(start))
    return [
        Source(view.name, view.codes, whitened(view.scores, precision))
        for view, precision in zip(views, model.precision, strict=True)
    ]


def whitened(scores: Array, precision: Array) -> Array:
    """Psi^(-1/2) applied to each row of a source: unit noise in every direction."""
    values, vectors = np.linalg.eigh(precision)
    return np.asarray(scores @ (vectors * np.sqrt(np.maximum(values, 0.0))))


def _regress(scores: Array, mean: Array, second: Array) -> tuple[Array, Array]:
    """B = X'E[u] (sum E[uu'])^-1, and the expected residual cross products."""
    d = len(second)
    cross = scores.T @ mean
    loading = np.linalg.solve(second + 1e-9 * np.trace(second) / d * np.eye(d), cross.T).T
    rest = scores.T @ scores - loading @ cross.T - cross @ loading.T + loading @ second @ loading.T
    return loading, (rest + rest.T) / 2


def _covariance(rest: Array, rows: int, weight: float, level: float) -> Array:
    """Posterior mode of Psi under an inverse-Wishart prior worth `weight` rows around level I."""
    return np.asarray((rest + weight * level * np.eye(len(rest))) / (rows + weight))


def _log_likelihood(
    views: Sequence[View],
    precision: Sequence[Array],
    noise: Sequence[Array],
    evidence: Array,
    mean: Array,
    cover: Array,
    sizes: npt.NDArray[np.int64],
    weights: Sequence[float],
    levels: Array,
) -> float:
    """Log p(X) = sum over rows of (-x' Psi^-1 x + b' V b) / 2 + log|V| / 2 - log|Psi| / 2, and Psi's prior."""
    total = float((evidence * mean).sum()) / 2
    total += float((sizes * np.linalg.slogdet(cover)[1]).sum()) / 2
    for view, p, psi, weight, level in zip(views, precision, noise, weights, levels, strict=True):
        logdet = float(np.linalg.slogdet(psi)[1])
        total -= float(((view.scores @ p) * view.scores).sum()) / 2 + len(view.codes) * logdet / 2
        total -= weight * (logdet + level * float(np.trace(p))) / 2
    return total
