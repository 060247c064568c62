"""Pure: from the records of a code to where it stands.

A reviewer's later decision replaces the earlier one: an accepted target takes the place of another one, a rejected target is
wrong until the same reviewer accepts it, and `unsure` takes back what was accepted. How several reviewers count:

| the code is | state |
|---|---|
| adjudicated | what the adjudicator said |
| assigned, and one of the assigned reviewers has not decided | open |
| assigned, and all of them accept one target, reject one target, or are unsure | accepted, rejected, unsure |
| assigned, and they differ in any other way | conflict |
| not assigned; two targets are accepted, or one is accepted and rejected | conflict |
| not assigned; one target is accepted | accepted |
| not assigned; targets are rejected | rejected |
| not assigned; nobody is more than unsure | unsure |
| none of these | open |

Assigned reviewers are asked for the same answer independently, so one that says less than the other is a difference. Without an
assignment whoever is unsure leaves the answer to others. Once a code is assigned, decisions of others do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from coordinator.review.record import Decision

State = Literal["open", "accepted", "rejected", "unsure", "conflict"]
STATES: tuple[State, ...] = ("open", "accepted", "rejected", "unsure", "conflict")


@dataclass(frozen=True)
class Opinion:
    """What one reviewer says of a code at present.

    Attributes:
        target: accepted; "" for no standard code, None for none accepted.
        wrong: rejected targets.
        last: the decision that was made last.
    """

    target: str | None
    wrong: frozenset[str]
    last: Decision

    @property
    def state(self) -> State:
        """As if nobody else had decided."""
        if self.target is not None:
            return "accepted"
        return "rejected" if self.wrong and self.last.verdict != "unsure" else "unsure"


@dataclass(frozen=True)
class Standing:
    """Where a code stands.

    Attributes:
        state: see the module.
        target: the accepted target, "" for no standard code; of a rejected code one of `wrong`.
        wrong: targets that are settled to be wrong, sorted.
        reviewers: who counts: the assigned ones, or else everybody who has decided.
        assigned: whom the code is assigned to.
        decisions: the last one of each reviewer who counts, and what adjudicated them, in the order of the log.
        records: all that were not taken back.
    """

    code: str
    state: State = "open"
    target: str = ""
    wrong: tuple[str, ...] = ()
    reviewers: tuple[str, ...] = ()
    assigned: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    records: tuple[Decision, ...] = ()

    @property
    def settled(self) -> bool:
        """Somebody has said what is right or wrong, and nobody who counts disagrees."""
        return self.state in {"accepted", "rejected"}

    @property
    def adjudication(self) -> Decision | None:
        """What ended a conflict."""
        return next((d for d in reversed(self.decisions) if d.kind == "adjudicate"), None)

    @property
    def last(self) -> Decision | None:
        """The decision that was made last."""
        return self.decisions[-1] if self.decisions else None

    @property
    def comments(self) -> tuple[Decision, ...]:
        """Records that say something in words."""
        return tuple(r for r in self.records if r.comment)


def live(records: Sequence[Decision]) -> tuple[Decision, ...]:
    """The records that were not taken back; `undo` records among them where they hold.

    A record is taken back by an `undo` that was not taken back itself: it can only come later, so one pass from the end tells.
    """
    undone: set[int] = set()
    kept = []
    for record in sorted(records, key=lambda r: -r.number):
        if record.number in undone:
            continue
        if record.kind == "undo":
            undone.add(record.undoes)
        kept.append(record)
    return tuple(reversed(kept))


def opinions(records: Sequence[Decision]) -> Mapping[str, Opinion]:
    """Reviewer -> opinion, of live records."""
    found: dict[str, Opinion] = {}
    for record in records:
        if not record.decides:
            continue
        before = found.get(record.actor)
        target, wrong = (before.target, before.wrong) if before else (None, frozenset[str]())
        if record.verdict == "accept":
            target, wrong = record.target, wrong - {record.target}
        elif record.verdict == "reject":
            target, wrong = None if target == record.target else target, wrong | {record.target}
        else:
            target, wrong = None, wrong - {record.target}
        found[record.actor] = Opinion(target, wrong, record)
    return found


def standing_of(code: str, records: Sequence[Decision]) -> Standing:
    """Where a code stands, by all of its records.

    Laws: replaying the same records gives the same standing; the order in which different reviewers decided does not matter
    to state, target and wrong; a record and its undo together change nothing of them.
    """
    return _of_live(code, live(records))


def seen_by(reviewer: str, code: str, records: Sequence[Decision]) -> Standing:
    """What a reviewer may know of a code: an assigned one who has not decided sees nothing of what others said.

    Law: before a reviewer to whom a code is assigned has decided, no verdict or comment of another one is in the result, and
    it is the same whatever these are.
    """
    return _of_live(code, visible(reviewer, records))


def visible(reviewer: str, records: Sequence[Decision]) -> tuple[Decision, ...]:
    """The live records that `seen_by` is made from."""
    kept = live(records)
    if not reviewer or reviewer not in _assigned(kept) or reviewer in opinions(kept):
        return kept
    return tuple(r for r in kept if r.actor == reviewer or r.kind == "assign")


def _assigned(records: Sequence[Decision]) -> tuple[str, ...]:
    return next((r.reviewers for r in reversed(records) if r.kind == "assign"), ())


def _of_live(code: str, records: tuple[Decision, ...]) -> Standing:
    assigned, said = _assigned(records), opinions(records)
    counting = {name: said[name] for name in (assigned or sorted(said)) if name in said}
    voices = list(counting.values())
    common = frozenset.intersection(*(o.wrong for o in voices)) if voices else frozenset[str]()
    judged = next((r for r in reversed(records) if r.kind == "adjudicate"), None)
    if judged is not None:
        state, target, wrong = _adjudicated(judged, common)
    elif len(counting) < len(assigned):
        state, target, wrong = "open", "", frozenset[str]()
    elif assigned:
        state, target, wrong = _unanimous(voices, common)
    else:
        state, target, wrong = _compatible(voices)
    made = [o.last for o in voices] + ([] if judged is None else [judged])
    return Standing(
        code=code,
        state=state,
        target=target,
        wrong=tuple(sorted(wrong)),
        reviewers=assigned or tuple(counting),
        assigned=assigned,
        decisions=tuple(sorted(made, key=lambda d: d.number)),
        records=records,
    )


_Found = tuple[State, str, frozenset[str]]


def _adjudicated(judged: Decision, common: frozenset[str]) -> _Found:
    if judged.verdict == "accept":
        return "accepted", judged.target, common - {judged.target}
    if judged.verdict == "reject":
        return "rejected", judged.target, common | {judged.target}
    return "unsure", "", frozenset()


def _unanimous(voices: Sequence[Opinion], common: frozenset[str]) -> _Found:
    """Reviewers who were asked for the same answer."""
    states = {o.state for o in voices}
    if states == {"accepted"} and len({o.target for o in voices}) == 1:
        return "accepted", voices[0].target or "", common
    if states == {"rejected"} and common:
        return "rejected", min(common), common
    return ("unsure", "", frozenset()) if states == {"unsure"} else ("conflict", "", frozenset())


def _compatible(voices: Sequence[Opinion]) -> _Found:
    """Reviewers who came as they liked."""
    accepted = {o.target for o in voices if o.target is not None}
    wrong = frozenset().union(*(o.wrong for o in voices if o.state != "unsure"))
    if len(accepted) > 1 or accepted & wrong:
        return "conflict", "", frozenset()
    if accepted:
        return "accepted", accepted.pop(), wrong
    if wrong:
        return "rejected", min(wrong), wrong
    return ("unsure" if voices else "open"), "", frozenset()
