"""What people have settled, in the form that a fit takes: pairs known to be the same, and known to differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from coordinator.knowledge.assertions import SIMILAR
from coordinator.knowledge.build import Build
from coordinator.knowledge.merge import PAIRS
from coordinator.knowledge.systems import canonical
from coordinator.model.factor import Index
from coordinator.union import UnionVocabulary
from protocol.canonical import digest
from protocol.release import VerifiedRelease

SOURCE: Final = "review"
"""Who says so, where a pair names its sources."""
WEIGHT: Final = 1.0


@dataclass(frozen=True, eq=False)
class Cells:
    """Decisions as rows of a fit; a row that has no standard code of its own, and a row that has one.

    Attributes:
        same: (k, 2) the standard row is the local row's.
        differ: (k, 2) it is not.
        none: (k,) local rows that no standard row is right for.
    """

    same: Index
    differ: Index
    none: Index

    def barred(self, rows: Index, columns: Index) -> NDArray[np.bool_]:
        """(n, m) pairs of these increasing rows that are settled to differ."""
        found = np.zeros((len(rows), len(columns)), dtype=bool)
        at = places(self.differ, rows, columns)
        found[at[:, 0], at[:, 1]] = True
        found[np.isin(rows, self.none)] = True
        return found


NO_CELLS: Final = Cells(np.empty((0, 2), np.intp), np.empty((0, 2), np.intp), np.empty(0, np.intp))


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

    def pairs(self) -> pa.Table:
        """The decisions as pairs of schema `merge.PAIRS`."""
        said = [(c, t, True) for c, t in self.accepted.items() if t] + [(c, t, False) for c, t in self.wrong]
        rows: list[dict[str, Any]] = [
            {
                "code_1": min(code, target),
                "code_2": max(code, target),
                "kind": SIMILAR,
                "label": label,
                "weight": WEIGHT,
                "sources": [SOURCE],
            }
            for code, target, label in sorted(said)
        ]
        return pa.Table.from_pylist(rows, schema=PAIRS)

    def joined(self, knowledge: Build | None) -> Build | None:
        """Knowledge and decisions together; where the two speak of one pair, people are heard."""
        if not self:
            return knowledge
        mine = self.pairs()
        if knowledge is None:
            return Build(mine, {})
        theirs = knowledge.pairs
        key = pc.binary_join_element_wise(theirs["code_1"], theirs["code_2"], "\n")
        own = pc.binary_join_element_wise(mine["code_1"], mine["code_2"], "\n")
        again = pc.and_(pc.equal(theirs["kind"], SIMILAR), pc.is_in(key, own.combine_chunks()))
        kept = theirs.filter(pc.invert(again))
        return replace(knowledge, pairs=pa.concat_tables([kept, mine]).combine_chunks())


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


def places(cells: Index, rows: Index, columns: Index) -> NDArray[np.intp]:
    """(k, 2) places of cells in a matrix of these increasing rows and columns; those outside are left out."""
    if not len(cells) or not len(rows) or not len(columns):
        return np.empty((0, 2), np.intp)
    place = [
        np.minimum(np.searchsorted(axis, cells[:, i]), len(axis) - 1)
        for i, axis in enumerate((rows, columns))
    ]
    held = (rows[place[0]] == cells[:, 0]) & (columns[place[1]] == cells[:, 1])
    return np.stack(place, axis=1)[held].astype(np.intp)
