"""A site's connection to the coordinator: a stock SuperNode and our runner, kept alive.

The SuperNode only dials out. Neither process gets more of the site than the node key, the
certificate of the coordinator's authority and the exchange folder.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.errors import KeyFileError, UsageError
from protocol.files import write_atomic
from protocol.processes import (
    FolderLock,
    Keeper,
    Program,
    clean_environment,
    free_port,
    port_open,
    stop_all,
)
from protocol.vocabulary import IDENTIFIER

RESTART_SECONDS = 65.0
"""A SuperLink holds a dead node for online for 60 s and refuses it until then (exit code 305)."""

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")
# A hospital's way out may be a proxy; the loopback address must not take it.
_PROXY_NAMES = ("HTTPS_PROXY", "https_proxy")


@dataclass(frozen=True)
class NodeConfig:
    """What a site's connection needs.

    Attributes:
        site: the site's name.
        address: host:port of the coordinator's fleet proxy.
        ca: PEM of the authority that signed the coordinator's certificate; no other is trusted.
        key: the node's private key, EC P-384 in OpenSSH form, mode 0600.
        work: folder of logs and of Flower's own files.
        exchange: the exchange folder.
        allowed_bundles: SHA-256 of the bundles whose messages are answered; none denies all.
    """

    site: str
    address: str
    ca: Path
    key: Path
    work: Path
    exchange: Path
    allowed_bundles: tuple[str, ...] = ()

    def check(self) -> None:
        """Look at every field before a process is started.

        Raises:
            UsageError: a name, an address or a file is wrong.
            KeyFileError: the node key is missing or open to other users.
        """
        if not IDENTIFIER.fullmatch(self.site):
            raise UsageError(f"{self.site!r} is no site name", why="it may hold a-z, 0-9 and -, at most 32")
        if not _ADDRESS.fullmatch(self.address):
            raise UsageError(
                f"{self.address!r} is no address", do="Write host:port, for example map.example.org:8443"
            )
        if not os.access(self.ca, os.R_OK):
            raise UsageError(
                f"The coordinator's CA certificate {self.ca} is missing, or this account may not read it",
                do="Take it from the coordinator's invitation",
            )
        if not os.access(self.key, os.R_OK):
            raise KeyFileError(
                f"The node key {self.key} is missing, or this account may not read it",
                why="perhaps the connection runs under an account of its own",
                do="Then use site-agent run --agent-only here; otherwise restore the backup",
            )
        if self.key.stat().st_mode & 0o077:
            raise KeyFileError(
                f"The node key {self.key} is open to other users", do=f"Run chmod 600 {self.key}"
            )


class Node:
    """The two processes of a site's connection."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.keepers: tuple[Keeper, ...] = ()
        self._port = 0
        self._shown: tuple[bytes, bytes] | None = None
        self._lock = FolderLock(config.work, "this site's connection")

    def start(self) -> None:
        """Start both; they find each other and the coordinator on their own, and in any order.

        Raises:
            UsageError, KeyFileError: the configuration is wrong.
            RoundError: another process runs this site's node.
        """
        self.config.check()
        work = self.config.work
        self._lock.acquire()
        self._shown = self._files()
        secret = work / "superexec.secret"
        write_atomic(secret, secrets.token_bytes(32))
        self._port = free_port()
        self.keepers = (Keeper(self._supernode(secret)), Keeper(self._runner(secret)))
        for keeper in self.keepers:
            keeper.start()

    def ready(self) -> bool:
        """Whether the SuperNode answers on this machine; the coordinator may still be out of reach."""
        return port_open(self._port)

    def changed(self) -> bool:
        """Whether the node key or the authorities are others than those that the processes were started with."""
        found = self._files()
        return found is not None and found != self._shown

    def _files(self) -> tuple[bytes, bytes] | None:
        try:
            return self.config.key.read_bytes(), self.config.ca.read_bytes()
        except OSError:
            return None  # being replaced, or gone: the next start says so

    def stop(self) -> None:
        """End both processes."""
        stop_all(self.keepers)
        self.keepers = ()
        self._lock.release()

    def _environment(self, name: str, *keep: str) -> dict[str, str]:
        home = self.config.work / name
        home.mkdir(exist_ok=True, mode=0o700)
        return clean_environment(
            home,
            keep=keep,
            FLWR_HOME=str(home),
            FLWR_TELEMETRY_ENABLED="0",
            FLWR_DISABLE_UPDATE_CHECK="1",
            NO_PROXY="127.0.0.1,localhost",
        )

    def _supernode(self, secret: Path) -> Program:
        config = self.config
        argv = (
            # -P: nothing is imported from the working folder.
            *(sys.executable, "-P", "-m", "site_agent.flower.supernode", "--superlink", config.address),
            *("--root-certificates", str(config.ca.absolute())),
            *("--auth-supernode-private-key", str(config.key.absolute())),
            *("--isolation", "process", "--superexec-auth-secret-file", str(secret.absolute())),
            *("--host", "127.0.0.1", "--port", str(self._port)),
        )
        environment = self._environment("flower-supernode", *_PROXY_NAMES)
        return Program("supernode", argv, config.work, environment, restart_seconds=RESTART_SECONDS)

    def _runner(self, secret: Path) -> Program:
        config = self.config
        argv = (
            *(sys.executable, "-P", "-m", "site_agent.flower.runner"),
            *("--runtime-api-address", f"127.0.0.1:{self._port}"),
            *("--superexec-auth-secret-file", str(secret.absolute())),
            *("--exchange", str(config.exchange.absolute()), "--site", config.site),
            *(word for sha256 in config.allowed_bundles for word in ("--allow-bundle", sha256)),
        )
        return Program("runner", argv, config.work, self._environment("flower-runner"))


def new_node_key(private_path: Path, *, replace: bool = False) -> str:
    """Write a new EC P-384 key in OpenSSH form (0600), its public half beside it as .pub.

    Args:
        private_path: where it goes.
        replace: take it in the place of one that is there.

    Returns:
        The public key's one line, which goes into the enrolment.

    Raises:
        KeyFileError: there is a key already.
    """
    if private_path.exists() and not replace:
        raise KeyFileError(
            f"There is a node key {private_path} already", do="Move it away first if it is to be replaced"
        )
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_atomic(private_path, private)
    write_atomic(private_path.with_name(f"{private_path.name}.pub"), public + b"\n", mode=0o644)
    return public.decode()
