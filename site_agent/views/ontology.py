"""The ontology view: KEEP on what passed the floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from protocol.errors import DataError
from protocol.keep import NAME, keep_vectors, make_is_a
from protocol.release import SourceView
from protocol.study import Ontology
from site_agent.gate import KeptCounts


def ontology_view(
    kept: KeptCounts,
    codes: Sequence[str],
    links: Sequence[tuple[str, str]],
    settings: Ontology,
    *,
    dim: int,
    anchors: Mapping[str, str] = MappingProxyType({}),
    seed: int = 0,
) -> SourceView:
    """KEEP embedding of the kept codes that the ontology knows.

    A code that the ontology does not know stands where its anchor does; without one it is not in the view. Margins and
    cells are those of the kept counts alone.

    Args:
        kept: counts after suppression.
        codes: the site's whole code list, CURIEs.
        links: (code, parent) of the ontology (`read_ontology`).
        settings: the study's.
        dim: the most columns that may leave.
        anchors: local CURIE -> standard CURIE.
        seed: of the eigensolver's start.

    Returns:
        increasing rows of the kept codes and a float32 (m, <= dim) matrix of unit rows.

    Raises:
        DataError: the ontology knows none of the kept codes, or is no hierarchy.
    """
    known = {code for code, _ in links} | {parent for _, parent in links}
    named = [codes[r] if codes[r] in known else anchors.get(codes[r], "") for r in kept.rows]
    wanted = {code for code in named if code and code in known}
    if not wanted:
        raise DataError(
            "The ontology knows none of the codes that passed the floors",
            why=f"{len(named)} codes passed, the first is {codes[kept.rows[0]]}"
            if named
            else "no code passed",
            do="Name the codes as the ontology does, give anchors, or leave the ontology out of the study",
        )
    graph = make_is_a(links, wanted=wanted, depth=settings.depth)
    rows, matrix = keep_vectors(
        graph, named, kept.events, dim=min(dim, settings.dim), penalty=settings.penalty, seed=seed
    )
    reached = matrix.any(axis=1)
    return SourceView(NAME, np.asarray(rows[reached], np.int32), matrix[reached])
