"""The ontology view: KEEP on what passed the floors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from protocol.keep import NAME, keep_vectors, make_is_a
from protocol.release import SourceView
from protocol.sections import Ontology
from site_agent.gate import KeptCounts


def ontology_view(
    kept: KeptCounts,
    codes: Sequence[str],
    links: Sequence[tuple[str, str]],
    settings: Ontology,
    *,
    columns: Callable[[int], int],
    anchors: Mapping[str, str] = MappingProxyType({}),
    seed: int = 0,
) -> SourceView | None:
    """KEEP embedding of the kept codes that the ontology knows.

    A code that the ontology does not know stands where its anchor does; without one it is not in the view. Margins and
    cells are those of the kept counts alone.

    Args:
        kept: counts after suppression.
        codes: the site's whole code list, CURIEs.
        links: (code, parent) of the ontology (`read_ontology`).
        settings: the study's.
        columns: the most columns that may leave of a view of so many codes (`allowed_columns`).
        anchors: local CURIE -> standard CURIE.
        seed: of the eigensolver's start.

    Returns:
        increasing rows of the kept codes and a float32 (m, <= columns(m)) matrix of unit rows; None where so few codes
        have a place in the ontology that fewer than two columns may leave.

    Raises:
        DataError: the ontology is no hierarchy.
    """
    known = {code for code, _ in links} | {parent for _, parent in links}
    named = [codes[r] if codes[r] in known else anchors.get(codes[r], "") for r in kept.rows]
    rows = np.array([i for i, code in enumerate(named) if code and code in known], dtype=np.int64)
    while (dim := min(columns(len(rows)), settings.dim)) >= 2:
        graph = make_is_a(links, wanted={named[i] for i in rows}, depth=settings.depth)
        place, matrix = keep_vectors(
            graph,
            [named[i] for i in rows],
            kept.events[rows][:, rows],
            dim=dim,
            penalty=settings.penalty,
            seed=seed,
        )
        reached = matrix.any(axis=1)
        rows = rows[place[reached]]
        # Codes of which nothing can be said leave the view, and then fewer columns may leave.
        if matrix.shape[1] <= columns(len(rows)):
            return SourceView(NAME, np.asarray(rows, np.int32), matrix[reached])
    return None
