"""What the audit of an alignment found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Recognised:
    """How far one recogniser tells the site of one kind of vector.

    Attributes:
        kind: `released`, `aligned` or `published`.
        recogniser: `linear` or `kernel`.
        mcc: Matthews' correlation of the true site and the one said, on codes that were not learnt from.
        null: mean of the same with the sites permuted within codes.
        limit: its 95 % quantile.
        groups: codes, or clusters, that were asked about.
        vectors: of them.
    """

    kind: str
    recogniser: str
    mcc: float
    null: float
    limit: float
    groups: int
    vectors: int

    @property
    def beyond(self) -> float:
        """By how much the site is recognised beyond the null's 95 %; 0 if it is not."""
        return max(self.mcc - self.limit, 0.0)


@dataclass(frozen=True)
class Audit:
    """Of a fit; without lines where too few codes are held by several sites."""

    lines: tuple[Recognised, ...] = ()

    @property
    def words(self) -> str:
        """The strongest finding of each kind in one sentence; "" without lines."""
        parts = []
        for kind in dict.fromkeys(line.kind for line in self.lines):
            line = max((one for one in self.lines if one.kind == kind), key=lambda one: one.mcc)
            said = f"{line.beyond:.2f} beyond chance's 95 %" if line.beyond else "not beyond chance"
            parts.append(f"{kind} {line.mcc:.2f} ({line.recogniser}; {said})")
        return "; ".join(parts)

    def facts(self) -> list[dict[str, Any]]:
        """The lines for machines."""
        return [asdict(line) | {"beyond": line.beyond} for line in self.lines]


def audit_from(facts: Mapping[str, Any]) -> Audit:
    """The audit whose `asdict` these are."""
    return Audit(tuple(Recognised(**line) for line in facts["lines"]))
