"""Values that are read again when they are old."""

from __future__ import annotations

import asyncio
import threading
import time

from coordinator.web.fresh import Fresh


def test_one_reads_while_others_are_given_the_old_value() -> None:
    read, release = [0], threading.Event()

    def slow() -> int:
        read[0] += 1
        if read[0] == 2:
            release.wait(5)
        return read[0]

    async def story() -> None:
        value = Fresh(slow, 0.05, grace=5.0)
        assert await value.get() == 1
        await asyncio.sleep(0.06)
        second = asyncio.create_task(value.get())
        await asyncio.sleep(0.02)
        assert [await value.get() for _ in range(20)] == [1] * 20
        release.set()
        assert await second == 2
        assert read == [2]

    asyncio.run(story())


def test_the_old_value_is_not_given_for_ever() -> None:
    def slow() -> float:
        time.sleep(0.2)
        return time.monotonic()

    async def story() -> None:
        value = Fresh(slow, 0.01, grace=0.05)
        first = await value.get()
        await asyncio.sleep(0.1)
        started = time.monotonic()
        found = await asyncio.gather(*(value.get() for _ in range(5)))
        assert min(found) > started > first

    asyncio.run(story())


def test_what_was_read_before_a_change_is_not_kept_after_it() -> None:
    truth, reading, go_on = ["old"], threading.Event(), threading.Event()

    def read() -> str:
        found = truth[0]
        reading.set()
        go_on.wait(5)
        return found

    value = Fresh(read, 100.0)
    reader = threading.Thread(target=value.now)
    reader.start()
    reading.wait(5)
    truth[0] = "new"
    value.forget()
    go_on.set()
    reader.join(5)
    assert value.now() == "new"
