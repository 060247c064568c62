"""`site-agent run`: the agent, and its connection unless another account holds that, until stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from protocol.messages import Invitation
from protocol.processes import FolderLock
from site_agent.agent import Agent
from site_agent.config import Home
from site_agent.enrolment import NOT_ENROLLED, is_enrolled
from site_agent.flower.connection import node_config, restarted
from site_agent.flower.node import Node
from site_agent.state import load_state
from site_agent.sums import SumAgent

_POLL_SECONDS = 0.5
_RECEIPT_SECONDS = 30.0


def run_agent(
    agent: Agent,
    *,
    say: Callable[[str], None],
    stop: threading.Event,
    until_delivered: bool = False,
    agent_only: bool = False,
) -> None:
    """Answer what arrives in the exchange folder, and keep the connection up.

    Keys, node key and authorities that other commands change are taken without a restart.

    The agent, which holds the keys, and the Flower processes, which talk to
    the network, meet in the exchange folder only.

    Args:
        say: told in words what happens.
        stop: ends the agent when set.
        until_delivered: end by itself once a published release has arrived that was not there before.
        agent_only: start no Flower process and open no socket; another account runs `hold_connection`.

    Raises:
        RoundError: another process runs this site's agent.
        UsageError, KeyFileError: the configuration is wrong.
    """
    home = agent.home
    _ = home.study, home.keys
    lock = FolderLock(home.folder, "this site's agent")
    lock.acquire()
    line: _Line | None = None
    try:
        if not is_enrolled(home):
            say(NOT_ENROLLED)
        if agent_only:
            say(f"Answering what arrives in {home.exchange.resolve()}; press Ctrl-C to stop")
        else:
            line = _Line.connect(home, say)
        _answer(agent, line, say=say, stop=stop, until_delivered=until_delivered)
    finally:
        if line is not None:
            line.node.stop()
        lock.release()


@dataclass
class _Line:
    """The connection, which follows what other commands change."""

    home: Home
    say: Callable[[str], None]
    node: Node
    invitation: Invitation

    @classmethod
    def connect(cls, home: Home, say: Callable[[str], None]) -> _Line:
        node = Node(config := node_config(home))
        if not config.allowed_bundles:
            say("network.allow_bundles in site.toml is empty: every message will be denied")
        node.start()
        say(f"Connected outwards to {config.address}; press Ctrl-C to stop")
        return cls(home, say, node, home.invitation)

    def follow(self) -> None:
        """Connect again if the node key, the coordinator's address or the authorities have changed."""
        if self.home.invitation != self.invitation:
            self.invitation = self.home.invitation
            config = node_config(self.home)
        elif self.node.changed():
            config = self.node.config
        else:
            return
        if self.node.changed() or config != self.node.config:
            self.node = restarted(self.node, config, say=self.say)


def _answer(
    agent: Agent,
    line: _Line | None,
    *,
    say: Callable[[str], None],
    stop: threading.Event,
    until_delivered: bool,
) -> None:
    before = load_state(agent.home.folder).result_version
    sums = SumAgent(agent.home)
    while not stop.wait(_POLL_SECONDS):
        for news in [*agent.step(), *sums.step()]:
            say(news)
        if line is not None:
            line.follow()
        if until_delivered and load_state(agent.home.folder).result_version > before:
            # The coordinator must still be able to fetch the receipt.
            stop.wait(_RECEIPT_SECONDS)
            return
