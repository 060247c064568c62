"""Keeping programs running: restart, log, readiness, and an end without orphans."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol import processes
from protocol.errors import FederationError, RoundError
from protocol.processes import FolderLock, Keeper, Program, clean_environment, free_port, port_open, stop_all

FOREVER = "import time; print('ready', flush=True); time.sleep(1000)"
FAMILY = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {FOREVER!r}]).pid, flush=True); {FOREVER}"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {FOREVER}"


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    return processes._start_time(pid) != "" and not processes._is_zombie(pid)


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[..., Keeper]]:
    keepers: list[Keeper] = []

    def make(code: str, *, restart_seconds: float = 0.0, name: str = "program") -> Keeper:
        argv = (sys.executable, "-c", code)
        program = Program(name, argv, tmp_path / "work", clean_environment(tmp_path), restart_seconds)
        keepers.append(Keeper(program))
        return keepers[-1]

    yield make
    stop_all(keepers)


def log(keeper: Keeper) -> str:
    return keeper.program.log.read_text() if keeper.program.log.exists() else ""


def test_a_program_that_dies_is_started_again(keep: Callable[..., Keeper]) -> None:
    keeper = keep(FOREVER)
    keeper.start()
    keeper.wait_ready(lambda: "ready" in log(keeper), 60)
    first = keeper.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: keeper.pid not in {None, first})
    assert keeper.exits == [-signal.SIGKILL]
    keeper.stop()
    assert keeper.pid is None
    assert not keeper.program.pid_file.exists()
    assert keeper.program.log.stat().st_mode & 0o077 == 0


def test_the_restart_waits(keep: Callable[..., Keeper]) -> None:
    keeper = keep("raise SystemExit(3)", restart_seconds=1000)
    keeper.start()
    until(lambda: keeper.exits == [3])
    keeper.stop()  # and the stop does not wait for it
    assert keeper.exits == [3]


def test_the_whole_group_ends(keep: Callable[..., Keeper]) -> None:
    keeper = keep(FAMILY)
    keeper.start()
    keeper.wait_ready(lambda: log(keeper).count("ready") == 2, 60)
    child = int(log(keeper).split()[0])
    assert alive(child)
    keeper.stop()
    until(lambda: not alive(child))


def test_a_child_does_not_outlive_a_parent_that_died(keep: Callable[..., Keeper]) -> None:
    keeper = keep(FAMILY, restart_seconds=1000)
    keeper.start()
    keeper.wait_ready(lambda: log(keeper).count("ready") == 2, 60)
    assert keeper.pid is not None
    os.kill(keeper.pid, signal.SIGKILL)
    until(lambda: not alive(int(log(keeper).split()[0])))


def test_a_program_that_ignores_the_request_is_killed(keep: Callable[..., Keeper]) -> None:
    keeper = keep(STUBBORN)
    keeper.start()
    keeper.wait_ready(lambda: "ready" in log(keeper), 60)
    pid = keeper.pid
    keeper.stop(grace=0.2)
    assert pid is not None
    assert not alive(pid)


def test_a_program_whose_keeper_was_killed_is_ended_by_the_next(keep: Callable[..., Keeper]) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("the start time of a process is read from Linux's /proc")
    first = keep(FOREVER)
    first.start()
    pid = first.pid
    assert pid is not None
    first._stopping.set()  # as if its process were gone: nobody watches the program any more
    second = keep(FOREVER)
    second.start()
    assert not alive(pid)
    assert second.pid not in {None, pid}


def test_a_process_number_that_was_given_away_is_left_alone(keep: Callable[..., Keeper]) -> None:
    keeper = keep(FOREVER)
    keeper.program.folder.mkdir()
    keeper.program.pid_file.write_text(f"{os.getpid()} 1")
    keeper.start()
    assert keeper.pid is not None


def test_an_early_death_is_told_with_the_end_of_the_log(keep: Callable[..., Keeper]) -> None:
    keeper = keep("raise SystemExit('the database is damaged')", restart_seconds=1000)
    keeper.start()
    with pytest.raises(FederationError, match=r"ended with code 1.*the database is damaged.*program\.log"):
        keeper.wait_ready(lambda: False, 60)
    with pytest.raises(FederationError, match="is not ready after 0 s"):
        late = keep(FOREVER, name="late")
        late.start()
        late.wait_ready(lambda: False, 0)


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    keeper = Keeper(Program("missing", (str(tmp_path / "nothing"),), tmp_path, {}))
    with pytest.raises(FederationError, match="missing cannot be started"):
        keeper.start()
    keeper.stop()


def test_the_log_is_bounded(keep: Callable[..., Keeper], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOG_LIMIT", 10_000)
    keeper = keep("import time\nwhile True: print('x' * 99, flush=True); time.sleep(0.0005)")
    keeper.start()
    older = keeper.program.log.with_name("program.log.1")
    until(older.exists)
    until(lambda: keeper.program.log.stat().st_size > 0)
    assert older.stat().st_size > 10_000


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    plain = clean_environment(tmp_path, EXTRA="1")
    assert {"DATABASE_PASSWORD", "PYTHONPATH", "HTTPS_PROXY"}.isdisjoint(plain)
    assert (plain["HOME"], plain["EXTRA"]) == (str(tmp_path), "1")
    assert clean_environment(tmp_path, keep=["HTTPS_PROXY"])["HTTPS_PROXY"] == "http://proxy.example.org:3128"


def test_a_folder_has_one_worker(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path, "the test"), FolderLock(tmp_path, "the test")
    first.acquire()
    with pytest.raises(RoundError, match="Another process runs the test"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_ports() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert port_open(server.getsockname()[1])
    assert not port_open(free_port())
