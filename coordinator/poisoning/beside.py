"""A round's releases side by side: what is computed once and read by every check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coordinator.model import Source
from coordinator.poisoning.agreement import Agreement, Rater, agreements
from coordinator.poisoning.influence import unit
from coordinator.poisoning.reliability import Array, reliability
from coordinator.union import UnionVocabulary, build_union, site_of, sources, view_of
from protocol.release import COOCCURRENCE, VerifiedRelease

JUDGED = COOCCURRENCE
"""The view by which sites are judged; codes are judged in every view."""
COPY = 0.25
"""Two releases whose errors are this much smaller than those of other pairs are copies of one another."""
_CLOSE = 0.9  # agreement below which nothing is called a copy


@dataclass(frozen=True, eq=False)
class Beside:
    """Releases that can be compared.

    Attributes:
        union: their union vocabulary.
        data: their sources.
        raters: the sources' directions, in the order of `data`.
        pairs: how well every two co-occurrence views agree. Sites are judged by these alone: what an ontology says is
            the same at all sites, so that two of its views agree as copies do.
        worth: (S,) of each source, see `reliability`.
        twins: groups of sites whose vectors are each other's: each group counts as one site.
        holders: row of a standard code -> names of the sites that released this code itself.
    """

    union: UnionVocabulary
    data: tuple[Source, ...]
    raters: tuple[Rater, ...]
    pairs: tuple[Agreement, ...]
    worth: Array
    twins: tuple[frozenset[str], ...]
    holders: dict[int, frozenset[str]]

    def own(self, site: str) -> list[int]:
        """Numbers of a site's sources."""
        return [k for k, source in enumerate(self.data) if site_of(source) == site]

    def judged(self, site: str) -> list[int]:
        """Numbers of those of a site's sources by which the site is judged."""
        return [k for k in self.own(site) if self.raters[k].view == JUDGED]

    def group(self, site: str) -> frozenset[str]:
        """The site with those whose vectors are its own."""
        return next((g for g in self.twins if site in g), frozenset({site}))


def beside(releases: Sequence[VerifiedRelease], standard: str) -> Beside:
    """Compare releases whose values are finite; of sites that nothing links nothing can be said."""
    union = build_union(releases, standard=standard, require_links=False)
    data = tuple(sources(releases, union))
    place = {site: s for s, site in enumerate(union.sites)}
    raters = tuple(Rater(place[site_of(s)], s.codes, unit(s.matrix), view_of(s)) for s in data)
    pairs = tuple(p for p in agreements(raters) if raters[p.one].view == JUDGED)
    stated = {r.manifest.site: r.manifest.statistics.patients for r in releases}
    patients = [stated[site_of(s)] for s in data]
    copied = _copied(pairs, patients)
    groups: list[frozenset[str]] = []
    for pair in copied:
        names = frozenset({site_of(data[pair.one]), site_of(data[pair.other])})
        groups = [names.union(*(g for g in groups if g & names)), *(g for g in groups if not g & names)]
    worth = reliability([p for p in pairs if p not in copied], patients).worth
    return Beside(union, data, raters, pairs, worth, tuple(groups), _holders(union))


def _holders(union: UnionVocabulary) -> dict[int, frozenset[str]]:
    index = {code: i for i, code in enumerate(union.codes)}
    return {
        row: frozenset(union.sites[s] for s in np.flatnonzero(union.holds[index[code]]))
        if code in index
        else frozenset()
        for row, code in union.standard.items()
    }


def _copied(pairs: Sequence[Agreement], patients: Sequence[int]) -> list[Agreement]:
    """Pairs that agree better than independent patients allow.

    r^2 = n m / ((n + c)(m + c)) gives each pair its own c; that of a copy is nearly 0.
    """
    implied = np.array([_implied(p, patients) for p in pairs])
    return [
        pair
        for k, pair in enumerate(pairs)
        if len(pairs) > 1 and pair.r > _CLOSE and implied[k] < COPY * float(np.median(np.delete(implied, k)))
    ]


def _implied(pair: Agreement, patients: Sequence[int]) -> float:
    n, m = float(max(patients[pair.one], 1)), float(max(patients[pair.other], 1))
    r = float(np.clip(pair.r, 0.01, 1.0))
    return float((np.sqrt((n - m) ** 2 + 4.0 * n * m / r**2) - (n + m)) / 2.0)
