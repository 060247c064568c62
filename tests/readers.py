"""Readers of a service, many at once: raw HTTP/1.1 on kept connections, so that what is timed is the server.

    python -m tests.readers HOST PORT SECONDS < plan.json

The plan: {"tokens": [one a reader], "paths": [...], "pause": seconds before the next question}. Prints a JSON line.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any


async def reader(
    host: str, port: int, token: str, paths: list[str], until: float, pause: float, seed: int
) -> tuple[list[tuple[float, str]], list[str]]:
    """One reader's (seconds, path) of each answer, and what went wrong."""
    rng, took, wrong = random.Random(seed), [], []  # noqa: S311 - a load, no secret
    # People do not begin in the same millisecond.
    await asyncio.sleep(rng.random() * max(pause, 0.5))
    incoming, outgoing = await asyncio.open_connection(host, port)
    while time.perf_counter() < until:
        path = rng.choice(paths)
        began = time.perf_counter()
        outgoing.write(
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        try:
            status = await _answer(incoming)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            wrong.append(f"{type(error).__name__} {path}")
            break
        took.append((time.perf_counter() - began, path))
        if status != 200:
            wrong.append(f"{status} {path}")
        if pause:
            await asyncio.sleep(rng.expovariate(1 / pause))
    outgoing.close()
    return took, wrong


async def _answer(incoming: asyncio.StreamReader) -> int:
    head = (await incoming.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    length = next((int(h[15:]) for h in head.split("\r\n") if h.startswith("content-length:")), None)
    if length is None:
        raise ValueError("an answer without a length")
    await incoming.readexactly(length)
    return status


async def read(host: str, port: int, seconds: float, plan: dict[str, Any]) -> dict[str, Any]:
    """All readers at once; times in milliseconds."""
    until = time.perf_counter() + seconds
    tokens = plan["tokens"]
    jobs = [reader(host, port, t, plan["paths"], until, plan["pause"], i) for i, t in enumerate(tokens)]
    found = await asyncio.gather(*jobs)
    took = sorted(s * 1000 for part, _ in found for s, _ in part)
    kinds: dict[str, list[float]] = {}
    for part, _ in found:
        for s, path in part:
            kinds.setdefault(plan["kinds"][path], []).append(s * 1000)
    wrong = [w for _, part in found for w in part]
    return {
        "readers": len(tokens),
        "answers": len(took),
        "per_second": round(len(took) / seconds, 1),
        "p50": _at(took, 0.5),
        "p99": _at(took, 0.99),
        "max": _at(took, 1.0),
        "kinds": {k: [len(v), _at(sorted(v), 0.5), _at(sorted(v), 0.99)] for k, v in sorted(kinds.items())},
        "errors": len(wrong),
        "first_errors": wrong[:5],
    }


def _at(values: list[float], share: float) -> float:
    return round(values[min(int(share * len(values)), len(values) - 1)], 1) if values else 0.0


if __name__ == "__main__":
    given = json.load(sys.stdin)
    print(json.dumps(asyncio.run(read(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), given))))
