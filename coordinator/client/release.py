"""A verified version, with the questions that analysts ask."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.client.view import release_html, translation_html
from coordinator.exports.table import Entry
from coordinator.library import OpenRelease
from coordinator.mapping import Candidate, Evidence
from coordinator.reviewed import Reviewed
from coordinator.versions import CARD
from coordinator.versions.diff import STEP, Difference, compare
from protocol.arrays import FloatVector
from protocol.errors import UsageError
from protocol.messages import PublishedManifest
from protocol.published import read_listed
from protocol.textindex import Found

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

    from coordinator.graph.queries import Guess
    from coordinator.graph.queries import Neighbour as Related


@dataclass(frozen=True)
class Translation:
    """What a code means in the standard system, as the map has it.

    Attributes:
        code: the CURIE.
        name: what it is called; "" where nobody said. Text of others: escape it where markup is read.
        category: of its code system.
        target: CURIE of the standard code; "" if it has none.
        target_name: what that is called; "" where nobody said.
        probability: that this target is the right one; 1 for a given one, 0 without a target.
        predicate: skos:exactMatch, closeMatch, broadMatch, narrowMatch or relatedMatch; "" without a target.
        given: a site gave the target, or the code is a standard code itself: the fit found nothing.
        cluster: number of its cluster, without meaning outside this version.
        sites: that released the code.
        candidates: standard codes, best first, the target among them: how much speaks for each, and why.
        evidence: how strongly other sites' codes speak for the cluster.
        reviews: what people say of it, apart from what the model says; none is mixed into `probability`.
    """

    code: str
    name: str
    category: str
    target: str
    target_name: str
    probability: float
    predicate: str
    given: bool
    cluster: int
    sites: tuple[str, ...]
    candidates: tuple[Candidate, ...] = field(repr=False)
    evidence: tuple[Evidence, ...] = field(repr=False)
    reviews: tuple[Reviewed, ...] = field(default=(), repr=False)

    @property
    def alternatives(self) -> tuple[Candidate, ...]:
        """The candidates other than the target, best first."""
        return tuple(c for c in self.candidates if c.code != self.target)

    @classmethod
    def of(cls, entry: Entry, reviews: tuple[Reviewed, ...] = ()) -> Translation:
        """From a row of the map, and what people say of it."""
        return cls(
            code=entry.code,
            name=entry.name,
            category=entry.category,
            target=entry.standard_code,
            target_name=entry.standard_name,
            probability=entry.probability,
            predicate=str(entry.predicate or ""),
            given=entry.given,
            cluster=entry.cluster,
            sites=entry.sites,
            candidates=entry.candidates,
            evidence=entry.evidence,
            reviews=reviews,
        )

    def _repr_html_(self) -> str:
        return translation_html(self)


@dataclass(frozen=True)
class Neighbour:
    """A code near another one.

    Attributes:
        code: the CURIE.
        name: as in `Translation`.
        similarity: cosine of the two vectors.
        target: CURIE of its standard code; "" if it has none.
    """

    code: str
    name: str
    similarity: float
    target: str


class MapRelease:
    """A version of a harmonised code map, open on this machine; made by `load_release`.

    Codes are written as CURIEs (`ICD10CM:E11.9`), or bare where only one code system has them.
    """

    def __init__(self, opened: OpenRelease, *, verified: bool) -> None:
        self._opened = opened
        self.verified = verified
        """Whether the signature was compared with keys that were given."""

    @property
    def version(self) -> int:
        """Its number: name it in what you write, with `digest`."""
        return self.manifest.version

    @property
    def digest(self) -> str:
        """SHA-256 of its manifest, in hex: no other release has it."""
        return self.manifest.digest

    @property
    def manifest(self) -> PublishedManifest:
        """What was signed: study, sites, times, and the digest of every file."""
        return self._opened.manifest

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites whose releases it was fitted with."""
        return tuple(s.site for s in self.manifest.sites if s.state == "received")

    @property
    def folder(self) -> Path:
        """Where its files lie; `load_release` takes it without a network."""
        return self._opened.folder

    @property
    def codes(self) -> tuple[str, ...]:
        """Every code of it, sorted."""
        return tuple(self._opened.entries)

    def __len__(self) -> int:
        return len(self._opened.entries)

    def __contains__(self, code: object) -> bool:
        return code in self._opened.entries

    def translate(self, code: str) -> Translation:
        """What a code means in the standard system.

        Raises:
            UsageError: the release has no such code, or several systems have it.
        """
        return self._translation(self._opened.entry(code))

    def reverse(self, standard_code: str) -> tuple[Translation, ...]:
        """Every other code that is mapped to a standard code, most probable first; all of them.

        Raises:
            UsageError: the release has no such code.
        """
        found = self._opened.sources.get(self._standard(standard_code))
        if found is None:
            self._opened.entry(standard_code)
            return ()
        return tuple(map(self._translation, found))

    def neighbours(
        self,
        code: str | FloatVector,
        k: int = 10,
        *,
        systems: Collection[str] = (),
        categories: Collection[str] = (),
    ) -> list[Neighbour]:
        """The k codes nearest to a code, or to a vector of its length, best first.

        Args:
            code: or (d,) values.
            k: how many.
            systems: prefixes to which they are limited; all if empty.
            categories: the same for categories of code systems.

        Raises:
            UsageError: no such code, system or category, or the vector has another length.
        """
        entries = self._opened.entries
        return [
            Neighbour(hit.code, entries[hit.code].name, hit.similarity, entries[hit.code].standard_code)
            for hit in self._opened.neighbours(code, k, systems=systems, categories=categories)
        ]

    def search(self, text: str, k: int = 20, *, systems: Collection[str] = ()) -> list[Found]:
        """The k codes that a text finds best: by code, name, or the name of a synonym.

        Raises:
            UsageError: no such system.
        """
        return self._opened.find(text, k, systems=systems)

    def cluster(self, code: str) -> tuple[Translation, ...]:
        """All codes of a code's cluster, itself among them, sorted.

        Raises:
            UsageError: as for `translate`.
        """
        return tuple(map(self._translation, self._opened.clusters[self._opened.entry(code).cluster]))

    def vector(self, code: str) -> FloatVector:
        """(d,) its unit vector: the cosine of two codes is the inner product of theirs.

        Raises:
            UsageError: as for `translate`.
        """
        index = self._opened.index
        vector: FloatVector = index.vectors[index.row(self._opened.entry(code).code)].copy()
        return vector

    def related(
        self,
        code: str,
        k: int | None = 20,
        *,
        q_most: float | None = None,
        categories: Collection[str] | None = None,
    ) -> list[Related]:
        """The codes that are related to a code by the version's graph, the strongest relation first.

        Args:
            code: as for `translate`.
            k: how many; all if None.
            q_most: only pairs of at most this false-discovery rate; a pair that was not tested has none.
            categories: of code systems, to which they are limited; all if None.

        Raises:
            UsageError: the version has no graph, or as for `translate`.
        """
        return self._opened.graph.neighbours(
            self._opened.entry(code).code, k=k, q_most=q_most, categories=categories
        )

    def features(self, code: str, k: int = 10, *, q_most: float | None = None) -> dict[str, list[Related]]:
        """Category -> the k codes of it that are most strongly related, directly and positively: for a phenotype's features.

        Raises:
            UsageError: as for `related`.
        """
        return self._opened.graph.features(self._opened.entry(code).code, k=k, q_most=q_most)

    def ranking(self, code: str, category: str, k: int | None = None) -> list[Guess]:
        """All codes of a category, the likeliest relation to a code first: a drug's indications, say.

        Args:
            code: as for `translate`.
            category: of code systems.
            k: how many; all if None.

        Raises:
            UsageError: the study has no such category, or as for `related`.
        """
        self._opened.prefixes((), (category,))
        index, graph = self._opened.index, self._opened.graph
        vectors = index.vectors[[index.row(c) for c in graph.edges.codes]]
        return graph.ranking(self._opened.entry(code).code, category, vectors, k=k)

    def card(self) -> str:
        """The model card, in Markdown: data, method, metrics, limits, how to cite."""
        return read_listed(self.folder, self.manifest, CARD).decode()

    def compare(self, later: MapRelease, *, step: float = STEP) -> Difference:
        """What changed from this version to a later one, and what is known of why.

        Raises:
            UsageError: they are of two studies.
        """
        return compare(self._opened, later._opened, step=step)

    def to_pandas(self, codes: Iterable[str] | None = None) -> pd.DataFrame:
        """A row a code, in the order of `codes`; all codes if left out.

        Columns: code, system, name, category, standard_code, standard_name, probability, predicate, given, anchored, cluster,
        posterior, similarity, review (accepted, rejected, unsure, conflict), sites, alternatives. Missing texts are "", lists
        are tuples.

        Raises:
            UsageError: pandas is not installed, or a code is not in the release.
        """
        try:
            import pandas  # noqa: F401, PLC0415 - not everyone who loads a release wants it
        except ImportError:
            raise UsageError(
                "to_pandas needs pandas, which is not installed", do="Install it: pip install pandas"
            ) from None
        from coordinator.client.frame import frame  # noqa: PLC0415

        entries = self._opened.map.entries if codes is None else [self._opened.entry(code) for code in codes]
        return frame(entries, self._opened.map.reviews)

    def __repr__(self) -> str:
        m, state = self.manifest, "verified" if self.verified else "UNVERIFIED"
        study, sites = self._opened.map.study.id, ", ".join(self.sites)
        return (
            f"<MapRelease {m.version} of study {study}, {m.created:%Y-%m-%d}, {state}: {len(self):,} codes in {m.clusters:,} "
            f"clusters, from {sites}. Ask .translate(code), .reverse(code), .neighbours(code), .search(text), .to_pandas()>"
        )

    def _repr_html_(self) -> str:
        return release_html(self)

    def _translation(self, entry: Entry) -> Translation:
        return Translation.of(entry, tuple(self._opened.map.reviews.get(entry.code, ())))

    def _standard(self, code: str) -> str:
        """A bare code is taken for one of the standard system."""
        return code if ":" in code else f"{self._opened.map.study.standard}:{code}"
