"""Work of seconds: opening a version, making an export, comparing two versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")
_AT_ONCE = CapacityLimiter(2)
"""Were they let into the pool that everything else uses, forty questions for old versions would stop the service."""


async def run_heavy(work: Callable[[], T]) -> T:
    """Do it in another thread, two at a time; who asked may be told to come again, and the work goes on."""
    return await to_thread.run_sync(work, limiter=_AT_ONCE, abandon_on_cancel=True)
