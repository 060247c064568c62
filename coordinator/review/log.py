"""The review log: signed records in the coordinator's database, each with the digest of the one before.

Whoever appends moves the row of the log's head on, in the same transaction, if it still stands where their records begin: two
writers cannot both follow one record. Reading checks the chain and the last signature, which covers all records before it;
`verify` checks each signature. A file in the home folder remembers how far the log was: records that are missing at its end
are missed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from coordinator.config import Home
from coordinator.review.record import Decision
from coordinator.store import Store
from coordinator.tables import ReviewHead, ReviewRecord
from protocol.canonical import canonical_json
from protocol.errors import FederationError, KeyFileError, ProtocolError, StoreError
from protocol.files import write_atomic
from protocol.keylist import VerifiedKeys
from protocol.keys import PrivateKeys, PublicKeys
from protocol.locking import exclusive
from protocol.rotation import present
from protocol.signed import open_signed, peek, sign_message

_HEAD = 1
_TRIES, _FREELY = 8, 3
_RESTORE = (
    "Restore the coordinator's database from a backup; until then no decision is used and none is taken"
)
Fields = Mapping[str, Any]


class _MovedOnError(Exception):
    """Somebody else has appended meanwhile."""


@dataclass(frozen=True)
class VerifiedLog:
    """A log whose every record was checked.

    Attributes:
        records: how many.
        head: digest of the last one; "" without any.
        doubtful: numbers of records that bear the signature of a key after it was lost: somebody else may have made them.
    """

    records: int
    head: str
    doubtful: tuple[int, ...] = ()


class ReviewLog:
    """The records of one study's coordinator. Safe for threads, and for several processes on one database.

    Args:
        home: whose keys sign.
        store: its database.
        clock: the time, UTC.
    """

    def __init__(
        self, home: Home, store: Store, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.home, self.store, self._clock = home, store, clock
        self.lock = RLock()
        self._records: list[Decision] = []
        self._of: defaultdict[str, list[Decision]] = defaultdict(list)
        self._trust: VerifiedKeys | None = None
        self._appending = False

    # --- Reading ---------------------------------------------------------------------------------------

    def records(self) -> tuple[Decision, ...]:
        """All of them, the first one first.

        Raises:
            ProtocolError: a record was altered, dropped or moved.
            EnvelopeError: the last signature does not hold.
        """
        return self.since(0)

    def since(self, number: int) -> tuple[Decision, ...]:
        """The records after this one; raises as `records`."""
        with self.lock:
            self._refresh()
            return tuple(self._records[number:])

    def of(self, code: str) -> tuple[Decision, ...]:
        """The records of one code, the first one first; raises as `records`."""
        with self.lock:
            self._refresh()
            return tuple(self._of.get(code, ()))

    def of_each(self, codes: Iterable[str]) -> dict[str, tuple[Decision, ...]]:
        """`of` for several codes at once."""
        with self.lock:
            self._refresh()
            return {code: tuple(self._of.get(code, ())) for code in codes}

    def _refresh(self) -> None:
        if not self._appending:  # else nobody else can append, and what there is was read
            with self.store.begin() as session:
                self._read_on(session)

    def verify(self) -> VerifiedLog:
        """Read the whole log again and check every signature.

        Raises:
            ProtocolError: a record was altered, dropped, moved, or taken from another study.
            EnvelopeError: a signature does not hold.
        """
        with self.lock, self.store.begin() as session:
            self._trust = None
            marks, rows = self._marks(session), _rows(session, after=0)
            found = self._chained(None, rows)
            for record, (_, data) in zip(found, rows, strict=True):
                open_signed(data, Decision, self._signer(record.signer))
            _check_marks(marks, found)
            revoked = self._trusted().revoked
            doubtful = tuple(r.number for r in found if r.signer in revoked and r.at >= revoked[r.signer])
            return VerifiedLog(len(found), found[-1].digest if found else "", doubtful)

    def _read_on(self, session: Session) -> None:
        """Take in what was appended since; what was taken in before is not checked again."""
        # The marks first: others may append between the two statements.
        marks, rows = self._marks(session), _rows(session, after=len(self._records))
        found = self._chained(self._records[-1] if self._records else None, rows)
        if found:
            open_signed(rows[-1][1], Decision, self._signer(found[-1].signer))
        _check_marks(marks, [*self._records, *found] if found else self._records)
        self._take(found)

    def _marks(self, session: Session) -> tuple[tuple[int, str], ...]:
        """Number and digest of records that the log must have: its own head, and what the home folder remembers."""
        head = session.execute(
            select(ReviewHead.number, ReviewHead.digest).where(ReviewHead.id == _HEAD)
        ).first()
        return (0, "") if head is None else (head.number, head.digest), _remembered(self._path)

    def _take(self, found: Sequence[Decision]) -> None:
        for record in found:
            self._records.append(record)
            self._of[record.code].append(record)

    def _chained(self, last: Decision | None, rows: Sequence[tuple[int, bytes]]) -> list[Decision]:
        """The records, if each follows the one before; their signatures are not checked here."""
        found: list[Decision] = []
        for number, data in rows:
            record = peek(data, Decision)
            expected = (last.number + 1, last.digest) if last else (1, "")
            if (record.number, record.previous) != expected or number != record.number:
                raise ProtocolError(
                    f"Record {number} of the review log does not follow record {expected[0] - 1}",
                    why="a record was altered, dropped or moved",
                    do=_RESTORE,
                )
            if record.study != self.home.study.id or (last is not None and record.at < last.at):
                raise ProtocolError(
                    f"Record {number} of the review log does not belong there",
                    why=f"it is of study {record.study} and of {record.at:%Y-%m-%d %H:%M:%S}",
                    do=_RESTORE,
                )
            found.append(record)
            last = record
        return found

    # --- Keys ------------------------------------------------------------------------------------------

    def _trusted(self) -> VerifiedKeys:
        if self._trust is None:
            self._trust = self.home.identity.trust(self.home.keys.public())
        return self._trust

    def _signer(self, key: str) -> PublicKeys:
        """The coordinator's keys of this digest, present or past: what they signed when they were in use stands."""
        for _ in range(2):
            found = next((k for k in self._trusted().listed if k.digest == key), None)
            if found is not None:
                return found
            self._trust = None  # the keys may have been changed since
        raise ProtocolError(
            f"A record of the review log is signed by {key[:12]}, which was never this coordinator's key",
            do=_RESTORE,
        )

    # --- Writing ---------------------------------------------------------------------------------------

    def append(self, make: Callable[[], Sequence[Fields]]) -> tuple[Decision, ...]:
        """Append records, all of them or none.

        Args:
            make: their fields, by what the log says; called again where somebody else has appended meanwhile. What it raises ends
                the transaction without a trace.

        Raises:
            FederationError: the database takes nothing, or other writers kept the log busy.
            KeyFileError: the coordinator's keys were changed while this program ran.
            ProtocolError, EnvelopeError: the log is damaged.
        """
        reason = "others are writing to it"
        with self.lock:
            for turn in range(_TRIES):
                try:
                    # Signing many records takes long: first without keeping others from the database, then not to wait for ever.
                    found = self._append(make) if turn < _FREELY else self._append_alone(make)
                except _MovedOnError:
                    continue
                except (IntegrityError, StoreError) as error:
                    reason = str(error.orig) if isinstance(error, IntegrityError) else error.why
                    continue
                self._take(found)
                if found:
                    self._remember(found[-1])
                return tuple(found)
        raise FederationError(
            "The review log cannot be written", why=reason, do="Nothing was stored; try again"
        )

    def _append(self, make: Callable[[], Sequence[Fields]]) -> list[Decision]:
        """Make and sign records after what is there, and store them if nobody has appended meanwhile."""
        self._refresh()
        found, rows = self._signed(make)
        if found:
            with self.store.begin() as session:
                self._store(session, found, rows)
        return found

    def _append_alone(self, make: Callable[[], Sequence[Fields]]) -> list[Decision]:
        """The same while nobody else can append."""
        with self.store.begin() as session:
            session.execute(update(ReviewHead).where(ReviewHead.id == _HEAD).values(number=ReviewHead.number))
            self._read_on(session)
            found, rows = self._signed(make)
            if found:
                self._store(session, found, rows)
        return found

    def _signed(self, make: Callable[[], Sequence[Fields]]) -> tuple[list[Decision], list[dict[str, Any]]]:
        """New records after the last one that was read, and their rows."""
        self._appending = True
        try:
            drafts = make()
        finally:
            self._appending = False
        found: list[Decision] = []
        rows: list[dict[str, Any]] = []
        if not drafts:
            return found, rows
        keys, last = self._signing_keys(), self._records[-1] if self._records else None
        at = self._clock().astimezone(UTC)
        at = max(at, last.at) if last else at
        number, previous = (last.number, last.digest) if last else (0, "")
        common = {"study": self.home.study.id, "at": at, "signer": keys.public().digest}
        for draft in drafts:
            number += 1
            record = Decision(number=number, previous=previous, **common, **draft)
            previous = record.digest
            found.append(record)
            rows.append({"number": number, "signed": sign_message(record, keys)})
        return found, rows

    def _store(self, session: Session, found: Sequence[Decision], rows: Sequence[dict[str, Any]]) -> None:
        """Store records if the log still ends where they begin."""
        before, after = found[0], {"number": found[-1].number, "digest": found[-1].digest}
        at = (ReviewHead.number == before.number - 1, ReviewHead.digest == before.previous)
        moved = session.execute(update(ReviewHead).where(ReviewHead.id == _HEAD, *at).values(**after))
        if moved.rowcount == 0:  # type: ignore[attr-defined]
            if before.number > 1 or session.get(ReviewHead, _HEAD) is not None:
                raise _MovedOnError
            session.execute(insert(ReviewHead).values(id=_HEAD, **after))
        session.execute(insert(ReviewRecord), rows)

    def _signing_keys(self) -> PrivateKeys:
        keys, listed = self.home.keys, self.home.identity.key_list()
        if listed is not None and present(listed) != keys.public():
            raise KeyFileError(
                "The coordinator's keys were changed while this program ran",
                do="Nothing was stored; start it again",
            )
        return keys

    @property
    def _path(self) -> Path:
        return self.home.folder / "review-head.json"

    def _remember(self, last: Decision) -> None:
        with exclusive(self._path.with_suffix(".lock")):
            if _remembered(self._path)[0] < last.number:
                write_atomic(self._path, canonical_json({"number": last.number, "digest": last.digest}))


def _rows(session: Session, *, after: int) -> list[tuple[int, bytes]]:
    query = select(ReviewRecord.number, ReviewRecord.signed).where(ReviewRecord.number > after)
    return [
        (number, signed if isinstance(signed, bytes) else str(signed).encode())
        for number, signed in session.execute(query.order_by(ReviewRecord.number))
    ]


def _check_marks(marks: Sequence[tuple[int, str]], found: Sequence[Decision]) -> None:
    """The log still has the records that it was known to have."""
    for number, mark in marks:
        if number > len(found) or (number and found[number - 1].digest != mark):
            raise ProtocolError(
                f"The review log ends at record {len(found)}, and record {number} was written",
                why="records are missing at its end, or others stand in their place",
                do=_RESTORE,
            )


def _remembered(path: Path) -> tuple[int, str]:
    """Number and digest of the last record that was written from this folder."""
    try:
        plain = json.loads(path.read_bytes())
        return int(plain["number"]), str(plain["digest"])
    except FileNotFoundError:
        return 0, ""
    except (OSError, ValueError, KeyError, TypeError):
        raise ProtocolError(
            f"{path} cannot be read", why="it says how long the review log is", do=_RESTORE
        ) from None
