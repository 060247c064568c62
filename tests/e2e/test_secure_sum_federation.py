"""Secure sums over the real stack: three sites, TLS, node keys, and the commands that people run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from coordinator.flower.line import FlowerLine
from coordinator.flower.services import Services
from coordinator.store import Store
from coordinator.sums.outcome import read_outcome
from coordinator.sums.record import SumStore
from protocol.processes import free_port, scripts_folder
from protocol.sums import STEPS
from site_agent.sums import SumAgent
from tests.sum_federation import CODES, PASSPHRASE, SITES, Consortium, kept_pairs, margins

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]
PATIENCE = 240.0
APPS = {
    "sum": "from coordinator.cli_sum import sum_app as app",
    "sums": "from site_agent.sums.cli import sums_app as app",
    "roster": "from site_agent.sums.cli import roster_app as app",
}


def argv(app: str, *words: str | Path) -> list[str]:
    code = f"{APPS[app]}; from protocol.console import run_app; run_app(app)"
    return [sys.executable, "-c", code, *map(str, words)]


def command(app: str, *words: str | Path, code: int = 0) -> Any:
    """What a command prints as JSON; the error if it is to fail."""
    done = subprocess.run(
        argv(app, *words, "--json"), capture_output=True, text=True, check=False, timeout=600
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stderr + done.stdout
    return done.stderr if code else json.loads(done.stdout)


class Stack:
    """The coordinator's services, and an agent with its connection at each site."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.consortium = Consortium(folder, f"127.0.0.1:{port}")
        self.hub = self.consortium.hub
        self.services = Services(self.hub.flower, "127.0.0.1", port, ["127.0.0.1"])
        self.secret = folder / "passphrase"
        self.secret.write_text(PASSPHRASE + "\n")
        self.secret.chmod(0o600)

    def run(self, name: str, *, code: int = 0, wait: float = PATIENCE) -> Any:
        where = ("--home", self.hub.folder, "--wait", str(wait), "--poll", "0.5")
        return command("sum", "run", name, *where, code=code)

    def look_and_approve(self, name: str) -> None:
        for site in SITES:
            home = ("--home", self.consortium.homes[site].folder)
            shown = command("sums", "preview", name, *home)
            yes = ("--yes", "--digest", shown["digest"][:16], "--passphrase-file", self.secret)
            command("sums", "approve", name, *yes, *home)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("sums") / "all")
    with ExitStack() as ends:
        stack.services.start()
        ends.callback(stack.services.stop)
        # A node that dials in before it is known is turned away for a minute.
        FlowerLine(stack.hub, Store(stack.hub.database_url)).nodes()
        for site, home in stack.consortium.homes.items():
            log = ends.enter_context((home.folder / "agent.log").open("wb"))
            words = [str(scripts_folder() / "site-agent"), "run", "--home", str(home.folder)]
            process = subprocess.Popen(words, stdout=log, stderr=log)
            ends.callback(process.wait, 60)
            ends.callback(process.terminate)
            assert process.poll() is None, site
        yield stack


def test_counts_are_pooled_and_only_the_sum_is_learnt(stack: Stack) -> None:
    consortium, hub = stack.consortium, stack.hub
    home = ("--home", hub.folder)
    begin = time.monotonic()
    opened = command("sum", "open", "m1", "--codes", consortium.codes, *home)
    assert opened["step"] == "opened"

    # Nobody trusts the roster yet, and nobody has approved: the sum waits.
    waiting = stack.run("m1", code=1, wait=25)
    assert "0 of 3 sites take part in sum m1 so far" in waiting
    states = {s["site"]: s for s in command("sum", "status", "m1", *home)["sites"]}
    assert {s["state"] for s in states.values()} == {"awaiting-approval"}
    for site in SITES:
        where = ("--home", consortium.homes[site].folder)
        assert command("roster", "show", *where)["fingerprint"] == opened["roster"]
        wrong = "0" * 40
        assert "not the one given" in command("roster", "trust", wrong, *where, code=2)
        command("roster", "trust", opened["roster"], *where)
    stack.look_and_approve("m1")

    # The coordinator is killed in the middle; the same command goes on.
    words = argv("sum", "run", "m1", *map(str, home), "--wait", "240", "--poll", "0.5")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = SumStore(hub.folder / "sums" / "m1")
    while store.step(store.load()) != "share":
        assert process.poll() is None
        assert time.monotonic() - begin < 2 * PATIENCE
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    result = stack.run("m1")
    assert tuple(result["sites"]) == SITES
    assert result["faulty"] == []
    own = {s: margins(c) for s, c in consortium.plain().items()}
    np.testing.assert_array_equal(read_outcome(hub, "m1")[1]["values"], sum(own.values()))
    print(f"margins: {time.monotonic() - begin:.0f} s")

    begin = time.monotonic()
    command("sum", "open", "c1", "--statistic", "cells", "--margins", "m1", *home)
    assert "0 of 3" in stack.run("c1", code=1, wait=45)
    stack.look_and_approve("c1")
    stack.run("c1")
    _, arrays, vocabulary = read_outcome(hub, "c1")
    pooled: dict[tuple[str, str], int] = {}
    for counts in consortium.plain().values():
        for pair, n in kept_pairs(counts).items():
            pooled[pair] = pooled.get(pair, 0) + n
    asked = zip(arrays["row"].tolist(), arrays["column"].tolist(), strict=True)
    expected = [pooled.get((vocabulary[j], vocabulary[k]), 0) for j, k in asked]
    np.testing.assert_array_equal(arrays["values"], expected)
    assert vocabulary == CODES
    assert len(expected) > 100
    print(f"cells: {time.monotonic() - begin:.0f} s")

    assert {f["step"] for f in command("sum", "status", *home)} == {"finished"}
    for site in SITES:
        assert SumAgent(consortium.homes[site]).folder.memory().states == {}
    check_no_bytes_of_a_site(hub.folder, own)


def check_no_bytes_of_a_site(hub: Path, own: dict[str, Any]) -> None:
    """Nothing that the coordinator received, stored or logged holds a site's own vector, or two cells of it in a row."""
    received = [p for p in hub.rglob("*") if p.is_file()]
    assert len([p for p in received if p.suffix == ".sealed"]) == 2 * 3 * len(STEPS)
    assert any(p.name == "superlink.db" for p in received)
    contents = [p.read_bytes() for p in received]
    for vector in own.values():
        raw = np.asarray(vector, "<i8").tobytes()
        pieces = [raw[i : i + 16] for i in range(0, len(raw) - 16, 8)]
        telling = [p for p in pieces if p.count(0) < 14]
        assert len(telling) > 30
        for data in contents:
            assert raw not in data
            assert not [p for p in telling if p in data]
