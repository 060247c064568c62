"""A real SuperNode over everything that is renewed: server certificate, authority and node key; nothing is restarted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from coordinator import certificates
from coordinator.certificates import next_authority, renew_server, switch_authority
from coordinator.flower.bundle import bundle_digest
from coordinator.flower.desk import RoundDesk
from coordinator.flower.services import Services
from site_agent.exchange import Exchange
from site_agent.flower.connection import hold_connection
from site_agent.flower.node import NodeConfig, new_node_key
from tests.e2e.test_flower_stack import PATIENCE, Agent, sha, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


class Line:
    """The services, and one site whose connection is held as `site-agent connect` holds it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.said, self.stop = folder, list[str](), threading.Event()
        self.services = Services(folder / "hub", hosts=["localhost"], tell=self.said.append)
        with monkeypatch.context() as patch:
            patch.setattr(certificates, "SERVER_DAYS", -0.01)  # it has ended before the services start
            self.services.prepare()
        self.tls = self.services.files.ca.parent
        self.services.start()
        home = folder / "site"
        new_node_key(home / "node.key")
        shutil.copyfile(self.services.files.ca, home / "ca.crt")
        self.config = NodeConfig(
            site="north",
            address=f"localhost:{self.services.fleet_port}",
            ca=home / "ca.crt",
            key=home / "node.key",
            work=home / "flower",
            exchange=home / "exchange",
            allowed_bundles=(bundle_digest(self.services.bundle),),
        )
        self.node = self.services.register("north", home / "node.key.pub")
        self.agent = Agent(Exchange(self.config.exchange), "north", os.urandom(100_000))
        self.thread = threading.Thread(
            target=hold_connection, args=(self.config,), kwargs={"say": self.said.append, "stop": self.stop}
        )
        self.agent.start()
        self.thread.start()
        self.online()

    def online(self) -> None:
        until("the site online", lambda: self.node in self.services.online(), *self.services.keepers)

    def end(self) -> None:
        self.stop.set()
        self.thread.join(60)
        self.agent.over.set()
        self.services.stop()

    def all_connect_again(self) -> None:
        """The proxy dies, so that no connection from before is left; its successor shows what the files hold."""
        proxy = self.services.keepers[2]
        assert proxy.pid is not None
        before = len(proxy.exits)
        os.kill(proxy.pid, signal.SIGKILL)
        until("the proxy's death", lambda: len(proxy.exits) > before, proxy)

    def round(self, name: str) -> None:
        """A sealed file comes in."""
        desk = RoundDesk(self.folder / "rounds" / name)
        desk.open(json.dumps({"round": name}).encode(), {"north": self.node})
        run = self.services.start_run(desk, "collect", deadline_seconds=PATIENCE, poll_seconds=0.2)
        until("the file", lambda: desk.progress("north").state == "received", *self.services.keepers)
        until("the run's end", lambda: self.services.run_state(run).startswith("finished"))
        assert sha(desk.received("north").read_bytes()) == sha(self.agent.data)


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    line = Line(tmp_path, monkeypatch)
    try:
        yield line
    finally:
        line.end()


def test_a_site_stays_through_every_renewal(line: Line) -> None:
    assert line.said[0].startswith("Renewed the server certificate: it ended on ")
    line.round("before")

    renew_server(line.tls, ["localhost", "127.0.0.1"])
    line.all_connect_again()
    line.round("new-certificate")
    assert not [s for s in line.said if "connecting again" in s]

    line.config.ca.write_text(next_authority(line.tls))
    until("the new authorities", lambda: [s for s in line.said if "connecting again" in s])
    switch_authority(line.tls, ["localhost", "127.0.0.1"])
    line.all_connect_again()
    line.online()
    line.round("new-authority")

    old = line.node
    new_node_key(line.config.key, replace=True)
    line.services.withdraw(old)
    line.node = line.services.register("north", line.config.key.with_name("node.key.pub"))
    line.online()
    assert old not in line.services.online()
    line.round("new-node-key")
    assert line.services.keepers[0].exits == []
