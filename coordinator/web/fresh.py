"""A value that is read again when it is some time old."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

T = TypeVar("T")


class Fresh(Generic[T]):
    """What `read` gave at most `seconds` ago.

    Args:
        read: may block, as on a database.
        seconds: how old the value may be.

    Safe for threads; at most one of them reads.
    """

    def __init__(self, read: Callable[[], T], seconds: float) -> None:
        self._read, self._seconds = read, seconds
        self._lock = Lock()
        self._held: tuple[float, T] | None = None

    async def get(self) -> T:
        """The value, without blocking the event loop."""
        held = self._held
        if held is not None and time.monotonic() < held[0]:
            return held[1]
        return await run_in_threadpool(self.now)

    def now(self) -> T:
        """The value; blocks while it is read."""
        with self._lock:
            if self._held is None or time.monotonic() >= self._held[0]:
                value = self._read()
                self._held = (time.monotonic() + self._seconds, value)
            return self._held[1]

    def forget(self) -> None:
        """Read again at the next question."""
        self._held = None
