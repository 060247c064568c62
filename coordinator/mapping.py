"""Pure: fit -> mapping rows: target, probability, alternatives, and evidence by site.

Candidates of a code are ranked by all that speaks for them (`rank_linked`), or by their vectors alone (`rank_nearest`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.special import logsumexp

from coordinator.linking import NEVER, Linked
from coordinator.model import SmileFit
from coordinator.union import UnionVocabulary

N_ALTERNATIVES = 5
_MOST_ODDS = 50.0
_OWN = 3.0  # above any cosine with a known pair's weight
_BLOCK = 2_000  # rows whose cosines are formed at once


@dataclass(frozen=True)
class Evidence:
    """How strongly one site's codes speak for a code's cluster.

    Attributes:
        site: the site's name.
        members: the cluster's other codes at this site.
        cosine: cosine of the code's embedding with the mean embedding of those codes.
    """

    site: str
    members: int
    cosine: float


@dataclass(frozen=True)
class Mapping:
    """Where one code belongs.

    Attributes:
        code: the CURIE.
        sites: the sites that released it.
        cluster: its synonym cluster.
        posterior: of that cluster, the model's own certainty.
        probability: that the standard code is the right one, as `calibration` learnt it from hidden anchors; 1 for
            a code whose standard code was given, 0 without one.
        anchored: its standard code was given by a site, not found by the fit.
        given: anchored, or a standard code itself.
        standard_code: the first candidate; "" if there is none.
        strength: what `probability` is learnt from, see `Ranking.strength`.
        similarity: cosine with that code's embedding; 0 without a standard code.
        alternatives: the next candidates, best first.
        evidence: for each other site with codes in the cluster.
    """

    code: str
    sites: tuple[str, ...]
    cluster: int
    posterior: float
    probability: float
    anchored: bool
    given: bool
    standard_code: str
    strength: float
    similarity: float
    alternatives: tuple[str, ...]
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class MappingSet:
    """All released codes, sorted, with their rows of the fit."""

    rows: tuple[Mapping, ...]
    embedding: npt.NDArray[np.float32]


class Ranking(NamedTuple):
    """The candidates of each row of the fit.

    Attributes:
        rows: int (n_rows, 1 + N_ALTERNATIVES) rows with a standard code, the first best; -1 where there are no more.
        strength: (n_rows,) how much more speaks for the first candidate than for the others: log odds of it against all
            others (`rank_linked`), or its cosine and known weight (`rank_nearest`).
    """

    rows: npt.NDArray[np.int64]
    strength: npt.NDArray[np.float64]


def rank_linked(
    linked: Linked,
    embedding: npt.NDArray[np.float64],
    standard: npt.NDArray[np.intp],
    categories: npt.NDArray[np.intp],
) -> Ranking:
    """Candidates by the fused score; rows with a standard code as in `rank_nearest`.

    strength_i = log p - log(1 - p), p the softmax of row i's scores at its greatest.

    Args:
        linked: of the sources.
        embedding: (n_rows, d) its latent means as unit rows.
        standard: increasing rows with a standard code.
        categories: (n_rows,) category of each row.
    """
    clues, score = linked.clues, linked.score
    rows, strength = rank_nearest(embedding, standard, categories)
    rows[clues.local] = -1
    n, m = score.shape
    if not n or not m:
        return Ranking(rows, strength)
    k = min(1 + N_ALTERNATIVES, m)
    order = _first(score, k)
    best = np.take_along_axis(score, order, axis=1)
    rows[clues.local, :k] = np.where(best > NEVER / 2, clues.standard[order], -1)
    rest = score.copy()
    rest[np.arange(n), order[:, 0]] = -np.inf
    with np.errstate(divide="ignore"):
        others = logsumexp(rest, axis=1) if m > 1 else np.full(n, -np.inf)
    strength[clues.local] = np.clip(best[:, 0] - others, -_MOST_ODDS, _MOST_ODDS)
    return Ranking(rows, strength)


def rank_nearest(
    embedding: npt.NDArray[np.float64],
    standard: npt.NDArray[np.intp],
    categories: npt.NDArray[np.intp],
    known: sp.csr_array | None = None,
) -> Ranking:
    """Candidates by cosine among the standard codes of a row's category; a row with a standard code is its own.

    The weight of a known pair is added to its cosine, so that a sure one comes first.

    Args:
        embedding: (n_rows, d) unit rows.
        standard: increasing rows with a standard code.
        categories: (n_rows,) category of each row.
        known: (n_rows, n_rows) weights of known pairs, below zero for pairs known to differ; None without any.
    """
    n_rows = len(embedding)
    rows = np.full((n_rows, 1 + N_ALTERNATIVES), -1, dtype=np.int64)
    strength = np.zeros(n_rows)
    own = np.zeros(n_rows, dtype=bool)
    own[standard] = True
    for category in np.unique(categories):
        targets = standard[categories[standard] == category]
        members = np.flatnonzero(categories == category)
        if not len(targets):
            continue
        for low in range(0, len(members), _BLOCK):
            some = members[low : low + _BLOCK]
            cosine = embedding[some] @ embedding[targets].T
            if known is not None:
                cosine += known[some][:, targets].toarray()
            # A standard code comes first among its own candidates, however near another may be.
            cosine[some[:, None] == targets[None]] = _OWN
            order = _first(cosine, min(1 + N_ALTERNATIVES, len(targets)))
            rows[some, : order.shape[1]] = targets[order]
            best = np.take_along_axis(cosine, order[:, :1], axis=1)[:, 0]
            strength[some] = np.where(best == _OWN, 1.0, best)
    return Ranking(rows, strength)


def make_mappings(union: UnionVocabulary, fit: SmileFit, ranking: Ranking) -> MappingSet:
    """Mapping rows of every released code; a standard code, and a code anchored to one, keeps its own."""
    evidence = _Evidence(union, fit)
    rows = []
    for i, code in enumerate(union.codes):
        row = int(union.row[i])
        target = int(ranking.rows[row, 0])
        name = union.standard.get(target, "")
        near = [union.standard[int(j)] for j in ranking.rows[row, 1:] if j >= 0]
        rows.append(
            Mapping(
                code=code,
                sites=tuple(s for s, held in zip(union.sites, union.holds[i], strict=True) if held),
                cluster=int(fit.labels[row]),
                posterior=float(fit.posterior[row]),
                probability=1.0 if row in union.standard else 0.0,
                anchored=bool(union.anchored[i]) and row in union.standard,
                given=row in union.standard,
                standard_code=name,
                strength=float(ranking.strength[row]),
                similarity=float(fit.embedding[row] @ fit.embedding[target]) if name else 0.0,
                alternatives=tuple(c for c in near if c != code),
                evidence=evidence.of(i),
            )
        )
    return MappingSet(tuple(rows), fit.embedding[union.row].astype(np.float32))


def _first(score: npt.NDArray[np.floating], k: int) -> npt.NDArray[np.intp]:
    """(n, k) columns of each row's greatest values, greatest first; of equal ones the earlier column."""
    return np.asarray(np.argsort(-score, axis=1, kind="stable")[:, :k])


def with_probability(mappings: MappingSet, curve: Callable[[float], float]) -> MappingSet:
    """The same mappings, those that the fit found with the probability that `curve` gives their strength."""
    rows = tuple(
        row if row.given or not row.standard_code else replace(row, probability=curve(row.strength))
        for row in mappings.rows
    )
    return MappingSet(rows, mappings.embedding)


class _Evidence:
    """Sums of embeddings by cluster and site, from which each code's own part is taken off."""

    def __init__(self, union: UnionVocabulary, fit: SmileFit) -> None:
        self.union, self.label = union, fit.labels[union.row]
        self.vector = fit.embedding[union.row]
        shape = (len(fit.centers), len(union.sites))
        self.sums = np.zeros((*shape, self.vector.shape[1]))
        self.counts = np.zeros(shape, dtype=np.int64)
        for s in range(shape[1]):
            held = union.holds[:, s]
            np.add.at(self.sums[:, s], self.label[held], self.vector[held])
            np.add.at(self.counts[:, s], self.label[held], 1)

    def of(self, i: int) -> tuple[Evidence, ...]:
        found = []
        for s, site in enumerate(self.union.sites):
            own = int(self.union.holds[i, s])
            members = int(self.counts[self.label[i], s]) - own
            if members == 0:
                continue
            mean = self.sums[self.label[i], s] - own * self.vector[i]
            length = float(np.linalg.norm(mean))
            cosine = float(self.vector[i] @ mean) / length if length > 0 else 0.0
            found.append(Evidence(site, members, cosine))
        return tuple(found)
