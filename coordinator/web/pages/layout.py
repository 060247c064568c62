"""Places in two dimensions for the codes of a release.

Up to `LANDMARKS` codes are laid out by t-SNE; every further code stands between the landmarks that its vector is
nearest to. So codes of alike vectors are near each other; the distance between groups, their sizes and the axes mean
nothing.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from protocol.arrays import FloatMatrix

LANDMARKS: Final = 3_000
"""Codes that t-SNE places itself: it takes seconds for these, and hours for 100,000."""

_FEWEST: Final = 20  # rows for t-SNE
_NEAREST: Final = 4
_SHARPNESS: Final = 20.0  # a landmark whose cosine is 0.05 less pulls e times less
_BLOCK: Final = 4_000
_GOLDEN: Final = np.pi * (3 - np.sqrt(5))

Flat = npt.NDArray[np.float32]


def flat_layout(vectors: FloatMatrix) -> Flat:
    """A place for each vector.

    Args:
        vectors: (n, d), unit rows.

    Returns:
        (n, 2) within -1..1, no two alike; the same for the same vectors.

    Law: rows of one vector stand closer together than to any other landmark's place.
    Source: van der Maaten and Hinton 2008; landmarks as in de Silva and Tenenbaum 2004.
    """
    # Codes that share a row of the fit have one vector: they are laid out once, and t-SNE sees no two places alike.
    alike, group = np.unique(np.round(vectors, 4), axis=0, return_inverse=True)
    return _apart(_framed(_distinct(alike)[group.reshape(-1)]))


def _distinct(vectors: FloatMatrix) -> npt.NDArray[np.float64]:
    n = len(vectors)
    if n <= LANDMARKS:
        return _laid_out(vectors)
    chosen = np.sort(np.random.default_rng(0).choice(n, LANDMARKS, replace=False))
    places = _framed(_laid_out(vectors[chosen]))
    flat = np.empty((n, 2), dtype=np.float64)
    for low in range(0, n, _BLOCK):
        some = slice(low, low + _BLOCK)
        flat[some] = _between(vectors[some] @ vectors[chosen].T, places)
    return flat


def _laid_out(vectors: FloatMatrix) -> npt.NDArray[np.float64]:
    """Places by the first two principal components, and, where there are enough rows for it, by t-SNE from these."""
    n, d = vectors.shape
    k, flat = min(2, n, d), np.zeros((n, 2))
    if k and n > 1:
        flat[:, :k] = PCA(k, random_state=0).fit_transform(vectors.astype(np.float64))
    spread = float(flat[:, 0].std()) if n else 0.0
    if n < _FEWEST or d < 3 or spread < 1e-6:
        return flat
    # Places that are all one let the quadtree of t-SNE recurse until the process dies.
    start = flat / spread * 1e-4 + np.random.default_rng(0).normal(0, 1e-6, flat.shape)
    perplexity = min(30.0, (n - 1) / 3)
    tsne = TSNE(
        2,
        metric="cosine",
        init=start.astype(np.float32),
        perplexity=perplexity,
        learning_rate="auto",
        random_state=0,
        max_iter=600,
    )
    return np.asarray(tsne.fit_transform(vectors), dtype=np.float64)


def _between(cosines: npt.NDArray[np.floating], places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean place of each row's nearest landmarks, weighted by how near they are."""
    nearest = np.argpartition(-cosines, _NEAREST, axis=1)[:, :_NEAREST]
    near = np.take_along_axis(cosines, nearest, axis=1).astype(np.float64)
    weight = np.exp(_SHARPNESS * (near - near.max(axis=1, keepdims=True)))
    # Landmarks of one vector's neighbourhood can lie on two islands: their middle would be no place at all.
    home = np.take_along_axis(nearest, near.argmax(axis=1)[:, None], axis=1)
    far = np.linalg.norm(places[nearest] - places[home], axis=2)
    weight *= far < 0.1
    weight /= weight.sum(axis=1, keepdims=True)
    return np.asarray(np.einsum("ij,ijk->ik", weight, places[nearest]))


def _framed(flat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    centred = flat - (flat.max(axis=0) + flat.min(axis=0)) / 2 if len(flat) else flat
    return centred / max(float(np.abs(centred).max(initial=0.0)), 1e-12)


def _apart(flat: npt.NDArray[np.float64]) -> Flat:
    """Codes of one place on a small spiral around it, as seeds in a sunflower, so that each can be seen."""
    _, group = np.unique(np.round(flat, 3), axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    ranked = group[order]
    first = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]]) if len(ranked) else np.zeros(0, int)
    rank = np.empty(len(flat))
    rank[order] = np.arange(len(flat)) - np.repeat(first, np.diff(np.r_[first, len(flat)]))
    radius = 0.0012 * np.sqrt(rank)
    turn = np.c_[np.cos(_GOLDEN * rank), np.sin(_GOLDEN * rank)]
    return np.asarray((0.98 * flat + radius[:, None] * turn).clip(-1, 1), dtype=np.float32)
