"""What people say of a study's map: the one way to the review log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from coordinator.config import Home
from coordinator.exports.table import Entry
from coordinator.library import Library, OpenRelease
from coordinator.review.log import Fields, ReviewLog, VerifiedLog
from coordinator.review.queue import MAX_PAGE, Progress, Task, doubts
from coordinator.review.record import MAX_REVIEWERS, Decision, Relation, Verdict, person, remark
from coordinator.review.rules import check_turn, says_the_same, seen, waits
from coordinator.review.standing import STATES, Standing, live, opinions, seen_by, standing_of, visible
from coordinator.store import Store
from protocol.errors import UsageError
from protocol.vocabulary import curie, split_curie

_CACHED_ORDERS = 4


class Reviews:
    """Decisions on one study's codes. Safe for threads, and for several processes on one database.

    Args:
        home: the coordinator's; its keys sign each record.
        store: its database.
        library: releases that are open already; opened here when it is left out.
        clock: the time, UTC.

    Who somebody is, and whether they may act as a coordinator, the caller must know.
    """

    def __init__(
        self,
        home: Home,
        store: Store,
        library: Library | None = None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.home, self.log = home, ReviewLog(home, store, clock=clock)
        self._given = library
        self._orders: dict[str, tuple[Entry, ...]] = {}
        self._known: dict[str, Standing] = {}
        self._read = 0

    @cached_property
    def library(self) -> Library:
        """The versions that decisions name."""
        return self._given or Library(self.home)

    # --- Saying something ------------------------------------------------------------------------------

    def decide(
        self,
        *,
        reviewer: str,
        code: str,
        target: str,
        verdict: Verdict,
        comment: str = "",
        version: int | None = None,
        relation: Relation = "",
    ) -> Decision:
        """Say whether a code maps to a target.

        Args:
            reviewer: who says so.
            code: a CURIE outside the standard system.
            target: of the standard system; "" with `accept` for "no standard code is right".
            verdict: `accept`: the code maps to the target; `reject`: it does not; `unsure`.
            comment: why.
            version: the release that was looked at; the newest that stands without it.
            relation: what the target is to the code, where it is accepted and not the same.

        Returns:
            the record; the reviewer's last one where it says exactly this already.

        Raises:
            UsageError: there is no such release, code or target, or the code waits for other reviewers.
        """
        fields = self._decision(reviewer, code, target, verdict, comment, version, relation)

        def make() -> Sequence[Fields]:
            before = self.standing(fields["code"])
            check_turn(before, fields["actor"])
            mine = opinions(before.records).get(fields["actor"])
            if mine is not None and mine.last.kind == "decide" and says_the_same(mine.last, fields):
                return ()
            return (fields,)

        made = self.log.append(make)
        return made[0] if made else opinions(self.standing(fields["code"]).records)[fields["actor"]].last

    def comment(self, *, reviewer: str, code: str, text: str) -> Decision:
        """Say something of a code that is no decision.

        Raises:
            UsageError: nothing is said, or of no code.
        """
        clean = remark(text)
        if not clean:
            raise UsageError("The comment is empty")
        fields = {"kind": "comment", "actor": person(reviewer), "code": self._code(code), "comment": clean}
        return self.log.append(lambda: (fields,))[0]

    def assign(self, *, by: str, code: str, reviewers: Sequence[str]) -> Decision:
        """Ask these reviewers for a code, each blind to the others; nobody ends the assignment.

        Decisions that they have made already count.

        Raises:
            UsageError: a name comes twice, or too many.
        """
        return self.assign_all(by=by, codes=[code], reviewers=reviewers)[0]

    def assign_all(self, *, by: str, codes: Sequence[str], reviewers: Sequence[str]) -> tuple[Decision, ...]:
        """`assign` of several codes, all of them or none."""
        names = tuple(person(name) for name in reviewers)
        if len(set(names)) < len(names) or len(names) > MAX_REVIEWERS:
            raise UsageError(
                f"A code cannot be assigned to {', '.join(names)}",
                why=f"it takes different people, {MAX_REVIEWERS} at most",
            )
        who = person(by)
        fields = [{"kind": "assign", "actor": who, "code": self._code(c), "reviewers": names} for c in codes]
        return self.log.append(lambda: fields)

    def undo(self, *, reviewer: str, number: int, coordinator: bool = False) -> Decision:
        """Take a record back; an undo too.

        Args:
            reviewer: who.
            number: of the record.
            coordinator: they may take back what others said.

        Raises:
            UsageError: there is no such record, it was taken back already, or somebody else made it.
        """
        who = person(reviewer)

        def make() -> Sequence[Fields]:
            found = self._own(number, who, coordinator=coordinator)
            if all(r.number != number for r in live(self.log.of(found.code))):
                raise UsageError(f"Record {number} was taken back already")
            return ({"kind": "undo", "actor": who, "code": found.code, "undoes": number},)

        return self.log.append(make)[0]

    def undo_import(self, *, reviewer: str, number: int, coordinator: bool = False) -> tuple[Decision, ...]:
        """Take back all that was recorded from one file, of which this is one record; args as for `undo`.

        Raises:
            UsageError: as `undo`, or the record is of no import.
        """
        who = person(reviewer)

        def make() -> Sequence[Fields]:
            first = self._own(number, who, coordinator=coordinator)
            if not first.source:
                raise UsageError(f"Record {number} was not imported from a file", do="Undo it by itself")
            mine = [r for r in self.log.records() if (r.source, r.actor) == (first.source, first.actor)]
            standing = {r.number for h in self.log.of_each({r.code for r in mine}).values() for r in live(h)}
            gone = [r for r in mine if r.number in standing]
            if not gone:
                raise UsageError(f"Record {number} was taken back already")
            return [{"kind": "undo", "actor": who, "code": r.code, "undoes": r.number} for r in gone]

        return self.log.append(make)

    def adjudicate(
        self,
        *,
        adjudicator: str,
        code: str,
        target: str,
        verdict: Verdict,
        comment: str = "",
        version: int | None = None,
    ) -> Decision:
        """End a conflict; args as for `decide`.

        Raises:
            UsageError: the code is in no conflict, or the adjudicator is one of those who disagree.
        """
        fields = self._decision(adjudicator, code, target, verdict, comment, version, "")
        fields["kind"] = "adjudicate"

        def make() -> Sequence[Fields]:
            before = self.standing(fields["code"])
            if before.state != "conflict":
                raise UsageError(
                    f"{fields['code']} is not in conflict",
                    why=f"it is {before.state}",
                    do="Decide, or take a record back",
                )
            if fields["actor"] in before.reviewers:
                raise UsageError(
                    f"{fields['actor']} is one of those who disagree on {fields['code']}",
                    do="Somebody else must adjudicate",
                )
            return (fields,)

        return self.log.append(make)[0]

    # --- Asking ----------------------------------------------------------------------------------------

    def history(self, code: str) -> tuple[Decision, ...]:
        """All records of a code, those that were taken back too; for people who may see everything."""
        return self.log.of(self._code(code))

    def history_seen_by(self, reviewer: str, code: str) -> tuple[Decision, ...]:
        """The live records of a code that a reviewer may see, as for `seen_by`."""
        return visible(reviewer, self.history(code))

    def standing(self, code: str) -> Standing:
        """Where a code stands, by all that was said."""
        found = self._code(code)
        return standing_of(found, self.log.of(found))

    def seen_by(self, reviewer: str, code: str) -> Standing:
        """Where a code stands as far as a reviewer may know: blind until they have decided, if it is assigned to them."""
        found = self._code(code)
        return seen_by(reviewer, found, self.log.of(found))

    def standings(self) -> Mapping[str, Standing]:
        """Every code of which something was said."""
        with self.log.lock:
            # Only codes of which something new was said are replayed.
            fresh = self.log.since(self._read)
            for code, records in self.log.of_each({record.code for record in fresh}).items():
                self._known[code] = standing_of(code, records)
            self._read += len(fresh)
            return dict(self._known)

    def conflicts(self) -> tuple[Standing, ...]:
        """Codes on which people disagree and nobody has adjudicated, by code."""
        return tuple(s for _, s in sorted(self.standings().items()) if s.state == "conflict")

    def queue(
        self,
        release: OpenRelease,
        *,
        reviewer: str = "",
        state: str = "open",
        systems: Collection[str] = (),
        limit: int = 50,
        offset: int = 0,
    ) -> list[Task]:
        """What to look at, conflicts first, then by doubt (`queue.doubts`), then by code.

        Args:
            release: whose codes.
            reviewer: what this person can do something about, and as they may see it: no code that is assigned to others, or that
                they have decided, and no conflict that they are part of. "" for all.
            state: `open`, which shows conflicts too; `accepted`, `rejected`, `unsure`, `conflict`, or `all`.
            systems: prefixes; all if empty.
            limit: tasks of one page.
            offset: tasks before it.

        Raises:
            UsageError: there is no such state or system, or the page is too large.
        """
        if state not in {*STATES, "all"}:
            raise UsageError(f"There is no state {state!r}", do=f"Take one of {', '.join(STATES)}, all")
        if not 1 <= limit <= MAX_PAGE or offset < 0:
            raise UsageError(f"A page has 1 to {MAX_PAGE:,} tasks, and none before the first")
        wanted = release.prefixes(systems, ()) if systems else frozenset()
        known = {code: self._as_seen(reviewer, standing) for code, standing in self.standings().items()}
        first: list[Entry] = []
        rest: list[Entry] = []
        for entry in self._by_doubt(release):
            if wanted and entry.system not in wanted:
                continue
            standing = known.get(entry.code)
            if not waits(standing, state, reviewer):
                continue
            (first if standing is not None and standing.state == "conflict" else rest).append(entry)
        page = [*first, *rest][offset : offset + limit]
        doubt = doubts([e.probability for e in page])
        return [
            Task(e.code, e, known.get(e.code) or Standing(e.code), float(bits))
            for e, bits in zip(page, doubt, strict=True)
        ]

    def progress(self, release: OpenRelease) -> Progress:
        """How far the review of a release is."""
        known, counts = self.standings(), dict.fromkeys(STATES, 0)
        for entry in release.map.mappings:
            standing = known.get(entry.code)
            counts[standing.state if standing else "open"] += 1
        return Progress(counts, len(release.map.mappings), self._read)

    def verify(self) -> VerifiedLog:
        """Check every record of the log; see `ReviewLog.verify`."""
        return self.log.verify()

    # --- Details ---------------------------------------------------------------------------------------

    def _as_seen(self, reviewer: str, standing: Standing) -> Standing:
        """`seen_by`, for those alone to whom it is not the whole."""
        return self.seen_by(reviewer, standing.code) if reviewer in standing.assigned else standing

    def _by_doubt(self, release: OpenRelease) -> tuple[Entry, ...]:
        key = release.manifest.digest
        found = self._orders.get(key)
        if found is None:
            entries = release.map.mappings
            bits = doubts([e.probability for e in entries])
            order = sorted(range(len(entries)), key=lambda i: (-bits[i], entries[i].code))
            found = tuple(entries[i] for i in order)
            while len(self._orders) >= _CACHED_ORDERS:
                with suppress(KeyError, StopIteration):
                    self._orders.pop(next(iter(self._orders)))
            self._orders[key] = found
        return found

    def _own(self, number: int, actor: str, *, coordinator: bool) -> Decision:
        """A record that this person may take back."""
        records = self.log.records()
        if not 1 <= number <= len(records):
            raise UsageError(f"The review log has no record {number}", why=f"it has {len(records)}")
        found = records[number - 1]
        if found.actor != actor and not coordinator:
            raise UsageError(
                f"Record {number} was made by somebody else",
                do="Only they, or a coordinator, can take it back",
            )
        return found

    def _code(self, code: str) -> str:
        """A CURIE of the study, outside its standard system."""
        study, clean = self.home.study, curie(*split_curie(code))
        prefix = split_curie(clean)[0]
        if prefix == study.standard:
            raise UsageError(
                f"{clean} is a standard code",
                why="it is its own target",
                do="Review the codes that map to it",
            )
        study.system(prefix)
        return clean

    def _target(self, code: str, target: str, verdict: str) -> str:
        study, standard = self.home.study, self.home.study.standard
        if not target:
            if verdict == "reject":
                raise UsageError("Nothing is rejected", do="Name the target that is wrong")
            return ""
        clean = curie(*split_curie(target))
        if split_curie(clean)[0] != standard:
            raise UsageError(f"The target {clean} is not of the standard system {standard}")
        kind, other = (study.system(split_curie(c)[0]).category for c in (code, clean))
        if kind != other:
            raise UsageError(
                f"{code} is a {kind} and {clean} a {other}", why="no code means one of another category"
            )
        return clean

    def _decision(
        self,
        actor: str,
        code: str,
        target: str,
        verdict: str,
        comment: str,
        version: int | None,
        relation: Relation,
    ) -> dict[str, Any]:
        """Fields of a decision, with what the release said then."""
        if verdict not in {"accept", "reject", "unsure"}:
            raise UsageError(f"There is no verdict {verdict!r}", do="Say accept, reject or unsure")
        clean = self._code(code)
        fields: dict[str, Any] = {
            "kind": "decide",
            "actor": person(actor),
            "code": clean,
            "target": self._target(clean, target, verdict),
            "verdict": verdict,
            "comment": remark(comment),
            "relation": relation if verdict == "accept" and target else "",
        }
        found = self.library.version(version)
        release = self.library.open(found.number)
        entry = release.entries.get(clean)
        if entry is None:
            raise UsageError(f"Version {found.number} has no code {clean}")
        return fields | seen(found.number, release, entry)
