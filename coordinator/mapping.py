"""Pure: fit -> mapping rows: target, probability, alternatives, and evidence by site."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

# Types alone: what reads a published map should not wait for the model's libraries.
if TYPE_CHECKING:
    from coordinator.candidates import Ranking
    from coordinator.model import SmileFit
    from coordinator.union import UnionVocabulary


N_ALTERNATIVES = 5


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
class MappedCode:
    """Where one code belongs, as it is published.

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
    similarity: float
    alternatives: tuple[str, ...]
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Mapping(MappedCode):
    """Where the fit found that one code belongs.

    Attributes:
        strength: what `probability` is learnt from, see `candidates.Ranking.strength`.
    """

    strength: float


@dataclass(frozen=True)
class MappingSet:
    """All released codes, sorted, with their rows of the fit."""

    rows: tuple[Mapping, ...]
    embedding: npt.NDArray[np.float32]


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
                similarity=float(fit.embedding[row] @ fit.embedding[target]) if name else 0.0,
                alternatives=tuple(c for c in near if c != code),
                evidence=evidence.of(i),
                strength=float(ranking.strength[row]),
            )
        )
    return MappingSet(tuple(rows), fit.embedding[union.row].astype(np.float32))


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
