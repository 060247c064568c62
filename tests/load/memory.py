"""What a set of processes uses, as Linux counts it: memory, processor time and sockets.

PSS (proportional set size) counts a page that n processes map as 1/n of it for each, so that the sum over processes is
what they take of the machine together. RSS counts it for each in full.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

MB = 1_000_000
_PROC = Path("/proc")


def tree(*roots: int) -> list[int]:
    """The processes and all that they have started, and these, while they run; also such as lead sessions of their own."""
    parents: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid for pid in roots if (_PROC / str(pid)).exists()]
    for pid in found:
        found.extend(child for child in parents.get(pid, []) if child not in found)
    return found


def command(pid: int) -> str:
    """Its command line; empty if it has ended."""
    try:
        return (
            (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        )
    except OSError:
        return ""


@dataclass(frozen=True)
class Use:
    """Bytes; `own` is what is no file: heap, stacks and arrays."""

    pss: int = 0
    rss: int = 0
    own: int = 0

    def __add__(self, other: Use) -> Use:
        return Use(self.pss + other.pss, self.rss + other.rss, self.own + other.own)

    def upper(self, other: Use) -> Use:
        """The larger of each."""
        return Use(max(self.pss, other.pss), max(self.rss, other.rss), max(self.own, other.own))

    def __str__(self) -> str:
        return f"PSS {self.pss / MB:4.0f} MB, RSS {self.rss / MB:4.0f} MB, own {self.own / MB:4.0f} MB"


def memory(pid: int) -> Use:
    """What a process uses now; nothing if it has ended."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return Use()
    kb = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return Use(*(1024 * kb.get(name, 0) for name in ("Pss", "Rss", "Anonymous")))


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time so far of processes that still run."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass
class Watch:
    """Peak memory of each kind of process and of all at once, sampled until the end of the `with`.

    Args:
        pids: who is watched, asked for at each sample.
        kinds: name -> a word of its command line; the first that fits names a process.
        every: seconds between two samples.
    """

    pids: Callable[[], Iterable[int]]
    kinds: Mapping[str, str]
    every: float = 0.2
    peak: dict[str, Use] = field(default_factory=dict)
    together: Use = field(default_factory=Use)
    at_peak: dict[str, Use] = field(default_factory=dict)
    samples: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def look(self) -> None:
        """One sample."""
        now: dict[str, Use] = {}
        for pid in self.pids():
            words = command(pid)
            kind = next((name for name, word in self.kinds.items() if word in words), words[:60])
            now[kind] = now.get(kind, Use()) + memory(pid)
        total = sum(now.values(), Use())
        if total.pss > self.together.pss:
            self.at_peak = now
        self.together = self.together.upper(total)
        self.peak = {k: self.peak.get(k, Use()).upper(now.get(k, Use())) for k in {**self.peak, **now}}
        self.samples += 1

    def __enter__(self) -> Self:
        def run() -> None:
            while not self._over.wait(self.every):
                self.look()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def table(self) -> str:
        """A line for each kind, and one for all at once."""
        rows = [f"  {name:<17}{use}" for name, use in sorted(self.peak.items())]
        return "\n".join([*rows, f"  {'at once':<17}{self.together}   ({self.samples} samples)"])


# --- A kernel's limit ----------------------------------------------------------------------------------


class Cage:
    """A memory control group (cgroup v1) with a limit: the kernel ends whoever goes over it.

    Page cache counts too, and is given back before anyone is ended.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(limit))

    @classmethod
    def make(cls, name: str, limit: int) -> Self | None:
        """None where this machine or account has no such groups."""
        root = Path("/sys/fs/cgroup/memory")
        if not os.access(root / "memory.usage_in_bytes", os.R_OK) or not os.access(root, os.W_OK):
            return None
        try:
            return cls(root / f"{name}-{os.getpid()}", limit)
        except OSError:
            return None

    def argv(self, argv: Iterable[str]) -> list[str]:
        """The command inside."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._folder / "cgroup.procs"), *argv]

    def killed(self) -> int:
        """Processes that the kernel has ended."""
        text = (self._folder / "memory.oom_control").read_text()
        return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))

    def peak(self) -> int:
        """Bytes, page cache included."""
        return int((self._folder / "memory.max_usage_in_bytes").read_text())

    def remove(self) -> None:
        """Once nobody is inside."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()


# --- Sockets -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Socket:
    """One row of /proc/net: who listens where, or is connected to whom."""

    protocol: str
    local: str
    remote: str
    listens: bool


def sockets(pids: Iterable[int]) -> set[Socket]:
    """The TCP and UDP sockets that these processes hold."""
    held = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for descriptor in (_PROC / str(pid) / "fd").iterdir():
                with contextlib.suppress(OSError):
                    held.add(str(descriptor.readlink()))
    found = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in (_PROC / "net" / name).read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in held:
                listens = fields[3] == "0A" or (name.startswith("udp") and fields[2].endswith(":0000"))
                found.add(Socket(name, _address(fields[1]), _address(fields[2]), listens))
    return found


def _address(text: str) -> str:
    """0100007F:1F90 -> 127.0.0.1:8080; each 32-bit group is in the machine's byte order."""
    import ipaddress

    digits, port = text.split(":")
    raw = b"".join(bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8))
    address = ipaddress.ip_address(raw)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return f"{address}:{int(port, 16)}"
