"""What the coordinator has countersigned of a site's ledger.

Each release carries the ledger's head, and each signed call names the head that the coordinator
saw last. So the coordinator's signature stands under all entries up to that one: a ledger that was
cut short or rewritten no longer holds the head. The calls are kept, as proof.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from protocol.canonical import digest
from protocol.errors import EnvelopeError, FederationError
from protocol.files import write_atomic
from protocol.keys import PublicKeys
from protocol.messages import RoundCall
from protocol.signed import open_signed
from site_agent.ledger import Entry, Ledger

FOLDER = "countersigned"
_EVENT = "countersigned"


def check_and_note(folder: Path, ledger: Ledger, call: RoundCall, data: bytes, site: str) -> None:
    """Hold a call against the ledger, and keep it if it countersigns entries that none did before.

    Args:
        folder: the site's home.
        ledger: of the site.
        call: verified.
        data: its signed bytes.
        site: our name in it.

    Raises:
        FederationError: the ledger is broken, or does not hold the head that the coordinator has seen.
    """
    head = call.ledger_heads.get(site, "")
    if not head:
        return
    entries = ledger.verify()
    number = next((e.number for e in entries if e.head == head), 0)
    if not number:
        raise FederationError(
            f"The ledger {ledger.path} does not hold the entry that the coordinator has seen last",
            why=f"its head {head[:16]} is in no line: the ledger was cut short, rewritten or restored from an old backup",
            do="Restore the newest ledger.jsonl and tell your security officer; nothing is sealed until then",
        )
    if number <= last_number(entries):
        return
    name = digest(data)
    write_atomic(folder / FOLDER / f"{name}.json", data)
    ledger.append(_EVENT, entry=number, head=head, round=call.round, call=name)


def last_number(entries: Sequence[Entry]) -> int:
    """The last entry that the ledger itself calls countersigned; 0 for none."""
    return max((int(e.facts.get("entry", 0)) for e in entries if e.event == _EVENT), default=0)


def proved(folder: Path, entries: Sequence[Entry], *, coordinator: Sequence[PublicKeys], site: str) -> int:
    """The last entry that a kept call of the coordinator countersigns; 0 for none.

    Args:
        folder: the site's home.
        entries: of its ledger.
        coordinator: the coordinator's keys, past ones too.
        site: our name in the calls.

    Raises:
        FederationError: an entry says that a call countersigned it, and no kept call does.
    """
    best = 0
    for entry in entries:
        if entry.event != _EVENT:
            continue
        number, name = int(entry.facts.get("entry", 0)), str(entry.facts.get("call"))
        try:
            call = _opened(_call(folder, name), coordinator)
            holds = 0 < number < entry.number and call.ledger_heads.get(site) == entries[number - 1].head
        except (FederationError, OSError):
            holds = False
        if not holds:
            raise FederationError(
                f"Entry {entry.number} of the ledger is not proved by the call that it names",
                why=f"{folder / FOLDER / name}.json is missing or altered, or countersigns something else",
                do="Restore the folder from your backup, or have the coordinator give you the call of that round",
            )
        best = max(best, number)
    return best


def _opened(data: bytes, coordinator: Sequence[PublicKeys]) -> RoundCall:
    """The call, signed by any of these keys."""
    for keys in coordinator[:-1]:
        with contextlib.suppress(EnvelopeError):
            return open_signed(data, RoundCall, keys)
    return open_signed(data, RoundCall, coordinator[-1])


def _call(folder: Path, name: str) -> bytes:
    if not (len(name) == 64 and set(name) <= set("0123456789abcdef")):
        return b""
    return (folder / FOLDER / f"{name}.json").read_bytes()
