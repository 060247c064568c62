"""Which clusters were split or merged between two versions: their numbers mean nothing, so their members decide."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from coordinator.mapping import MappedCode


@dataclass(frozen=True)
class ClusterChange:
    """Codes that were one cluster and are several now (`split`), or the other way round (`merged`).

    Attributes:
        kind: which of both.
        before: the clusters in the older version, numbers of that version.
        after: the same in the newer one.
        parts: the codes of each of the several clusters, the largest first; only codes that both versions hold.
    """

    kind: Literal["split", "merged"]
    before: tuple[int, ...]
    after: tuple[int, ...]
    parts: tuple[tuple[str, ...], ...]

    @property
    def codes(self) -> int:
        """How many codes."""
        return sum(map(len, self.parts))

    def facts(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "change": self.kind,
            "before": list(self.before),
            "after": list(self.after),
            "parts": [list(part) for part in self.parts],
        }


def cluster_changes(before: Iterable[MappedCode], after: Iterable[MappedCode]) -> tuple[ClusterChange, ...]:
    """Splits and merges, judged by the codes that both versions hold; the largest first.

    A code that went from one cluster to another is part of a split of the first and of a merger into the second, unless
    it was alone in the first or is alone in the second.

    Laws: numbers of clusters do not matter; splits of (x, y) are mergers of (y, x).
    """
    old, new = {e.code: e.cluster for e in before}, {e.code: e.cluster for e in after}
    common = sorted(old.keys() & new.keys())
    found = [
        ClusterChange("split", (cluster,), tuple(parts), tuple(parts.values()))
        for cluster, parts in _parted([(old[c], new[c], c) for c in common])
    ] + [
        ClusterChange("merged", tuple(parts), (cluster,), tuple(parts.values()))
        for cluster, parts in _parted([(new[c], old[c], c) for c in common])
    ]
    return tuple(sorted(found, key=lambda c: (-c.codes, c.kind, c.parts)))


def _parted(places: list[tuple[int, int, str]]) -> list[tuple[int, dict[int, tuple[str, ...]]]]:
    """Clusters of the first number that hold several of the second, with the codes of each."""
    inside: dict[int, dict[int, list[str]]] = {}
    for whole, part, code in places:
        inside.setdefault(whole, {}).setdefault(part, []).append(code)
    return [
        (whole, {p: tuple(codes) for p, codes in sorted(parts.items(), key=lambda i: (-len(i[1]), i[1]))})
        for whole, parts in inside.items()
        if len(parts) > 1
    ]
