"""The keys of the other sites: offered by the coordinator, trusted only after people compared them.

The coordinator is the party against whom a secure sum protects, so its word on who the other
sites are is worth nothing: with keys of its own making it would be every other site of a sum. A
person therefore compares one fingerprint of the whole list with people at the other sites, by
telephone, and pins the list with one command. There is no trust on first use.
"""

from __future__ import annotations

from pathlib import Path

from protocol.errors import FederationError, ProtocolError, UsageError
from protocol.files import write_atomic
from protocol.signed import parse
from protocol.sums import Roster, roster_differences
from site_agent.config import Home
from site_agent.ledger import Ledger

_DIGITS = 40


def offered_path(home: Home) -> Path:
    """The coordinator's latest list."""
    return home.folder / "sums" / "roster.offered.json"


def offer(home: Home, roster: Roster) -> None:
    """Keep the coordinator's list, for people to compare.

    Raises:
        ProtocolError: it names another key of this site than its own, or another study.
    """
    check_own(home, roster)
    if not offered_path(home).exists() or offered(home) != roster:
        write_atomic(offered_path(home), roster.model_dump_json())


def offered(home: Home) -> Roster:
    """The coordinator's latest list.

    Raises:
        UsageError: none has arrived.
    """
    return read_roster(offered_path(home))


def read_roster(path: Path) -> Roster:
    """A list in a file.

    Raises:
        UsageError: there is none.
        ProtocolError: it is no such list.
    """
    try:
        return parse(path.read_bytes(), Roster)
    except FileNotFoundError:
        raise UsageError(
            f"There is no roster {path}", do="It comes with the coordinator's first proposal of a sum"
        ) from None


def check_own(home: Home, roster: Roster) -> None:
    """Return only if the list is of this study and names this site's own key.

    Raises:
        ProtocolError: it is not, or does not.
    """
    site = home.config.site
    if roster.study_digest != home.study.digest or roster.keys.get(site) != home.keys.public():
        raise ProtocolError(
            f"The roster is of another study, or names another key of {site} than ours",
            do="Ask the coordinator which enrolment file it has; do not trust this roster",
        )


def trust(home: Home, roster: Roster, told: str) -> None:
    """Pin a list whose fingerprint people at the other sites have read out.

    Args:
        home: the site.
        roster: the list.
        told: all forty hex digits, with or without spaces.

    Raises:
        UsageError: the digits are another list's.
        ProtocolError: see `check_own`.
    """
    check_own(home, roster)
    digits = "".join(told.split()).lower()
    if len(digits) != _DIGITS or not roster.digest.startswith(digits):
        raise UsageError(
            f"The roster has fingerprint {roster.fingerprint}, not the one given",
            why="all forty digits must agree",
            do="Compare it again with a person at another site; do not trust it if the two differ",
        )
    # The file first: a list that no entry names is not trusted.
    write_atomic(_trusted_path(home), roster.model_dump_json())
    _ledger(home).append("roster-trusted", roster=roster.digest, sites=len(roster.keys))


def trusted(home: Home) -> Roster | None:
    """The list that the ledger's last entry of trust names; None before a person trusted one.

    Raises:
        FederationError: the ledger does not hold, or the file is not the list that it names.
    """
    pinned = [e.facts.get("roster") for e in _ledger(home).verify() if e.event == "roster-trusted"]
    if not pinned:
        return None
    found = read_roster(_trusted_path(home))
    if found.digest != pinned[-1]:
        raise FederationError(
            f"The trusted roster {_trusted_path(home)} is not the one that the ledger names",
            why="it was replaced or altered",
            do="Find out who wrote there; compare the roster anew and trust it again",
        )
    return found


def differences(home: Home, roster: Roster) -> list[str]:
    """In what the pinned list and another one differ; a list that was never pinned differs in all."""
    pinned = trusted(home)
    return roster_differences(pinned, roster.keys) if pinned else ["no roster is trusted here yet"]


def _trusted_path(home: Home) -> Path:
    return home.folder / "roster.json"


def _ledger(home: Home) -> Ledger:
    return Ledger(home.folder / "ledger.jsonl")
