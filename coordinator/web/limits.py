"""How often somebody may ask: token buckets in this process.

A bucket holds `burst` requests and fills by `rate` a second. Thirty lines need no library and no Redis: one process
serves one study, and what it forgets when it restarts is a few seconds of history.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

_REMEMBERED = 20_000


class Buckets:
    """One bucket a key; the ones used longest ago are forgotten.

    Args:
        rate: requests a second.
        burst: requests at once.
        clock: seconds; for tests.
    """

    def __init__(self, rate: float, burst: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self._clock = rate, burst, clock
        self._level: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> int:
        """Take one request out of a bucket.

        Returns:
            0, or the seconds after which one will be there.
        """
        now = self._clock()
        level, since = self._level.get(key, (self.burst, now))
        level = min(self.burst, level + (now - since) * self.rate)
        wait = 0 if level >= 1.0 else max(1, math.ceil((1.0 - level) / self.rate))
        self._level[key] = (level if wait else level - 1.0, now)
        self._level.move_to_end(key)
        while len(self._level) > _REMEMBERED:
            self._level.popitem(last=False)
        return wait
