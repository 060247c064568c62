"""What somebody's program would try that runs as the Flower account: it knows every path and process of the site.

Started by tests/e2e/test_isolation.py; stands alone and imports nothing of ours. It reads from standard input which
paths to open and what to look for, and prints what it could do.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

PTRACE_ATTACH = 16


class Attack:
    """Tries everything, and notes what was not refused."""

    def __init__(self, question: dict[str, Any]) -> None:
        self.needles = [bytes.fromhex(n) for n in question["secrets"]]
        self.paths = [Path(p) for p in question["paths"]]
        self.agent: list[int] = question["agent"]
        self.found: dict[str, list[str]] = {
            "readable": [],
            "listed": [],
            "written": [],
            "leaks": [],
            "reached": [],
        }

    def look(self, path: Path) -> bool:
        """Whether the file can be read; notes it if a secret is in it."""
        try:
            with path.open("rb") as stream:
                data = stream.read(64 << 20)
        except OSError:
            return False
        if any(needle in data for needle in self.needles):
            self.found["leaks"].append(str(path))
        return True

    def read(self) -> None:
        for path in self.paths:
            with suppress(OSError):
                if path.is_dir():
                    list(path.iterdir())
                    self.found["listed"].append(str(path))
                    continue
            if self.look(path):
                self.found["readable"].append(str(path))

    def write(self, code: list[Path]) -> None:
        """Append to files, add to folders, and change the code that the agent runs."""
        for path in [*self.paths, *code]:
            with suppress(OSError):
                folder = path.is_dir()
                probe = path / "planted" if folder else path
                os.close(os.open(probe, os.O_WRONLY | os.O_APPEND | (os.O_CREAT if folder else 0), 0o600))
                self.found["written"].append(str(path))
                if folder:
                    probe.unlink()

    def processes(self) -> Iterator[Path]:
        own = str(os.getpid())
        return (p for p in Path("/proc").iterdir() if p.name.isdecimal() and p.name != own)

    def pry(self) -> None:
        """Environment, arguments and memory of every process; files, signals and a debugger on the agent's."""
        for process in self.processes():
            for name in ("environ", "cmdline", "mem", "maps"):
                self.look(process / name)
        debug = ctypes.CDLL(None, use_errno=True).ptrace
        for pid in self.agent:
            for name in ("fd", "cwd", "root", "map_files"):
                with suppress(OSError):
                    entries = list((Path("/proc") / str(pid) / name).iterdir())
                    self.found["reached"].append(f"{pid} {name}: {len(entries)}")
            if debug(PTRACE_ATTACH, pid, 0, 0) == 0:
                self.found["reached"].append(f"{pid} ptrace")
            with suppress(PermissionError):
                os.kill(pid, signal.SIGCONT)
                self.found["reached"].append(f"{pid} signal")

    def rise(self) -> None:
        """Become the agent, or root."""
        for number in {0, *((Path("/proc") / str(pid)).stat().st_uid for pid in self.agent)}:
            for call in (os.setgid, os.setuid):
                with suppress(OSError):
                    call(number)
                    self.found["reached"].append(f"{call.__name__} {number}")


def main() -> None:
    attack = Attack(json.load(sys.stdin))
    attack.read()
    attack.write([Path(p) for p in sys.argv[1:]])
    attack.pry()
    attack.rise()
    json.dump(attack.found, sys.stdout)


if __name__ == "__main__":
    main()
