"""Pure: two published versions of one study -> what changed, code by code, and what is known of why.

A reason is given only where the two releases themselves say it: a site came or went, a site's release is another
one, a known pair is new, a site gave the standard code. Everything else is the fit: each version is fitted as a whole, so
that a code can move although nothing of its own changed. Then the reason is `refit`, and no more is claimed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

from coordinator.exports.table import Entry, PublishedMap
from coordinator.library import OpenRelease
from coordinator.versions.causes import Cause, find_causes
from coordinator.versions.clusters import ClusterChange, cluster_changes
from coordinator.versions.reasons import Reasons, verdicts
from protocol.errors import UsageError

ChangeKind: TypeAlias = Literal[
    "added", "removed", "mapped", "unmapped", "target", "given", "reviewed", "probability"
]
KINDS: Final[tuple[ChangeKind, ...]] = (
    "target",
    "unmapped",
    "mapped",
    "removed",
    "added",
    "given",
    "reviewed",
    "probability",
)
"""Kinds of changes, those first that somebody who uses the map must know first."""
STEP: Final = 0.1
"""A probability that moves by less than this is not listed."""


@dataclass(frozen=True)
class Compared:
    """Which version is compared.

    Attributes:
        number: of the version.
        created: UTC.
        codes: it holds.
        clusters: it holds.
        withdrawn: the sites whose withdrawal took it back; nobody should use it.
    """

    number: int
    created: datetime
    codes: int
    clusters: int
    withdrawn: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """What became of one code.

    Attributes:
        code: the CURIE.
        kind: `added` and `removed`: it is in one version only; `mapped`, `unmapped`: it has got, or lost, a standard code;
            `target`: it has another one; `given`: the same one, which sites have begun or ceased to give; `reviewed`: the same
            one, of which people say something else; `probability`: the same one, found by both fits, with a probability that
            moved by the step at least.
        before: its row in the older version.
        after: its row in the newer version.
        why: what the releases say of the reason; never empty.
    """

    code: str
    kind: ChangeKind
    before: Entry | None
    after: Entry | None
    why: tuple[Cause, ...]

    @property
    def moved(self) -> float:
        """By how much the probability rose; a code that is not there, or has no standard code, has 0."""
        return (self.after.probability if self.after else 0.0) - (
            self.before.probability if self.before else 0.0
        )

    def facts(self) -> dict[str, Any]:
        """Plain values for JSON and tables."""
        return {
            "code": self.code,
            "change": self.kind,
            "before": _place(self.before),
            "after": _place(self.after),
            "why": [cause.facts() for cause in self.why],
        }


@dataclass(frozen=True)
class Difference:
    """Two versions beside each other.

    Attributes:
        before: the older one, or whichever was named first.
        after: the other one.
        step: probabilities that moved by less are not listed.
        causes: what differs in what the two were made from; `refit` alone if nothing does.
        changes: by `KINDS`, and by code.
        clusters: that were split or merged, the largest first.
        unchanged: codes in both versions of which nothing is listed.
    """

    before: Compared
    after: Compared
    step: float
    causes: tuple[Cause, ...]
    changes: tuple[Change, ...]
    clusters: tuple[ClusterChange, ...]
    unchanged: int

    @property
    def counts(self) -> Mapping[str, int]:
        """How many of each kind of change, of clusters split and merged, and of codes unchanged."""
        kinds = Counter(change.kind for change in self.changes)
        clusters = Counter(change.kind for change in self.clusters)
        return {
            **{kind: kinds[kind] for kind in KINDS},
            "split": clusters["split"],
            "merged": clusters["merged"],
            "unchanged": self.unchanged,
        }

    def facts(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "before": _edition_facts(self.before),
            "after": _edition_facts(self.after),
            "step": self.step,
            "causes": [cause.facts() for cause in self.causes],
            "counts": dict(self.counts),
            "changes": [change.facts() for change in self.changes],
            "clusters": [change.facts() for change in self.clusters],
        }


def compare(
    before: OpenRelease | PublishedMap,
    after: OpenRelease | PublishedMap,
    *,
    step: float = STEP,
    withdrawn: Mapping[int, tuple[str, ...]] | None = None,
) -> Difference:
    """What changed from one version to another, and what is known of why.

    Args:
        before: a version.
        after: another one of the same study id; it need not be the newer one.
        step: moves of probabilities below this are not listed.
        withdrawn: version -> the sites whose withdrawal took it back, where a version is withdrawn.

    Raises:
        UsageError: the versions are of two studies, or are copies for two audiences, which hold different codes by design.

    Laws: compare(x, x) lists no change; codes in `added` of compare(x, y) are those in `removed` of compare(y, x).
    """
    old, new = _map(before), _map(after)
    _check_comparable(old, new)
    causes = find_causes(old.manifest, new.manifest)
    reasons = Reasons(old, new, causes)
    left, right = {e.code: e for e in old.entries}, {e.code: e for e in new.entries}
    changes = [
        Change(code, kind, left.get(code), right.get(code), reasons.of(left.get(code), right.get(code)))
        for code, kind in _changed(old, new, step)
    ]
    place = {kind: number for number, kind in enumerate(KINDS)}
    changes.sort(key=lambda c: (place[c.kind], c.code))
    touched = sum(change.before is not None and change.after is not None for change in changes)
    return Difference(
        before=_edition(old, withdrawn),
        after=_edition(new, withdrawn),
        step=step,
        causes=causes,
        changes=tuple(changes),
        clusters=cluster_changes(old.entries, new.entries),
        unchanged=len(left.keys() & right.keys()) - touched,
    )


def _changed(old: PublishedMap, new: PublishedMap, step: float) -> Iterator[tuple[str, ChangeKind]]:
    left, right = {e.code: e for e in old.entries}, {e.code: e for e in new.entries}
    for code in sorted(left.keys() | right.keys()):
        before, after = left.get(code), right.get(code)
        kind: ChangeKind | None = None
        if before is None:
            kind = "added"
        elif after is None:
            kind = "removed"
        elif before.standard_code != after.standard_code:
            kind = "mapped" if not before.standard_code else "target" if after.standard_code else "unmapped"
        elif before.given != after.given or before.anchored != after.anchored:
            kind = "given"
        elif verdicts(old, code) != verdicts(new, code):
            kind = "reviewed"
        elif round(abs(before.probability - after.probability), 6) >= step and not after.given:
            kind = "probability"
        if kind is not None:
            yield code, kind


def _map(version: OpenRelease | PublishedMap) -> PublishedMap:
    return version.map if isinstance(version, OpenRelease) else version


def _check_comparable(old: PublishedMap, new: PublishedMap) -> None:
    if old.study.id != new.study.id:
        raise UsageError(
            f"Version {old.manifest.version} is of study {old.study.id}, version {new.manifest.version} of {new.study.id}",
            do="Compare versions of one study",
        )
    if old.manifest.audience != new.manifest.audience:
        raise UsageError(
            f"One copy is for {old.manifest.audience}, the other for {new.manifest.audience}",
            why="they hold different codes by design",
            do="Compare two copies for the same audience",
        )


def _edition(published: PublishedMap, withdrawn: Mapping[int, tuple[str, ...]] | None) -> Compared:
    m = published.manifest
    return Compared(m.version, m.created, m.codes, m.clusters, (withdrawn or {}).get(m.version, ()))


def _edition_facts(edition: Compared) -> dict[str, Any]:
    return {
        "version": edition.number,
        "created": edition.created.isoformat(),
        "codes": edition.codes,
        "clusters": edition.clusters,
        "withdrawn": list(edition.withdrawn),
    }


def _place(entry: Entry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    return {
        "standard_code": entry.standard_code,
        "probability": entry.confidence,
        "given": entry.given,
        "sites": list(entry.sites),
        "cluster": entry.cluster,
    }
