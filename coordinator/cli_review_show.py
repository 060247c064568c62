"""What `coordinator review` shows of records and standings."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from coordinator.exports.cells import Cell
from coordinator.review.record import Decision
from coordinator.review.reviews import Reviews
from coordinator.review.standing import Standing
from protocol.console import shown, table

COLUMNS = (
    "code", "name", "state", "target", "relation", "wrong", "reviewers", "assigned", "decided_at", "record", "version",
    "model_target", "model_probability", "comments",
)  # fmt: skip


def names_of(reviews: Reviews) -> dict[str, str]:
    """Names of the newest version's codes."""
    standing = [v for v in reviews.library.versions() if v.withdrawn is None]
    return {e.code: e.name for e in reviews.library.open().map.entries} if standing else {}


def csv_line(standing: Standing, names: dict[str, str]) -> list[Cell]:
    """A line of `coordinator review export`."""
    last = standing.last
    return [
        standing.code,
        names.get(standing.code, ""),
        standing.state,
        standing.target,
        last.relation if last and standing.state == "accepted" else "",
        "; ".join(standing.wrong),
        "; ".join(standing.reviewers),
        "; ".join(standing.assigned),
        last.at.astimezone(UTC).isoformat(timespec="seconds") if last else "",
        last.number if last else None,
        last.version if last and last.version else None,
        last.model_target if last else "",
        last.model_probability if last else None,
        " | ".join(f"{r.actor}: {r.comment}" for r in standing.comments),
    ]


def facts(standing: Standing) -> dict[str, Any]:
    """Where a code stands, for machines."""
    return {
        "code": standing.code,
        "state": standing.state,
        "target": standing.target,
        "wrong": list(standing.wrong),
        "reviewers": list(standing.reviewers),
        "assigned": list(standing.assigned),
        "decisions": [record_facts(d) for d in standing.decisions],
    }


def record_facts(record: Decision) -> dict[str, Any]:
    """A record for machines: what it says, without what only the chain needs."""
    return record.model_dump(mode="json", exclude={"schema_version", "study", "previous", "signer"})


def in_words(standing: Standing) -> str:
    """The state in words."""
    if standing.state == "accepted":
        return (
            f"accepted as {shown(standing.target)}"
            if standing.target
            else "accepted to have no standard code"
        )
    if standing.state == "rejected":
        return f"not {shown(' and not '.join(standing.wrong))}"
    return "in conflict" if standing.state == "conflict" else standing.state


def show_records(records: tuple[Decision, ...], *, code: bool = False) -> None:
    """A table of records for people."""
    rows = [
        [
            r.number,
            _moment(r.at),
            shown(r.actor),
            *([shown(r.code)] if code else []),
            _what(r),
            shown(r.comment, 60),
        ]
        for r in records
    ]
    table("Records", ["number", "when", "who", *(["code"] if code else []), "what", "comment"], rows)


def _what(record: Decision) -> str:
    if record.kind == "assign":
        return f"assigned to {shown(' and '.join(record.reviewers)) or 'nobody'}"
    if record.kind == "undo":
        return f"took record {record.undoes} back"
    if not record.verdict:
        return "noted" if record.kind == "import" else "commented"
    said = f"{record.verdict} {shown(record.target) or 'no standard code'}"
    return {"adjudicate": f"adjudicated: {said}", "import": f"imported: {said}"}.get(record.kind, said)


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"
