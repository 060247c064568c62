"""A rival's whole answer: an embedding, and a clustering of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Index, Source
from coordinator.model.rivals.clusterings import CLUSTERINGS
from coordinator.model.rivals.embeddings import EMBEDDINGS


@dataclass(frozen=True, eq=False)
class RivalFit:
    """A rival's answer: (n, d) unit rows and (n,) cluster labels."""

    embedding: Array
    labels: Index


def fit_rival(
    sources: Sequence[Source],
    n_codes: int,
    n_clusters: int,
    dim: int,
    *,
    embedding: str = "SVD",
    clustering: str = "k-means",
    seed: int = 0,
) -> RivalFit:
    """One method of `EMBEDDINGS` and one of `CLUSTERINGS`.

    Raises:
        FitError: as `fit_smile`.
        KeyError: a name that is not listed.
    """
    points = EMBEDDINGS[embedding](sources, n_codes, dim)
    return RivalFit(points, CLUSTERINGS[clustering](points, n_clusters, seed))


def oracle(truth_embedding: Array, n_clusters: int, method: str = "k-means", seed: int = 0) -> RivalFit:
    """What a clustering makes of the true embedding: no fit of U can help it further.

    Args:
        truth_embedding: (n, d) true u_i.
        n_clusters: K.
        method: a name of `CLUSTERINGS`.
        seed: of the clustering.

    Raises:
        KeyError: a name that is not listed.
    """
    points = unit_rows(truth_embedding)
    return RivalFit(points, CLUSTERINGS[method](points, n_clusters, seed))


def svd_kmeans(sources: Sequence[Source], n_codes: int, n_clusters: int, dim: int, seed: int = 0) -> RivalFit:
    """SVD + k-means."""
    return fit_rival(sources, n_codes, n_clusters, dim, seed=seed)


def svd_linkage(sources: Sequence[Source], n_codes: int, n_clusters: int, dim: int) -> RivalFit:
    """SVD + average-linkage clustering by cosine."""
    return fit_rival(sources, n_codes, n_clusters, dim, clustering="average linkage")
