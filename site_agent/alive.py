"""Whether a process runs, told from what the kernel shows of it: nothing is locked, written or signalled."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def lock_holder(path: Path) -> int | None:
    """The process that holds a lock of a file, as /proc/locks has it.

    Trying the lock would tell too, and for that moment keep out a process that has just been started.

    Args:
        path: the file; it need not be readable.

    Returns:
        its number; None if no process holds it that can be seen from here: not from outside of a container, or
        from another one.

    Raises:
        OSError: there is no such file, or no /proc/locks.
    """
    status = path.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    for line in (_PROC / "locks").read_text().splitlines():
        words = line.split()
        # 3: FLOCK  ADVISORY  WRITE 31973 fe:00:2353602 0 EOF
        if len(words) < 6 or words[1] != "FLOCK" or not words[4].isdigit():
            continue
        where, _, inode = words[5].rpartition(":")
        # Some file systems show another device in /proc/locks than stat does; then the open file tells.
        if inode == str(status.st_ino) and (where == device or _has_open(int(words[4]), path)):
            return int(words[4])
    return None


def program_number(pid_file: Path) -> int | None:
    """The number of the program that `protocol.processes.Keeper` keeps, if it runs.

    Args:
        pid_file: NAME.pid, with its number and start time.

    Raises:
        OSError: the file is missing or closed to this account.
    """
    number, _, started = pid_file.read_text().partition(" ")
    try:
        fields = (_PROC / number.strip() / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # A number alone proves nothing: it may be another program's by now. Z is a program that has ended.
    return int(number) if fields[19] == started.strip() and fields[0] != "Z" else None


def _has_open(number: int, path: Path) -> bool:
    try:
        return any(entry.resolve() == path.resolve() for entry in (_PROC / str(number) / "fd").iterdir())
    except OSError:
        return False
