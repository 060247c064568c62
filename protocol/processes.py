"""Keeping other programs running: one log file each, restart after a delay, and no orphans.

A `Keeper` owns one program. It starts it as the leader of a process group of its own, starts
it again when it dies, and ends the whole group when it is stopped. A file with the process
number lets the next `Keeper` in the same folder end a program whose keeper was killed.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from protocol.errors import FederationError, RoundError
from protocol.files import write_atomic

LOG_LIMIT = 16 << 20
"""Bytes of a log file; beyond them it becomes NAME.log.1, replacing the one before."""

_POLL_SECONDS = 0.2
# Blocks of many megabytes pass through threads that come and go. By default glibc gives each thread a heap of its own and,
# once a large block was freed, keeps such blocks for later: a SuperLink then holds several times what is on the way.
_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "262144",
    "MALLOC_TRIM_THRESHOLD_": "262144",
}
_KEPT_NAMES = ("LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SMILE_LOG_FORMAT")


@dataclass(frozen=True)
class Program:
    """What to run, where, and how soon again after its death.

    Attributes:
        name: of the log file and the process number file.
        argv: the command and its arguments; never a secret, since every user of the machine can read it.
        folder: working folder; NAME.log and NAME.pid lie in it.
        env: the whole environment of the program.
        restart_seconds: between a death and the next start.
    """

    name: str
    argv: tuple[str, ...]
    folder: Path
    env: Mapping[str, str] = field(repr=False)
    restart_seconds: float = 2.0

    @property
    def log(self) -> Path:
        """Standard output and standard error."""
        return self.folder / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        """Process number and start time of the running program."""
        return self.folder / f"{self.name}.pid"


def scripts_folder() -> Path:
    """Where this Python's console scripts are installed."""
    return Path(sysconfig.get_path("scripts"))


def clean_environment(home: Path, *, keep: Iterable[str] = (), **extra: str) -> dict[str, str]:
    """A small environment, so that neither secrets nor another user's settings are inherited.

    Args:
        home: HOME of the program; user-wide Python packages and .netrc files are not seen.
        keep: further names to pass on where they are set.
        extra: names to set.
    """
    env = {name: os.environ[name] for name in (*_KEPT_NAMES, *keep) if name in os.environ}
    env["PATH"] = os.pathsep.join((str(scripts_folder()), os.environ.get("PATH", os.defpath)))
    env["HOME"] = str(home)
    return env | {"PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"} | _ALLOCATOR | extra


class Keeper:
    """Runs one program until `stop`; `stop` may be called more than once."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.exits: list[int] = []
        """Exit codes of the runs that ended on their own; negative is a signal."""
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Process number while the program runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the program, after ending one that a killed keeper left behind.

        Raises:
            FederationError: the program is not there or may not be run.
        """
        _end_leftover(self.program.pid_file)
        self.program.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._spawn()
        except OSError as error:
            raise FederationError(
                f"{self.program.name} cannot be started",
                why=f"{self.program.argv[0]}: {error.strerror}",
                do="Install the package with its extras again",
            ) from None
        self._thread = threading.Thread(target=self._keep, name=f"keep-{self.program.name}", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    def wait_ready(self, probe: Callable[[], bool], seconds: float) -> None:
        """Wait until `probe` is true.

        Raises:
            FederationError: the program died, or the time is over; the end of its log is the reason.
        """
        end = time.monotonic() + seconds
        while not probe():
            if self.exits or time.monotonic() > end:
                state = (
                    f"ended with code {self.exits[-1]}" if self.exits else f"is not ready after {seconds:g} s"
                )
                raise FederationError(
                    f"{self.program.name} {state}", why=self.log_tail(), do=f"Read {self.program.log}"
                )
            time.sleep(_POLL_SECONDS)

    def log_tail(self, lines: int = 3) -> str:
        """The last lines of the log, on one line of at most 500 characters."""
        try:
            with self.program.log.open("rb") as stream:
                stream.seek(max(0, self.program.log.stat().st_size - 4096))
                text = stream.read().decode(errors="replace")
        except OSError:
            return ""
        last = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
        return " | ".join(last)[-500:]

    def stop(self, grace: float = 10.0) -> None:
        """End the program and its whole process group; after `grace` seconds with SIGKILL."""
        self._stopping.set()
        atexit.unregister(self.stop)
        # The thread first: it may be starting the program again at this moment.
        if self._thread is not None:
            self._thread.join()
        if self._process is not None:
            _end_group(self._process, grace)
        self.program.pid_file.unlink(missing_ok=True)

    def _spawn(self) -> None:
        descriptor = os.open(self.program.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as log:
            # A group of its own: what the program starts ends with it.
            self._process = subprocess.Popen(
                self.program.argv,
                cwd=self.program.folder,
                env=dict(self.program.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
            )
        pid = self._process.pid
        write_atomic(self.program.pid_file, f"{pid} {_start_time(pid)}")

    def _keep(self) -> None:
        while not self._stopping.wait(_POLL_SECONDS):
            _limit_log(self.program.log)
            process = self._process
            if process is None or process.poll() is None:
                continue
            self.exits.append(process.returncode)
            _end_group(process, grace=0)
            if self._stopping.wait(self.program.restart_seconds):
                return
            # A full process table or a package under upgrade passes: the next turn tries again.
            with contextlib.suppress(OSError):
                self._spawn()


def stop_all(keepers: Iterable[Keeper], grace: float = 10.0) -> None:
    """Stop several programs at the same time."""
    threads = [threading.Thread(target=keeper.stop, args=(grace,)) for keeper in keepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class FolderLock:
    """At most one process works in a folder; the lock ends with the process that holds it.

    Args:
        folder: made where it does not exist.
        what: is run there, for the error: "the coordinator's services".
    """

    def __init__(self, folder: Path, what: str) -> None:
        self._folder, self._what = folder, what
        self._stream: IO[bytes] | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            RoundError: another process has it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        stream = (self._folder / "running.lock").open("ab")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.close()
            raise RoundError(
                f"Another process runs {self._what} in {self._folder}",
                do="Stop it first, or leave it running",
            ) from None
        self._stream = stream

    def release(self) -> None:
        """Give the lock back; nothing happens if it was not taken."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def free_port() -> int:
    """A TCP port of the loopback interface that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_open(port: int) -> bool:
    """Whether something listens on this port of the loopback interface."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _limit_log(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.stat().st_size > LOG_LIMIT:
            # The program keeps its descriptor, which appends; so the file is emptied, not renamed.
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            os.truncate(path, 0)


def _end_group(process: subprocess.Popen[bytes], grace: float) -> None:
    if grace > 0 and process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _start_time(pid: int) -> str:
    """Clock ticks at which a process started (field 22 of Linux's /proc/PID/stat); empty elsewhere."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _end_leftover(pid_file: Path) -> None:
    try:
        pid_text, _, started = pid_file.read_text().partition(" ")
        pid = int(pid_text)
    except (OSError, ValueError):
        return
    # A number alone proves nothing, since it may have been given to another program since.
    if started and _start_time(pid) == started:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        while _start_time(pid) == started and not _is_zombie(pid):
            time.sleep(0.05)
    pid_file.unlink(missing_ok=True)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True
