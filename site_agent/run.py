"""`site-agent run`: the agent, and its connection unless another account holds that, until stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable

from protocol.processes import FolderLock
from site_agent.agent import Agent
from site_agent.flower.connection import node_config
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
    node: Node | None = None
    try:
        if agent_only:
            say(f"Answering what arrives in {home.exchange.resolve()}; press Ctrl-C to stop")
        else:
            node = Node(config := node_config(home))
            if not config.allowed_bundles:
                say("network.allow_bundles in site.toml is empty: every message will be denied")
            node.start()
            say(f"Connected outwards to {config.address}; press Ctrl-C to stop")
        _answer(agent, say=say, stop=stop, until_delivered=until_delivered)
    finally:
        if node is not None:
            node.stop()
        lock.release()


def _answer(
    agent: Agent, *, say: Callable[[str], None], stop: threading.Event, until_delivered: bool
) -> None:
    before = load_state(agent.home.folder).result_version
    sums = SumAgent(agent.home)
    while not stop.wait(_POLL_SECONDS):
        for news in [*agent.step(), *sums.step()]:
            say(news)
        if until_delivered and load_state(agent.home.folder).result_version > before:
            # The coordinator must still be able to fetch the receipt.
            stop.wait(_RECEIPT_SECONDS)
            return
