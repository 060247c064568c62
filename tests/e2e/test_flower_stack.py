"""The transport over the real stack: SuperLink, SuperExec, proxy and four sites, with TLS and node keys."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("flwr")

from coordinator.flower.bundle import build_bundle, bundle_digest, write_bundle
from coordinator.flower.desk import RoundDesk
from coordinator.flower.services import Services
from protocol.errors import FederationError, KeyFileError, RoundError
from protocol.processes import Keeper
from site_agent.exchange import Exchange, SiteStatus
from site_agent.flower.node import Node, NodeConfig, new_node_key

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

OPEN_SITES = ("site-a", "site-b", "site-c")
SITES = (*OPEN_SITES, "site-closed")
PATIENCE = 240.0
"""Seconds for anything to happen; only a broken stack takes them."""

SIZES = {"site-a": 40_000_003, "site-b": 70_001, "site-c": 12}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def until(what: str, condition: Callable[[], bool], *keepers: Keeper) -> None:
    """Wait until the condition holds; the logs say why it does not."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(
                f"{what} did not happen; " + "; ".join(f"{k.program.name}: {k.log_tail(5)}" for k in keepers)
            )
        time.sleep(0.1)


class Agent(threading.Thread):
    """A site's agent: answers every call with its sealed file, and every result with a receipt."""

    def __init__(self, exchange: Exchange, site: str, data: bytes) -> None:
        super().__init__(daemon=True)
        self.exchange, self.site, self.data = exchange, site, data
        self.approves = threading.Event()
        self.approves.set()
        self.results: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            for call in self.exchange.calls():
                self.answer(json.loads(call)["round"])
            for path in self.exchange.results():
                digest = sha(path.read_bytes())
                path.unlink()
                self.results.append(digest)
                receipt = json.dumps({"site": self.site, "result": digest})
                self.exchange.set_status(
                    SiteStatus(round="round-1", state="delivered", sha256=digest, receipt=receipt)
                )

    def answer(self, name: str) -> None:
        status = self.exchange.status(name)
        if status is None:
            self.exchange.set_status(SiteStatus(round=name, state="awaiting-approval"))
        elif status.state == "awaiting-approval" and self.approves.is_set():
            path = self.exchange.root.with_name("release")
            path.write_bytes(self.data)
            digest, size = self.exchange.put_sealed(path)
            self.exchange.set_status(SiteStatus(round=name, state="sealed", sha256=digest, size=size))


class Stack:
    """All processes of a federation on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services = Services(folder / "coordinator", hosts=["localhost"])
        self.services.prepare()
        self.digest = bundle_digest(self.services.bundle)
        self.nodes: dict[str, Node] = {}
        self.agents: dict[str, Agent] = {}
        self.ids: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def start(self) -> None:
        begin = time.monotonic()
        self.services.start()
        self.seconds["services"] = time.monotonic() - begin
        for site in SITES:
            home = self.folder / site
            line = new_node_key(home / "node.key")
            assert line.startswith("ecdsa-sha2-nistp384 ")
            self.ids[site] = self.services.register(site, home / "node.key.pub")
            config = NodeConfig(
                site=site,
                address=f"localhost:{self.services.fleet_port}",
                ca=self.services.files.ca,
                key=home / "node.key",
                work=home / "flower",
                exchange=home / "exchange",
                allowed_bundles=(self.digest,) if site in OPEN_SITES else (),
            )
            self.nodes[site] = Node(config)
            self.nodes[site].start()
            self.agents[site] = Agent(Exchange(config.exchange), site, os.urandom(SIZES.get(site, 5)))
            self.agents[site].start()
        until("all sites online", lambda: self.services.online() == set(self.ids.values()), *self.keepers())
        self.seconds["sites"] = time.monotonic() - begin - self.seconds["services"]

    def keepers(self) -> list[Keeper]:
        return [*self.services.keepers, *(k for node in self.nodes.values() for k in node.keepers)]

    def stop(self) -> None:
        for agent in self.agents.values():
            agent.over.set()
        for node in self.nodes.values():
            node.stop()
        self.services.stop()

    def round(self, name: str, *sites: str) -> RoundDesk:
        desk = RoundDesk(self.folder / "rounds" / name)
        desk.open(json.dumps({"round": name}).encode(), {site: self.ids[site] for site in sites})
        return desk

    def state(self, run: int) -> str:
        try:
            return self.services.run_state(run)
        except FederationError:
            return "the SuperLink is down"

    def finish(self, run: int) -> str:
        begin = time.monotonic()
        until(f"run {run}", lambda: self.state(run).startswith("finished"), *self.keepers())
        self.seconds[f"run {len(self.seconds)}"] = time.monotonic() - begin
        return self.services.run_state(run)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("federation"))
    try:
        stack.start()
        yield stack
    finally:
        begin = time.monotonic()
        keepers = stack.keepers()
        stack.stop()
        stack.seconds["stop"] = time.monotonic() - begin
        print({name: round(seconds, 1) for name, seconds in stack.seconds.items()})
        assert [k.program.name for k in keepers if k.pid is not None] == []


def states(desk: RoundDesk, *sites: str) -> dict[str, str]:
    return {site: desk.progress(site).state for site in sites}


def test_sealed_files_come_in_although_the_superlink_is_killed(stack: Stack) -> None:
    desk = stack.round("round-1", *SITES)
    stack.agents["site-b"].approves.clear()
    run = stack.services.start_run(desk, "collect", deadline_seconds=PATIENCE, poll_seconds=0.2)
    before = {
        "site-a": "received",
        "site-b": "awaiting-approval",
        "site-c": "received",
        "site-closed": "refused",
    }
    until("all answers", lambda: states(desk, *SITES) == before, *stack.keepers())
    # The site without a list denies, which is an answer too.
    assert desk.progress("site-closed").detail == f"The site does not list the bundle {stack.digest}"

    superlink = stack.services.keepers[0]
    assert superlink.pid is not None
    os.kill(superlink.pid, signal.SIGKILL)
    until("the SuperLink's death", lambda: superlink.exits == [-signal.SIGKILL], superlink)
    stack.agents["site-b"].approves.set()
    assert stack.finish(run) == "finished:completed", stack.services.run_detail(run)

    assert states(desk, *SITES) == before | {"site-b": "received"}
    for site in OPEN_SITES:
        assert sha(desk.received(site).read_bytes()) == sha(stack.agents[site].data)


def test_results_go_out_and_receipts_come_back(stack: Stack) -> None:
    results = {"site-a": os.urandom(3_000_000), "site-b": b"b"}
    desk = stack.round("round-1", *OPEN_SITES)
    for site, data in results.items():
        desk.outgoing(site).write_bytes(data)
    run = stack.services.start_run(
        desk, "deliver", deadline_seconds=PATIENCE, poll_seconds=0.2, block_bytes=1 << 20
    )
    assert stack.finish(run) == "finished:completed", stack.services.run_detail(run)
    assert states(desk, *OPEN_SITES) == {**dict.fromkeys(results, "delivered"), "site-c": "received"}
    for site, data in results.items():
        assert stack.agents[site].results == [sha(data)]
        assert json.loads(desk.progress(site).receipt) == {"site": site, "result": sha(data)}


def test_a_bundle_that_no_site_lists_runs_nowhere(stack: Stack) -> None:
    marker = stack.folder / "hostile-code-ran"
    hostile = stack.folder / "hostile"
    write_bundle(hostile)
    strike = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    (hostile / "smile_round" / "client.py").write_text(f"{strike}app = None\n")
    (hostile / "site_agent").mkdir()
    (hostile / "site_agent" / "__init__.py").write_text(strike)
    project = (hostile / "pyproject.toml").read_text()
    (hostile / "pyproject.toml").write_text(project.replace("smile_round/*.py", "**/*.py"))
    bundle = build_bundle(hostile)
    sha256 = sha(bundle)
    assert sha256 != stack.digest

    desk = stack.round("round-2", *OPEN_SITES)
    config = {"desk": str(desk.folder), "deadline-seconds": PATIENCE, "poll-seconds": 0.5}
    assert stack.finish(stack.services.submit(bundle, config)) == "finished:completed"
    assert states(desk, *OPEN_SITES) == dict.fromkeys(OPEN_SITES, "refused")
    assert not marker.exists()
    for site in OPEN_SITES:
        assert desk.progress(site).detail == f"The site does not list the bundle {sha256}"
        assert f"refused bundle {sha256}" in (stack.folder / site / "flower" / "runner.log").read_text()
        assert not [c for c in stack.agents[site].exchange.calls() if b"round-2" in c]
        apps = [p for p in (stack.folder / site).rglob("*") if p.name in {"smile_round", "apps"}]
        assert apps == []  # nothing of it was unpacked


def test_the_fleet_port_shows_the_fleet_api_only(stack: Stack) -> None:
    trust = ssl.create_default_context(cafile=stack.services.files.ca)
    port = stack.services.fleet_port

    def status(target: str, method: str = "POST", body: bytes = b"") -> int:
        """The answer to a request whose target goes out as it is written here."""
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
            trust.wrap_socket(plain, server_hostname="localhost") as line,
        ):
            line.sendall(head.encode() + body)
            return int(line.recv(100).split()[1])

    for target in (
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol/list-nodes",
        "/v1/fleet//activate-node",
        "//v1/control/list-nodes",
        "/v1/fleet/activate-node/../../control/list-nodes",
        "/v1/fleet/%61ctivate-node",
        "/v1/fleet/activate-node?x=1",
        "/v1/fleet/register-node",
        f"https://localhost:{port}/v1/control/list-nodes",
        "/health",
        "/docs",
        "/",
    ):
        assert status(target) == 404, target
    assert status("/v1/fleet/activate-node", "GET") == 405
    assert status("/v1/fleet/push-messages", body=bytes(9000)) == 413
    assert (
        400 <= status("/v1/fleet/pull-messages") < 500
    )  # through to the SuperLink, which knows no such node
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://localhost:{port}/", trust_env=False)  # no public authority signed the certificate
    log = (stack.folder / "coordinator" / "proxy.log").read_text()
    assert "refused POST b'/v1/control/start-run' from 127.0.0.1" in log


def test_other_processes_attach_and_keys_are_registered_once(stack: Stack, tmp_path: Path) -> None:
    other = Services.attach(stack.services.home)
    assert other.fleet_port == stack.services.fleet_port
    assert other.online() == set(stack.ids.values())
    for site in SITES:
        assert other.register(site, stack.folder / site / "node.key.pub") == stack.ids[site]
    with pytest.raises(KeyFileError, match="it is site site-a's"):
        other.register("site-b", stack.folder / "site-a" / "node.key.pub")
    new_node_key(tmp_path / "late.key")
    late = other.register("late", tmp_path / "late.key.pub")
    other.withdraw(late)
    with pytest.raises(KeyFileError, match="withdrawn"):
        other.register("late", tmp_path / "late.key.pub")
    with pytest.raises(RoundError, match="Another process runs"):
        Services(stack.services.home).start()
    with pytest.raises(FederationError, match="would not ask for a run"):
        other.run_state(1)
    other.stop()
    assert stack.services.online() == set(stack.ids.values())
    with pytest.raises(RoundError, match="do not run"):
        Services.attach(tmp_path)


def test_a_run_can_be_stopped(stack: Stack) -> None:
    desk = stack.round("round-3", "site-a")
    stack.agents["site-a"].approves.clear()
    run = stack.services.start_run(desk, "collect", deadline_seconds=PATIENCE, poll_seconds=0.2)
    until("the run's start", lambda: stack.services.run_state(run) == "running", *stack.keepers())
    stack.services.stop_run(run)
    assert stack.finish(run) == "finished:stopped"
