"""How a site is, at a glance: read from its files and from what the kernel shows, with the agent running or not.

Nothing is written, and no lock is taken: a file that is being written may be seen before or after, which is as good. What this
account may not read is said, not guessed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from protocol.canonical import digest, fingerprint
from protocol.errors import FederationError
from protocol.keylist import KeyVersion
from protocol.messages import RoundCall
from protocol.signed import open_signed
from site_agent import keys
from site_agent.alive import lock_holder, program_number
from site_agent.config import Home
from site_agent.exchange import Exchange, SiteStatus
from site_agent.ledger import Entry, chain
from site_agent.signers import Standing, standing
from site_agent.state import SiteState, load_state

Level = Literal["broken", "person", "unknown"]
AgentState = Literal["runs", "does not run", "has never run", "not known"]

LOW_DISK, NO_DISK = 10 << 30, 1 << 30
"""Bytes free below which a person should look; below which a round will fail: a release may have 4 GiB."""
OLD_KEYS_DAYS = 365
_DO = {
    "preparing": "Run site-agent preview, then site-agent approve",
    "awaiting-approval": "Look at site-agent preview, then run site-agent approve",
    "refused": "Read the reason; the coordinator sees it too",
}


@dataclass(frozen=True)
class Note:
    """Something that a person should know: broken, waiting for a person, or not readable from here."""

    level: Level
    what: str
    do: str = ""


@dataclass(frozen=True)
class RoundHere:
    """A round as this site sees it."""

    round: str
    state: str
    detail: str
    since: datetime | None
    until: datetime | None
    do: str


@dataclass(frozen=True)
class ReleaseHere:
    """The release that was prepared last, as the ledger has it."""

    sequence: int
    digest: str
    prepared: str
    approved_by: tuple[str, ...]
    approvals_needed: int
    sealed_for: tuple[str, ...]


@dataclass
class Status:
    """All of it; None is what is not known, or is not there yet.

    Attributes:
        site: its name.
        at: when this was read, UTC.
        agent: whether it runs.
        agent_process: its number.
        programs: SuperNode and runner -> number of the process; empty if another account holds the connection.
        heard: when the coordinator last asked this site something.
        rounds: every one that is known here, the newest word first.
        release: prepared last.
        accepted_sequence: of the release that the coordinator accepted last; 0 for none.
        result_version: that arrived last; 0 for none.
        applied_version: that was joined to the code list last; 0 for none.
        keys_since: of the site's own keys.
        keys_replaced: that wait for the coordinator's receipt.
        ledger_entries: that hold.
        disk_free: bytes, where the home lies.
        notes: what is broken, what waits for a person, what could not be read.
    """

    site: str
    at: datetime
    agent: AgentState = "not known"
    agent_process: int | None = None
    programs: dict[str, int | None] = field(default_factory=dict)
    heard: datetime | None = None
    rounds: list[RoundHere] = field(default_factory=list)
    release: ReleaseHere | None = None
    accepted_sequence: int | None = None
    result_version: int | None = None
    applied_version: int | None = None
    keys_since: datetime | None = None
    keys_replaced: int | None = None
    ledger_entries: int | None = None
    disk_free: int | None = None
    notes: list[Note] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether something does not work."""
        return any(note.level == "broken" for note in self.notes)

    def note(self, level: Level, what: str, do: str = "") -> None:
        """Add a note."""
        self.notes.append(Note(level, what, do))


def read_status(home: Home, *, now: datetime | None = None) -> Status:
    """How a site is.

    Args:
        home: of the site.
        now: UTC; the present if not given.

    Raises:
        UsageError: its configuration is missing or wrong.
    """
    found = Status(home.config.site, now or datetime.now(UTC))
    entries: list[Entry] = []
    state = SiteState()

    def ledger() -> None:
        entries.extend(_ledger(home))
        found.ledger_entries = len(entries)

    def remembered() -> None:
        nonlocal state
        state = load_state(home.folder)
        found.accepted_sequence, found.result_version = state.accepted_sequence, state.result_version

    _reading(found, "the ledger", ledger)
    _reading(found, "state.json", remembered)
    _reading(found, "the agent's lock", lambda: _agent(home, found))
    _reading(found, "the connection", lambda: _connection(home, found))
    _reading(found, "the exchange folder", lambda: _rounds(home, found))
    _reading(found, "the approvals", lambda: _release(home, found, entries, state))
    _reading(found, "the keys", lambda: _keys(home, found, entries))
    _reading(found, "the disk", lambda: _disk(home, found))
    _result(found, entries)
    return found


def places(home: Home) -> tuple[str, ...]:
    """Where a site's data lie, as its configuration and the system name it: no log should."""
    data = home.config.data
    named = [data.events, data.database, data.anchors]
    return tuple(n for name in named if name for n in (name, str(home.path(name))))


def _reading(found: Status, what: str, read: Callable[[], None]) -> None:
    """What this account may not read is unknown; what cannot be read is broken. Neither hides the rest."""
    try:
        read()
    except PermissionError:
        found.note("unknown", f"This account may not read {what}", "Run this as the agent's account")
    except FederationError as error:
        found.note("broken", f"{error.what}{f': {error.why}' if error.why else ''}", error.do)
    except OSError as error:
        found.note("broken", f"The machine does not give {what}: {error.strerror}")


def _ledger(home: Home) -> Sequence[Entry]:
    path = home.folder / "ledger.jsonl"
    # Not Ledger.verify: its lock would hold up an agent that writes. A line that is being written has no end yet.
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return chain(lines, str(path))


def _agent(home: Home, found: Status) -> None:
    path = home.folder / "running.lock"
    try:
        found.agent_process = lock_holder(path)
    except FileNotFoundError:
        found.agent = "has never run"
        found.note("person", "The agent has never run here", "Run site-agent run, unless files are carried")
        return
    found.agent = "does not run" if found.agent_process is None else "runs"
    if found.agent_process is None:
        found.note(
            "broken", "The agent does not run", "Start site-agent run, and read its log for why it ended"
        )


def _connection(home: Home, found: Status) -> None:
    if (home.exchange / "calls").is_dir():
        found.heard = Exchange(home.exchange).heard()
    flower = home.folder / "flower"
    if not home.node_key.exists():
        found.note(
            "unknown",
            "Another account holds the connection, so its processes are not looked at",
            "There: the service that runs site-agent connect",
        )
        return
    for name in ("supernode", "runner"):
        try:
            found.programs[name] = program_number(flower / f"{name}.pid")
        except FileNotFoundError:
            found.programs[name] = None
        if found.programs[name] is None and found.agent == "runs":
            found.note(
                "broken",
                f"The agent runs without its {name}",
                f"It is started again by itself within a minute or so; read {flower / name}.log if not",
            )


def _rounds(home: Home, found: Status) -> None:
    folder = home.exchange
    if not all((folder / name).is_dir() for name in ("calls", "status", "sealed", "results")):
        return
    exchange = Exchange(folder)
    calls = _calls(home, exchange)
    for status in exchange.statuses():
        call = calls.pop(status.round, None)
        since = datetime.fromtimestamp((folder / "status" / f"{status.round}.json").stat().st_mtime, UTC)
        found.rounds.append(_round(found, status, since, call))
    for name, call in calls.items():
        found.rounds.append(
            RoundHere(name, "called", "The agent has not answered yet", None, call.expires, "")
        )
    if (folder / "sums" / "status").is_dir():
        for status in exchange.sums.statuses():
            if status.state == "awaiting-approval":
                do = "Run site-agent sums list, then site-agent sums approve"
                found.note("person", f"Sum {status.round} waits for approval", do)
    found.rounds.sort(key=lambda r: r.since or found.at, reverse=True)


def _calls(home: Home, exchange: Exchange) -> dict[str, RoundCall]:
    """Round -> the coordinator's call, where its signature holds."""
    calls: dict[str, RoundCall] = {}
    coordinator = keys.coordinator_keys(home).current
    for data in exchange.calls():
        try:
            call = open_signed(data, RoundCall, coordinator)
        except FederationError:
            continue
        calls[call.round] = call
    return calls


def _round(found: Status, status: SiteStatus, since: datetime, call: RoundCall | None) -> RoundHere:
    until = call.expires if call is not None else None
    over = until is not None and until <= found.at
    do = "" if over else _DO.get(status.state, "")
    if do:
        found.note("person", f"Round {status.round} is {status.state}", do)
    return RoundHere(status.round, status.state, status.detail, since, until, do)


def _release(home: Home, found: Status, entries: Sequence[Entry], state: SiteState) -> None:
    prepared = next((e for e in reversed(entries) if e.event == "prepared"), None)
    if prepared is None or not (home.folder / "outbox" / "prepared.release").exists():
        return
    content, needed = str(prepared.facts.get("manifest")), home.config.approval.signers
    by = _approved(standing(entries), content)
    sealed = tuple(name for name, what in state.sealed.items() if what.content == content)
    sequence = int(prepared.facts.get("sequence", 0))
    found.release = ReleaseHere(sequence, content, prepared.time, by, needed, sealed)
    stale = sequence <= state.accepted_sequence and content != state.accepted_digest
    if len(by) < needed and not stale and not any(r.do for r in found.rounds):
        have = f"has {len(by)} of {needed} approvals"
        found.note(
            "person", f"Release {sequence} {have}", "Look at site-agent preview, then run site-agent approve"
        )


def _approved(found: Standing, content: str) -> tuple[str, ...]:
    return tuple(sorted(name for name, a in found.approvals.items() if a.manifest_digest == content))


def _keys(home: Home, found: Status, entries: Sequence[Entry]) -> None:
    own = keys.own_keys(home)
    listed = own.key_list()
    if listed is not None:
        found.keys_since = KeyVersion.model_validate_json(listed.versions[-1].payload).issued
    else:
        found.keys_since = datetime.fromtimestamp(own.key.stat().st_mtime, UTC)
    found.keys_replaced = len(own.previous())
    last = next((e.event for e in reversed(entries) if e.event in {"keys-changing", "keys-changed"}), "")
    if last == "keys-changing":
        found.note("broken", "A change of keys was interrupted", "Run site-agent keys rotate once more")
    elif found.keys_replaced:
        do = f"Send the coordinator key-list-{found.site}.json; then run site-agent keys confirm with its receipt"
        found.note("person", "A change of keys waits for the coordinator's receipt", do)
    days = (found.at - found.keys_since).days
    if days > OLD_KEYS_DAYS:
        found.note("person", f"The site's keys are {days} days old", "Run site-agent keys rotate")


def _disk(home: Home, found: Status) -> None:
    found.disk_free = shutil.disk_usage(home.folder).free
    if found.disk_free < LOW_DISK:
        level: Level = "broken" if found.disk_free < NO_DISK else "person"
        found.note(
            level, f"{found.disk_free / 1e9:.1f} GB are free", f"Make room on the disk of {home.folder}"
        )


def _result(found: Status, entries: Sequence[Entry]) -> None:
    applied = [int(e.facts.get("version", 0)) for e in entries if e.event == "applied"]
    found.applied_version = max(applied, default=0) if found.ledger_entries is not None else None
    if (
        found.result_version
        and found.applied_version is not None
        and found.applied_version < found.result_version
    ):
        found.note("person", f"Version {found.result_version} has arrived", "Run site-agent apply")


def short(content: str) -> str:
    """A release's digest as people compare it."""
    return fingerprint(content) if len(content) == len(digest(b"")) else content
