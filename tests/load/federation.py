"""A coordinator run by its real commands, and many sites with real SuperNodes and runners, on this machine.

Left out of a site is its agent: what it would seal is sealed here, in the product's format and under its own key, and put
into its exchange folder. All that travels, and all that the coordinator does with it, is the product's.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from coordinator import setup
from coordinator.config import Home
from coordinator.flower.bundle import bundle_digest
from coordinator.flower.services import Services
from coordinator.store import Store
from protocol.errors import FederationError
from protocol.messages import Enrolment
from protocol.processes import Keeper, free_port, scripts_folder, stop_all
from site_agent.exchange import Exchange, SiteStatus
from site_agent.flower.node import Node, NodeConfig, new_node_key
from tests.hub import Hub
from tests.load.memory import Cage, Watch, tree
from tests.synthetic import keys, release

ROUND = "load"
PATIENCE = 600.0
"""Seconds for anything to happen; only a broken federation takes them."""

KINDS = {
    "proxy": "coordinator.flower.proxy",
    "SuperLink": "flower-superlink",
    "SuperExec": "coordinator.flower.superexec",
    "ServerApp": "flwr-serverapp",
    "serve": " serve ",
    "round": " round ",
}
"""The coordinator's processes by a word of their command lines."""


def study_text(sites: Sequence[str], dim: int) -> str:
    """A study file of so many sites."""
    return (
        f'id = "unit"\nsites = {json.dumps(list(sites))}\nstandard = "ICD10CM"\nminimum_sites = 3\n'
        f'[embedding]\ndim = {dim}\n[[code_systems]]\nprefix = "ICD10CM"\n'
    )


def large_release(site: str, hub: Hub, codes: int, dim: int, seed: int) -> Any:
    """What a site with so many codes would release: about 4 codes dim bytes."""
    matrix = np.random.default_rng(seed).standard_normal((codes, dim), dtype=np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    return release(site, [f"ICD10CM:C{i:06d}" for i in range(codes)], matrix, spec=hub.home.study)


class Federation:
    """A coordinator's home and its sites.

    Args:
        folder: new.
        sites: how many.
        codes, dim: of each release.
        names: of further sites of the study, which are left to enrol by themselves.
        cage: what limits the coordinator's processes.
    """

    def __init__(
        self,
        folder: Path,
        sites: int,
        codes: int,
        dim: int,
        *,
        names: Sequence[str] = (),
        cage: Cage | None = None,
    ) -> None:
        self.folder, self.codes, self.dim, self.cage = folder, codes, dim, cage
        self.sites = [f"s{i:03d}" for i in range(sites)]
        self.hub = _LoadHub(folder, study_text([*self.sites, *names], dim))
        self.nodes: dict[str, Node] = {}
        self.roots: list[int] = []
        self.sizes: dict[str, int] = {}
        for site in self.sites:
            line = new_node_key(folder / site / "node.key")
            told = Enrolment(
                study_digest=self.home.study.digest,
                site=site,
                keys=keys(site).public(),
                node_key=line,
                contact="",
            )
            self.hub.key_of[site] = keys(site)
            setup.enrol(self.hub.store, told)

    @property
    def home(self) -> Home:
        return self.hub.home

    def exchange(self, site: str) -> Exchange:
        return Exchange(self.folder / site / "exchange")

    def watch(self) -> Watch:
        """Of the coordinator's processes alone."""
        return Watch(lambda: tree(*self.roots), KINDS)

    # --- The coordinator -------------------------------------------------------------------------------

    def _argv(self, *words: str) -> list[str]:
        argv = [str(scripts_folder() / "coordinator"), *words, "--home", str(self.home.folder)]
        return self.cage.argv(argv) if self.cage else argv

    @contextmanager
    def serving(self) -> Iterator[None]:
        """`coordinator serve --only sites`, ready."""
        log = (self.folder / "serve.log").open("wb")
        process = subprocess.Popen(self._argv("serve", "--only", "sites"), stdout=log, stderr=log)
        self.roots.append(process.pid)
        try:
            until("serve", lambda: self._attached() or process.poll() is not None)
            assert process.poll() is None, (self.folder / "serve.log").read_text()[-2000:]
            yield
        finally:
            stop_all([keeper for node in self.nodes.values() for keeper in node.keepers])
            process.terminate()
            process.wait(60)
            log.close()

    def _attached(self) -> bool:
        try:
            Services.attach(self.home.flower)
        except FederationError:
            return False
        return True

    def command(self, *words: str) -> str:
        """A command of the coordinator, to its end."""
        process = subprocess.Popen(
            self._argv(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.roots.append(process.pid)
        found, errors = process.communicate(timeout=3600)
        assert process.returncode == 0, errors[-2000:]
        return found

    # --- The sites -------------------------------------------------------------------------------------

    def seal(self) -> None:
        """Each site's release, into its exchange folder."""
        for number, site in enumerate(self.sites):
            made = large_release(site, self.hub, self.codes, self.dim, number)
            path = self.hub.seal(site, made, ROUND)
            digest, size = self.exchange(site).put_sealed(path)
            path.unlink(missing_ok=True)
            self.sizes[site] = size
            status = SiteStatus(round=ROUND, state="sealed", sha256=digest, size=size)
            self.exchange(site).set_status(status)

    def connect(self) -> None:
        """All SuperNodes and runners; returns once the SuperLink has heard of each."""
        services = Services.attach(self.home.flower)
        for site in self.sites:
            config = NodeConfig(
                site=site,
                address=f"localhost:{services.fleet_port}",
                ca=services.files.ca,
                key=self.folder / site / "node.key",
                work=self.folder / site / "flower",
                exchange=self.exchange(site).root,
                allowed_bundles=(bundle_digest(services.bundle),),
            )
            self.nodes[site] = Node(config)
            self.nodes[site].start()
        until(f"{len(self.sites)} sites online", lambda: len(services.online()) == len(self.sites))

    def collect(self) -> tuple[dict[str, str], float]:
        """`coordinator round collect`; the sites' states, and the seconds that it took."""
        begin = time.monotonic()
        found = json.loads(self.command("round", "collect", ROUND, "--wait", "3000", "--poll", "1", "--json"))
        return {s["site"]: s["state"] for s in found["sites"]}, time.monotonic() - begin

    def processes(self, site: str) -> list[Keeper]:
        """The site's SuperNode and runner."""
        return list(self.nodes[site].keepers)


class _LoadHub(Hub):
    """A hub at an address that can be dialled."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "study.toml"
        path.write_text(self.study)
        address = f"localhost:{free_port()}"
        self.home = setup.init_home(self.folder / "hub", study=path, address=address, listen="127.0.0.1")

    @property
    def store(self) -> Store:
        return Store(self.home.database_url)


def until(what: str, condition: Callable[[], bool]) -> None:
    """Wait for it."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.3)
