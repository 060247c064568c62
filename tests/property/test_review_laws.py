"""Laws of standings: replay, independence of order, undo, blindness."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coordinator.exports.cells import guarded
from coordinator.review.earlier import _unguarded
from coordinator.review.queue import doubts
from coordinator.review.record import Decision
from coordinator.review.standing import Standing, live, opinions, seen_by, standing_of

CODE, SIGNER = "WEST:1", "a" * 64
PEOPLE = ("ann", "bob", "carla")
TARGETS = ("ICD10CM:A", "ICD10CM:B", "")


def record(number: int, **fields: object) -> Decision:
    return Decision(
        study="unit",
        number=number,
        previous="",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        code=CODE,
        signer=SIGNER,
        **fields,
    )


@st.composite
def decisions(draw: st.DrawFn, people: Sequence[str] = PEOPLE) -> dict[str, object]:
    verdict = draw(st.sampled_from(("accept", "reject", "unsure")))
    targets = TARGETS if verdict != "reject" else TARGETS[:2]
    return {
        "kind": draw(st.sampled_from(("decide", "import"))),
        "actor": draw(st.sampled_from(people)),
        "verdict": verdict,
        "target": draw(st.sampled_from(targets)),
        "comment": draw(st.sampled_from(("", "why"))),
    }


@st.composite
def histories(draw: st.DrawFn) -> list[Decision]:
    """Any records that the log can hold: undo takes back what comes before it and is live."""
    found: list[Decision] = []
    for _ in range(draw(st.integers(0, 12))):
        kinds = ["decide", "decide", "decide", "comment", "assign", "adjudicate"] + (
            ["undo"] if found else []
        )
        kind = draw(st.sampled_from(kinds))
        actor = draw(st.sampled_from(PEOPLE))
        fields: dict[str, object]
        if kind == "decide":
            fields = draw(decisions())
        elif kind == "adjudicate":
            fields = {**draw(decisions()), "kind": "adjudicate"}
        elif kind == "assign":
            fields = {
                "kind": kind,
                "actor": actor,
                "reviewers": tuple(draw(st.sets(st.sampled_from(PEOPLE)))),
            }
        elif kind == "comment":
            fields = {"kind": kind, "actor": actor, "comment": f"{actor} thinks"}
        else:
            still = [r.number for r in live(found)]
            if not still:
                continue
            fields = {"kind": kind, "actor": actor, "undoes": draw(st.sampled_from(still))}
        found.append(record(len(found) + 1, **fields))
    return found


def shape(standing: Standing) -> tuple[object, ...]:
    return standing.state, standing.target, standing.wrong, standing.assigned


@given(histories(), st.randoms())
def test_replaying_gives_the_same(records: list[Decision], random: object) -> None:
    again = list(records)
    random.shuffle(again)  # type: ignore[attr-defined]
    assert standing_of(CODE, again) == standing_of(CODE, records)


@given(histories(), decisions())
def test_undo_restores_what_stood_before(records: list[Decision], fields: dict[str, object]) -> None:
    before = standing_of(CODE, records)
    made = record(len(records) + 1, **fields)
    undone = record(len(records) + 2, kind="undo", actor="ann", undoes=made.number)
    assert shape(standing_of(CODE, [*records, made, undone])) == shape(before)
    assert standing_of(CODE, [*records, made, undone]).decisions == before.decisions


@given(histories(), decisions())
def test_undo_of_an_undo_restores_the_decision(records: list[Decision], fields: dict[str, object]) -> None:
    n = len(records)
    made = record(n + 1, **fields)
    undone = record(n + 2, kind="undo", actor="ann", undoes=n + 1)
    again = record(n + 3, kind="undo", actor="ann", undoes=n + 2)
    after = standing_of(CODE, [*records, made])
    assert shape(standing_of(CODE, [*records, made, undone, again])) == shape(after)


@given(
    st.lists(decisions(["ann"]), max_size=4),
    st.lists(decisions(["bob"]), max_size=4),
    st.lists(st.booleans(), min_size=8, max_size=8),
    st.booleans(),
)
def test_the_order_of_independent_reviewers_does_not_matter(
    one: list[dict[str, object]], other: list[dict[str, object]], turns: list[bool], assigned: bool
) -> None:
    first = [{"kind": "assign", "actor": "carla", "reviewers": ("ann", "bob")}] if assigned else []
    rest = [list(one), list(other)]
    mixed = [rest[turn].pop(0) for turn in turns if rest[turn]]
    mixed += rest[0] + rest[1]
    orders = (first + one + other, first + other + one, first + mixed)
    found = [standing_of(CODE, [record(i + 1, **f) for i, f in enumerate(order)]) for order in orders]
    assert shape(found[0]) == shape(found[1]) == shape(found[2])


@given(histories(), st.lists(decisions(["bob", "carla"]), max_size=3))
def test_an_assigned_reviewer_is_blind_until_they_decide(
    records: list[Decision], more: list[dict[str, object]]
) -> None:
    kept = live(records)
    assigned = next((r.reviewers for r in reversed(kept) if r.kind == "assign"), ())
    if "ann" not in assigned or "ann" in opinions(kept):
        return
    shown = seen_by("ann", CODE, records)
    for r in (*shown.decisions, *shown.records):
        assert r.actor == "ann" or r.kind == "assign"
    assert shown.state in {"open", "accepted", "rejected", "unsure"}
    assert all(d.actor == "ann" for d in shown.decisions)
    # Whatever others add, nothing that ann sees changes.
    longer = [*records, *(record(len(records) + i + 1, **f) for i, f in enumerate(more))]
    assert seen_by("ann", CODE, longer) == shown


@given(histories())
def test_what_is_settled_is_no_contradiction(records: list[Decision]) -> None:
    found = standing_of(CODE, records)
    if found.state == "accepted":
        assert found.target not in found.wrong
    elif found.state == "rejected":
        assert found.target in found.wrong
    else:
        assert not found.wrong
    if found.assigned and found.adjudication is None:
        assert (found.state == "open") == (len(found.decisions) < len(found.assigned))


@given(st.lists(st.floats(0, 1), min_size=1))
def test_doubt_is_greatest_at_even_odds(probability: list[float]) -> None:
    found = doubts(probability)
    assert np.all((found >= 0) & (found <= 1))
    np.testing.assert_allclose(found, doubts(1 - np.array(probability)), atol=1e-9)
    near = np.argsort(np.abs(np.array(probability) - 0.5), kind="stable")
    assert np.all(np.diff(found[near]) <= 1e-9)


@given(st.text())
def test_a_guard_is_taken_off_and_an_apostrophe_of_the_text_is_not(text: str) -> None:
    assert _unguarded(guarded(text)) == text
    if not text.startswith("'"):
        assert _unguarded(text) == text
