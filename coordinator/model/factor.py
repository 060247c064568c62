"""The factor layer: x_i^s = B_s u_i + e, e ~ N(0, sigma_s^2 I), |u_i| = 1, for sources that hold different codes.

u_i is a latent variable, so every estimate below takes its first and second posterior moments: least squares
on point estimates would be biased, because the regressor is known only with error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from protocol.errors import FitError

Array = NDArray[np.float64]
Index = NDArray[np.intp]

# A source that fits exactly would get an infinite weight; this keeps its share of the evidence finite.
_NOISE_FLOOR = 1e-8


@dataclass(frozen=True, eq=False)
class Source:
    """One site's (or one view's) embedding of the codes that it holds.

    Args:
        name: shown in messages.
        codes: (n_s,) distinct rows of the union vocabulary, in the order of the matrix.
        matrix: (n_s, p_s) one finite row a code; columns may be rotated at will.

    Raises:
        FitError: the shapes differ, a code comes twice, or a value is not finite.
    """

    name: str
    codes: Index
    matrix: Array

    def __post_init__(self) -> None:
        codes, matrix = np.asarray(self.codes), np.asarray(self.matrix, dtype=np.float64)
        what = f"source {self.name} cannot be used"
        if matrix.ndim != 2 or codes.shape != matrix.shape[:1] or matrix.size == 0:
            why = f"{codes.shape} codes go with a matrix of shape {matrix.shape}"
            raise FitError(what, why=why, do="give one non-empty matrix row a code")
        if not np.issubdtype(codes.dtype, np.integer) or np.unique(codes).size != codes.size:
            raise FitError(what, why="its codes are not distinct whole numbers", do="give each code one row")
        if not np.isfinite(matrix).all():
            row = int(codes[np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0]])
            raise FitError(what, why=f"the row of code {row} holds a value that is not finite")
        object.__setattr__(self, "codes", codes.astype(np.intp))
        object.__setattr__(self, "matrix", matrix)


@dataclass(frozen=True, eq=False)
class View:
    """A source after an exact rotation to its principal axes: X_s = scores Q', r = min(n_s, p_s).

    Every later step costs n_s r d instead of n_s p_s d, and no longer depends on how the columns were rotated.

    Args:
        name: the source's name.
        codes: (n_s,) rows of the union vocabulary.
        scores: (n_s, r) columns orthogonal, by decreasing norm, the largest entry of each positive.
        columns: p_s, the number of columns that the noise variance is an average over.
    """

    name: str
    codes: Index
    scores: Array
    columns: int

    @property
    def energy(self) -> float:
        """Sum of squares of the source's matrix."""
        return float(np.sum(self.scores**2))

    def rescaled(self, exponent: float) -> View:
        """The view with its j-th axis, of singular value s_j, multiplied by s_j^(exponent - 1).

        The overall scale stays. An eigen-embedding V = Q L^(1/2) of a noisy matrix carries noise of variance
        1/l_j along axis j; exponent 2 makes that noise alike along all axes, as the model assumes.
        """
        singular = np.linalg.norm(self.scores, axis=0)
        scores = self.scores * (singular / singular[0]) ** (exponent - 1.0)
        scores *= np.sqrt(self.energy / np.sum(scores**2))
        return View(self.name, self.codes, scores, self.columns)


class Presence(NamedTuple):
    """Which sources hold which code, by distinct pattern: A_i is formed once a pattern, never once a code.

    Args:
        held: (P, S) bool, the distinct patterns.
        pattern: (n,) the pattern of each code.
    """

    held: NDArray[np.bool_]
    pattern: Index


@dataclass(frozen=True, eq=False)
class Loadings:
    """B_s, one (r_s, d) matrix a source in the view's axes, and sigma_s^2."""

    matrices: tuple[Array, ...]
    noise: tuple[float, ...]


def compress(source: Source) -> View:
    """Rotate a source to its principal axes; nothing is lost.

    Raises:
        FitError: all rows are zero.
    """
    left, singular, _ = linalg.svd(source.matrix, full_matrices=False)
    if singular[0] == 0.0:
        raise FitError(f"source {source.name} cannot be used", why="all of its rows are zero")
    rank = int(np.sum(singular > singular[0] * 1e-12))
    scores = left[:, :rank] * singular[:rank]
    sign = np.sign(scores[np.abs(scores).argmax(axis=0), np.arange(rank)])
    return View(source.name, source.codes, scores * sign, source.matrix.shape[1])


def patterns(views: Sequence[View], n_codes: int) -> Presence:
    """The patterns of presence of n_codes codes in the views."""
    held = np.zeros((n_codes, len(views)), dtype=bool)
    for s, view in enumerate(views):
        held[view.codes, s] = True
    distinct, pattern = np.unique(held, axis=0, return_inverse=True)
    return Presence(distinct, pattern.reshape(-1))


def fit_loadings(views: Sequence[View], where: Presence, mean: Array, second: Array) -> Loadings:
    """Maximise the expected log-likelihood over B_s and sigma_s^2.

    B_s = (sum_i x_i E[u_i]') (sum_i E[u_i u_i'])^-1, and sigma_s^2 is the expected squared residual a column.

    Args:
        views: the sources.
        where: their pattern of presence.
        mean: (n, d) E[u_i].
        second: (P, d, d) sums of E[u_i u_i'] over the codes of each pattern.
    """
    matrices, noise = [], []
    for s, view in enumerate(views):
        moment = second[where.held[:, s]].sum(axis=0)
        cross = view.scores.T @ mean[view.codes]
        loading = linalg.solve(moment, cross.T, assume_a="pos").T
        residual = _expected_residual(view, loading, cross, moment)
        cells = len(view.codes) * view.columns
        matrices.append(loading)
        noise.append(max(residual, _NOISE_FLOOR * view.energy) / cells)
    return Loadings(tuple(matrices), tuple(noise))


def evidence(views: Sequence[View], where: Presence, loadings: Loadings) -> tuple[Array, Array]:
    """What the data say of u_i: log p(x_i | u) = b_i'u - u'A_i u / 2 + constant.

    Returns:
        (P, d, d) A by pattern, sum_s B_s'B_s / sigma_s^2; and (n, d) b, sum_s B_s'x_i^s / sigma_s^2.
    """
    dim = loadings.matrices[0].shape[1]
    grams = np.stack(
        [loading.T @ loading / s2 for loading, s2 in zip(loadings.matrices, loadings.noise, strict=True)]
    )
    linear = np.zeros((len(where.pattern), dim))
    for view, loading, s2 in zip(views, loadings.matrices, loadings.noise, strict=True):
        linear[view.codes] += view.scores @ (loading / s2)
    return np.einsum("ps,sde->pde", where.held.astype(np.float64), grams), linear


def expected_log_likelihood(
    views: Sequence[View], where: Presence, loadings: Loadings, mean: Array, second: Array
) -> float:
    """E_q of sum_s log p(X_s | U), from the moments that `fit_loadings` takes."""
    total = 0.0
    for s, (view, loading, s2) in enumerate(zip(views, loadings.matrices, loadings.noise, strict=True)):
        moment = second[where.held[:, s]].sum(axis=0)
        residual = _expected_residual(view, loading, view.scores.T @ mean[view.codes], moment)
        total -= 0.5 * (len(view.codes) * view.columns * np.log(2.0 * np.pi * s2) + residual / s2)
    return float(total)


def _expected_residual(view: View, loading: Array, cross: Array, moment: Array) -> float:
    """E_q of sum_i |x_i - B u_i|^2."""
    return float(view.energy - 2.0 * np.sum(cross * loading) + np.sum((loading @ moment) * loading))
