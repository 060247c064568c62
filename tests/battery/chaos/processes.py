"""Processes as a machine's service manager keeps them, and finding all that belong to one federation."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

POLL = 0.1
AGAIN_SECONDS = 1.0
"""Between a death and the next start, as systemd's RestartSec."""

KINDS = (
    ("flower-superlink", "superlink"),
    ("coordinator.flower.superexec", "superexec"),
    ("flwr-serverapp", "serverapp"),
    ("coordinator.flower.proxy", "proxy"),
    ("site_agent.flower.supernode", "supernode"),
    ("site_agent.flower.runner", "runner"),
    ("coordinator\0round\0run", "driver"),
    ("coordinator\0serve", "serve"),
    ("site-agent\0run", "agent"),
)
"""What a command line holds -> what the process is."""


class Found(NamedTuple):
    """A running process of a federation."""

    pid: int
    kind: str
    role: str

    def __str__(self) -> str:
        return f"{self.role}/{self.kind}"


def processes(folder: Path) -> Iterator[Found]:
    """All processes that were started with this folder in their environment."""
    wanted = f"CHAOS_FOLDER={folder}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            line = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if wanted not in environment:
            continue
        kind = next((name for words, name in KINDS if words in line), "other")
        role = next((e[11:].decode() for e in environment if e.startswith(b"CHAOS_ROLE=")), "")
        yield Found(int(entry.name), kind, role)


def kill(pid: int) -> None:
    """SIGKILL to one process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Ended(NamedTuple):
    """One life of a service."""

    at: float
    code: int


@dataclass
class Service:
    """A command that is started again when it dies, until it ends well or is stopped.

    Attributes:
        lasting: started again even if it ends well.
        log: all lives' output, as a user's terminal has it.
    """

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(repr=False)
    log: Path
    lasting: bool = True
    ended: list[Ended] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start it, and a thread that keeps it."""
        self._stop.clear()
        self._spawn()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """While it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def done(self) -> bool:
        """Whether it has ended well, for one that does not last."""
        return not self.lasting and bool(self.ended) and self.ended[-1].code == 0

    def stop(self, grace: float = 30.0) -> None:
        """SIGTERM, as a service manager stops it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if (pid := self.pid) is not None and self._process is not None:
            os.kill(pid, signal.SIGTERM)
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _spawn(self) -> None:
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                self.argv, env=self.env, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
            )

    def _keep(self) -> None:
        while not self._stop.wait(POLL):
            process = self._process
            if process is None or process.poll() is None:
                continue
            self.ended.append(Ended(time.monotonic(), process.returncode))
            if self.done or self._stop.wait(AGAIN_SECONDS):
                return
            self._spawn()
