"""The lock of a site's work folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from protocol.errors import UsageError
from site_agent.config import Home


@contextmanager
def work_lock(home: Home) -> Iterator[None]:
    """Only one command of a site works in its work folder at a time.

    Raises:
        UsageError: another one does now.
    """
    home.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(home.work / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UsageError(
            f"Another command reads or counts this site's events in {home.work}",
            do="Wait until it ends, then run this one again",
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)  # the lock goes with it
