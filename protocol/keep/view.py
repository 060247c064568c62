"""The ontology view of some codes: walks on the is-a graph first, then GloVe of their counts, near that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from protocol.keep.glove import fit_glove
from protocol.keep.ontology import Index, IsA
from protocol.keep.walks import walk_embedding

NAME = "ontology"
DIM = 100
PENALTY = 30.0
SWEEPS = 5


def keep_vectors(
    graph: IsA,
    codes: Sequence[str],
    counts: sp.csr_array | None,
    *,
    dim: int = DIM,
    penalty: float = PENALTY,
    sweeps: int = SWEEPS,
    seed: int = 0,
) -> tuple[Index, NDArray[np.float32]]:
    """Vectors of those codes that the ontology knows.

    Args:
        graph: the ontology; one made of these codes and their ancestors (`make_is_a(wanted=...)`) takes least time.
        codes: m codes.
        counts: upper triangle (m, m) of their co-occurrence; None for the ontology alone.
        dim: columns that are wanted.
        penalty: of `fit_glove`, per code.
        sweeps: of `fit_glove`, at most.
        seed: of the eigensolver's start.

    Returns:
        positions in `codes`, (k,) increasing, and float32 (k, <= dim) with unit rows. A row is zero if the walks' leading
        eigenvectors and the counts say nothing of the code.

    Law: the same input gives the same bits on the same machine.
    Source: KEEP (Elhussein et al. 2025).
    """
    positions, rows = graph.places(codes)
    vectors = walk_embedding(graph, dim, seed=seed)[rows].astype(np.float64)
    if counts is not None and len(positions):
        own = sp.csr_array(counts[positions][:, positions])
        vectors = fit_glove(own, vectors, penalty=penalty, sweeps=sweeps).vectors
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return positions, np.asarray(vectors / np.where(length > 0, length, 1.0), np.float32)
