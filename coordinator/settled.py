"""What people have settled, in the form that a fit takes: pairs known to be the same, and known to differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import numpy as np

from coordinator.decided import NO_CELLS, Cells
from coordinator.knowledge.systems import canonical
from coordinator.union import UnionVocabulary
from protocol.canonical import digest
from protocol.release import VerifiedRelease


@dataclass(frozen=True)
class Settled:
    """The settled decisions of a review log; codes in the spelling of `canonical`.

    Attributes:
        accepted: code -> target, "" for no standard code.
        wrong: (code, target).
    """

    accepted: Mapping[str, str] = field(default_factory=dict)
    wrong: frozenset[tuple[str, str]] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.accepted or self.wrong)

    @cached_property
    def digest(self) -> str:
        """Of the content: the same decisions give the same fit."""
        return digest({"accepted": dict(self.accepted), "wrong": sorted(map(list, self.wrong))})

    @property
    def said(self) -> str:
        """A sentence on what there is."""
        none = sum(not target for target in self.accepted.values())
        return (
            f"{len(self.accepted):,} codes with a standard code that reviewers accepted ({none:,} of them with none), "
            f"{len(self.wrong):,} targets that they rejected"
        )

    def without(self, codes: Collection[str]) -> Settled:
        """Less all that is said of these codes."""
        gone = {canonical(code) for code in codes}
        return Settled(
            {code: target for code, target in self.accepted.items() if code not in gone},
            frozenset(pair for pair in self.wrong if pair[0] not in gone),
        )

    def contradicts(self, code: str, target: str) -> bool:
        """Whether people settled something else than that this code means this target."""
        one, other = canonical(code), canonical(target)
        return (one, other) in self.wrong or self.accepted.get(one, other) != other

    def overruled(self, releases: Sequence[VerifiedRelease]) -> tuple[tuple[str, str], ...]:
        """Anchors (code, standard code) of sites that contradict what people settled, sorted."""
        said = {(r.manifest.codes[a.row], a.standard) for r in releases for a in r.manifest.anchors}
        return tuple(sorted(pair for pair in said if self.contradicts(*pair)))

    def cells(self, union: UnionVocabulary) -> Cells:
        """The decisions between rows of a union vocabulary; what names other codes is left out."""
        if not self:
            return NO_CELLS
        standard = {canonical(code): row for row, code in union.standard.items()}
        local = {
            canonical(code): int(row)
            for code, row in zip(union.codes, union.row, strict=True)
            if int(row) not in union.standard
        }
        accepted = [(local[c], t) for c, t in self.accepted.items() if c in local]
        same = [(row, standard[t]) for row, t in accepted if t in standard]
        differ = [(local[c], standard[t]) for c, t in sorted(self.wrong) if c in local and t in standard]
        return Cells(
            np.array(same, np.intp).reshape(-1, 2),
            np.array(differ, np.intp).reshape(-1, 2),
            np.array([row for row, t in accepted if not t], np.intp),
        )


NOTHING_SETTLED: Final = Settled()


def without_anchors(
    releases: Sequence[VerifiedRelease], pairs: Collection[tuple[str, str]]
) -> tuple[VerifiedRelease, ...]:
    """The releases less the anchors (code, standard code) that are named."""
    gone = set(pairs)
    if not gone:
        return tuple(releases)
    found = []
    for release in releases:
        manifest = release.manifest
        kept = tuple(a for a in manifest.anchors if (manifest.codes[a.row], a.standard) not in gone)
        found.append(replace(release, manifest=manifest.model_copy(update={"anchors": kept})))
    return tuple(found)


def anchored_codes(releases: Sequence[VerifiedRelease]) -> set[str]:
    """Codes that some site anchors."""
    return {r.manifest.codes[a.row] for r in releases for a in r.manifest.anchors}
