"""Large made-up inputs for benchmarks of speed and memory; nothing is claimed about quality on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coordinator.model import Relations, Source, vmf
from coordinator.model.factor import Array, Index


@dataclass(frozen=True, eq=False)
class Large:
    """Sources and pairs.

    Attributes:
        sources: the first holds every code, the others four fifths each.
        similar: pairs within clusters, and as many at random, labelled by whether they share a cluster.
        related: random pairs, positive where u_i'W u_j is above its median.
        labels: (n,) true clusters.
    """

    sources: tuple[Source, ...]
    similar: Relations | None
    related: Relations | None
    labels: Index


def make_large(
    n_codes: int,
    n_clusters: int,
    dim: int,
    columns: tuple[int, ...],
    n_pairs: int = 0,
    seed: int = 0,
) -> Large:
    """n_pairs of each kind; codes with concentration 2 d around the center of their cluster."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_clusters, size=n_codes)
    centers = rng.standard_normal((n_clusters, dim))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    embedding = vmf.sample(centers[labels], 2.0 * dim, rng)
    sources = []
    for s, width in enumerate(columns):
        codes = np.sort(rng.permutation(n_codes)[: n_codes if s == 0 else (4 * n_codes) // 5])
        matrix = embedding[codes] @ rng.standard_normal((width, dim)).T
        matrix += 0.5 * rng.standard_normal(matrix.shape)
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        sources.append(Source(f"source {s + 1}", codes, matrix))
    similar = related = None
    if n_pairs:
        similar = _similar(labels, n_pairs, rng)
        ends = _random_pairs(n_codes, n_pairs, rng)
        turn = rng.standard_normal((dim, dim))
        turned = embedding @ (turn + turn.T)
        score = np.concatenate(
            [np.sum(turned[part[:, 0]] * embedding[part[:, 1]], axis=1) for part in np.array_split(ends, 50)]
        )
        related = Relations(ends, score > np.median(score))
    return Large(tuple(sources), similar, related, labels)


def _similar(labels: Index, n_pairs: int, rng: np.random.Generator) -> Relations:
    order = np.argsort(labels, kind="stable")
    gaps = np.arange(1, 1 + max(1, n_pairs // (2 * len(labels)) + 1))
    near = np.concatenate([np.stack([order[:-gap], order[gap:]], axis=1) for gap in gaps])
    near = near[labels[near[:, 0]] == labels[near[:, 1]]][: n_pairs // 2]
    other: Array = _random_pairs(len(labels), n_pairs - len(near), rng)
    yes = np.r_[np.ones(len(near), dtype=bool), labels[other[:, 0]] == labels[other[:, 1]]]
    return Relations(np.concatenate([near, other]), yes)


def _random_pairs(n_codes: int, count: int, rng: np.random.Generator) -> Index:
    first = rng.integers(n_codes, size=count)
    return np.stack([first, (first + 1 + rng.integers(n_codes - 1, size=count)) % n_codes], axis=1)
