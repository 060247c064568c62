"""The graph of a fit: regressions on the codes' vectors, and what pooled tests say of the codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.config import Home
from coordinator.edition import Edition
from coordinator.graph.edges import Edges, Significance, merge_edges
from coordinator.graph.halves import site_halves
from coordinator.graph.structure import read_structure, unit_rows
from coordinator.graph.tested import read_tests
from coordinator.mapping import MappingSet
from coordinator.model.selection import select_neighbours


@dataclass(frozen=True, eq=False)
class Related:
    """Related codes of a version, before an audience's are chosen.

    Attributes:
        edges: of all its codes.
        structure: (n, k) the codes' places in the smoothed relations, in the order of the mappings; None without any.
    """

    edges: Edges
    structure: NDArray[np.float64] | None


def relate(home: Home, edition: Edition, progress: Callable[[float], None]) -> Related:
    """The graph of a version, with the pooled tests that the coordinator names, if any.

    Raises:
        UsageError: a table of tests cannot be read, or does not belong to this study.
        ProtocolError: it is of another form.
    """
    harmonized, table = edition.harmonized, home.config.graph_tests
    codes = [row.code for row in harmonized.mappings.rows]
    path = home.folder / table
    edges = build_edges(
        harmonized.mappings,
        halves=site_halves(edition.releases, harmonized.union.codes, harmonized.union.row),
        tested=read_tests(path, codes, home.study.digest) if table else None,
        q_most=home.study.graph.fdr,
        progress=progress,
    )
    # Without floors a pair of which few are expected is not tested, and looks unrelated, while the release's vectors know it.
    floored = home.study.privacy.min_pair_patients > 1
    return Related(edges, read_structure(path, codes) if table and floored else None)


def build_edges(
    mappings: MappingSet,
    *,
    halves: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    tested: Significance | None = None,
    q_most: float = 0.05,
    progress: Callable[[float], None] = lambda _share: None,
) -> Edges:
    """Related pairs of a fit's codes.

    Each code is regressed on those of other clusters: codes of one cluster are synonyms, whose vectors would explain each other
    and leave nothing for what else is related.

    Args:
        mappings: every code of the fit, with vectors; those that no audience may see are left out afterwards, by
            `Edges.among`, so that all audiences see one graph.
        tested: p- and q-values, rows being those of the mappings; none if None.
        q_most: the largest q of a pair that is taken in although no regression selected it.
        progress: told the share done.
    """
    points = unit_rows(mappings.embedding)
    family = np.array([row.cluster for row in mappings.rows], dtype=np.int64)
    done, n = 0, len(mappings.rows)

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done / n)

    found = select_neighbours(points, halves=halves, family=family, progress=count)
    codes = [row.code for row in mappings.rows]
    return merge_edges(codes, points, found.weights, family=family, tested=tested, q_most=q_most)
