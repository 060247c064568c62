"""Keys and signers of a site before its first release: who may approve, and how old each key is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from site_agent.config import Home
from site_agent.doctor.findings import Result
from site_agent.ledger import Entry, Ledger
from site_agent.signers import standing

YEAR = 365
"""Days after which a key should be changed."""
_MADE = {"key-made", "keys-changed"}


def site_key(home: Home, now: datetime) -> tuple[Result, str]:
    """The site's key: its fingerprint and age.

    Raises:
        KeyFileError: it is missing, does not open, or is open to other users.
        FederationError: the ledger, which tells the age, does not hold.
    """
    said = f"fingerprint {home.keys.public().fingerprint}"
    made = [e.time for e in _entries(home) if e.event in _MADE]
    if not made:
        return "look", f"{said}; the ledger does not tell when it was made"
    days = _days(made[-1], now)
    if days < YEAR:
        return "ok", f"{said}, {_age(days)}"
    return "look", f"{said}, {_age(days)}. Change it once a year: site-agent keys rotate"


def signers(home: Home, now: datetime) -> tuple[Result, str]:
    """How many may approve a release, how many it needs, and the age of each one's key; nobody is named.

    Raises:
        FederationError: the ledger does not hold.
    """
    needed, found = home.config.approval.signers, standing(_entries(home))
    if not found.signers:
        return "look", f"nobody may approve a release, {needed} must: site-agent signer add NAME"
    days = sorted(_days(since, now) for since in found.since.values())
    said = f"{len(days)} may approve, {needed} must; their keys: {'; '.join(map(_age, days))}"
    if len(days) < needed:
        return (
            "look",
            f"{said}. No release can be approved before there are {needed}: site-agent signer add NAME",
        )
    if days[-1] >= YEAR:
        return "look", f"{said}. Give a signer a new key once a year: site-agent signer remove, then add"
    return "ok", said


def _entries(home: Home) -> Sequence[Entry]:
    return Ledger(home.folder / "ledger.jsonl").verify()


def _days(since: str, now: datetime) -> int:
    return max(0, (now - datetime.fromisoformat(since)).days)


def _age(days: int) -> str:
    return "made today" if days == 0 else f"{days:,} day{'s' * (days > 1)} old"
