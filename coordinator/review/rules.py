"""Who may say what of a code, and for whom it waits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordinator.exports.table import Entry
from coordinator.library import OpenRelease
from coordinator.review.record import Decision
from coordinator.review.standing import Standing, opinions
from protocol.errors import UsageError


def seen(version: int, release: OpenRelease, entry: Entry) -> dict[str, Any]:
    """What a release says of a code, as a record keeps it."""
    return {
        "version": version,
        "manifest_digest": release.manifest.digest,
        "model_target": entry.standard_code,
        "model_probability": min(max(float(entry.probability), 0.0), 1.0),
    }


def check_turn(before: Standing, actor: str) -> None:
    """Return only if this person may decide the code now."""
    if before.assigned and actor not in before.assigned:
        raise UsageError(
            f"{before.code} is assigned to {' and '.join(before.assigned)}",
            do="Comment on it, or have it assigned to you",
        )
    judged = before.adjudication
    if judged is not None:
        raise UsageError(
            f"{before.code} was adjudicated by record {judged.number}",
            do="Take that record back before deciding anew",
        )


def says_the_same(record: Decision, fields: Mapping[str, Any]) -> bool:
    """Whether a record holds these fields already."""
    return all(getattr(record, name) == value for name, value in fields.items())


def waits(standing: Standing | None, state: str, reviewer: str) -> bool:
    """Whether a code belongs into a queue."""
    found = standing.state if standing is not None else "open"
    if state == "all":
        return True
    if state != "open":
        return found == state
    if standing is None:
        return True
    if not reviewer:
        return found in {"open", "conflict"}
    if found == "conflict":
        return reviewer not in standing.reviewers
    mine = reviewer in opinions(standing.records)
    return found == "open" and not mine and (not standing.assigned or reviewer in standing.assigned)
