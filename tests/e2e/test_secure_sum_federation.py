"""Secure sums over the real stack: three sites, TLS, node keys, and the commands that people run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from coordinator.sums.outcome import read_outcome
from coordinator.sums.record import SumStore
from protocol.sums import STEPS
from site_agent.sums import SumAgent
from tests.sum_federation import CODES, SITES, kept_pairs, margins
from tests.sum_stack import PATIENCE, Stack, argv, command, running

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("sums") / "all") as stack:
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
