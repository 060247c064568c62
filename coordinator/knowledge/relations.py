"""Knowledge in the form that the model takes: pairs of rows, and a prior."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from numpy.typing import NDArray

from coordinator.knowledge.assertions import SIMILAR
from coordinator.knowledge.build import Build
from coordinator.knowledge.systems import canonical
from coordinator.model import Relations
from coordinator.model.factor import Index
from coordinator.model.prior import Membership, anchored_prior, propagate, spectral_prior
from coordinator.union import UnionVocabulary
from protocol.errors import FitError

PriorMethod = Literal["anchored", "propagate", "spectral"]
PRIOR_METHODS: Final[tuple[PriorMethod, ...]] = ("anchored", "propagate", "spectral")


@dataclass(frozen=True, eq=False)
class RowRelations:
    """What knowledge says of the rows of a fit.

    Attributes:
        similar: pairs of rows whose codes are synonyms, or known not to be.
        related: pairs whose codes are related, or known not to be; kinds are not told apart, as in the model.
        known: (n_rows, n_rows) symmetric weights of the similar pairs, above zero for synonyms, below for known not to be.
        contradictory: pairs of rows that are both similar and not, after codes were joined into rows; left out.
    """

    similar: Relations
    related: Relations
    known: sp.csr_array
    contradictory: int

    @property
    def must_link(self) -> sp.csr_array:
        """(n_rows, n_rows) symmetric weights in (0, 1] of the positive similar pairs."""
        return sp.csr_array(self.known.maximum(0))


def relations_of(build: Build, union: UnionVocabulary, *, least_weight: float = 0.0) -> RowRelations:
    """The pairs between a union vocabulary's rows.

    A pair of codes is one of their rows. Codes that a row joins bring all their pairs, a pair inside one row says
    nothing new, and two spellings of an ICD code are one code.

    Args:
        build: the knowledge.
        union: which row each code has; a standard code that no site released counts as its row's.
        least_weight: pairs of less weight are left out; 0.5 leaves those that come from hierarchies alone.
    """
    similar = pc.equal(build.pairs["kind"], SIMILAR).to_numpy().astype(bool)
    label = build.pairs["label"].to_numpy().astype(bool)
    weight = build.pairs["weight"].to_numpy()
    pair, low, high = row_pairs(build, union)

    def between(chosen: NDArray[np.bool_]) -> sp.csr_array:
        """(n_rows, n_rows) upper triangle: the greatest weight of the chosen pairs between two rows."""
        kept = (chosen & (weight >= least_weight))[pair]
        return _greatest(low[kept], high[kept], weight[pair[kept]], union.n_rows)

    positive, negative = between(similar & label), between(similar & ~label)
    near, not_near, n_both = _without_common(positive, negative)
    linked, not_linked, n_related = _without_common(between(~similar & label), between(~similar & ~label))
    return RowRelations(
        similar=_relations(near, not_near),
        related=_relations(linked, not_linked),
        known=sp.csr_array(near + near.T - not_near - not_near.T),
        contradictory=n_both + n_related,
    )


def standard_anchors(union: UnionVocabulary, categories: Index, of_cluster: Index) -> Index:
    """(n_rows,) a cluster for each row that stands for a standard code, -1 for other rows.

    One cluster a standard code is what a map means by synonyms. Where a category has fewer clusters than standard
    codes, these must share clusters in a way that only the data tell: its rows are no anchors then.

    Args:
        union: which rows have a standard code.
        categories: (n_rows,) category of each row.
        of_cluster: (K,) category of each cluster.
    """
    anchors = np.full(union.n_rows, -1, dtype=np.intp)
    standard = np.array(sorted(union.standard), dtype=np.intp)
    for category in np.unique(categories):
        rows = standard[categories[standard] == category]
        clusters = np.flatnonzero(of_cluster == category)
        if len(rows) <= len(clusters):
            anchors[rows] = clusters[: len(rows)]
    return anchors


def prior_of(
    relations: RowRelations,
    categories: Index,
    of_cluster: Index,
    *,
    anchors: Index | None = None,
    method: PriorMethod = "propagate",
    candidates: sp.csr_array | None = None,
    seed: int = 0,
) -> sp.csr_array:
    """The prior Pi of a fit: anchors one-hot, other rows by the must-link graph within their category.

    Args:
        relations: of the same rows.
        categories: (n_rows,) category of each row.
        of_cluster: (K,) category of each cluster.
        anchors: (n_rows,) cluster of each anchor and -1 elsewhere, as from `standard_anchors`; none if None.
        method: label propagation, spectral embedding, or the anchors alone.
        candidates: (n_rows, K), the clusters that a row may join; see `coordinator.model.prior`.
        seed: of the spectral embedding.

    Returns:
        (n_rows, K), rows sum to 1.

    Raises:
        FitError: shapes that do not go together, or no such method.
    """
    given = np.full(len(categories), -1, dtype=np.intp) if anchors is None else anchors
    known = Membership(given, categories, of_cluster)
    if method == "anchored":
        return anchored_prior(known, candidates=candidates)
    if method == "propagate":
        return propagate(known, relations.must_link, candidates=candidates)
    if method == "spectral":
        return spectral_prior(known, relations.must_link, candidates=candidates, seed=seed)
    raise FitError(f"There is no prior {method!r}", do=f"Take one of {', '.join(PRIOR_METHODS)}")


def row_pairs(build: Build, union: UnionVocabulary) -> tuple[Index, Index, Index]:
    """Which pair of the build joins which two different rows, the smaller row first."""
    rows_of: dict[str, set[int]] = defaultdict(set)
    for code, row in [
        *zip(union.codes, union.row.tolist(), strict=True),
        *((c, r) for r, c in union.standard.items()),
    ]:
        rows_of[canonical(code)].add(row)
    names = pa.array(list(rows_of), pa.string())
    count = np.array([len(rows) for rows in rows_of.values()], dtype=np.intp)
    start = np.concatenate([[0], np.cumsum(count)])
    flat = np.array([row for rows in rows_of.values() for row in sorted(rows)], dtype=np.intp)
    ends = [pc.index_in(build.pairs[name].combine_chunks(), names) for name in ("code_1", "code_2")]
    held = np.flatnonzero(pc.and_(*(pc.is_valid(e) for e in ends)).to_numpy(zero_copy_only=False))
    one, other = (pc.fill_null(e, 0).to_numpy(zero_copy_only=False).astype(np.intp)[held] for e in ends)
    # Every row of the one code with every row of the other.
    times = count[one] * count[other]
    at = np.repeat(np.arange(len(held)), times)
    within = np.arange(int(times.sum())) - np.repeat(np.cumsum(times) - times, times)
    first = flat[start[one[at]] + within // count[other[at]]]
    last = flat[start[other[at]] + within % count[other[at]]]
    apart = first != last
    low, high = np.minimum(first, last)[apart], np.maximum(first, last)[apart]
    return held[at[apart]].astype(np.intp), low, high


def _greatest(low: Index, high: Index, weight: NDArray[np.float64], n: int) -> sp.csr_array:
    key, place = np.unique(low * n + high, return_inverse=True)
    most = np.zeros(len(key))
    np.maximum.at(most, place, weight)
    return sp.csr_array((most, (key // n, key % n)), shape=(n, n))


def _without_common(one: sp.csr_array, other: sp.csr_array) -> tuple[sp.csr_array, sp.csr_array, int]:
    """Both matrices without the places where both have an entry, and how many these are."""
    common = one.sign().multiply(other.sign())
    first, second = (sp.csr_array(m - m.multiply(common)) for m in (one, other))
    for matrix in (first, second):
        matrix.eliminate_zeros()
    return first, second, int(common.nnz)


def _relations(positive: sp.csr_array, negative: sp.csr_array) -> Relations:
    pairs = [np.stack(m.tocoo().coords, axis=1) for m in (positive, negative)]
    return Relations(np.concatenate(pairs), np.repeat([True, False], [len(p) for p in pairs]))
