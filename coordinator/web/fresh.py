"""A value that is read again when it is some time old."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

T = TypeVar("T")


class Fresh(Generic[T]):
    """What `read` gave a moment ago.

    Args:
        read: may block, as on a database.
        seconds: after which it is read again.
        grace: for how many more seconds others are given the old value while one of them reads.

    Safe for threads; at most one of them reads.
    """

    def __init__(self, read: Callable[[], T], seconds: float, *, grace: float = 5.0) -> None:
        self._read, self._seconds, self._grace = read, seconds, grace
        self._lock = Lock()
        self._held: tuple[float, T] | None = None
        self._reading, self._forgotten = False, 0

    async def get(self) -> T:
        """The value, without blocking the event loop.

        Were all to wait who ask while it is read, each reading would hold up everybody at once.
        """
        held, now = self._held, time.monotonic()
        if held is not None and now < held[0] + (self._grace if self._reading else 0.0):
            return held[1]
        self._reading = True
        try:
            return await run_in_threadpool(self.now)
        finally:
            self._reading = False

    def now(self) -> T:
        """The value; blocks while it is read."""
        with self._lock:
            while True:
                held, before = self._held, self._forgotten
                if held is not None and time.monotonic() < held[0]:
                    return held[1]
                value = self._read()
                if self._forgotten == before:
                    self._held = (time.monotonic() + self._seconds, value)
                    return value

    def forget(self) -> None:
        """Read again at the next question: what is being read now may be older."""
        self._forgotten += 1
        self._held = None
