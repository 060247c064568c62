"""What a user would take instead of SMILE: SVD of the aligned sources, then ordinary clustering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.model import alignment, clusters
from coordinator.model.factor import Array, Index, Source, compress
from protocol.errors import FitError


@dataclass(frozen=True, eq=False)
class RivalFit:
    """A rival's answer: (n, d) unit rows and (n,) cluster labels."""

    embedding: Array
    labels: Index


def svd_embedding(sources: Sequence[Source], n_codes: int, dim: int) -> Array:
    """Unit rows of the truncated SVD of the sources side by side, missing rows filled by Procrustes.

    The rival knows which codes are shared, as SMILE does, and uses the same alignment.

    Args:
        sources: as for `fit_smile`.
        n_codes: n.
        dim: d.

    Returns:
        (n, d).

    Raises:
        FitError: as `fit_smile`.
    """
    if not sources:
        raise FitError("there is no source to fit", do="open at least one site's release first")
    views = [compress(source) for source in sources]
    alignment.check_connected(views, n_codes)
    return alignment.unit_rows(alignment.filled_svd(views, alignment.align(views, n_codes, dim), dim))


def svd_kmeans(sources: Sequence[Source], n_codes: int, n_clusters: int, dim: int, seed: int = 0) -> RivalFit:
    """SVD + k-means."""
    points = svd_embedding(sources, n_codes, dim)
    return RivalFit(points, clusters.group(points, min(n_clusters, n_codes), "k-means", seed))


def svd_linkage(sources: Sequence[Source], n_codes: int, n_clusters: int, dim: int) -> RivalFit:
    """SVD + average-linkage clustering by cosine."""
    points = svd_embedding(sources, n_codes, dim)
    return RivalFit(points, clusters.group(points, min(n_clusters, n_codes), "average", 0))
