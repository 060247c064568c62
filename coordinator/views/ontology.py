"""The ontology view at the coordinator: KEEP on pooled counts, or the ontology alone, as one more source of SMILE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp

from coordinator.model import Source
from coordinator.union import UnionVocabulary
from protocol.errors import FitError
from protocol.keep import NAME, keep_vectors, make_is_a
from protocol.sections import Ontology


def ontology_source(
    union: UnionVocabulary,
    links: Sequence[tuple[str, str]],
    settings: Ontology,
    *,
    pooled: tuple[Sequence[str], sp.csr_array] | None = None,
    seed: int = 0,
) -> Source:
    """One source for the rows of the fit that the ontology knows.

    A row is known by the standard code that stands for it, or else by one of its codes, the first by name.

    Args:
        union: the codes of the fit.
        links: (code, parent) of the ontology (`read_ontology`).
        settings: the study's.
        pooled: codes and the upper triangle of their pooled counts (`pooled_counts`); without them the view is of the
            ontology alone.
        seed: of the eigensolver's start.

    Raises:
        FitError: the ontology knows no code of the fit.
        DataError: the ontology is no hierarchy.
    """
    known = {code for code, _ in links} | {parent for _, parent in links} - {""}
    row_of = _rows(union, known)
    if not row_of:
        raise FitError(
            "The ontology knows no code of the fit",
            why=f"the first code of the fit is {union.codes[0]}",
            do="Name the codes as the ontology does, or leave the ontology out of the study",
        )
    graph = make_is_a(links, wanted=row_of.keys(), depth=settings.depth)
    codes, counts = sorted(row_of), None
    if pooled is not None:
        counts = _arranged(codes, *pooled)
    positions, matrix = keep_vectors(
        graph, codes, counts, dim=settings.dim, penalty=settings.penalty, seed=seed
    )
    reached = matrix.any(axis=1)
    rows = np.array([row_of[codes[p]] for p in positions], dtype=np.intp)
    return Source(NAME, rows[reached], matrix[reached].astype(np.float64))


def pooled_counts(
    codes: Sequence[str], arrays: Mapping[str, np.ndarray]
) -> tuple[Sequence[str], sp.csr_array]:
    """The upper triangle of the counts of a finished sum of cells (`coordinator.sums.outcome.read_outcome`).

    Args:
        codes: its vocabulary.
        arrays: `row`, `column` and `values`; negative values, which noise can make, count as zero.
    """
    values = np.maximum(np.asarray(arrays["values"], np.float64), 0.0)
    low, high = np.minimum(arrays["row"], arrays["column"]), np.maximum(arrays["row"], arrays["column"])
    counts = sp.csr_array((values, (low, high)), shape=(len(codes), len(codes)))
    counts.eliminate_zeros()
    return codes, counts


def _rows(union: UnionVocabulary, known: set[str]) -> dict[str, int]:
    """Code of the ontology -> row of the fit, one for each row that has any."""
    found = {row: code for row, code in union.standard.items() if code in known}
    for code, row in zip(union.codes, union.row.tolist(), strict=True):
        if code in known:
            found.setdefault(row, code)
    return {code: row for row, code in found.items()}


def _arranged(codes: Sequence[str], pooled: Sequence[str], counts: sp.csr_array) -> sp.csr_array:
    """The counts in the order of `codes`; codes that were not pooled have none."""
    place = {code: i for i, code in enumerate(codes)}
    at = np.array([place.get(code, -1) for code in pooled], dtype=np.int64)
    cells = counts.tocoo()
    row, column = (at[axis] for axis in cells.coords)
    kept = (row >= 0) & (column >= 0)
    low, high = np.minimum(row, column)[kept], np.maximum(row, column)[kept]
    return sp.csr_array((cells.data[kept], (low, high)), shape=(len(codes), len(codes)))
