"""The graph of a fit: regressions on the codes' vectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from coordinator.graph.edges import Edges, Significance, merge_edges
from coordinator.mapping import MappingSet
from coordinator.model.selection import select_neighbours


def build_edges(
    mappings: MappingSet,
    *,
    tested: Significance | None = None,
    q_most: float = 0.05,
    progress: Callable[[float], None] = lambda _share: None,
) -> Edges:
    """Related pairs of a fit's codes.

    Each code is regressed on those of other clusters: codes of one cluster are synonyms, whose vectors would explain each other
    and leave nothing for what else is related. lambda is chosen by the criterion, as a fit has no halves.

    Args:
        mappings: every code of the fit, with vectors; those that no audience may see are left out afterwards, by
            `Edges.among`, so that all audiences see one graph.
        tested: p- and q-values, rows being those of the mappings; none if None.
        q_most: the largest q of a pair that is taken in although no regression selected it.
        progress: told the share done.
    """
    points = np.asarray(mappings.embedding, dtype=np.float64)
    norm = np.linalg.norm(points, axis=1, keepdims=True)
    points = points / np.where(norm == 0.0, 1.0, norm)
    family = np.array([row.cluster for row in mappings.rows], dtype=np.int64)
    done, n = 0, len(mappings.rows)

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done / n)

    found = select_neighbours(points, family=family, progress=count)
    codes = [row.code for row in mappings.rows]
    return merge_edges(codes, points, found.weights, family=family, tested=tested, q_most=q_most)
