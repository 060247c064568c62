"""A round's page in a real browser: it keeps itself up to date, fits a phone, and says when the server is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.flower.desk import SiteProgress
from tests.e2e.test_page import CHROMIUM, CONTRAST, Server, chromium
from tests.hub import Hub

__all__ = ["chromium"]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine"),
]
PICTURES = os.environ.get("SMILE_PICTURES", "")
"""Folder for pictures of the page, for people who change it."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    hub = Hub(tmp_path_factory.mktemp("round"))
    hub.enrol("lake", "north", "south")
    hub.open_round("2026-q4")
    desk = hub.desk("2026-q4")
    desk.report(SiteProgress(site="lake", state="offline", detail="The site's node is not connected."))
    desk.report(
        SiteProgress(
            site="north",
            state="awaiting-approval",
            detail="Release 3 (8826 ec5c fd67 1af8 b56d) waits for approval: 1 of 2",
        )
    )
    desk.report(SiteProgress(site="south", state="receiving", bytes_done=5_000_000, bytes_total=40_000_000))
    return hub


@pytest.fixture
def server(hub: Hub) -> Iterator[Server]:
    running = Server.start(hub.home.folder)
    yield running
    running.kill()


def sign_in(page: Any, server: Server, name: str = "cyd") -> None:
    page.goto(f"{server.base}/rounds")
    page.get_by_label("Your token").fill(server.token[name])
    page.get_by_role("button", name="Sign in").click()


def picture(page: Any, name: str) -> None:
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=True)


def test_it_follows_the_round_and_keeps_what_is_known_when_the_server_goes(
    hub: Hub, server: Server, chromium: Any
) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 860})
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    sign_in(page, server)
    page.get_by_role("link", name="2026-q4").click()
    row = page.locator("[data-site=south]")
    assert "5.0 MB of 40.0 MB" in row.inner_text()
    assert "Call it@lake.example" in page.locator("[data-site=lake]").inner_text()
    picture(page, "round-wide")
    hub.desk("2026-q4").report(
        SiteProgress(site="south", state="received", bytes_done=40_000_000, bytes_total=40_000_000)
    )
    page.locator("[data-site=south]", has_text="received, to be checked").wait_for(timeout=20_000)
    assert "south: received, to be checked" in page.locator("#round-news").inner_text()
    hub.store.move_round("2026-q4", "collecting", "Asked 3 sites")
    page.locator("[data-state]", has_text="collecting").wait_for(timeout=20_000)
    assert "Asked 3 sites" in page.locator(".events").inner_text()
    assert complaints == []
    server.kill()
    page.locator(".stale", has_text="does not answer").wait_for(timeout=20_000)
    assert "received" in page.locator("[data-site=south]").inner_text()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(server: Server, chromium: Any, scheme: str) -> None:
    context = chromium.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    sign_in(page, server)
    for path in ("/rounds", "/rounds/2026-q4"):
        page.goto(server.base + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        assert page.evaluate(CONTRAST) == [], path
        picture(page, f"{'round' if path[8:] else 'rounds'}-phone-{scheme}")
    context.close()


def test_without_scripts_it_loads_itself_anew(hub: Hub, server: Server, chromium: Any) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    sign_in(page, server)
    page.goto(f"{server.base}/rounds/2026-q4")
    assert "node is not connected" in page.locator("[data-site=lake]").inner_text()
    hub.desk("2026-q4").report(SiteProgress(site="lake", state="preparing", detail="Back again"))
    page.locator("[data-site=lake]", has_text="Back again").wait_for(timeout=90_000)
    context.close()
