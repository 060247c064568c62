"""The changes between two versions as a table for spreadsheets."""

from __future__ import annotations

from typing import Final

from coordinator.exports.cells import Cell, csv_bytes
from coordinator.exports.table import Entry
from coordinator.versions.diff import Difference

COLUMNS: Final = (
    "code",
    "name",
    "change",
    "standard_code_before",
    "standard_code_after",
    "probability_before",
    "probability_after",
    "given_before",
    "given_after",
    "sites_before",
    "sites_after",
    "why",
    "because",
)


def difference_csv(found: Difference) -> bytes:
    """One row a change, in the order of `Difference.changes`; `why` is for people, `because` names kinds of causes."""
    return csv_bytes(
        COLUMNS,
        (
            (
                change.code,
                next((e.name for e in (change.after, change.before) if e is not None), ""),
                change.kind,
                *_sides(change.before, change.after),
                "; ".join(cause.detail for cause in change.why),
                " ".join(dict.fromkeys(cause.kind for cause in change.why)),
            )
            for change in found.changes
        ),
    )


def _sides(before: Entry | None, after: Entry | None) -> tuple[Cell, ...]:
    both = (before, after)
    return (
        *(e.standard_code if e else None for e in both),
        *(e.confidence if e else None for e in both),
        *(e.given if e else None for e in both),
        *(" ".join(e.sites) if e else None for e in both),
    )
