"""A site's connection under an account of its own, which holds neither data nor keys.

Two accounts of one machine meet in the exchange folder and nowhere else:

    agent account    the home folder (0700): data, keys, outbox, ledger     no network
    Flower account   connection.toml, ca.crt, node.key, its own work        dials the coordinator

`separate` takes the connection out of a home folder; `read_connection` is what the Flower
account starts from. That account needs to read no file of the home folder, so it is given none.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from protocol.configfile import read_config
from protocol.errors import UsageError
from protocol.files import write_atomic
from protocol.messages import HexDigest
from protocol.processes import FolderLock
from protocol.sections import Identifier
from site_agent.config import Home
from site_agent.exchange import Exchange
from site_agent.flower.node import Node, NodeConfig

CONNECTION, CA, NODE_KEY = "connection.toml", "ca.crt", "node.key"
_EXCHANGE_MODE = 0o2750
LOOK_SECONDS = 1.0
"""Between two looks at the node key and the authorities."""

_TEMPLATE = """\
# The connection of site {site} to its coordinator; read by `site-agent connect`. Paths are relative to this file.
site = {site}
address = {address}
ca = {ca}                 # the authority that signed the coordinator's certificate; no other is trusted
key = {key}                 # the node's private key: mode 0600, owned by the account that connects
exchange = {exchange}       # where the agent puts sealed files and finds calls
work = {work}               # logs of the Flower processes, and their own files
# SHA-256 of the bundles whose messages are answered; none means deny all.
allow_bundles = [{bundles}]
"""


class Connection(BaseModel):
    """The content of `connection.toml`; all that the Flower account is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: Identifier = Field(description="The site's name in the study.")
    address: str = Field(description="host:port of the coordinator.")
    ca: str = Field(CA, description="PEM of the authority that signed the coordinator's certificate.")
    key: str = Field(NODE_KEY, description="The node's private key.")
    exchange: str = Field(description="The exchange folder.")
    work: str = Field("work", description="Folder of logs and of Flower's own files.")
    allow_bundles: tuple[HexDigest, ...] = Field(
        (), description="SHA-256 of Flower bundles whose messages are answered; none means deny all."
    )


def node_config(home: Home) -> NodeConfig:
    """The connection of a home folder whose one account does everything; writes the authority's certificate.

    Raises:
        UsageError: the configuration or the invitation is missing or wrong.
    """
    flower = home.folder / "flower"
    flower.mkdir(mode=0o700, exist_ok=True)
    write_atomic(flower / CA, home.invitation.certificate, mode=0o644)
    return NodeConfig(
        site=home.config.site,
        address=home.invitation.address,
        ca=flower / CA,
        key=home.node_key,
        work=flower,
        exchange=home.exchange,
        allowed_bundles=home.config.network.allow_bundles,
    )


def read_connection(path: Path) -> NodeConfig:
    """The connection that a file describes, held against what this account may do.

    Raises:
        UsageError: the file is missing or wrong; or this account is the agent's, or cannot use the exchange folder.
    """
    if not os.access(path, os.R_OK):
        raise UsageError(
            f"There is no connection file {path}, or this account may not read it",
            do="Make one with site-agent separate, or name the right one with --config",
        )
    found = read_config(path, Connection, whose="a connection's", made_by="site-agent separate")
    folder = path.absolute().parent
    config = NodeConfig(
        site=found.site,
        address=found.address,
        ca=folder / found.ca,
        key=folder / found.key,
        work=folder / found.work,
        exchange=folder / found.exchange,
        allowed_bundles=found.allow_bundles,
    )
    _check_account(config.exchange)
    if not os.access(config.work if config.work.exists() else config.work.parent, os.W_OK | os.X_OK):
        raise UsageError(f"This account cannot write to {config.work}", do="Give it the folder, or set work")
    return config


def _check_account(exchange: Path) -> None:
    """Whoever may write the agent's part of the exchange is the agent, or root: then nothing is separated."""
    if os.access(exchange / "status", os.W_OK):
        raise UsageError(
            "This account may write what the agent alone should write",
            why=f"it is the agent's account or root: {exchange / 'status'} is open to it",
            do="Run site-agent connect under an account of its own",
        )
    rights = {"status": os.R_OK, "sealed": os.R_OK, "calls": os.W_OK, "results": os.W_OK}
    for room in (exchange, exchange / "sums"):
        for name, right in rights.items():
            if not os.access(room / name, right | os.X_OK):
                raise UsageError(
                    f"This account cannot use the exchange folder {exchange}",
                    why=f"{room / name} is missing or closed to it",
                    do="Add the account to the folder's group, and run site-agent separate once",
                )


def hold_connection(config: NodeConfig, *, say: Callable[[str], None], stop: threading.Event) -> None:
    """Keep the two Flower processes running until stopped.

    Raises:
        UsageError, KeyFileError: the configuration is wrong.
        RoundError: another process holds this connection.
    """
    if not config.allowed_bundles:
        say("allow_bundles is empty: every message will be denied")
    node = Node(config)
    node.start()
    say(f"Connected outwards to {config.address}; press Ctrl-C to stop")
    try:
        while not stop.wait(LOOK_SECONDS):
            if node.changed():
                node = restarted(node, config, say=say)
    finally:
        node.stop()


def restarted(node: Node, config: NodeConfig, *, say: Callable[[str], None]) -> Node:
    """A node with what is in the files now, in place of one that runs.

    Raises:
        UsageError, KeyFileError: the configuration is wrong.
    """
    say("The node key, the address or the authorities have changed: connecting again")
    node.stop()
    node = Node(config)
    node.start()
    return node


def separate(home: Home, exchange: Path, target: Path) -> Path:
    """Take the connection out of a home folder, so that another account can hold it.

    The exchange folder moves to `exchange`, which the other account can reach; a link takes its
    place. `target` gets the configuration, the certificate and the node key, which leaves the home
    folder last.

    Args:
        exchange: missing, or an empty folder of this account whose group both accounts are in.
        target: a new folder.

    Returns:
        the configuration file.

    Raises:
        UsageError: a folder is not as it must be, or this was done before.
        RoundError: the agent runs.
    """
    exchange, target = exchange.absolute(), target.absolute()
    if not home.node_key.is_file():
        raise UsageError(
            f"The connection of {home.folder} is separated already", why="its node key is gone from there"
        )
    for folder in (exchange, target):
        if folder.is_relative_to(home.folder):
            raise UsageError(f"{folder} lies in the home folder", why="which is closed to other accounts")
        moved = home.exchange.resolve() == folder
        if folder.exists() and not moved and (folder == target or any(folder.iterdir())):
            raise UsageError(f"{folder} is in use", do="Name a new folder")
    config = node_config(home)
    lock = FolderLock(config.work, "this site's connection")
    lock.acquire()
    try:
        target.mkdir(parents=True, mode=0o700)
        shutil.copyfile(config.ca, target / CA)
        write_atomic(target / NODE_KEY, config.key.read_bytes())
        write_atomic(target / CONNECTION, _text(config, exchange), mode=0o640)
        _move_exchange(home.exchange, exchange)
        config.key.unlink()
    finally:
        lock.release()
    return target / CONNECTION


def _text(config: NodeConfig, exchange: Path) -> str:
    return _TEMPLATE.format(
        site=_toml(config.site),
        address=_toml(config.address),
        ca=_toml(CA),
        key=_toml(NODE_KEY),
        exchange=_toml(str(exchange)),
        work=_toml("work"),
        bundles=", ".join(_toml(b) for b in config.allowed_bundles),
    )


def _toml(text: str) -> str:
    # A JSON string of printable characters is a TOML string too.
    return json.dumps(text, ensure_ascii=False)


def _move_exchange(old: Path, new: Path) -> None:
    if old.is_symlink():
        return
    new.mkdir(parents=True, exist_ok=True)
    new.chmod(_EXCHANGE_MODE)
    if not new.stat().st_mode & stat.S_ISGID:
        # The kernel drops the bit for who is not in the group.
        raise UsageError(
            f"This account is not in the group of {new}", do="Add it to that group, and log in again"
        )
    _ = Exchange(new).sums
    for path in old.rglob("*"):
        if path.is_file() and not path.is_symlink():
            # A copy, since a moved file would keep its group.
            copy = new / path.relative_to(old)
            write_atomic(copy, path.read_bytes(), mode=0o640)
    shutil.rmtree(old, ignore_errors=True)
    old.symlink_to(new)
