"""The federation: a coordinator and three sites as the commands that people run, over TLS, each kept running."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from coordinator.config import Home as Hub
from coordinator.flower.services import Services
from coordinator.store import Store
from protocol.errors import FederationError
from protocol.files import write_atomic
from protocol.processes import free_port, scripts_folder
from site_agent.agent import Agent
from site_agent.config import Home
from tests.battery.chaos.inputs import SITES, write_site, write_study
from tests.battery.chaos.net import Network
from tests.battery.chaos.processes import Found, Service, kill, processes
from tests.battery.chaos.steps import Step

ROOT = Path(__file__).parents[3]
HOOK = Path(__file__).parent / "hook"
SIGNER = "officer"
DISK = "2g"
"""Of a tmpfs; it takes memory only as it fills."""


class CommandError(Exception):
    """A command ended with another code than 0, or said what no user should see; its text is what it said."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Federation:
    """All homes, processes and the network of a federation in a folder.

    Args:
        folder: empty.
        steps: at which a process can be made to kill itself.
        machines: namespaces and file systems of their own, which only root can make.
    """

    def __init__(self, folder: Path, steps: tuple[Step, ...], *, machines: bool) -> None:
        self.folder, self.machines = folder, machines
        self.network = Network(SITES, folder) if machines else None
        self.services: dict[str, Service] = {}
        self.editions = dict.fromkeys(SITES, 0)
        self.mounts: list[Path] = []
        for name in ("fuses", "burnt", "missing", "data", "logs"):
            (folder / name).mkdir(parents=True)
        (folder / "points.json").write_text(json.dumps([s.point for s in steps]))
        write_atomic(folder / "passphrase", secrets.token_hex(16) + "\n")

    def home(self, role: str) -> Path:
        """The coordinator's or a site's home; what it lies in can be a disk of its own."""
        return self.folder / role / "home"

    @property
    def hub(self) -> Hub:
        """The coordinator's home."""
        return Hub(self.home("hub"))

    def store(self) -> Store:
        """The coordinator's database."""
        return Store(self.hub.database_url)

    def agent(self, site: str) -> Agent:
        """The site's agent, to read what it has written."""
        return Agent(Home(self.home(site)))

    # --- Commands --------------------------------------------------------------------------------------

    def environment(self, role: str, **more: str) -> dict[str, str]:
        """Of a process of the federation."""
        kept = {n: os.environ[n] for n in ("PATH", "HOME", "LANG") if n in os.environ}
        path = f"{HOOK}{os.pathsep}{ROOT}"
        chaos = {"CHAOS_FOLDER": str(self.folder), "CHAOS_ROLE": role, "PYTHONPATH": path}
        return {**kept, **chaos, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}

    def command(self, role: str, *words: str | Path, seconds: float = 600) -> str:
        """One command to its end.

        Raises:
            CommandError: it failed; or it said something that no user should see.
        """
        program = "coordinator" if role == "hub" else "site-agent"
        home = ("--home", str(self.home(role)))
        done = subprocess.run(
            [str(scripts_folder() / program), *map(str, words), *home],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=self.environment(f"{role}-command"),
            check=False,
            timeout=seconds,
        )
        if "Traceback" in done.stderr or done.returncode:
            said = f"{program} {' '.join(map(str, words[:3]))}: {done.stderr}{done.stdout}"
            raise CommandError(said, done.returncode)
        return done.stdout

    # --- Making ----------------------------------------------------------------------------------------

    def make(self) -> None:
        """Homes, keys, enrolment, the first approved releases."""
        if self.network is not None:
            self.network.up()
            for name in ("hub", "south"):
                self._mount(self.folder / name)
        for name in ("hub", *SITES):
            (self.folder / name).mkdir(exist_ok=True)
        study = write_study(self.folder)
        host = self.network.hub if self.network else "127.0.0.1"
        listen = "0.0.0.0" if self.network else "127.0.0.1"  # noqa: S104 - the bridge is this machine's
        self.port = free_port()
        first = ("init", self.home("hub"), "--study", study, "--address", f"{host}:{self.port}")
        self._init("coordinator", *first, "--listen", listen)
        with ThreadPoolExecutor(2) as pool:
            enrolments = list(pool.map(lambda site: self._make_site(site, study), SITES))
        self.command("hub", "enroll", *(word for words in enrolments for word in words))
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._first_release, SITES))

    def _make_site(self, site: str, study: Path) -> tuple[str, ...]:
        given = write_site(self.folder / "data", site, 0)
        anchors = ("--anchors", given.anchors) if given.anchors else ()
        self._init(
            *("site-agent", "init", self.home(site), "--site", site, "--system", given.system, *anchors),
            *("--invitation", self.home("hub") / "invitation.json", "--study", study),
            *("--events", given.events),
        )
        told = json.loads(self.command(site, "enroll", "--json"))
        return told["file"], "--fingerprint", told["fingerprint"]

    def _first_release(self, site: str) -> None:
        self.command(site, "signer", "add", SIGNER, "--passphrase-file", self.folder / "passphrase")
        self.approve(site)

    def _init(self, program: str, *words: str | Path) -> None:
        done = subprocess.run(
            [str(scripts_folder() / program), *map(str, words)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=self.environment("init"),
            check=False,
        )
        if done.returncode:
            raise CommandError(done.stderr + done.stdout, done.returncode)

    def _mount(self, path: Path) -> None:
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", path], check=True)
        self.mounts.append(path)

    def new_data(self, site: str) -> None:
        """Another month's data at a site."""
        self.editions[site] += 1
        write_site(self.folder / "data", site, self.editions[site])

    def approve(self, site: str) -> None:
        """Preview and approval of the data that the site has now."""
        found = json.loads(self.command(site, "preview", "--json"))
        digest, secret = found["manifest_digest"], self.folder / "passphrase"
        self.command(
            site, "approve", "--digest", digest, "--yes", "--by", SIGNER, "--passphrase-file", secret
        )

    # --- Running ---------------------------------------------------------------------------------------

    def service(
        self,
        name: str,
        role: str,
        *argv: str | Path,
        env: Mapping[str, str] = MappingProxyType({}),
        lasting: bool = True,
    ) -> Service:
        """Start a command and keep it."""
        log = self.folder / "logs" / f"{name}.log"
        service = Service(name, tuple(map(str, argv)), self.environment(role, **env), log, lasting)
        self.services[name] = service
        service.start()
        return service

    def start(self) -> None:
        """Everything, and wait until all sites are connected."""
        if self.network is not None:
            self.service("relay", "relay", *self.network.relay(self.port))
        self.start_hub()
        self.until("the coordinator's services", self.serving, 180)
        # A node that the SuperLink does not know yet is turned away, and tries again after a minute only.
        self.command("hub", "round", "open", "first")
        for site in SITES:
            self.start_site(site)

    def start_hub(self, **env: str) -> None:
        """`coordinator serve`."""
        words = ("serve", "--only", "sites", "--home", self.home("hub"))
        self.service("hub", "hub", scripts_folder() / "coordinator", *words, env=env)

    def start_site(self, site: str, **env: str) -> None:
        """`site-agent run`, on the site's machine."""
        inside = self.network.inside(site) if self.network else ()
        words = ("run", "--home", self.home(site))
        self.service(site, site, *inside, scripts_folder() / "site-agent", *words, env=env)

    def drive(self, name: str, **env: str) -> Service:
        """`coordinator round run`, from wherever the round is to its end."""
        words = ("round", "run", name, "--poll", "1", "--home", self.home("hub"))
        return self.service(
            f"round-{name}", "driver", scripts_folder() / "coordinator", *words, env=env, lasting=False
        )

    def serving(self) -> bool:
        """Whether the coordinator's services answer."""
        try:
            Services.attach(self.hub.flower)
        except FederationError:
            return False
        return True

    def online(self) -> set[str]:
        """The sites whose SuperNode the SuperLink holds for connected."""
        try:
            services = Services.attach(self.hub.flower)
            return {n.name for n in services._nodes() if n.status == "online"}
        except FederationError:
            return set()

    def alive(self) -> list[Found]:
        """Every process of the federation."""
        return [p for p in processes(self.folder) if p.kind != "other"]

    def until(self, what: str, condition: Callable[[], bool], seconds: float) -> float:
        """Wait; the seconds that it took.

        Raises:
            TimeoutError: it did not come true.
        """
        begin = time.monotonic()
        while not condition():
            if time.monotonic() - begin > seconds:
                raise TimeoutError(f"{what} did not happen in {seconds:.0f} s; {self.logs()}")
            time.sleep(0.1)
        return time.monotonic() - begin

    def logs(self) -> str:
        """The last lines of what the commands said."""
        return "; ".join(f"{n}: {' | '.join(s.text().splitlines()[-3:])}" for n, s in self.services.items())

    def status(self, name: str) -> Any:
        """`coordinator round status NAME --json`."""
        return json.loads(self.command("hub", "round", "status", name, "--json"))

    # --- Ending ----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """All processes, file systems and namespaces of this federation."""
        for service in reversed(list(self.services.values())):
            service.stop()
        left = list(processes(self.folder))
        for process in left:
            kill(process.pid)
        if self.network is not None:
            self.network.down()
        for path in self.mounts:
            subprocess.run(["umount", "-l", path], check=False)

    def keep_logs(self, target: Path) -> None:
        """Copy what the processes said, for a person to read."""
        shutil.copytree(self.folder / "logs", target / "logs", dirs_exist_ok=True)
        for pattern in ("*/home/flower/*.log", "hub/home/rounds/*/transport.log"):
            for path in self.folder.glob(pattern):
                with suppress(OSError):
                    copy = target / path.relative_to(self.folder)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
