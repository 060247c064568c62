"""When what a site remembers of a release is lost: a signer's decision that releases go on.

Two releases of a site can be subtracted, and what stops that is what the site remembers of the earlier one
(`site_agent.released`). Without it no program can tell how many patients have changed since. A person may know it: that a
year of events has come, or that another extract of the warehouse is used. This person signs the number, and why.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, Field

from protocol.errors import FederationError, UsageError
from protocol.keyfile import Passphrase
from protocol.messages import HexDigest, Message
from protocol.sections import Identifier
from protocol.signed import open_signed, sign_message
from site_agent.ledger import Ledger
from site_agent.signers import standing
from site_agent.state import load_state

if TYPE_CHECKING:
    from site_agent.agent import Agent

_EVENT = "memory-lost"


class MemoryLost(Message):
    """A signer's decision about one release that this site does not remember."""

    release: HexDigest = Field(description="Digest of the manifest of that release.")
    patients: int = Field(ge=0, description="Whose events have surely changed since, at least.")
    because: str = Field(min_length=10, max_length=1000)
    by: Identifier
    at: AwareDatetime


def decide(agent: Agent, by: str, patients: int, because: str, passphrase: Passphrase) -> MemoryLost:
    """Sign the decision into the ledger.

    Args:
        agent: of the site.
        by: the signer.
        patients: whose events have surely changed since the release that is not remembered, at least.
        because: what was lost, and how the number is known.
        passphrase: of the signer's key.

    Raises:
        UsageError: nothing is lost, there is no such signer, the number is below the minimum of a next release, or there
            is no reason.
        KeyFileError: a wrong passphrase.
    """
    from site_agent.released import remembered  # noqa: PLC0415 - the libraries of counting take 100 MB

    home = agent.home
    release, least = load_state(home.folder).accepted_digest, home.policy().min_changed_patients
    if not release or release in {r.digest for r in remembered(home.folder)}:
        raise UsageError(
            "This site remembers all that it must of its last accepted release", do="Run site-agent preview"
        )
    if patients < least:
        raise UsageError(
            f"{patients:,} changed patients are too few for a next release",
            why=f"the least is {least:,}: with fewer, two releases could be subtracted",
            do=f"Restore {home.folder / 'released'} from a backup, or wait until more patients' events have changed",
        )
    if not 10 <= len(because) <= 1000:
        raise UsageError(
            "The reason must have 10 to 1,000 characters", do="Say what was lost, and how the number is known"
        )
    keys = agent.signers.unlock(by, passphrase)
    decision = MemoryLost(release=release, patients=patients, because=because, by=by, at=datetime.now(UTC))
    with agent.locked():
        signed = sign_message(decision, keys).decode()
        agent.ledger.append(
            _EVENT, by=by, release=release, patients=patients, because=because, decision=signed
        )
    return decision


def decided(folder: Path) -> frozenset[str]:
    """Digests of the releases about which a signer has decided; every signature is checked.

    Raises:
        FederationError: the ledger is broken, or a decision does not hold.
    """
    entries = Ledger(folder / "ledger.jsonl").verify()
    found = set()
    for entry in entries:
        if entry.event != _EVENT:
            continue
        by = str(entry.facts.get("by"))
        keys = standing(entries[: entry.number - 1]).signers.get(by)
        if keys is None:
            raise FederationError(
                f"Entry {entry.number} of the ledger, {_EVENT}, does not hold",
                why="nobody of this name is a signer",
                do="Find out who wrote there, and restore ledger.jsonl from your backup",
            )
        decision = open_signed(str(entry.facts.get("decision")).encode(), MemoryLost, keys)
        found.add(decision.release)
    return frozenset(found)
