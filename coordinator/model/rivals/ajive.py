"""AJIVE: angle-based joint and individual variation explained (Feng, Jiang, Hannig and Marron 2018).

X_k = J_k + I_k + E_k. The joint scores are the leading left singular vectors of the blocks' own leading left
singular vectors side by side; how many are joint is told by two bounds on the squared singular values, what
perturbation by noise leaves of a common direction (Wedin) and what random subspaces reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import linalg
from scipy.sparse.linalg import eigsh

from coordinator.model.factor import Array
from coordinator.model.rivals.spectral import Svd, truncated_svd

_WEDIN_PERCENTILE = 5.0
_RANDOM_PERCENTILE = 95.0
_ROUNDING = 1e-9  # without noise, a joint direction reaches the Wedin bound exactly
_SMALL = 64  # rows up to which all eigenvalues together are the cheapest way to the largest
_BATCH = 1 << 21  # random numbers drawn at once


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The joint scores and what decided their number.

    Args:
        joint: (n, r_J) orthonormal columns.
        squares: (R,) squared singular values of the score spaces side by side, decreasing, R = sum of ranks.
        wedin: what a joint direction keeps, 5th percentile; nan where the joint rank was given.
        random: what random spaces reach, 95th percentile; nan where the joint rank was given.
    """

    joint: Array
    squares: Array
    wedin: float
    random: float


def decompose(
    blocks: Sequence[Array],
    ranks: Sequence[int],
    *,
    joint_rank: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Decomposition:
    """Steps 1 and 2 of AJIVE: signal spaces, then their joint part. Blocks are taken as they are, not centred.

    Args:
        blocks: one (n, p_k) a source.
        ranks: initial signal rank of each block.
        joint_rank: r_J, or None to estimate it by the bounds.
        resamples: number of draws for each bound.
        seed: of the draws.
    """
    svds = [truncated_svd(block, rank + 1) for block, rank in zip(blocks, ranks, strict=True)]
    ranks = [min(rank, len(svd.singular)) for svd, rank in zip(svds, ranks, strict=True)]
    scores = np.hstack([svd.left[:, :rank] for svd, rank in zip(svds, ranks, strict=True)])
    # Squared singular values of joint directions lie near the number of blocks, so the Gram matrix is enough.
    squares, vectors = linalg.eigh(scores.T @ scores)
    squares, vectors = squares[::-1], vectors[:, ::-1]
    wedin = random = float("nan")
    estimated = joint_rank is None
    if joint_rank is None:
        rng = np.random.default_rng(seed)
        random = float(
            np.percentile(random_directions(len(scores), ranks, resamples, rng), _RANDOM_PERCENTILE)
        )
        wedin = float(np.percentile(wedin_bounds(blocks, ranks, resamples, rng), _WEDIN_PERCENTILE))
        joint_rank = int(np.sum(squares > max(wedin, random) - _ROUNDING))
    joint_rank = min(joint_rank, int(np.sum(squares > 1e-8)))
    joint = scores @ vectors[:, :joint_rank] / np.sqrt(squares[:joint_rank])
    if estimated:
        thresholds = [_threshold(svd, rank) for svd, rank in zip(svds, ranks, strict=True)]
        joint = joint[:, _identifiable(blocks, joint, thresholds)]
    return Decomposition(joint, squares, wedin, random)


def chosen_rank(block: Array) -> int:
    """Signal rank of a block by the optimal hard threshold for unknown noise, at least 1.

    Singular values above omega(beta) times their median, omega(beta) = .56 b^3 - .95 b^2 + 1.82 b + 1.43.

    Source: Gavish and Donoho 2014, equation 5.
    """
    singular = _spectrum(block)
    beta = min(block.shape) / max(block.shape)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    return max(1, int(np.sum(singular > omega * np.median(singular))))


def wedin_bounds(
    blocks: Sequence[Array], ranks: Sequence[int], resamples: int, rng: np.random.Generator
) -> Array:
    """(resamples,) draws of K - sum_k w_k^2: what the squared singular value of a joint direction keeps.

    w_k = min(1, max(|E'Q|, |E P|) / s_r): Q and P have r random orthonormal columns beside the signal space.
    """
    kept = np.full(resamples, float(len(blocks)))
    for block, rank in zip(blocks, ranks, strict=True):
        singular = _spectrum(block)
        noise = np.maximum(
            *(_noise_norms(singular[rank:], size - rank, rank, resamples, rng) for size in block.shape)
        )
        kept -= np.minimum(noise / singular[rank - 1], 1.0) ** 2
    return kept


def random_directions(n: int, ranks: Sequence[int], resamples: int, rng: np.random.Generator) -> Array:
    """(resamples,) draws of the largest squared singular value of random subspaces of R^n side by side.

    Only the Gram matrix of the bases is needed, and that of Gaussian ones is Wishart: nothing has n rows.
    """
    total = int(sum(ranks))
    edges = np.r_[0, np.cumsum(ranks)]
    drawn = []
    for count in _batches(resamples, total * total):
        gram = _wishart(n, total, count, rng)
        for low, high in pairwise(edges):
            factor = np.linalg.cholesky(gram[:, low:high, low:high])
            gram[:, low:high] = np.linalg.solve(factor, gram[:, low:high])
            gram[:, :, low:high] = np.linalg.solve(factor, gram[:, :, low:high].mT).mT
        drawn.append(_largest_eigenvalues(gram))
    return np.concatenate(drawn)


def _noise_norms(rest: Array, complement: int, rank: int, resamples: int, rng: np.random.Generator) -> Array:
    """Draws of |E'Q|: E has singular values `rest`, Q random orthonormal columns in a `complement`-dim space.

    With Q = G (G'G)^-1/2 for a Gaussian G, |E'Q|^2 is the largest eigenvalue of G_1'D^2 G_1 against G'G, where
    G_1 are the rows along E's singular vectors and the other rows add a Wishart matrix.
    """
    columns = min(rank, complement)
    if columns == 0 or rest.size == 0:
        return np.zeros(resamples)
    along = min(len(rest), complement)
    drawn = []
    for count in _batches(resamples, along * columns):
        gauss = rng.standard_normal((count, along, columns))
        whole = gauss.mT @ gauss + _wishart(complement - along, columns, count, rng)
        factor = np.linalg.cholesky(whole)
        seen = (gauss * rest[:along, None]) @ np.linalg.inv(factor).mT
        drawn.append(np.sqrt(_largest_eigenvalues(seen.mT @ seen)))
    return np.concatenate(drawn)


def _wishart(freedom: int, size: int, count: int, rng: np.random.Generator) -> Array:
    """(count, size, size) draws of G'G for Gaussian (freedom, size) matrices G, by Bartlett's triangle."""
    if freedom < size:
        gauss = rng.standard_normal((count, freedom, size))
        return np.asarray(gauss.mT @ gauss)
    triangle = np.tril(rng.standard_normal((count, size, size)), -1)
    diagonal = np.arange(size)
    triangle[:, diagonal, diagonal] = np.sqrt(rng.chisquare(freedom - diagonal, (count, size)))
    return np.asarray(triangle @ triangle.mT)


def _largest_eigenvalues(matrices: Array) -> Array:
    """Of a stack of symmetric matrices; by Lanczos, one after the other, where they are large."""
    size = matrices.shape[-1]
    if size <= _SMALL:
        return np.asarray(np.linalg.eigvalsh(matrices)[:, -1])
    start = np.ones(size)
    return np.array(
        [eigsh(m, 1, which="LA", v0=start, tol=1e-5, return_eigenvectors=False)[0] for m in matrices]
    )


def _batches(resamples: int, numbers: int) -> list[int]:
    step = max(1, _BATCH // max(1, numbers))
    return [min(step, resamples - low) for low in range(0, resamples, step)]


def _spectrum(block: Array) -> Array:
    gram = block.T @ block if block.shape[0] >= block.shape[1] else block @ block.T
    return np.asarray(np.sqrt(np.maximum(linalg.eigvalsh(gram, check_finite=False)[::-1], 0.0)))


def _threshold(svd: Svd, rank: int) -> float:
    """Half-way between the last singular value of the signal and the first of the noise."""
    beyond = svd.singular[rank] if len(svd.singular) > rank else 0.0
    return float((svd.singular[rank - 1] + beyond) / 2.0)


def _identifiable(blocks: Sequence[Array], joint: Array, thresholds: Sequence[float]) -> np.ndarray:
    """Joint directions along which every block varies by more than its noise."""
    keep = np.ones(joint.shape[1], dtype=bool)
    for block, threshold in zip(blocks, thresholds, strict=True):
        keep &= np.linalg.norm(block.T @ joint, axis=0) >= threshold
    return keep
