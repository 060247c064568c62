"""BONMI: block-wise overlapping noisy matrix integration (Zhou, Cai and Lu 2023).

Source s shows the block W_s = X_s X_s' of one symmetric n x n matrix. Overlapping blocks are averaged with
the inverse of their noise variance; each source's averaged block is eigen-decomposed; pairs of codes that no
source holds together are filled through the Procrustes rotation between two sources; and the leading
eigenvectors of the whole are the embedding.

The completed matrix is a product of thin factors in every cell of the presence patterns, so it is only ever
multiplied with vectors: a product costs n p, and nothing of n x n is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from coordinator.model.factor import Array, Index
from coordinator.model.rivals.spectral import leading_eigenvectors, rotation

_NOISE_FLOOR = 1e-12  # share of a block's energy; a noise-free source would get an infinite weight


@dataclass(frozen=True, eq=False)
class Blocks:
    """Rows of the sources, with codes sorted by presence pattern.

    Args:
        matrices: one (n_s, p_s) a source, rows in the order of `rows`.
        rows: one (n_s,) a source, increasing positions among the sorted codes.
        held: (P, S) bool.
        parts: one a source, of each pattern that it holds: the pattern, its rows in the source, and its rows
            among the sorted codes.
    """

    matrices: tuple[Array, ...]
    rows: tuple[Index, ...]
    held: NDArray[np.bool_]
    parts: tuple[list[tuple[int, slice, slice]], ...]


def complete(
    matrices: Sequence[Array], codes: Sequence[Index], n_codes: int, dim: int, spare: Sequence[Array]
) -> Array:
    """The embedding of the completed matrix, rows not normalised.

    Args:
        matrices: one X_s (n_s, p_s) a source, on comparable scales.
        codes: one (n_s,) a source, rows of the union.
        n_codes: n.
        dim: d.
        spare: one (n_s, w) a source, its rows in coordinates common to all sources: they give the rotation
            between two sources that share fewer than d codes, where a rotation of their own is not defined.

    Returns:
        (n, d).
    """
    blocks, order = _sorted(matrices, codes, n_codes)
    shares = _shares(blocks, dim)
    embeddings = [
        leading_eigenvectors(partial(_within, blocks, shares, n_codes, rows), len(rows), dim)
        for rows in blocks.rows
    ]
    common = [axes[np.argsort(_rank(order)[c])] for axes, c in zip(spare, codes, strict=True)]
    bridges = _bridges(blocks, embeddings, common, dim)

    def product(v: Array) -> Array:
        return _observed(blocks, shares, v) + _filled(blocks, embeddings, bridges, v)

    result = np.empty((n_codes, min(dim, n_codes)))
    result[order] = leading_eigenvectors(product, n_codes, dim)
    return result


def _sorted(matrices: Sequence[Array], codes: Sequence[Index], n_codes: int) -> tuple[Blocks, Index]:
    """The sources with codes sorted by presence pattern, and the code at each sorted place."""
    present = np.zeros((n_codes, len(codes)), dtype=bool)
    for s, own in enumerate(codes):
        present[own, s] = True
    held, pattern = np.unique(present, axis=0, return_inverse=True)
    pattern = pattern.reshape(-1)
    order = np.argsort(pattern, kind="stable")
    place = _rank(order)
    moved, rows = [], []
    for matrix, own in zip(matrices, codes, strict=True):
        to = np.argsort(place[own])
        moved.append(np.ascontiguousarray(matrix[to]))
        rows.append(place[own][to])
    sizes = np.bincount(pattern, minlength=len(held))
    parts = tuple(_parts(held[:, s], sizes) for s in range(len(codes)))
    return Blocks(tuple(moved), tuple(rows), held, parts), order


def _parts(held: NDArray[np.bool_], sizes: Index) -> list[tuple[int, slice, slice]]:
    own = np.r_[0, np.cumsum(np.where(held, sizes, 0))].tolist()
    place = np.r_[0, np.cumsum(sizes)].tolist()
    return [
        (a, slice(own[a], own[a + 1]), slice(place[a], place[a + 1])) for a in np.flatnonzero(held).tolist()
    ]


def _rank(order: Index) -> Index:
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place


def _shares(blocks: Blocks, dim: int) -> Array:
    """(S, P, P) the weight of each source in the average over each pair of patterns; zero where it is absent.

    Weights are inverse noise variances, the noise being what W_s has beyond its d leading eigenvalues.
    """
    weights = np.empty(len(blocks.matrices))
    for s, matrix in enumerate(blocks.matrices):
        gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
        value = np.linalg.eigvalsh(gram)[::-1]
        energy = float(np.sum(value**2))
        weights[s] = len(matrix) ** 2 / max(float(np.sum(value[dim:] ** 2)), _NOISE_FLOOR * energy)
    both = np.einsum("s,as,bs->sab", weights, blocks.held, blocks.held)
    total = both.sum(axis=0)
    return np.asarray(both / np.where(total > 0.0, total, 1.0))


def _observed(blocks: Blocks, shares: Array, v: Array) -> Array:
    """The averaged blocks times v (n, k)."""
    out = np.zeros_like(v)
    for matrix, parts, share in zip(blocks.matrices, blocks.parts, shares, strict=True):
        seen = np.stack([matrix[own].T @ v[place] for _, own, place in parts])
        patterns = [a for a, _, _ in parts]
        mixed = np.tensordot(share[np.ix_(patterns, patterns)], seen, axes=1)
        for (_, own, place), y in zip(parts, mixed, strict=True):
            out[place] += matrix[own] @ y
    return out


def _within(blocks: Blocks, shares: Array, n_codes: int, rows: Index, v: Array) -> Array:
    """The averaged blocks between the codes of one source times v (n_s, k)."""
    whole = np.zeros((n_codes, v.shape[1]))
    whole[rows] = v
    return _observed(blocks, shares, whole)[rows]


def _bridges(
    blocks: Blocks, embeddings: Sequence[Array], common: Sequence[Array], dim: int
) -> dict[tuple[int, int], Array]:
    """O_st for each ordered pair of sources: rows of s times O_st are in the coordinates of t."""
    onto = [rotation(own, axes) for own, axes in zip(embeddings, common, strict=True)]
    bridges = {}
    for s, rows_s in enumerate(blocks.rows):
        for t in range(s):
            _, in_s, in_t = np.intersect1d(rows_s, blocks.rows[t], assume_unique=True, return_indices=True)
            turn = onto[s] @ onto[t].T
            if len(in_s) >= dim:
                turn = rotation(embeddings[s][in_s], embeddings[t][in_t])
            bridges[s, t], bridges[t, s] = turn, turn.T
    return bridges


def _filled(
    blocks: Blocks, embeddings: Sequence[Array], bridges: dict[tuple[int, int], Array], v: Array
) -> Array:
    """The blocks between patterns that no source holds together, averaged over pairs of sources, times v."""
    out = np.zeros_like(v)
    held = blocks.held.astype(np.float64)
    count = np.outer(held.sum(axis=1), held.sum(axis=1))
    share = np.where(held @ held.T == 0.0, 1.0 / count, 0.0)
    for (s, t), turn in bridges.items():
        far = [b for b, _, _ in blocks.parts[t]]
        near = [(a, own, place) for a, own, place in blocks.parts[s] if share[a, far].any()]
        if not near:
            continue
        seen = np.stack([embeddings[t][own].T @ v[place] for _, own, place in blocks.parts[t]])
        for a, own, place in near:
            out[place] += embeddings[s][own] @ (turn @ np.tensordot(share[a, far], seen, axes=1))
    return out
