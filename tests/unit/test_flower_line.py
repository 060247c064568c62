"""The line of the rounds' driver: which run of the ServerApp it follows, and when it begins another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from coordinator.flower.desk import RoundDesk
from coordinator.flower.line import FlowerLine
from coordinator.flower.services import Services
from tests.hub import Hub

SITES = ("lake", "north", "south")


class Superlink:
    """Services whose runs are as the test says."""

    def __init__(self) -> None:
        self.superlink_port = 4000
        self.states: dict[int, str] = {}
        self.stopped: list[int] = []

    def start_run(self, desk: RoundDesk, phase: str, **_: Any) -> int:
        self.states[len(self.states) + 1] = "running"
        return len(self.states)

    def run_state(self, run_id: int) -> str:
        return self.states[run_id]

    def stop_run(self, run_id: int) -> None:
        self.states[run_id] = "finished:stopped"
        self.stopped.append(run_id)

    def register(self, site: str, key: Path) -> int:
        return SITES.index(site)


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> Superlink:
    found = Superlink()
    monkeypatch.setattr(Services, "attach", lambda _home: found)
    monkeypatch.setattr("coordinator.flower.line._LOOK_SECONDS", 0.0)
    return found


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    hub = Hub(tmp_path)
    hub.enrol(*SITES)
    hub.open_round("r1")
    return hub


def carry(hub: Hub) -> None:
    """As a driver that has just been started."""
    FlowerLine(hub.home, hub.store).carry(hub.desk("r1"), "collect", SITES, 3600.0)


def test_a_run_that_is_under_way_is_followed(hub: Hub, superlink: Superlink) -> None:
    for _ in range(3):
        carry(hub)
    assert superlink.states == {1: "running"}


def test_a_run_that_has_failed_is_followed_by_another(hub: Hub, superlink: Superlink) -> None:
    carry(hub)
    superlink.states[1] = "finished:failed"
    carry(hub)
    assert superlink.states[2] == "running"


def test_a_run_of_services_that_were_started_again_is_ended(hub: Hub, superlink: Superlink) -> None:
    """Its process is gone, and the SuperLink calls it running until its last sign of life is old enough."""
    carry(hub)
    superlink.superlink_port = 4001
    carry(hub)
    assert superlink.stopped == [1]
    assert superlink.states[2] == "running"
    carry(hub)
    assert len(superlink.states) == 2
