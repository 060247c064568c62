"""The map of a verified release, as every writer takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from coordinator.exports.predicates import DECIMALS, Predicate, predicate
from coordinator.mapping import MappedCode
from protocol.messages import PublishedManifest
from protocol.study import StudySpec
from protocol.vocabulary import split_curie

if TYPE_CHECKING:
    from coordinator.reviewed import Reviewed

# What reads tables stands apart, in `reading`: pyarrow takes 40 MB, and `coordinator serve` waits for months.


@dataclass(frozen=True)
class Entry(MappedCode):
    """One code of a published map.

    Attributes:
        accepted: what its standard code is to it, as reviewers say who accepted it: exact, broad, narrow, close, or "" where they
            said no more; None where nobody accepted it.
    """

    accepted: str | None = None

    @property
    def system(self) -> str:
        """Prefix of the code."""
        return split_curie(self.code)[0]

    @property
    def local(self) -> str:
        """The code without its prefix."""
        return split_curie(self.code)[1]

    @property
    def target(self) -> str:
        """The standard code without its prefix; "" without one."""
        return split_curie(self.standard_code)[1] if self.standard_code else ""

    @property
    def predicate(self) -> Predicate | None:
        """By the rule of `predicates`; None without a standard code."""
        if not self.standard_code:
            return None
        if self.accepted is not None:
            return Predicate(f"skos:{self.accepted or 'exact'}Match")
        return predicate(self.probability, given=self.given, kinship=self.kinship)

    @property
    def confidence(self) -> float:
        """The probability as formats show it."""
        return round(self.probability, DECIMALS)


@dataclass(frozen=True)
class PublishedMap:
    """A release's map.

    Attributes:
        entries: every code of the release, sorted.
        reviews: code -> what people say of it.
    """

    manifest: PublishedManifest
    study: StudySpec
    entries: tuple[Entry, ...] = field(repr=False)
    reviews: Mapping[str, tuple[Reviewed, ...]] = field(default_factory=dict, repr=False)

    @cached_property
    def mappings(self) -> tuple[Entry, ...]:
        """The codes outside the standard system; a standard code's own row maps nothing."""
        return tuple(e for e in self.entries if e.system != self.study.standard)

    def at_least(self, probability: float) -> PublishedMap:
        """The same map, where what is less probable has no standard code: it leads the alternatives.

        What was given, or accepted by reviewers, stays.
        """
        if probability <= 0.0:
            return self
        entries = (
            e
            if e.given or not e.standard_code or e.accepted is not None or e.confidence >= probability
            else replace(
                e,
                standard_code="",
                probability=0.0,
                similarity=0.0,
                kinship=None,
            )
            for e in self.entries
        )
        return replace(self, entries=tuple(entries))

    @property
    def base(self) -> str:
        """What URIs of this study begin with."""
        return base_uri(self.study)

    def system_uri(self, prefix: str) -> str:
        """The canonical URI of a code system; one below the study's own where the study names none."""
        return self.study.system(prefix).uri or f"{self.base}codes/{prefix}/"


def evidence_line(row: MappedCode) -> str:
    """Cluster, sites and evidence in one line."""
    parts = [f"{e.site}: {e.members} codes, cosine {e.cosine:.2f}" for e in row.evidence]
    evidence = "; ".join(parts) or "none"
    return f"cluster {row.cluster}; held by {', '.join(row.sites)}; evidence {evidence}"


def base_uri(study: StudySpec) -> str:
    """What URIs of a study begin with."""
    return f"{study.base_uri.rstrip('/')}/{study.id}/"
