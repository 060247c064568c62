"""A round of one site and its coordinator, as commands that can be killed and run again; the test plays the transport.

`act` runs in a process of its own, which `Kill` makes kill itself (SIGKILL) at a named step. The product knows
nothing of it: functions are wrapped in the child alone.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from coordinator import rounds, setup
from coordinator.config import Home as HubHome
from coordinator.flower.desk import RoundDesk
from coordinator.store import Store
from protocol.bundle import encode_bundle
from protocol.canonical import file_digest
from protocol.envelope import EnvelopeHeader, seal
from protocol.messages import PublishedManifest
from protocol.published import list_files, sign_manifest
from site_agent.agent import Agent
from site_agent.config import Home
from site_agent.enrolment import init_home, write_enrolment
from site_agent.signers import standing
from site_agent.state import load_state
from tests.unit.test_agent import PASSPHRASE, STUDY, write_events

ROUNDS = ("r1", "r2")


def words() -> str:
    return PASSPHRASE


@dataclass(frozen=True)
class Parties:
    """A folder with a coordinator and a site."""

    folder: Path

    @property
    def hub(self) -> HubHome:
        return HubHome(self.folder / "hub")

    @property
    def agent(self) -> Agent:
        return Agent(Home(self.folder / "north"))

    def store(self) -> Store:
        return Store(self.hub.database_url)

    def desk(self, name: str) -> RoundDesk:
        return RoundDesk(self.hub.round_folder(name))

    # --- Steps of the story; each may be run again at any time ------------------------------------------

    def prepare(self) -> None:
        self.agent.preview()

    def enlist(self) -> None:
        if "tester" not in standing(self.agent.ledger.verify()).signers:
            self.agent.add_signer("tester", words)

    def approve(self) -> None:
        agent = self.agent
        prepared = agent.outbox.prepared()
        if not agent.approvals(prepared):
            agent.approve("tester", prepared.release.manifest.digest, words)

    def revoke(self) -> None:
        self.agent.revoke("tester")

    def open(self, name: str) -> None:
        store = self.store()
        if name not in {r.name for r in store.rounds()}:
            rounds.open_round(self.hub, store, name, days=1, nodes={"north": 1})

    def answer(self, name: str) -> None:
        """The call goes to the site, the agent looks at it."""
        self.agent.exchange.put_call(self.desk(name).call())
        self.agent.step()

    def fetch(self, name: str) -> None:
        """What Flower does, whole or not at all; then the coordinator's intake."""
        agent, received = self.agent, self.desk(name).received("north")
        status = agent.exchange.status(name)
        if status is not None and status.state == "sealed" and not received.exists():
            part = received.with_suffix(".test")
            part.write_bytes(agent.exchange.read_block(status.sha256, 0, 1 << 25))
            assert file_digest(part) == status.sha256
            part.replace(received)
        rounds.take_in(self.hub, self.store(), name)

    def deliver(self) -> None:
        """A published version, sealed to the site, put where Flower puts it, and taken in."""
        agent = self.agent
        if load_state(agent.home.folder).result_version == 0:
            data = (self.folder / "result.sealed").read_bytes()
            agent.exchange.put_result_block(file_digest(self.folder / "result.sealed"), len(data), 0, data)
        agent.step()

    def apply(self) -> None:
        self.agent.apply()


STORY: tuple[tuple[str, Callable[[Parties], None]], ...] = (
    ("prepare", Parties.prepare),
    ("enlist", Parties.enlist),
    ("approve", Parties.approve),
    ("open", lambda p: p.open("r1")),
    ("answer", lambda p: p.answer("r1")),
    ("fetch", lambda p: p.fetch("r1")),
    ("open again", lambda p: p.open("r2")),
    ("answer again", lambda p: p.answer("r2")),
    ("fetch again", lambda p: p.fetch("r2")),
    ("deliver", Parties.deliver),
    ("apply", Parties.apply),
)
"""From the first preview to the map; `answer again` learns of the acceptance and of the countersigned head."""
ACTS = dict(STORY) | {"revoke": Parties.revoke}


def story(parties: Parties, until: str = "") -> None:
    """From wherever the parties are up to a step, or to the end."""
    approved = bool(parties.agent.outbox.has_prepared() and standing(parties.agent.ledger.verify()).approvals)
    for name, act in STORY:
        if name == until:
            return
        # People preview again only where nothing is approved yet: with other data, so with other bytes.
        if name == "prepare" and approved:
            continue
        act(parties)


def new_parties(folder: Path) -> Parties:
    """Both homes, enrolled with each other, and a sealed result for later."""
    study, events = folder / "study.toml", folder / "events.parquet"
    study.write_text(STUDY)
    write_events(events)
    hub = setup.init_home(folder / "hub", study=study, address="127.0.0.1:9443", listen="127.0.0.1")
    home = init_home(
        folder / "north",
        site="north",
        invitation=folder / "hub" / "invitation.json",
        study=study,
        system="ICD10CM",
        events=events,
    )
    path, _ = write_enrolment(home, "")
    setup.enrol(Store(hub.database_url), setup.read_enrolment(hub, path))
    parties = Parties(folder)
    _make_result(parties, hub, home)
    return parties


def _make_result(parties: Parties, hub: HubHome, home: Home) -> None:
    release = parties.folder / "release"
    release.mkdir()
    columns: dict[str, Any] = {
        "code": ["ICD10CM:C00"],
        "sites": [["north"]],
        "cluster": pa.array([0], pa.int32()),
        "probability": pa.array([0.5], pa.float32()),
        "anchored": [False],
        "standard_code": ["ICD10CM:C00"],
        "candidates": pa.array([[]], pa.list_(pa.struct([("code", pa.string())]))),
    }
    pq.write_table(pa.table(columns), release / "clusters.parquet")
    manifest = PublishedManifest(
        study={},
        study_digest=hub.study.digest,
        round="r1",
        version=1,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        software="test",
        codes=1,
        clusters=1,
        sites=(),
        files=list_files(release),
    )
    sign_manifest(release, manifest, hub.keys)
    to = home.keys.public()
    header = EnvelopeHeader(
        kind="result",
        suite=to.suite,
        consortium=hub.study.id,
        study_digest=hub.study.digest,
        round="r1",
        site="north",
        recipient_key=to.digest,
        signer_key=hub.keys.public().digest,
        sequence=1,
        previous="",
        content=manifest.digest,
        agent_digest="0" * 64,
        policy_digest="0" * 64,
        ledger_head="",
        expires=datetime.now(UTC) + timedelta(days=30),
    )
    target = parties.folder / "result.sealed"
    seal(io.BytesIO(encode_bundle(release)), target, header, to=to, keys=hub.keys)


def copy(parties: Parties, folder: Path) -> Parties:
    """The same parties elsewhere."""
    shutil.copytree(parties.folder, folder, symlinks=True)
    return Parties(folder)


# --- Killing -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """Where a child kills itself.

    Args:
        act: of `ACTS`.
        at: `module:function`; or the name of a file, or `"event"` of a ledger's line, for `half`.
        when: before or after the function; or `half`: bytes are written and their name is not, or half a line is.
    """

    act: str
    at: str
    when: Literal["before", "after", "half"]

    def __str__(self) -> str:
        return f"{self.act}: {self.when} {self.at.rpartition(':')[2]}"

    def arm(self) -> None:
        """Wrap the step, in this process."""
        if self.when != "half":
            _wrap(self.at, self.when)
        elif self.at.startswith('"'):
            _half_line(self.at)
        else:
            _no_rename(self.at)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wrap(at: str, when: str) -> None:
    module, _, path = at.partition(":")
    *above, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in above:
        owner = getattr(owner, part)
    plain = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            _die()
        found = plain(*args, **kwargs)
        _die()
        return found

    setattr(owner, name, wrapped)


def _half_line(event: str) -> None:
    pwrite = os.pwrite

    def half(descriptor: int, data: Any, offset: int) -> int:
        if f'"event":{event}'.encode() in bytes(data):
            pwrite(descriptor, bytes(data)[: len(data) // 2], offset)
            os.fsync(descriptor)
            _die()
        return pwrite(descriptor, data, offset)

    os.pwrite = half  # type: ignore[assignment]


def _no_rename(name: str) -> None:
    """Kill where bytes are about to get their name, whichever of the three ways gives it."""
    replace, path_replace, path_rename = os.replace, Path.replace, Path.rename

    def guarded(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            if name in Path(target).name:
                _die()
            return plain(source, target, *args, **kwargs)

        return call

    os.replace = guarded(replace)  # type: ignore[assignment]
    Path.replace = guarded(path_replace)  # type: ignore[method-assign]
    Path.rename = guarded(path_rename)  # type: ignore[method-assign]


def act(folder: Path, kill: Kill) -> None:
    """In a child: one act of the story, up to the step at which it dies."""
    kill.arm()
    ACTS[kill.act](Parties(folder))


def run_story(folder: Path) -> None:
    """In a child: all of the story, for a parent that kills it at some instant."""
    story(Parties(folder))
