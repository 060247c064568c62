"""200 readers at once of a service over TCP: time of answers, and whether any fails.

The short form asks for no time: it shares its machine. SMILE_BENCH=full takes 100,000 codes and prints the figures of
docs/how-to/serve-a-release.md.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.config import Home
from coordinator.store import Store
from coordinator.web.tokens import Tokens
from tests.big_release import big_home

FULL = os.environ.get("SMILE_BENCH") == "full"
CODES = 100_000 if FULL else 2_000
SECONDS = 30.0 if FULL else 4.0
READERS = 200

pytestmark = pytest.mark.benchmark


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = os.environ.get("SMILE_BIG_HOME")
    if made:
        return Home(Path(made))
    return big_home(tmp_path_factory.mktemp("big"), CODES, dim=128 if FULL else 16, web="port = 0")


@pytest.fixture(scope="module")
def service(home: Home) -> Iterator[tuple[str, int]]:
    """`coordinator serve --only web`; its address and process."""
    command = [str(Path(sys.executable).with_name("coordinator")), "serve", "--only", "web"]
    process = subprocess.Popen(
        [*command, "--home", str(home.folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("People can open "), line + (process.stderr.read() if process.stderr else "")
        yield line.split()[-1], process.pid
    finally:
        process.terminate()
        assert process.wait(30) == 0


def plan(home: Home, tokens: list[str], pause: float) -> dict[str, Any]:
    """What analysts ask for: mostly one code, its neighbours and its translation; sometimes lists and searches."""
    rng = random.Random(0)  # noqa: S311 - a load, no secret
    standard = CODES // 2 if not os.environ.get("SMILE_BIG_HOME") else 50_000
    systems = ("NORTH", "SOUTH", "LOINC")
    kinds: dict[str, str] = {}
    root = "/api/v1/releases/latest"
    for _ in range(300):
        i = rng.randrange(standard)
        local = f"{systems[i % 3]}:{i:06d}"
        j = rng.randrange(standard)
        given = f"ICD10CM:{chr(65 + j % 26)}{j // 26:05d}"
        word = rng.choice(["diabetes", "kidney", "chronic pain", "vitamin", "fracture of upper limb"])
        kinds |= {
            f"{root}/mappings/{local}": "mapping",
            f"{root}/mappings/{given}": "mapping",
            f"{root}/neighbours?code={local}": "neighbours",
            f"{root}/translate?code={local}": "translate",
            f"{root}/translate?code={given}&reverse=true": "reverse",
        }
        if len(kinds) % 3 == 0:
            kinds[f"{root}/search?text={word.replace(' ', '+')}&k={10 + j % 10}"] = "search"
            kinds[f"{root}/mappings?limit=50&at_most=0.{rng.randrange(10, 99)}&system={systems[i % 3]}"] = (
                "list"
            )
            kinds[f"{root}/clusters/{i}"] = "cluster"
    kinds[root] = "release"
    return {"tokens": tokens, "paths": sorted(kinds), "kinds": kinds, "pause": pause}


def _cpu(process: int) -> float:
    """Seconds of processor that a process has used: what a busy neighbour does not change."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(process: int) -> float:
    """Gigabytes that a process has held at once."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e9


def test_two_hundred_readers_get_their_answers(home: Home, service: tuple[str, int]) -> None:
    url, process = service
    tokens = Tokens(Store(home.database_url))
    given = [tokens.add(f"reader{i}", "analyst") for i in range(READERS)]
    time.sleep(2.5)  # until the service reads the tokens again
    host, port = url.removeprefix("http://").split(":")
    print(
        f"\n{CODES:,} codes: ready after {_cpu(process):.1f} s of the server's CPU, at most {_memory(process):.1f} GB"
    )
    for pause in (0.5, 0.0) if FULL else (0.5,):
        before = _cpu(process)
        done = subprocess.run(
            [sys.executable, "-m", "tests.readers", host, port, str(SECONDS)],
            input=json.dumps(plan(home, given, pause)),
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        found = json.loads(done.stdout)
        cpu = 1000 * (_cpu(process) - before) / found["answers"]
        print(
            f"\n{CODES:,} codes, pause {pause:g} s, {cpu:.2f} ms of the server's CPU an answer: {json.dumps(found)}"
        )
        assert found["errors"] == 0, found["first_errors"]
        assert found["answers"] >= READERS
    assert httpx.get(f"{url}/healthz").status_code == 200
