"""`site-agent status`: what site IT sees, with the agent running and down, and what it says that it may not read."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from protocol.processes import Keeper, Program, clean_environment, scripts_folder
from site_agent import keys
from site_agent.agent import Agent
from site_agent.alive import lock_holder, program_number
from site_agent.exchange import SiteStatus
from site_agent.ledger import Ledger
from site_agent.status import Status, places, read_status
from tests.copying import copy_folder
from tests.unit.test_agent import Bench

HOLD = "import sys,time; from pathlib import Path; from protocol.processes import FolderLock; \
lock = FolderLock(Path(sys.argv[1]), 'x'); lock.acquire(); print('held', flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A site that has prepared a release."""
    bench = Bench(tmp_path_factory.mktemp("site"))
    bench.agent.preview()
    return bench


@pytest.fixture
def bench(prepared: Bench, tmp_path: Path) -> Bench:
    """A copy that a test may change."""
    copy = object.__new__(Bench)
    copy.__dict__.update(prepared.__dict__)
    copy_folder(prepared.folder, tmp_path / "site")
    copy.folder = tmp_path / "site"
    copy.agent = Agent(type(prepared.agent.home)(copy.folder / "home-north"))
    return copy


@pytest.fixture
def running(bench: Bench) -> Iterator[int]:
    """A process that holds the agent's lock."""
    argv = [sys.executable, "-c", HOLD, str(bench.agent.home.folder)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout is not None
        assert held.stdout.readline() == "held\n"
        yield held.pid
        held.kill()


def whats(found: Status, level: str) -> str:
    return " | ".join(f"{n.what}. {n.do}" for n in found.notes if n.level == level)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in folder.rglob("*")}


def test_a_site_that_has_never_run_is_told_what_to_do_next(bench: Bench) -> None:
    before = snapshot(bench.agent.home.folder)
    found = read_status(bench.agent.home)
    assert snapshot(bench.agent.home.folder) == before
    assert not found.broken
    assert found.agent == "has never run" and "never run" in whats(found, "person")
    assert found.release is not None
    assert (found.release.approved_by, found.release.approvals_needed) == ((), 1)
    assert "site-agent approve" in whats(found, "person")
    assert found.heard is None and found.accepted_sequence == 0 and found.rounds == []


def test_a_running_agent_is_seen_and_not_disturbed(bench: Bench, running: int) -> None:
    found = read_status(bench.agent.home)
    assert (found.agent, found.agent_process) == ("runs", running)
    assert "runs without its supernode" in whats(found, "broken")
    assert lock_holder(bench.agent.home.folder / "running.lock") == running


def test_an_agent_that_ended_is_broken(bench: Bench) -> None:
    (bench.agent.home.folder / "running.lock").touch()
    found = read_status(bench.agent.home)
    assert found.broken and "does not run" in whats(found, "broken")


def test_a_held_ledger_does_not_hold_the_status_up(bench: Bench) -> None:
    ledger = bench.agent.ledger
    entries = len(ledger.verify())
    with ledger._open(os.O_RDWR, fcntl.LOCK_EX):  # as an agent that writes
        assert read_status(bench.agent.home).ledger_entries == entries


def test_rounds_are_told_with_what_to_do(bench: Bench) -> None:
    bench.call()
    found = read_status(bench.agent.home)
    assert [(r.round, r.state) for r in found.rounds] == [("r1", "called")]
    bench.agent.step()
    found = read_status(bench.agent.home)
    assert found.rounds[0].state == "awaiting-approval"
    assert "site-agent approve" in found.rounds[0].do
    assert found.rounds[0].until is not None
    later = read_status(bench.agent.home, now=datetime.now(UTC) + timedelta(days=2))
    assert later.rounds[0].do == ""
    bench.sign(found.release.digest if found.release else "")
    bench.agent.step()
    found = read_status(bench.agent.home)
    assert (found.rounds[0].state, found.rounds[0].do) == ("sealed", "")
    assert found.release is not None
    assert (found.release.approved_by, found.release.sealed_for) == (("tester",), ("r1",))
    bench.agent.exchange.note_heard()
    heard = read_status(bench.agent.home).heard
    assert heard is not None and abs((datetime.now(UTC) - heard).total_seconds()) < 3600


def test_a_call_that_nobody_signed_is_none(bench: Bench) -> None:
    from tests.synthetic import keys as made

    bench.call(signer=made("somebody"))
    assert read_status(bench.agent.home).rounds == []


def test_a_result_waits_for_apply(bench: Bench) -> None:
    state = bench.agent.home.folder / "state.json"
    state.write_text(json.dumps({"result_version": 3, "result_digest": "a" * 64}))
    found = read_status(bench.agent.home)
    assert "Version 3 has arrived. Run site-agent apply" in whats(found, "person")
    bench.agent.ledger.append("applied", version=3)
    assert "apply" not in whats(read_status(bench.agent.home), "person")


def test_an_altered_ledger_and_a_damaged_state_are_broken_and_hide_nothing_else(bench: Bench) -> None:
    home = bench.agent.home
    lines = (home.folder / "ledger.jsonl").read_bytes()
    (home.folder / "ledger.jsonl").write_bytes(lines.replace(b'"prepared"', b'"approved"') + lines)
    (home.folder / "state.json").write_text("{")
    found = read_status(home)
    assert "broken at line" in whats(found, "broken")
    assert found.ledger_entries is None and found.accepted_sequence is None
    assert found.disk_free is not None and found.keys_since is not None


def test_a_change_of_keys_waits_for_its_receipt(bench: Bench) -> None:
    home = bench.agent.home
    keys.rotate(home, now=datetime.now(UTC).replace(microsecond=0))
    found = read_status(home)
    assert found.keys_replaced == 1 and "keys confirm" in whats(found, "person")
    old = read_status(home, now=datetime.now(UTC) + timedelta(days=400))
    assert "days old. Run site-agent keys rotate" in whats(old, "person")
    Ledger(home.folder / "ledger.jsonl").append("keys-changing", revoked=False)
    assert "interrupted" in whats(read_status(home), "broken")


def test_little_room_on_the_disk_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, level in ((5 << 30, "person"), (5 << 20, "broken")):
        usage = type("usage", (), {"free": free})
        monkeypatch.setattr("site_agent.status.shutil.disk_usage", lambda _, usage=usage: usage)
        assert "are free" in whats(read_status(bench.agent.home), level)


def test_a_connection_of_another_account_is_said_not_guessed(bench: Bench) -> None:
    bench.agent.home.node_key.unlink(missing_ok=True)
    found = read_status(bench.agent.home)
    assert found.programs == {} and "Another account holds the connection" in whats(found, "unknown")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another account's place")
def test_what_an_account_may_not_read_is_said(bench: Bench, tmp_path: Path) -> None:
    home = bench.agent.home.folder
    (home / "running.lock").touch()
    for folder in (bench.folder, tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder.stat().st_mode & 0o055 != 0o055:
            folder.chmod(folder.stat().st_mode | 0o055)
    home.chmod(0o755)
    (home / "site.toml").chmod(0o644)
    script = (
        "import os,sys; from pathlib import Path; from site_agent.config import Home\n"
        "from site_agent.status import read_status\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "found = read_status(Home(Path(sys.argv[1])))\n"
        "print('|'.join(n.what for n in found.notes if n.level == 'unknown'), found.ledger_entries, found.rounds)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(home)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "may not read the ledger" in done.stdout and "may not read the keys" in done.stdout
    assert "None []" in done.stdout


def test_a_kept_program_is_known_by_number_and_start(tmp_path: Path) -> None:
    program = Program(
        "x", (sys.executable, "-c", "import time; time.sleep(600)"), tmp_path, clean_environment(tmp_path)
    )
    keeper = Keeper(program)
    keeper.start()
    try:
        assert program_number(program.pid_file) == keeper.pid
        kept = program.pid_file.read_text()
        program.pid_file.write_text(f"{os.getpid()} 1")
        assert program_number(program.pid_file) is None
        program.pid_file.write_text(kept)
    finally:
        keeper.stop()


def test_the_places_of_the_data_are_known(bench: Bench) -> None:
    assert str(bench.agent.home.path(bench.agent.home.config.data.events)) in places(bench.agent.home)


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [str(scripts_folder() / "site-agent"), "status", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


def test_the_command_reports_and_exits_with_one_only_if_something_is_broken(bench: Bench) -> None:
    home = str(bench.agent.home.folder)
    shown = run("--home", home)
    assert shown.returncode == 0, shown.stderr
    assert "Needs a person" in shown.stdout and "0 of 1" in shown.stdout
    told = json.loads(run("--home", home, "--json").stdout)
    assert told["site"] == "north" and told["broken"] is False
    assert told["heard"] is None and told["release"]["approved_by"] == []
    (bench.agent.home.folder / "running.lock").touch()
    assert run("--home", home).returncode == 1
    assert run("--home", str(bench.folder / "nowhere")).returncode == 2


def test_a_sum_that_waits_for_approval_is_told(bench: Bench) -> None:
    bench.agent.exchange.sums.set_status(SiteStatus(round="margins-1", state="awaiting-approval"))
    assert "Sum margins-1 waits for approval" in whats(read_status(bench.agent.home), "person")
