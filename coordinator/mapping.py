"""Pure: fit -> mapping rows: target, probability, candidates with what speaks for them, and evidence by site."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

# Types alone: what reads a published map should not wait for the model's libraries.
if TYPE_CHECKING:
    from coordinator.candidates import Ranking
    from coordinator.model import SmileFit
    from coordinator.naming import Naming
    from coordinator.reasons import Reasons
    from coordinator.union import UnionVocabulary


N_ALTERNATIVES: Final = 5
Kinship = Literal["ancestor", "descendant"]
"""What a standard code is to the code that is mapped to it."""
Clues = abc.Mapping[str, float]
NO_CLUES: Final[Clues] = MappingProxyType({})


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


@dataclass(frozen=True, slots=True)
class KnownPair:
    """What knowledge sources say of two codes.

    Attributes:
        left: CURIE.
        right: CURIE, after `left` as text.
        relation: `similar` or `related:KIND`; `not ` before it where the sources deny it.
        weight: in (0, 1].
        source: who says so; several are joined by `; `.
    """

    left: str
    right: str
    relation: str
    weight: float
    source: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A standard code that a code may mean, and why the fit thinks so.

    Attributes:
        code: the CURIE.
        name: "" where none is known.
        share: softmax share among all candidates of the code's category, the model's own belief; 0 where `clues` is empty. A
            release has it in twentieths.
        similarity: cosine of its vector with the code's.
        clues: clue -> log odds that it adds to this candidate against the code's average candidate. Empty where the fit ranked
            by vectors alone, and for a code whose standard code was given. A release has them in halves,
            and `support` as 2, 0 or -2.
        pairs: that the fit used, between the code's row and the candidate's.
        sources: site/view -> its part of the clue `latent`; `coverage` is the part that hangs on which sites hold the
            candidate, not on what they say of it.
    """

    code: str
    name: str
    share: float
    similarity: float
    clues: Clues
    pairs: tuple[KnownPair, ...]
    sources: Clues


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
        candidates: best first, at most 1 + `N_ALTERNATIVES`.
        evidence: for each other site with codes in the cluster.
        name: what the code is called; "" where nobody said. Text of others: escape it.
        category: of its code system in the study.
        kinship: of the standard code, by a hierarchy; None where none knows it.
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
    candidates: tuple[Candidate, ...]
    evidence: tuple[Evidence, ...]
    name: str
    category: str
    kinship: Kinship | None

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The candidates' codes without the standard code."""
        return tuple(c.code for c in self.candidates if c.code != self.standard_code)

    @property
    def standard_name(self) -> str:
        """What the standard code is called; "" where nobody said."""
        return next((c.name for c in self.candidates if c.code == self.standard_code), "")


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


def make_mappings(
    union: UnionVocabulary,
    fit: SmileFit,
    ranking: Ranking,
    *,
    naming: Naming,
    reasons: Reasons | None = None,
) -> MappingSet:
    """Mapping rows of every released code; a standard code, and a code anchored to one, keeps its own.

    Args:
        union: of the fit.
        fit: of its rows.
        ranking: of their candidates.
        naming: of the codes.
        reasons: why they rank so; candidates are without any if None.
    """
    evidence, candidates = _Evidence(union, fit), _Candidates(union, fit, ranking, naming, reasons)
    rows = []
    for i, code in enumerate(union.codes):
        row = int(union.row[i])
        found = candidates.of(row)
        rows.append(
            Mapping(
                code=code,
                sites=tuple(s for s, held in zip(union.sites, union.holds[i], strict=True) if held),
                cluster=int(fit.labels[row]),
                posterior=float(fit.posterior[row]),
                probability=1.0 if row in union.standard else 0.0,
                anchored=bool(union.anchored[i]) and row in union.standard,
                given=row in union.standard,
                standard_code=found[0].code if found else "",
                similarity=found[0].similarity if found else 0.0,
                candidates=found,
                evidence=evidence.of(i),
                name=naming.name(code),
                category=naming.category(code),
                kinship=None,
                strength=float(ranking.strength[row]),
            )
        )
    return MappingSet(tuple(rows), fit.embedding[union.row].astype(np.float32))


def with_probability(mappings: MappingSet, curve: abc.Callable[[float], float]) -> MappingSet:
    """The same mappings, those that the fit found with the probability that `curve` gives their strength."""
    rows = tuple(
        row if row.given or not row.standard_code else replace(row, probability=curve(row.strength))
        for row in mappings.rows
    )
    return MappingSet(rows, mappings.embedding)


def with_kinship(mappings: MappingSet, known: abc.Mapping[tuple[str, str], Kinship]) -> MappingSet:
    """The same mappings with what is known of (code, standard code)."""
    rows = tuple(
        replace(row, kinship=known[row.code, row.standard_code])
        if (row.code, row.standard_code) in known
        else row
        for row in mappings.rows
    )
    return MappingSet(rows, mappings.embedding)


class _Candidates:
    """Candidates by row; codes of one row share theirs."""

    def __init__(
        self,
        union: UnionVocabulary,
        fit: SmileFit,
        ranking: Ranking,
        naming: Naming,
        reasons: Reasons | None,
    ) -> None:
        self.standard, self.fit, self.ranking = union.standard, fit, ranking
        self.naming, self.reasons = naming, reasons
        self.made: dict[int, tuple[Candidate, ...]] = {}

    def of(self, row: int) -> tuple[Candidate, ...]:
        if row not in self.made:
            self.made[row] = tuple(self._make(row))
        return self.made[row]

    def _make(self, row: int) -> abc.Iterator[Candidate]:
        for rank, target in enumerate(self.ranking.rows[row].tolist()):
            if target < 0:
                return
            code, why = self.standard[target], self.reasons
            yield Candidate(
                code=code,
                name=self.naming.name(code),
                share=0.0 if why is None else float(why.share[row, rank]),
                similarity=float(self.fit.embedding[row] @ self.fit.embedding[target]),
                clues=NO_CLUES if why is None else why.clues_of(row, rank),
                pairs=() if why is None else why.pairs.get((row, target), ()),
                sources=NO_CLUES if why is None else why.sources_of(row, rank),
            )


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
