"""Sources of the factor layer, x_i^s = B_s u_i + e, that hold different codes: what is known of them before a fit."""

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
    """A source in its leading principal axes: X_s = scores Q' + what the other axes hold.

    Every later step costs n_s r d instead of n_s p_s d, and does not depend on how the columns were rotated.

    Args:
        name: the source's name.
        codes: (n_s,) rows of the union vocabulary.
        scores: (n_s, r) columns orthogonal, by decreasing norm, the largest entry of each positive.
        columns: p_s, the number of columns that the noise variance is an average over.
        rest: sum of squares along the axes that were left out; the fit takes all of it for noise.
    """

    name: str
    codes: Index
    scores: Array
    columns: int
    rest: float = 0.0

    @property
    def energy(self) -> float:
        """Sum of squares of the source's matrix."""
        return float(np.sum(self.scores**2)) + self.rest

    def rescaled(self, exponent: float) -> View:
        """The view with its j-th axis, of singular value s_j, multiplied by s_j^(exponent - 1).

        The overall scale stays. An eigen-embedding V = Q L^(1/2) of a noisy matrix carries noise of variance
        1/l_j along axis j; exponent 2 makes that noise alike along all axes, as the model assumes.
        """
        if exponent == 1.0:
            return self
        singular = np.linalg.norm(self.scores, axis=0)
        weight = (singular / singular[0]) ** (exponent - 1.0)
        # The axes that were left out are smaller than the last one kept.
        scores, rest = self.scores * weight, self.rest * float(weight[-1]) ** 2
        scale = self.energy / (float(np.sum(scores**2)) + rest)
        return View(self.name, self.codes, scores * np.sqrt(scale), self.columns, rest * scale)


class Presence(NamedTuple):
    """Which sources hold which code, by distinct pattern: A_i is formed once a pattern, never once a code.

    Args:
        held: (P, S) bool, the distinct patterns.
        pattern: (n,) the pattern of each code.
    """

    held: NDArray[np.bool_]
    pattern: Index


def compress(source: Source, axes: int | None = None) -> View:
    """Rotate a source to its principal axes.

    Args:
        source: the source.
        axes: keep this many at most; with None nothing is lost.

    Raises:
        FitError: all rows are zero.
    """
    matrix = source.matrix
    if len(matrix) > matrix.shape[1]:
        # The Gram matrix is small, and any rotation that its eigenvectors give is exact.
        _, turn = linalg.eigh(matrix.T @ matrix, overwrite_a=True)
        scores = matrix @ turn[:, ::-1][:, :axes]
    else:
        left, singular, _ = linalg.svd(matrix, full_matrices=False)
        scores = (left * singular)[:, :axes]
    size = np.linalg.norm(scores, axis=0)
    if size.max() == 0.0:
        raise FitError(f"source {source.name} cannot be used", why="all of its rows are zero")
    scores = scores[:, size > size.max() * 1e-9]
    scores *= np.sign(scores[np.abs(scores).argmax(axis=0), np.arange(scores.shape[1])])
    rest = 0.0 if axes is None else max(float(np.sum(matrix**2) - np.sum(scores**2)), 0.0)
    return View(source.name, source.codes, scores, matrix.shape[1], rest)


def patterns(views: Sequence[View], n_codes: int) -> Presence:
    """The patterns of presence of n_codes codes in the views."""
    held = np.zeros((n_codes, len(views)), dtype=bool)
    for s, view in enumerate(views):
        held[view.codes, s] = True
    distinct, pattern = np.unique(held, axis=0, return_inverse=True)
    return Presence(distinct, pattern.reshape(-1))
