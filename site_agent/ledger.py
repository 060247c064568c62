"""Append-only, hash-chained record of what was decided and of everything that left the site.

One JSON object a line; `previous` is the SHA-256 of the line before it, so a line that is changed,
removed or put in between breaks the chain. Cutting off the end leaves a shorter chain that holds:
that shows because the head travels in every envelope's header, and the coordinator signs in its
calls the last head that it has seen (`site_agent.countersigned`).

The ledger is written before the deed: an entry says that something may have happened, and nothing
happens without one. It is also the site's only memory of signers and approvals (`site_agent.signers`).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from protocol.canonical import canonical_json, digest
from protocol.errors import FederationError

_BLOCK = 1 << 16


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        number: of the line, from 1 on.
        head: SHA-256 of the line, in hex.
        previous: that of the line before; empty for the first.
        time: UTC, ISO 8601, to the second.
        event: what happened.
        facts: everything else that the line says.
    """

    number: int
    head: str
    previous: str
    time: str
    event: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Ledger:
    """The ledger file of one site; safe to use from several processes at once."""

    path: Path

    def append(self, event: str, **facts: Any) -> str:
        """Add an entry; it is on the disk when this returns.

        A last line that is incomplete, because the machine stopped while it was written, is cut off
        first. Its `append` never returned, so nothing was done for it. An entry `recovered` says so.

        Returns:
            the new head, SHA-256 in hex.

        Raises:
            FederationError: the entry cannot be written; the ledger is as it was before.
        """
        with self._open(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as descriptor:
            end = _end(descriptor)
            if torn := os.pread(descriptor, os.fstat(descriptor).st_size - end, end):
                os.ftruncate(descriptor, end)
                self._write(descriptor, "recovered", {"bytes": len(torn), "sha256": digest(torn)})
            return self._write(descriptor, event, facts)

    def head(self) -> str:
        """SHA-256 of the last whole line, without reading those before it; empty for a new ledger."""
        if not self.path.exists():
            return ""
        with self._open(os.O_RDONLY, fcntl.LOCK_SH) as descriptor:
            return _head(descriptor)

    def torn(self) -> int:
        """Bytes of an incomplete last line: 0, or what the next entry will cut off."""
        if not self.path.exists():
            return 0
        with self._open(os.O_RDONLY, fcntl.LOCK_SH) as descriptor:
            return os.fstat(descriptor).st_size - _end(descriptor)

    def verify(self) -> tuple[Entry, ...]:
        """All entries, if each names the line before it; an incomplete last line is none.

        Raises:
            FederationError: a line was changed, removed or put in between.
        """
        if not self.path.exists():
            return ()
        with (
            self._open(os.O_RDONLY, fcntl.LOCK_SH) as descriptor,
            os.fdopen(os.dup(descriptor), "rb") as stream,
        ):
            lines = stream.read().split(b"\n")[:-1]
        return chain(lines, str(self.path))

    def _write(self, descriptor: int, event: str, facts: Mapping[str, Any]) -> str:
        end = _end(descriptor)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = canonical_json({**facts, "previous": _head(descriptor), "time": now, "event": event})
        view = memoryview(line + b"\n")
        try:
            at = end
            while view:
                written = os.pwrite(descriptor, view, at)
                view, at = view[written:], at + written
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, end)
            raise FederationError(
                f"The ledger {self.path} cannot be written",
                why=error.strerror or "",
                do="Free space, or mend the disk; nothing is done without an entry in the ledger",
            ) from None
        return digest(line)

    @contextmanager
    def _open(self, flags: int, lock: int) -> Iterator[int]:
        descriptor = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, lock)
            yield descriptor
        finally:
            os.close(descriptor)


def chain(lines: list[bytes], name: str) -> tuple[Entry, ...]:
    """The entries of a ledger's lines, if each names the line before it.

    Args:
        name: of the ledger, for the error.

    Raises:
        FederationError: a line was changed, removed or put in between.
    """
    entries: list[Entry] = []
    previous = ""
    for number, line in enumerate(lines, start=1):
        facts = _parsed(line)
        if facts.pop("previous", None) != previous or "event" not in facts or "time" not in facts:
            raise FederationError(
                f"The ledger {name} is broken at line {number}",
                why="the line does not name the one before it",
                do="Restore the file from your backup and tell your security officer",
            )
        head, time, event = digest(line), str(facts.pop("time")), str(facts.pop("event"))
        entries.append(Entry(number, head, previous, time, event, facts))
        previous = head
    return tuple(entries)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _end(descriptor: int) -> int:
    """Where the last whole line ends, its newline included."""
    at = os.fstat(descriptor).st_size
    while at:
        start = max(at - _BLOCK, 0)
        found = os.pread(descriptor, at - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        at = start
    return 0


def _head(descriptor: int) -> str:
    end = _end(descriptor)
    data, at = b"", end
    while at and b"\n" not in data[:-1]:
        start = max(at - _BLOCK, 0)
        data, at = os.pread(descriptor, at - start, start) + data, start
    return digest(data[:-1].rpartition(b"\n")[2]) if data else ""
