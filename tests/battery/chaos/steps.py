"""The named steps at which a process is killed, all in one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tests.battery.chaos.inputs import SITES

AGENT = "SITE"
"""A step of a site's own processes: which site, the plan says."""


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: for people.
        role: whose process is killed: `hub` (what coordinator serve keeps running), `driver` (coordinator round run),
            `hub-command` (coordinator round open), a site, or `SITE-command` (site-agent preview and approve).
        at: `module:function`, a name in the module where it is used; or, for `rename`, part of a path.
        when: before or after the function; or `rename`: the bytes are written, and do not have this name yet.
        arg: only where an argument of the call is this.
        fresh: the site makes a new release for the round.
    """

    name: str
    role: str
    at: str
    when: Literal["before", "after", "rename"]
    arg: str = ""
    fresh: bool = False

    @property
    def id(self) -> str:
        """As a file's name."""
        return "".join(c if c.isalnum() else "-" for c in f"{self.role}-{self.name}")

    @property
    def point(self) -> dict[str, str]:
        """As the hook reads it."""
        return {"id": self.id, "role": self.role, "at": self.at, "when": self.when, "arg": self.arg}

    def __str__(self) -> str:
        return f"{self.role}: {self.name}"


def _moves(state: str) -> tuple[Step, ...]:
    at = "coordinator.store:Store.move_round"
    return (
        Step(f"before it is {state}", "driver", at, "before", state),
        Step(f"after it is {state}", "driver", at, "after", state),
    )


_LINE, _STORE, _PUBLISH = "coordinator.flower.line", "coordinator.store:Store", "coordinator.publish"
DRIVER: tuple[Step, ...] = (
    Step("a run is started, run.json does not say so", "driver", f"{_LINE}:write_atomic", "before"),
    Step("a run is started, run.json says so", "driver", f"{_LINE}:write_atomic", "after"),
    *_moves("collecting"),
    Step("a release has arrived, unopened", "driver", "coordinator.rounds.receiving:_judge", "before"),
    Step("a release is opened, no verdict stored", "driver", "coordinator.rounds.receiving:_judge", "after"),
    Step("a verdict is stored", "driver", f"{_STORE}.record_submission", "after"),
    *_moves("closed"),
    *_moves("fitting"),
    Step("the fit has no name yet", "driver", "/fits/", "rename"),
    Step("the fit is kept", "driver", "coordinator.fitting:save_fit", "after"),
    *_moves("fitted"),
    *_moves("publishing"),
    Step("the version's files are written, unsigned for sites", "driver", f"{_PUBLISH}:_write", "after"),
    Step("the version's folder has no name yet", "driver", "/releases/v", "rename"),
    Step(
        "the version's folder has its name, nothing is sealed", "driver", f"{_PUBLISH}:seal_bundle", "before"
    ),
    Step("one bundle is sealed", "driver", f"{_PUBLISH}:seal_bundle", "after"),
    Step("all is sealed, the version is not stored", "driver", f"{_STORE}.record_published", "before"),
    Step("the version is stored", "driver", f"{_STORE}.record_published", "after"),
    Step("a receipt has arrived", "driver", f"{_STORE}.record_delivery", "before"),
    Step("a receipt is stored", "driver", f"{_STORE}.record_delivery", "after"),
    *_moves("delivered"),
)
_APP, _POST = "coordinator.flower.server_app", "coordinator.flower.post"
SERVER: tuple[Step, ...] = (
    Step("all sites were asked", "hub", f"{_APP}:Visit.look", "after"),
    Step("a transfer begins", "hub", f"{_APP}:fetch", "before"),
    Step("a block is there, not written", "hub", f"{_POST}:read_block", "after"),
    Step("the part is whole", "hub", f"{_APP}:fetch", "after"),
    Step("the part is about to be renamed", "hub", "/received/", "rename"),
    Step("the part is renamed", "hub", f"{_APP}:sync_folder", "after"),
    Step("a result begins to go out", "hub", f"{_APP}:send", "before"),
    Step("a result has gone out", "hub", f"{_APP}:send", "after"),
)
_EXCHANGE, _LEDGER = "site_agent.exchange:Exchange", "site_agent.ledger:Ledger.append"
RUNNER: tuple[Step, ...] = (
    Step("a call comes", AGENT, f"{_EXCHANGE}.put_call", "before"),
    Step("a call is kept", AGENT, f"{_EXCHANGE}.put_call", "after"),
    Step("a block is read", AGENT, f"{_EXCHANGE}.read_block", "after"),
    Step("a block of a result comes", AGENT, f"{_EXCHANGE}.put_result_block", "before"),
    Step("a result is about to be renamed", AGENT, "/exchange/results/", "rename"),
    Step("a result is whole", AGENT, f"{_EXCHANGE}._finish", "after"),
)
_AGENT, _OUTBOX = "site_agent.agent", "site_agent.outbox:Outbox"
SITE: tuple[Step, ...] = (
    Step("a call is checked", AGENT, f"{_AGENT}:check_and_note", "after"),
    Step("the envelope has no name yet", AGENT, "leaving.sealed", "rename"),
    Step("the envelope is made", AGENT, f"{_OUTBOX}.seal", "after"),
    Step("the release is about to be remembered", AGENT, "site_agent.released:promote", "before"),
    Step("the release is remembered", AGENT, "site_agent.released:promote", "after"),
    Step("what was sealed is kept", AGENT, f"{_OUTBOX}.keep_sealed", "after"),
    Step("before the ledger says sealed", AGENT, _LEDGER, "before", "sealed"),
    Step("after the ledger says sealed", AGENT, _LEDGER, "after", "sealed"),
    Step("the envelope is about to be renamed into the exchange", AGENT, "/exchange/sealed/", "rename"),
    Step("the envelope is in the exchange", AGENT, f"{_EXCHANGE}.put_sealed", "after"),
    Step("the state says sealed", AGENT, f"{_AGENT}:save_state", "after"),
    Step("the status has no name yet", AGENT, "/exchange/status/", "rename"),
    Step("the status says so", AGENT, f"{_EXCHANGE}.set_status", "after"),
    Step("a result came", AGENT, f"{_AGENT}:open_result", "before"),
    Step("a result is unpacked", AGENT, "site_agent.results:unpack_bundle", "after"),
    Step("the state names the result", AGENT, f"{_AGENT}:open_result", "after"),
    Step("before the ledger says accepted", AGENT, _LEDGER, "before", "accepted", fresh=True),
    Step("after the ledger says accepted", AGENT, _LEDGER, "after", "accepted", fresh=True),
    Step("before the ledger says received", AGENT, _LEDGER, "before", "received"),
    Step("after the ledger says received", AGENT, _LEDGER, "after", "received"),
)
_COMMAND = f"{AGENT}-command"
COMMANDS: tuple[Step, ...] = (
    Step("before the ledger says prepared", _COMMAND, _LEDGER, "before", "prepared", fresh=True),
    Step("after the ledger says prepared", _COMMAND, _LEDGER, "after", "prepared", fresh=True),
    Step("the prepared release has no name yet", _COMMAND, "prepared.release", "rename", fresh=True),
    Step("the release is prepared", _COMMAND, f"{_OUTBOX}.prepare", "after", fresh=True),
    Step("before the ledger says approved", _COMMAND, _LEDGER, "before", "approved", fresh=True),
    Step("after the ledger says approved", _COMMAND, _LEDGER, "after", "approved", fresh=True),
)
OPENING: tuple[Step, ...] = (
    Step(
        "the call is signed, the desk not laid out",
        "hub-command",
        "coordinator.rounds.opening:sign_message",
        "after",
    ),
    Step("before the round is stored", "hub-command", f"{_STORE}.add_round", "before"),
    Step("after the round is stored", "hub-command", f"{_STORE}.add_round", "after"),
)


def at_site(step: Step, site: str) -> Step:
    """The step at one site."""
    return replace(step, role=step.role.replace(AGENT, site))


def all_steps() -> tuple[Step, ...]:
    """Every step at every site, as the processes must know them."""
    everywhere = [at_site(s, site) for s in (*RUNNER, *SITE, *COMMANDS) for site in SITES]
    return (*OPENING, *DRIVER, *SERVER, *everywhere)


def plan() -> Iterator[tuple[Step, ...]]:
    """Rounds in which every step is come to once: several of other processes at a time.

    A site's agent that dies costs it a minute, for so long the SuperLink holds its old node for connected; so
    at each site one of its processes dies in a round.
    """
    lanes = (
        [OPENING[i : i + 1] for i in range(len(OPENING))],
        [DRIVER[i::4] for i in range(4)],
        [SERVER[i::4] for i in range(4)],
        *_at_sites((*SITE, *RUNNER, *COMMANDS)),
    )
    for number in range(max(map(len, lanes))):
        yield tuple(step for lane in lanes for group in lane[number : number + 1] for step in group)


def short_plan() -> tuple[Step, ...]:
    """Ten steps of one round: a process of each kind dies."""
    of = {s.name: s for s in (*DRIVER, *SERVER, *RUNNER, *SITE)}
    return (
        OPENING[2],
        of["a release is opened, no verdict stored"],
        of["the part is whole"],
        of["after it is fitting"],
        of["the fit has no name yet"],
        of["the version's folder has its name, nothing is sealed"],
        of["the version is stored"],
        of["a receipt has arrived"],
        at_site(of["a call is kept"], "lake"),
        at_site(of["the status has no name yet"], "north"),
    )


def _at_sites(steps: tuple[Step, ...]) -> list[list[tuple[Step, ...]]]:
    return [
        [(at_site(step, site),) for step in steps[number :: len(SITES)]] for number, site in enumerate(SITES)
    ]
