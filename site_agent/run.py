"""`site-agent run`: the agent and its connection, until stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable

from protocol.files import write_atomic
from site_agent.agent import Agent
from site_agent.flower.node import Node, NodeConfig
from site_agent.state import load_state

_POLL_SECONDS = 0.5
_RECEIPT_SECONDS = 30.0


def run_agent(
    agent: Agent, *, say: Callable[[str], None], stop: threading.Event, until_delivered: bool = False
) -> None:
    """Keep the connection up and answer what arrives.

    The agent, which holds the keys, and the Flower processes, which talk to
    the network, meet in the exchange folder only.

    Args:
        say: told in words what happens.
        stop: ends the agent when set.
        until_delivered: end by itself once a published release has arrived that was not there before.
    """
    home = agent.home
    _ = home.study, home.keys
    flower = home.folder / "flower"
    ca = flower / "ca.crt"
    write_atomic(ca, home.invitation.certificate, mode=0o644)
    config = NodeConfig(
        site=home.config.site,
        address=home.invitation.address,
        ca=ca,
        key=home.node_key,
        work=flower,
        exchange=home.exchange,
        allowed_bundles=home.config.network.allow_bundles,
    )
    if not config.allowed_bundles:
        say("network.allow_bundles in site.toml is empty: every message will be denied")
    before = load_state(home.folder).result_version
    node = Node(config)
    node.start()
    say(f"Connected outwards to {config.address}; press Ctrl-C to stop")
    try:
        while not stop.wait(_POLL_SECONDS):
            for news in agent.step():
                say(news)
            if until_delivered and load_state(home.folder).result_version > before:
                # The coordinator must still be able to fetch the receipt.
                stop.wait(_RECEIPT_SECONDS)
                return
    finally:
        node.stop()
