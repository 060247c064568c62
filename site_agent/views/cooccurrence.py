"""The co-occurrence view: PPMI of what passed the floors, embedded by its leading eigenpairs."""

from __future__ import annotations

import numpy as np

from protocol.release import COOCCURRENCE, SourceView
from protocol.statistics import embed, nonempty, ppmi
from site_agent.gate import KeptCounts

NAME = COOCCURRENCE


def cooccurrence_view(kept: KeptCounts, *, dim: int, shift: float, seed: int) -> SourceView:
    """PMI-SVD embedding of the kept codes.

    V = U sqrt(L) over the positive eigenpairs of PPMI, rows to unit norm; margins
    come from the suppressed counts, so that the embedding tells no more of
    suppressed cells than the released margins do.

    Returns:
        rows 0..n-1 and a float32 (n, <= dim) matrix of unit rows.
    """
    weights = ppmi(kept.events, shift=shift)
    if not nonempty(weights).all():
        raise ValueError("a kept code has no positive PPMI: the gate drops such codes first")
    matrix = embed(weights, dim, seed=seed)
    return SourceView(NAME, np.arange(len(kept.rows), dtype=np.int32), matrix)
