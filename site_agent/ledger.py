"""Append-only, hash-chained record of what was decided and what left the site.

One JSON object a line; `previous` is the SHA-256 of the line before it. The
head travels in every envelope's header, so a ledger that is cut short or
rewritten no longer matches what the coordinator has seen.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from protocol.canonical import canonical_json, digest
from protocol.errors import FederationError


@dataclass(frozen=True)
class Ledger:
    """The ledger file of one site."""

    path: Path

    def append(self, event: str, **facts: str | int) -> str:
        """Add an entry; it is on the disk when this returns.

        Returns:
            the new head, SHA-256 in hex.

        Raises:
            FederationError: the ledger's last line is damaged.
        """
        entry = {
            "previous": self.head(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "event": event,
            **facts,
        }
        line = canonical_json(entry)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return digest(line)

    def head(self) -> str:
        """SHA-256 of the last line; empty for a new ledger."""
        lines = self._lines()
        return digest(lines[-1]) if lines else ""

    def verify(self) -> list[dict[str, Any]]:
        """All entries, if each names the line before it.

        Raises:
            FederationError: a line was changed, removed or added in between.
        """
        entries, previous = [], ""
        for number, line in enumerate(self._lines(), start=1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {}
            if not isinstance(entry, dict) or entry.get("previous") != previous:
                raise FederationError(
                    f"The ledger {self.path} is broken at line {number}",
                    why="the line does not name the one before it",
                    do="Restore the file from your backup and tell your security officer",
                )
            entries.append(entry)
            previous = digest(line)
        return entries

    def _lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):
            raise FederationError(
                f"The last line of the ledger {self.path} is incomplete",
                why="the machine stopped while it was written",
                do="Remove the incomplete last line; nothing left the site for it",
            )
        return data.splitlines()
