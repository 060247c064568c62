"""Secure sums in memory: every message as bytes, every state stored and read again between two steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from protocol.canonical import digest
from protocol.keys import PrivateKeys
from protocol.secure_sum import (
    Participant,
    ParticipantList,
    ReceivedList,
    SecureSum,
    SiteSum,
    SumLedger,
    SumSubject,
    Transcript,
    advertise,
    aggregate,
    commit,
    deal_shares,
    join,
    mask,
    received_list,
    reveal,
    sign_received,
)

STUDY = digest(b"study")
STEPS = ("advertise", "share", "mask", "sign", "reveal")


@cache
def site_keys(name: str) -> PrivateKeys:
    """The same keys in every run: statistical tests are to be repeatable."""
    sealing, signing = (bytes.fromhex(digest(f"{name} {use}".encode())) for use in ("seals", "signs"))
    return PrivateKeys("x25519", sealing, signing)


def names(n: int) -> tuple[str, ...]:
    return tuple(f"site-{i:02d}" for i in range(n))


def vectors(n: int, cells: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {s: rng.integers(-(10**12), 10**12, cells) for s in names(n)}


@dataclass
class Node:
    """What one site stores."""

    name: str
    ledger: SumLedger = field(default_factory=SumLedger)
    data: str = digest(b"patients")

    @property
    def keys(self) -> PrivateKeys:
        return site_keys(self.name)

    @property
    def nonce(self) -> bytes:
        return digest(self.name.encode()).encode()[:32]


def nodes(n: int) -> dict[str, Node]:
    return {s: Node(s) for s in names(n)}


class Wire:
    """One sum over `members` (all nodes by default); the coordinator keeps what it is sent in `said`."""

    def __init__(
        self,
        everyone: Mapping[str, Node],
        cells: int,
        *,
        members: Collection[str] | None = None,
        round: str = "r1",  # noqa: A002
        attempt: int = 1,
        statistic: str = "pairs",
        minimum: int = 3,
    ) -> None:
        self.nodes = {s: everyone[s] for s in sorted(members if members is not None else everyone)}
        self.subject = SumSubject(
            study_digest=STUDY, round=round, statistic=statistic, shape_digest=digest(b"shape"), cells=cells
        )
        self.sites = ParticipantList(
            subject=self.subject,
            attempt=attempt,
            minimum=minimum,
            sites=tuple(
                Participant(site=s, keys=node.keys.public(), commitment=commit(node.data, node.nonce))
                for s, node in self.nodes.items()
            ),
        )
        self.states: dict[str, SiteSum] = {}
        self.said: dict[str, dict[str, bytes]] = {step: {} for step in ("join", *STEPS)}
        self.vectors: dict[str, Any] = {}
        self.bytes: dict[str, int] = dict.fromkeys(self.nodes, 0)
        self.received: ReceivedList | None = None

    def store(self, site: str, state: SiteSum, ledger: SumLedger | None = None) -> None:
        """As a site would: to bytes and back."""
        self.states[site] = SiteSum.model_validate_json(state.model_dump_json())
        if ledger is not None:
            self.nodes[site].ledger = SumLedger.model_validate_json(ledger.model_dump_json())

    def say(self, step: str, site: str, data: bytes) -> None:
        self.said[step][site] = data
        self.bytes[site] += len(data)

    def all(self, step: str) -> tuple[bytes, ...]:
        return tuple(self.said[step].values())

    def join(self, site: str, **changes: Any) -> None:
        node = self.nodes[site]
        arguments: dict[str, Any] = {
            "site": site,
            "subject": self.subject,
            "enrolled": {s: n.keys.public() for s, n in self.nodes.items()},
            "data": node.data,
            "nonce": node.nonce,
        }
        state, ledger, message = join(self.sites, node.ledger, node.keys, **(arguments | changes))
        self.store(site, state, ledger)
        self.say("join", site, message)

    def advertise(self, site: str) -> None:
        state, message = advertise(self.states[site], self.nodes[site].keys, self.all("join"))
        self.store(site, state)
        self.say("advertise", site, message)

    def share(self, site: str) -> None:
        state, message = deal_shares(self.states[site], self.nodes[site].keys, self.all("advertise"))
        self.store(site, state)
        self.say("share", site, message)

    def mask(self, site: str, values: Any) -> None:
        node = self.nodes[site]
        state, ledger, message, vector = mask(
            self.states[site], node.ledger, node.keys, self.all("share"), values
        )
        self.store(site, state, ledger)
        self.say("mask", site, message)
        self.vectors[site] = vector
        self.bytes[site] += vector.nbytes

    def close(self) -> ReceivedList:
        self.received = received_list(self.sites, self.transcript())
        return self.received

    def sign(self, site: str, received: ReceivedList | None = None) -> None:
        node = self.nodes[site]
        state, ledger, message = sign_received(
            self.states[site], node.ledger, node.keys, received or self.received or self.close()
        )
        self.store(site, state, ledger)
        self.say("sign", site, message)

    def reveal(self, site: str) -> None:
        self.say("reveal", site, reveal(self.states[site], self.nodes[site].keys, self.all("sign")))

    def transcript(self) -> Transcript:
        return Transcript(self.all("advertise"), self.all("share"), self.all("mask"), self.all("reveal"))

    def total(self) -> SecureSum:
        received = self.received or self.close()
        buffers = ((s, memoryview(self.vectors[s])) for s in received.vectors)
        return aggregate(self.sites, received, self.transcript(), buffers)

    def run(
        self, values: Mapping[str, Any], drop: Mapping[str, Collection[str]] | None = None, until: str = ""
    ) -> None:
        """All steps; the sites in `drop[step]` are gone from that step on."""
        present = list(self.nodes)
        for site in present:
            self.join(site)
        for step in STEPS:
            present = [s for s in present if s not in (drop or {}).get(step, ())]
            if step == "sign":
                self.close()
            for site in present:
                if step == "mask":
                    self.mask(site, values[site])
                else:
                    getattr(self, step)(site)
            if step == until:
                return

    def sum(self, values: Mapping[str, Any], drop: Mapping[str, Collection[str]] | None = None) -> SecureSum:
        self.run(values, drop)
        return self.total()
