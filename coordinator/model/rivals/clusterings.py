"""Ordinary clusterings of given points, by the names that tables show."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.model import clusters
from coordinator.model.factor import Array, Index

Clustering = Callable[[Array, int, int], Index]


def k_means(points: Array, n_clusters: int, seed: int = 0) -> Index:
    """Labels (n,) of (n, d) unit rows by k-means."""
    return clusters.group(points, min(n_clusters, len(points)), "k-means", seed)


def average_linkage(points: Array, n_clusters: int, seed: int = 0) -> Index:
    """Labels (n,) of (n, d) unit rows by agglomeration with average cosine distance.

    Above 8,000 rows spherical k-means takes its place, with the seed: it keeps all pairwise distances.
    """
    return clusters.group(points, min(n_clusters, len(points)), "average", seed)


def spherical_k_means(points: Array, n_clusters: int, seed: int = 0) -> Index:
    """Labels (n,) of (n, d) unit rows by k-means with unit centres (Dhillon and Modha 2001)."""
    return clusters.group(points, min(n_clusters, len(points)), "spherical", seed)


CLUSTERINGS: dict[str, Clustering] = {
    "k-means": k_means,
    "average linkage": average_linkage,
    "spherical k-means": spherical_k_means,
}
