"""What a site takes while it waits: memory, processor, sockets and names looked up.

A real `site-agent run`, with its SuperNode and runner, connected to a real coordinator, in two states: nothing is asked of
it, and a release waits for a person. Beside it, what a user would take instead: the stock `flower-supernode`, which starts
its SuperExec itself. SMILE_BENCH=full watches for longer and prints the figures of docs/explanation/load.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from coordinator.flower.services import Services
from protocol.processes import clean_environment, scripts_folder
from site_agent.flower.node import new_node_key
from tests.load.federation import ROUND, Federation, until
from tests.load.memory import MB, Socket, Use, Watch, cpu_seconds, sockets, tree

FULL = os.environ.get("SMILE_BENCH") == "full"
SECONDS = 60.0 if FULL else 8.0
BAR = 300 * MB
KINDS = {
    "SuperNode": "site_agent.flower.supernode",
    "runner": "site_agent.flower.runner",
    "agent": "site-agent run",
    "stock SuperNode": "flower-supernode",
    "stock SuperExec": "flower-superexec",
}

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]


@contextmanager
def running(argv: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[int]:
    """A program in the background."""
    with log.open("wb") as stream:
        process = subprocess.Popen(argv, stdout=stream, stderr=stream, env=env)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def site_agent(*words: str) -> str:
    """A command of the site."""
    argv = [str(scripts_folder() / "site-agent"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_site(federation: Federation, folder: Path) -> Path:
    """A site of 60 codes with a release that waits for approval, enrolled."""
    rng = np.random.default_rng(0)
    rows = [f"{p},2024-01-{1 + c % 5:02d},C{c:02d}" for p in range(1500) for c in rng.integers(0, 60, 20)]
    events = folder / "events.csv"
    events.write_text("\n".join(["patient,date,code", *rows]) + "\n")
    home = folder / "north"
    hub = federation.home.folder
    shared = ("--invitation", str(hub / "invitation.json"), "--study", str(hub / "study.toml"))
    site_agent("init", str(home), "--site", "north", "--system", "ICD10CM", *shared, "--events", str(events))
    told = json.loads(site_agent("enroll", "--home", str(home), "--json"))
    federation.command("enroll", told["file"], "--fingerprint", told["fingerprint"], "--json")
    site_agent("preview", "--home", str(home), "--json")
    return home


def watched(root: int, seconds: float) -> tuple[Watch, float, set[Socket]]:
    """Memory, share of one core, and every socket that was seen."""
    pids, held = tree(root), set()
    before, begin = cpu_seconds(pids), time.monotonic()
    with Watch(lambda: tree(root), KINDS, every=0.5) as watch:
        while time.monotonic() < begin + seconds:
            held |= sockets(tree(root))
            time.sleep(0.1)
    return watch, (cpu_seconds(pids) - before) / (time.monotonic() - begin), held


def show(what: str, watch: Watch, share: float) -> Use:
    print(f"\n{what}: {share:.1%} of a core\n{watch.table()}", flush=True)
    return watch.together


def test_a_site_that_waits_is_small_and_dials_one_address(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "hub", 0, 0, 64, names=("lake", "north", "south"))
    with federation.serving():
        home = make_site(federation, tmp_path)
        # Known to the SuperLink before it dials: otherwise it is turned away and tries again after a minute.
        federation.command("round", "open", ROUND, "--json")
        services = Services.attach(federation.home.flower)
        argv = [str(scripts_folder() / "site-agent"), "run", "--home", str(home)]
        with running(argv, tmp_path / "run.log") as root:
            until("the site online", lambda: len(services.online()) == 1)
            time.sleep(5)  # imports of the connection end
            quiet, share, held = watched(root, SECONDS)
            used = show("waiting for a call", quiet, share)
            assert used.pss < BAR
            told = json.loads(
                federation.command("round", "collect", ROUND, "--wait", "20", "--poll", "1", "--json")
            )
            states = {s["site"]: s["state"] for s in told["sites"]}
            assert states["north"] == "awaiting-approval", states
            asked, busy, more = watched(root, SECONDS)
            assert show("a release waits for a person", asked, busy).pss < BAR
            held |= more
            listening = {s.local for s in held if s.listens}
            dialled = {s.remote for s in held if not s.listens and s.protocol.startswith("tcp")}
            outwards = {a for a in dialled if a.endswith(f":{services.fleet_port}")}
            ports = {address.rpartition(":")[2] for address in listening}
            inside = {a for a in dialled - outwards if a.rpartition(":")[2] in ports}
            served = {s.local for s in held if not s.listens and s.local.rpartition(":")[2] in ports}
            ends = {s.remote for s in held if s.local in served}
            print(f"listens on {sorted(listening)}; dials {sorted(outwards)}")
            assert listening and all(a.startswith("127.0.0.1:") for a in listening)
            assert len(outwards) == 1
            # All else is the runner's talk with the SuperNode of its own machine.
            assert dialled - outwards - inside - ends == set()
            assert not [s for s in held if s.protocol.startswith("udp")]
        stock(federation, services, tmp_path, used)


def stock(federation: Federation, services: Services, folder: Path, ours: Use) -> None:
    """The stock SuperNode with its default isolation, at the same coordinator."""
    key = folder / "stock.key"
    new_node_key(key)
    services.register("lake", key.with_name("stock.key.pub"))
    argv = [str(scripts_folder() / "flower-supernode"), "--superlink", f"localhost:{services.fleet_port}"]
    argv += ["--root-certificates", str(services.files.ca), "--auth-supernode-private-key", str(key)]
    env = clean_environment(folder, FLWR_HOME=str(folder / "stock"), FLWR_TELEMETRY_ENABLED="0")
    before = services.online()
    with running(argv, folder / "stock.log", env) as root:
        until("the stock node online", lambda: bool(services.online() - before))
        time.sleep(5)
        watch, share, _ = watched(root, SECONDS)
        theirs = show("stock flower-supernode", watch, share)
    print(f"ours with the agent: {ours.pss / theirs.pss:.2f} times the stock node's PSS", flush=True)
