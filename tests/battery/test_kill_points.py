"""SIGKILL at every named step of a round, at the site and at the coordinator, and at random instants.

    python -m pytest tests/battery/test_kill_points.py -s                          each step once
    SMILE_BATTERY=full python -m pytest tests/battery/test_kill_points.py -s       and 200 random kills

After each kill: no torn file, no sequence number for two contents, nothing in the exchange folder that was not approved,
no accepted release forgotten, no plaintext left. Then the commands are run again, and the round comes to its end.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from protocol.envelope import open_sealed, read_header
from protocol.keys import PrivateKeys
from protocol.messages import RoundCall
from protocol.signed import open_signed
from site_agent.countersigned import proved
from site_agent.signers import standing
from site_agent.state import load_state
from tests.battery.kill_story import (
    ACTS,
    ROUNDS,
    STORY,
    Kill,
    Parties,
    act,
    copy,
    new_parties,
    run_story,
    story,
)

FULL = os.environ.get("SMILE_BATTERY") == "full"
RANDOM = 200 if FULL else 3

_SPAWN = multiprocessing.get_context("forkserver")
_SPAWN.set_forkserver_preload(["tests.battery.kill_story"])

STEPS = [
    Kill("prepare", '"prepared"', "half"),
    Kill("prepare", "site_agent.outbox:Outbox.prepare", "before"),
    Kill("prepare", "prepared.release", "half"),
    Kill("prepare", "site_agent.outbox:Outbox.prepare", "after"),
    Kill("prepare", "codes.parquet", "half"),
    Kill("enlist", "protocol.keys:PrivateKeys.save", "after"),
    Kill("enlist", '"signer-added"', "half"),
    Kill("approve", '"approved"', "half"),
    Kill("approve", "site_agent.ledger:Ledger.append", "after"),
    Kill("open", "protocol.keys:PrivateKeys.save", "after"),
    Kill("open", "call.json", "half"),
    Kill("open", "coordinator.flower.desk:RoundDesk.open", "after"),
    Kill("open", "coordinator.rounds:open_round", "after"),
    Kill("answer", "leaving.sealed", "half"),
    Kill("answer", "site_agent.outbox:Outbox.seal", "after"),
    Kill("answer", "site_agent.released:promote", "before"),
    Kill("answer", "site_agent.released:promote", "after"),
    Kill("answer", "sealed.release", "half"),
    Kill("answer", "site_agent.outbox:Outbox.keep_sealed", "after"),
    Kill("answer", '"sealed"', "half"),
    Kill("answer", "site_agent.exchange:Exchange.put_sealed", "before"),
    Kill("answer", ".sealed", "half"),
    Kill("answer", "site_agent.exchange:Exchange.put_sealed", "after"),
    Kill("answer", "state.json", "half"),
    Kill("answer", "site_agent.agent:save_state", "after"),
    Kill("answer", "r1.json", "half"),
    Kill("answer", "site_agent.exchange:Exchange.set_status", "after"),
    Kill("fetch", "coordinator.rounds.receiving:read_sealed", "before"),
    Kill("fetch", "coordinator.rounds.receiving:read_sealed", "after"),
    Kill("fetch", "coordinator.store:Store.record_submission", "before"),
    Kill("fetch", "coordinator.store:Store.record_submission", "after"),
    Kill("answer again", '"countersigned"', "half"),
    Kill("answer again", "site_agent.agent:check_and_note", "after"),
    Kill("answer again", '"accepted"', "half"),
    Kill("answer again", "site_agent.agent:save_state", "before"),
    Kill("answer again", "site_agent.agent:save_state", "after"),
    Kill("answer again", "site_agent.exchange:Exchange.put_sealed", "after"),
    Kill("deliver", "site_agent.results:read_sealed", "after"),
    Kill("deliver", "v1", "half"),
    Kill("deliver", "site_agent.results:unpack_bundle", "after"),
    Kill("deliver", "site_agent.results:save_state", "after"),
    Kill("deliver", '"received"', "half"),
    Kill("deliver", "site_agent.exchange:Exchange.set_status", "after"),
    Kill("apply", "harmonised.csv", "half"),
    Kill("apply", '"applied"', "half"),
]
_BEFORE_REVOKING = "fetch"
REVOKING = [
    Kill("revoke", '"approval-revoked"', "half"),
    Kill("revoke", "site_agent.exchange:Exchange.set_status", "before"),
    Kill("revoke", "site_agent.exchange:Exchange._delete_sealed", "before"),
]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Parties]]:
    """The parties just before each act."""
    # The server that forks the children must find this package before it is told where.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    folder = tmp_path_factory.mktemp("stages")
    (folder / "new").mkdir()
    parties, found = new_parties(folder / "new"), {}
    for number, (name, step) in enumerate(STORY):
        found[name] = copy(parties, folder / str(number))
        step(parties)
    yield found | {"revoke": found[_BEFORE_REVOKING]}


def killed(target: object, *arguments: object, after: float | None = None) -> bool:
    """Run in a child that dies by SIGKILL: its own, or ours after so many seconds. False if it ended before."""
    child = _SPAWN.Process(target=target, args=arguments)  # type: ignore[arg-type]
    child.start()
    if after is not None:
        child.join(after)
        if child.is_alive():
            child.kill()
    child.join(120)
    assert child.exitcode in {0, -signal.SIGKILL}, f"the child failed by itself: {child.exitcode}"
    return child.exitcode == -signal.SIGKILL


class Seen:
    """Everything that could have left, over all lives of the parties."""

    def __init__(self) -> None:
        self.contents: dict[int, set[str]] = {}
        self.accepted: set[tuple[int, str]] = set()

    def look(self, parties: Parties, work: Path) -> None:
        """Right after a kill, before anything mends it: what a thief of the exchange folder could get is approved."""
        agent, store = parties.agent, parties.store()
        assert plaintext(parties) == []
        entries = agent.ledger.verify()
        approved = {e.facts["manifest"] for e in entries if e.event == "approved"}
        standing(entries)
        logged = {e.facts["sha256"] for e in entries if e.event == "sealed"}
        # A round's call is signed before the round is stored.
        for path in (agent.home.exchange / "sealed").glob("*.sealed"):
            header = read_header(path)
            assert header.content in approved, "what was not approved is not sealed"
            assert path.stem in logged, "nothing can leave that the ledger does not name"
            recipient = PrivateKeys.load(parties.hub.round_key_path(header.round))
            signer = agent.home.keys.public()
            open_sealed(path, work, keys=recipient, signer=signer)
            self.contents.setdefault(header.sequence, set()).add(header.content)
        for status in agent.exchange.statuses():
            if status.state == "sealed":
                named = agent.home.exchange / "sealed" / f"{status.sha256}.sealed"
                assert named.stat().st_size == status.size, "a status names what is there, whole"
        if agent.outbox.has_prepared():
            agent.outbox.prepared()
        agent.outbox.last_sealed()
        load_state(agent.home.folder)
        for name in (r.name for r in store.rounds()):
            open_signed(parties.desk(name).call(), RoundCall, parties.hub.keys.public())
            for found in store.submissions(name):
                assert found.state == "accepted", found.detail
                self.accepted.add((found.sequence, found.manifest_digest))

    def end(self, parties: Parties, work: Path) -> None:
        """After the story has come to its end: nothing was lost, doubled or left behind."""
        self.look(parties, work)
        agent, store = parties.agent, parties.store()
        assert all(len(found) == 1 for found in self.contents.values()), "one sequence, one content"
        assert len(self.accepted) == 1
        state, entries = load_state(agent.home.folder), agent.ledger.verify()
        assert {(state.accepted_sequence, state.accepted_digest)} == self.accepted
        assert [s.state for n in ROUNDS for s in store.submissions(n)] == ["accepted", "accepted"]
        assert state.result_version == 1
        assert {"prepared", "approved", "sealed", "accepted", "received", "applied"} <= {
            e.event for e in entries
        }
        assert proved(agent.home.folder, entries, coordinator=[parties.hub.keys.public()], site="north") > 0
        assert len(pq.read_table(agent.home.folder / "harmonised.parquet")) == 60
        assert leftovers(parties) == []


def plaintext(parties: Parties) -> list[str]:
    """Files in the exchange folder or at the coordinator in which a released code can be read."""
    folders = (parties.agent.home.exchange, parties.hub.folder)
    paths = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
    return [str(p) for p in paths if b"ICD10CM:C0" in p.read_bytes()]


def leftovers(parties: Parties) -> list[str]:
    """What a killed process began at the site."""
    bad = (".part-", "leaving.sealed", ".new")
    return [str(p) for p in parties.agent.home.folder.rglob("*") if any(b in p.name for b in bad)]


@pytest.mark.parametrize("kill", [*STEPS, *REVOKING], ids=str)
def test_killed_at_a_step(stages: dict[str, Parties], kill: Kill, tmp_path: Path) -> None:
    assert kill.act in ACTS
    parties, seen = copy(stages[kill.act], tmp_path / "parties"), Seen()
    assert killed(act, parties.folder, kill), "the step was not reached"
    seen.look(parties, tmp_path / "plain")
    if kill.act == "revoke":
        agent = parties.agent
        if standing(agent.ledger.verify()).approvals:
            agent.revoke("tester")
        agent.step()
        assert list((agent.home.exchange / "sealed").iterdir()) == []
    story(parties)
    seen.end(parties, tmp_path / "plain")


@pytest.mark.timeout(7200 if FULL else 900)
def test_killed_at_random_instants(stages: dict[str, Parties], tmp_path: Path) -> None:
    # How long an undisturbed story takes; the first one compiles.
    for name in ("first", "second"):
        once = copy(stages["prepare"], tmp_path / name)
        start = time.monotonic()
        assert not killed(run_story, once.folder)
        length = time.monotonic() - start
    kills, lives, rng = 0, 0, random.Random(0)  # noqa: S311
    while kills < RANDOM:
        parties, seen = copy(stages["prepare"], tmp_path / f"{lives}"), Seen()
        # Each life goes on where the last one was killed, until one comes to the end.
        while killed(run_story, parties.folder, after=rng.uniform(0, length)):
            kills += 1
            seen.look(parties, tmp_path / "plain")
        story(parties)
        seen.end(parties, tmp_path / "plain")
        lives += 1
    print(
        f"\n{kills} kills at random instants of {length:.1f} s in {lives} rounds: 0 torn files, 0 sequences reused,"
    )
    print(
        f"0 accepted releases lost, 0 plaintext left, all rounds ended; and {len(STEPS) + len(REVOKING)} named steps."
    )
    print("Bar: 200 kills, none of these.")
