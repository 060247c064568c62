"""What a user would take instead of SMILE: another embedding of the aligned sources, then ordinary clustering."""

from coordinator.model.rivals.clusterings import CLUSTERINGS
from coordinator.model.rivals.embeddings import (
    EMBEDDINGS,
    ajive_embedding,
    bonmi_embedding,
    procrustes_embedding,
    slide_embedding,
    svd_embedding,
)
from coordinator.model.rivals.fits import RivalFit, fit_rival, oracle, svd_kmeans, svd_linkage
from coordinator.model.rivals.imputation import imputed_blocks

__all__ = [
    "CLUSTERINGS",
    "EMBEDDINGS",
    "RivalFit",
    "ajive_embedding",
    "bonmi_embedding",
    "fit_rival",
    "imputed_blocks",
    "oracle",
    "procrustes_embedding",
    "slide_embedding",
    "svd_embedding",
    "svd_kmeans",
    "svd_linkage",
]
