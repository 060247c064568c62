"""The coordinator's Flower services: SuperLink, SuperExec and the proxy in front of them.

One process starts them and keeps them running (`coordinator serve`); any other process of the
same user attaches to them through services.json in the home folder.

    sites --TLS--> proxy (fleet port, all interfaces) --TLS--> SuperLink (loopback) <-- SuperExec
                                                                    ^-- this module (control API)
"""

from __future__ import annotations

import secrets
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx
from pydantic import Field

from coordinator.certificates import Certificates, make_ca_and_server, make_loopback
from coordinator.flower.bundle import build_bundle, write_bundle
from coordinator.flower.desk import RoundDesk
from coordinator.renewal import Renewal
from protocol.errors import FederationError, KeyFileError, ProtocolError, RoundError
from protocol.files import write_atomic
from protocol.messages import Message
from protocol.processes import (
    FolderLock,
    Keeper,
    Program,
    clean_environment,
    free_port,
    scripts_folder,
    stop_all,
)
from protocol.signed import parse

if TYPE_CHECKING:
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.proto.run_pb2 import RunStatus

    from coordinator.flower.control import Control

START_SECONDS = 120.0


class Ports(Message):
    """services.json: where the running services listen."""

    superlink: int = Field(ge=1, le=65535, description="Loopback: control, runtime and fleet APIs.")
    fleet: int = Field(ge=1, le=65535, description="The proxy that sites dial.")


class Services:
    """The three services of one home folder.

    Args:
        home: folder of keys, database, logs and services.json.
        host: address on which the fleet port listens.
        fleet_port: the port that sites dial; 0 takes a free one.
        hosts: names and addresses by which sites reach this machine, for the certificate.
        tell: told in words when a certificate is renewed or its authority nears its end.
    """

    def __init__(
        self,
        home: Path,
        host: str = "127.0.0.1",
        fleet_port: int = 0,
        hosts: Sequence[str] = (),
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.home = home.absolute()
        self.files = Certificates.at(self.home / "tls")
        self._loopback = Certificates.at(self.home / "tls" / "loopback")
        self.bundle = self.home / "bundle"
        self._host, self._fleet_port, self._hosts = host, fleet_port, tuple(hosts)
        self.renewal = Renewal(self.files.ca.parent, (*self._hosts, self._door), tell)
        self._lock = FolderLock(self.home, "the coordinator's services")
        self._ports: Ports | None = None
        self.keepers: tuple[Keeper, ...] = ()

    @classmethod
    def attach(cls, home: Path) -> Self:
        """The services that another process keeps running.

        Raises:
            RoundError: none are running.
        """
        services = cls(home)
        try:
            services._ports = parse((services.home / "services.json").read_bytes(), Ports)
        except (OSError, ProtocolError):
            services._ports = None
        if services._ports is None or not services._healthy():
            raise RoundError(
                f"The coordinator's services do not run in {services.home}", do="Run coordinator serve first"
            )
        return services

    @property
    def fleet_port(self) -> int:
        """The port that sites dial."""
        return self._running().fleet

    @property
    def superlink_port(self) -> int:
        """The port of the SuperLink on this machine; another one after each start."""
        return self._running().superlink

    # --- Running ---------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make what sites must be given before the first start: the authority and the bundle.

        Raises:
            UsageError: a host is neither a name nor an address.
        """
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.files.ca.exists():
            make_ca_and_server(self.files.ca.parent, (*self._hosts, self._door))
        write_bundle(self.bundle)

    def start(self) -> None:
        """Start all three and wait until they answer.

        Raises:
            RoundError: another process runs them.
            FederationError: one did not start; the end of its log is the reason.
        """
        self._lock.acquire()
        try:
            self.prepare()
            self.renewal.look()
            make_loopback(self.files.ca.parent)
            ports = Ports(superlink=free_port(), fleet=self._fleet_port or free_port())
            secret = self.home / "superexec.secret"
            write_atomic(secret, secrets.token_bytes(32))
            superlink, superexec, proxy = (
                Keeper(program)
                for program in (
                    self._superlink(ports, secret),
                    self._superexec(ports, secret),
                    self._proxy(ports),
                )
            )
            self.keepers = (superlink, superexec, proxy)
            self._ports = ports
            # The proxy needs no SuperLink to start; the SuperExec would only fill its log meanwhile.
            superlink.start()
            proxy.start()
            superlink.wait_ready(self._healthy, START_SECONDS)
            superexec.start()
            proxy.wait_ready(lambda: self._answers(self.files, self._door, ports.fleet, 404), START_SECONDS)
            write_atomic(self.home / "services.json", ports.model_dump_json())
            self.renewal.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End what this object started; services of another process are left alone."""
        self.renewal.stop()
        if self.keepers:
            (self.home / "services.json").unlink(missing_ok=True)
        stop_all(self.keepers)
        self.keepers = ()
        self._lock.release()

    # --- Sites -----------------------------------------------------------------------------------------

    def register(self, site: str, public_key: Path) -> int:
        """Let a node in; the same key gives the same node id again.

        Args:
            site: the site's name; SuperLink keeps it with the node.
            public_key: file with the node's EC public key in OpenSSH form.

        Raises:
            KeyFileError: the file holds no such key, or the key is another site's, or was withdrawn.
            FederationError: the services do not answer.
        """
        from coordinator.flower.control import load_public_key  # noqa: PLC0415 - Flower takes 40 MB

        key = load_public_key(public_key)
        for node in self._nodes():
            if node.public_key != key:
                continue
            if node.name == site and node.status != "unregistered":
                return node.node_id
            why = "it was withdrawn" if node.status == "unregistered" else f"it is site {node.name}'s"
            raise KeyFileError(
                f"The node key {public_key} cannot be enrolled for {site}",
                why=why,
                do="Ask for a new node key",
            )
        with self._control("register a node") as control:
            return control.register(key, site)

    def withdraw(self, node_id: int) -> None:
        """Shut a node out for ever; its key cannot be enrolled again.

        Raises:
            FederationError: there is no such node, or the services do not answer.
        """
        with self._control("withdraw a node") as control:
            control.unregister(node_id)

    def online(self) -> set[int]:
        """Node ids whose heartbeat came within the last minute.

        Raises:
            FederationError: the services do not answer.
        """
        return {node.node_id for node in self._nodes() if node.status == "online"}

    # --- Runs ------------------------------------------------------------------------------------------

    def start_run(
        self,
        desk: RoundDesk,
        phase: str,
        *,
        deadline_seconds: float = 3600.0,
        poll_seconds: float = 5.0,
        block_bytes: int = 1 << 20,
        sites: Sequence[str] = (),
    ) -> int:
        """Start one phase of a round; its progress appears on the desk.

        Args:
            desk: laid out with the call and the sites.
            phase: `collect` or `deliver`.
            deadline_seconds: from the run's start; then it ends with what it has.
            poll_seconds: between two looks at the sites.
            block_bytes: of a message; at most 32 MiB. All processes on the way hold a few: with 32 MiB
                they take 1.1 GB together, with 1 MiB half of that.
            sites: some of the desk's; none means all.

        Returns:
            The run's id.

        Raises:
            FederationError: the services do not answer or refuse.
        """
        config: dict[str, str | int | float] = {
            "desk": str(desk.folder),
            "phase": phase,
            "deadline-seconds": deadline_seconds,
            "poll-seconds": poll_seconds,
            "block-bytes": block_bytes,
            "sites": ",".join(sites),
        }
        return self.submit(build_bundle(self.bundle), config)

    def submit(self, bundle: bytes, config: dict[str, str | int | float]) -> int:
        """Start a run of any bundle; sites answer only those that they list.

        Raises:
            FederationError: the services do not answer or refuse.
        """
        with self._control("start a run") as control:
            run_id = control.start(bundle, config)
        if run_id is None:
            raise FederationError("Flower did not start the run", do=f"Read {self.home / 'superlink.log'}")
        return run_id

    def run_state(self, run_id: int) -> str:
        """`pending`, `starting`, `running`, `finished:completed`, `finished:failed` or `finished:stopped`.

        Raises:
            FederationError: there is no such run, or the services do not answer.
        """
        status = self._status(run_id)
        return f"{status.status}:{status.sub_status}" if status.sub_status else status.status

    def run_detail(self, run_id: int) -> str:
        """Why a run failed; empty otherwise.

        Raises:
            FederationError: there is no such run, or the services do not answer.
        """
        return self._status(run_id).details

    def stop_run(self, run_id: int) -> None:
        """End a run; what it has brought stays on the desk.

        Raises:
            FederationError: the run has ended already, or the services do not answer.
        """
        with self._control("stop a run") as control:
            control.stop(run_id)

    # --- Inside ----------------------------------------------------------------------------------------

    def _running(self) -> Ports:
        if self._ports is None:
            raise RoundError("The coordinator's services do not run", do="Run coordinator serve first")
        return self._ports

    @property
    def _door(self) -> str:
        """The address of the fleet port as this machine dials it."""
        return "127.0.0.1" if self._host in {"0.0.0.0", "::"} else self._host  # noqa: S104

    def _healthy(self) -> bool:
        return self._answers(self._loopback, "127.0.0.1", self._running().superlink, 200)

    def _answers(self, files: Certificates, host: str, port: int, status: int) -> bool:
        try:
            context = ssl.create_default_context(cafile=files.ca)
            with httpx.Client(verify=context, trust_env=False, timeout=2) as client:
                return client.get(f"https://{host}:{port}/health").status_code == status
        except (OSError, httpx.HTTPError):
            return False

    def _nodes(self) -> list[NodeInfo]:
        with self._control("list the nodes") as control:
            return control.nodes()

    def _status(self, run_id: int) -> RunStatus:
        with self._control("ask for a run") as control:
            return control.status(run_id)

    def _control(self, what: str) -> AbstractContextManager[Control]:
        from coordinator.flower.control import control  # noqa: PLC0415 - Flower takes 40 MB

        return control(self._running().superlink, self._loopback.ca, what)

    def _environment(self, name: str, **extra: str) -> dict[str, str]:
        home = self.home / "flower" / name
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return clean_environment(
            home, FLWR_HOME=str(home), FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", **extra
        )

    def _superlink(self, ports: Ports, secret: Path) -> Program:
        argv = (
            *(
                str(scripts_folder() / "flower-superlink"),
                "--host",
                "127.0.0.1",
                "--port",
                str(ports.superlink),
            ),
            *("--database", str(self.home / "superlink.db"), "--enable-supernode-auth"),
            *("--ssl-ca-certfile", str(self._loopback.ca)),
            *("--ssl-certfile", str(self._loopback.server)),
            *("--ssl-keyfile", str(self._loopback.server_key)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(secret)),
            "--disable-runtime-dependency-installation",
        )
        return Program("superlink", argv, self.home, self._environment("superlink"))

    def _superexec(self, ports: Ports, secret: Path) -> Program:
        argv = (
            *(sys.executable, "-P", "-m", "coordinator.flower.superexec"),
            *("--runtime-api-address", f"127.0.0.1:{ports.superlink}"),
            *("--root-certificates", str(self._loopback.ca), "--superexec-auth-secret-file", str(secret)),
        )
        environment = self._environment("superexec", FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.5")
        return Program("superexec", argv, self.home, environment)

    def _proxy(self, ports: Ports) -> Program:
        argv = (
            *(sys.executable, "-P", "-m", "coordinator.flower.proxy"),
            *("--superlink", f"127.0.0.1:{ports.superlink}", "--ca", str(self._loopback.ca)),
            *("--certificate", str(self.files.server), "--key", str(self.files.server_key)),
            *("--host", self._host, "--port", str(ports.fleet)),
        )
        return Program("proxy", argv, self.home, self._environment("proxy"))
