"""The page of a code's relations in a real browser: walked by links, on a phone, with names that are hostile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from coordinator.config import Home
from coordinator.graph import building
from coordinator.library import Library
from coordinator.model.selection import Rule, select_neighbours
from tests.big_release import big_home
from tests.e2e.test_page import CHROMIUM, CONTRAST, Server, chromium

__all__ = ["chromium"]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine"),
]
PICTURES = os.environ.get("SMILE_PICTURES", "")
"""Folder for pictures of the page, for people who change it."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    with pytest.MonkeyPatch.context() as patch:
        # In eight dimensions the default criterion finds that nothing is related.
        patch.setattr(building, "select_neighbours", partial(select_neighbours, rule=Rule(degrees=0.0)))
        return big_home(tmp_path_factory.mktemp("related"), 300, dim=8, graph=True)


@pytest.fixture(scope="module")
def busiest(home: Home) -> str:
    edges = Library(home).open(1).graph.edges
    ends = np.concatenate([edges.left, edges.right])
    return edges.codes[int(np.bincount(ends).argmax())]


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[Server]:
    running = Server.start(home.folder)
    yield running
    running.kill()


def opened(chromium: Any, server: Server, path: str, **options: Any) -> tuple[Any, list[str], list[str]]:
    """A page after signing in, its requests and its complaints."""
    page = chromium.new_context(**options).new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda r: requests.append(r.url))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.goto(server.base + path)
    page.get_by_label("Your token").fill(server.token["ada"])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", level=1).wait_for()
    return page, requests, complaints


def picture(page: Any, name: str) -> None:
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=True)


def test_a_neighbour_is_a_link_to_its_own_neighbourhood(chromium: Any, server: Server, busiest: str) -> None:
    page, requests, complaints = opened(chromium, server, f"/v/1/related?code={quote(busiest)}")
    page.get_by_role("heading", name="Neighbourhood").wait_for()
    rows = page.locator("#h-list ~ .scroll tbody tr").count()
    assert rows > 3
    drawing = page.locator("#h-drawing ~ .drawing svg")
    assert drawing.locator("a").count() >= rows
    assert page.evaluate(CONTRAST) == []
    picture(page, "related")
    page.locator("#h-cloud ~ .drawing svg a").first.click()
    page.wait_for_url(lambda url: "code=" in url and quote(busiest, safe="") not in url)
    assert page.get_by_role("heading", name="Neighbourhood").is_visible()
    assert not complaints
    assert {urlsplit(r).netloc for r in requests} == {urlsplit(server.base).netloc}


def test_what_is_filtered_is_what_is_downloaded(
    chromium: Any, server: Server, busiest: str, tmp_path: Path
) -> None:
    page, _, complaints = opened(chromium, server, f"/v/1/related?code={quote(busiest)}")
    page.get_by_label("How many").fill("3")
    page.get_by_role("button", name="Apply").click()
    page.get_by_text("3 codes, the strongest relation first").wait_for()
    shown = [c.inner_text() for c in page.locator("#h-list ~ .scroll tbody th .code").all()]
    with page.expect_download() as waiting:
        page.get_by_role("link", name="CSV of the pairs shown").click()
    waiting.value.save_as(tmp_path / "pairs.csv")
    text = (tmp_path / "pairs.csv").read_text()
    assert all(code in text for code in shown)
    assert waiting.value.suggested_filename == "v1-related.csv"
    assert not complaints


def test_on_a_phone_nothing_reaches_beyond_the_edge(chromium: Any, server: Server, busiest: str) -> None:
    size = {"width": 360, "height": 740}
    page, _, complaints = opened(chromium, server, f"/v/1/related?code={quote(busiest)}", viewport=size)
    page.get_by_role("heading", name="Words").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    # Its words keep a size that can be read: the drawing scrolls instead.
    assert page.locator("#h-drawing ~ .drawing svg").bounding_box()["width"] > 600
    picture(page, "related-phone")
    assert not complaints
