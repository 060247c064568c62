"""Secure sums over the real stack: services with TLS, node keys, an agent at each site, and the commands that people run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from coordinator.flower.line import FlowerLine
from coordinator.flower.services import Services
from coordinator.store import Store
from protocol.processes import free_port, scripts_folder
from tests.sum_federation import PASSPHRASE, SITES, Consortium

PATIENCE = 240.0
APPS = {
    "sum": "from coordinator.cli_sum import sum_app as app",
    "sums": "from site_agent.sums.cli import sums_app as app",
    "site": "from site_agent.cli import app",
    "coordinator": "from coordinator.cli import app",
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

    def __init__(self, folder: Path, make: Callable[[Path, str], Consortium] = Consortium) -> None:
        port = free_port()
        self.consortium = make(folder, f"127.0.0.1:{port}")
        self.hub = self.consortium.hub
        self.services = Services(self.hub.flower, "127.0.0.1", port, ["127.0.0.1"])
        self.secret = folder / "passphrase"
        self.secret.write_text(PASSPHRASE + "\n")
        self.secret.chmod(0o600)
        self.nodes: dict[str, int] = {}

    def run(self, name: str, *, code: int = 0, wait: float = PATIENCE) -> Any:
        where = ("--home", self.hub.folder, "--wait", str(wait), "--poll", "0.5")
        return command("sum", "run", name, *where, code=code)

    def look_and_approve(self, name: str) -> None:
        for site in SITES:
            home = ("--home", self.consortium.homes[site].folder)
            shown = command("sums", "preview", name, *home)
            yes = ("--yes", "--digest", shown["digest"][:16], "--passphrase-file", self.secret)
            command("sums", "approve", name, *yes, *home)


@contextmanager
def running(folder: Path, make: Callable[[Path, str], Consortium] = Consortium) -> Iterator[Stack]:
    """A consortium whose services and agents run until the end."""
    stack = Stack(folder, make)
    with ExitStack() as ends:
        stack.services.start()
        ends.callback(stack.services.stop)
        # A node that dials in before it is known is turned away for a minute.
        stack.nodes = FlowerLine(stack.hub, Store(stack.hub.database_url)).nodes()
        for site, home in stack.consortium.homes.items():
            log = ends.enter_context((home.folder / "agent.log").open("wb"))
            words = [str(scripts_folder() / "site-agent"), "run", "--home", str(home.folder)]
            process = subprocess.Popen(words, stdout=log, stderr=log)
            ends.callback(process.wait, 60)
            ends.callback(process.terminate)
            assert process.poll() is None, site
        yield stack
