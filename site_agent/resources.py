"""What reading and counting may take of the machine."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import UsageError
from site_agent.sections import Machine

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_LEAST = 256 * 2**20


@dataclass(frozen=True)
class Resources:
    """Memory in bytes, and threads."""

    memory: int
    threads: int


def resources(machine: Machine, *, memory: str = "", threads: int = 0) -> Resources:
    """The configured memory and threads, or those of a command's options where given.

    Raises:
        UsageError: the memory is no size, or too little.
    """
    text = memory or machine.memory
    size = parse_size(text) if text else max(_free_memory() // 2, _LEAST)
    if size < _LEAST:
        raise UsageError(f"{text} of memory is too little to count in", do="Give at least 256M")
    return Resources(size, threads or machine.threads or len(os.sched_getaffinity(0)))


def parse_size(text: str) -> int:
    """Bytes of "6G" or "512M".

    Raises:
        UsageError: it is no such text.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT])", text.strip().upper())
    if found is None:
        raise UsageError(f"{text!r} is no size of memory", do="Write a number with K, M, G or T, such as 6G")
    return int(float(found[1]) * _UNITS[found[2]])


def _free_memory() -> int:
    """Bytes that can be used without swapping, by the kernel's estimate and the limit of this control group."""
    with Path("/proc/meminfo").open(encoding="ascii") as lines:
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        return min(free, int(limit.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return free
