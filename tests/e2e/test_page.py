"""The pages in a real browser: headless Chromium against a real server process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.web import PEOPLE, small_home

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine"),
]
SERVER = """
import json, sys
from pathlib import Path
import uvicorn
from coordinator.config import Home
from coordinator.web.app import create_app
from coordinator.web.settings import WebSettings
from coordinator.web.tokens import Tokens

home, port, people = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
app = create_app(Home(home), settings=WebSettings(requests_per_second=1000, burst=10000, logins_per_minute=1000))
made = Tokens(app.state.library.store)
print(json.dumps({n: made.add(n, r) for n, r in people.items()}), flush=True)
uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")
"""
CODES = 2000


@dataclass
class Server:
    """A server process, and who may sign in."""

    home: Path
    port: int
    token: dict[str, str]
    process: subprocess.Popen[str]

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    def start(cls, home: Path, port: int = 0) -> Server:
        if not port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        told = [sys.executable, "-c", SERVER, str(home), str(port), json.dumps(PEOPLE)]
        process = subprocess.Popen(
            told, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert process.stdout
        token = json.loads(process.stdout.readline())
        server = cls(home, port, token, process)
        for _ in range(600):
            try:
                if httpx.get(f"{server.base}/readyz").status_code == 200:
                    return server
            except httpx.HTTPError:
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = small_home(tmp_path_factory.mktemp("browser"), codes=CODES)
    running = Server.start(home.folder)
    yield running
    running.kill()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visitor:
    """A browser window of somebody who has signed in, with every request that it made and every complaint."""

    page: Any
    base: str
    requests: list[str]
    complaints: list[str]

    def go(self, path: str) -> Any:
        answer = self.page.goto(self.base + path)
        assert answer.status < 400, (path, answer.status)
        return self.page


@pytest.fixture
def visit(server: Server, chromium: Any) -> Iterator[Any]:
    opened = []

    def sign_in(name: str = "ada", **options: Any) -> Visitor:
        context = chromium.new_context(**({"viewport": {"width": 1280, "height": 860}} | options))
        opened.append(context)
        page = context.new_page()
        visitor = Visitor(page, server.base, [], [])
        page.on("request", lambda r: visitor.requests.append(r.url))
        page.on("pageerror", lambda e: visitor.complaints.append(str(e)))
        page.on("console", lambda m: visitor.complaints.append(m.text) if m.type == "error" else None)
        page.goto(f"{server.base}/v/2")
        page.get_by_label("Your token").fill(server.token[name])
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", level=1).wait_for()
        return visitor

    yield sign_in
    for context in opened:
        context.close()


VIEWS = [
    "/v/2",
    "/v/2/search?q=diabetes",
    "/v/2/concept/NORTH:000012",
    "/v/2/concept/NORTH:000000",
    "/v/2/map",
    "/v/2/coverage",
    "/v/2/review",
    "/v/2/changes/since/1",
    "/versions",
    "/v/2/downloads",
]


def drawn(page: Any) -> None:
    page.locator("#map-state", has_text="in view").wait_for(timeout=120_000)


def test_search_by_keyboard_leads_to_a_code(visit: Any) -> None:
    visitor = visit()
    page = visitor.go("/v/2")
    page.keyboard.press("/")
    page.keyboard.type("NORTH:00001")
    options = page.get_by_role("option")
    options.first.wait_for()
    assert page.get_by_role("combobox").get_attribute("aria-expanded") == "true"
    page.keyboard.press("ArrowDown")
    chosen = page.get_by_role("combobox").get_attribute("aria-activedescendant")
    wanted = page.locator(f"#{chosen} .code").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_url("**/concept/**")
    assert page.locator("h1 .code").inner_text() == wanted
    assert page.get_by_role("heading", name="Machine evidence").is_visible()
    page.goto(f"{visitor.base}/v/2/search?q=kidney")
    page.locator("a.row").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("[...document.querySelectorAll('a.row')].indexOf(document.activeElement)") == 1
    assert visitor.complaints == []


def test_review_by_keyboard_and_undo(visit: Any) -> None:
    visitor = visit("ada")
    page = visitor.go("/v/2/review?system=NORTH")
    first = page.locator("#h-task .code").inner_text()
    page.keyboard.press("j")
    page.locator(f"#h-task:not(:has-text('{first}'))").wait_for()
    page.keyboard.press("k")
    page.locator(f"#h-task:has-text('{first}')").wait_for()
    page.keyboard.press("c")
    page.keyboard.type("as agreed at the desk")
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    page.locator(".said").wait_for()
    assert page.locator("#h-task .code").inner_text() != first
    other = visit("ben").go(f"/v/2/concept/{first}")
    assert "as agreed at the desk" in other.locator(".people").inner_text()
    assert other.locator(".people .state").inner_text().startswith("Accepted")
    page.keyboard.press("z")
    page.locator(f"#h-task:has-text('{first}')").wait_for()
    assert "Waiting for a decision" in page.locator(".task").inner_text()
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    assert visitor.complaints == []


def test_a_download_is_the_release_byte_for_byte(visit: Any, server: Server) -> None:
    page = visit("ann").go("/v/2/downloads")
    with page.expect_download() as waiting:
        page.get_by_role("link", name="clusters.parquet", exact=True).last.click()
    got = Path(waiting.value.path()).read_bytes()
    assert got == (server.home / "releases" / "v2" / "clusters.parquet").read_bytes()
    assert hashlib.sha256(got).hexdigest() in page.locator("table").inner_text()
    with page.expect_download() as waiting:
        page.locator(".formats").get_by_role("link", name="CSV").click()
    assert Path(waiting.value.path()).read_bytes().startswith(b"code,")


def test_the_lasso_lists_codes(visit: Any) -> None:
    visitor = visit()
    page = visitor.go("/v/2/map")
    drawn(page)
    page.keyboard.press("l")
    box = page.locator("canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 150, y - 150)
    page.mouse.down()
    for dx, dy in ((150, -150), (150, 150), (-150, 150), (-150, -150)):
        page.mouse.move(x + dx, y + dy, steps=8)
    page.mouse.up()
    page.locator("#selection table").wait_for()
    said = page.locator("#selection h2").inner_text()
    listed = int(re.sub(r"\D", "", said.split(" code")[0]))
    assert 1 <= listed < CODES
    with page.expect_download() as waiting:
        page.get_by_role("link", name="CSV of all").click()
    assert len(Path(waiting.value.path()).read_text().splitlines()) >= listed + 1
    assert "area=" in page.url
    page.reload()
    assert page.locator("#selection h2").inner_text() == said
    page.locator("canvas").focus()
    page.keyboard.press("Enter")
    page.locator("#selection h2", has_text=f"{CODES:,}").wait_for()
    page.get_by_label("Colour by").select_option("site")
    page.locator("[data-legend=site] button").first.click()
    assert visitor.complaints == []


def test_hostile_names_run_nothing(visit: Any) -> None:
    visitor = visit("cyd")
    visitor.page.on("dialog", lambda d: visitor.complaints.append(d.message))
    for number in range(9):
        system = ("NORTH", "SOUTH", "LOINC")[number % 3]
        page = visitor.go(f"/v/2/concept/{system}:{number:06d}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.goto(f"{visitor.base}/v/2")
    page.keyboard.press("/")
    page.keyboard.type("script alert")
    page.get_by_role("option").first.wait_for()
    assert page.locator("main img").count() == 0 and visitor.complaints == []


def test_no_view_asks_another_server(visit: Any, server: Server) -> None:
    visitor = visit("cyd")
    for path in VIEWS:
        page = visitor.go(path)
        if "map" in path:
            drawn(page)
        page.wait_for_load_state("networkidle")
    asked = {urlsplit(u).netloc for u in visitor.requests if not u.startswith("blob:")}
    assert asked == {f"127.0.0.1:{server.port}"}
    assert visitor.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_phone_and_can_be_read(visit: Any, scheme: str) -> None:
    visitor = visit("cyd", color_scheme=scheme, viewport={"width": 360, "height": 740})
    grounds = set()
    for path in [*VIEWS, "/login"]:
        page = visitor.go(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        poor = page.evaluate(CONTRAST)
        assert poor == [], (path, poor[:5])
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 1 and (grounds == {"rgb(245, 247, 249)"}) == (scheme == "light")


def test_a_server_that_died_costs_nothing_that_was_typed(tmp_path: Path, chromium: Any) -> None:
    home = small_home(tmp_path, codes=300)
    server = Server.start(home.folder)
    try:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(f"{server.base}/v/2/review?system=NORTH")
        page.get_by_label("Your token").fill(server.token["ada"])
        page.get_by_role("button", name="Sign in").click()
        page.get_by_label("Comment").fill("half an hour of thought")
        server.kill()
        page.get_by_role("button", name="Accept").first.click()
        alert = page.locator("#notice")
        alert.get_by_text("does not answer").wait_for()
        assert page.get_by_label("Comment").input_value() == "half an hour of thought"
        page.get_by_role("combobox").first.fill("diabetes")
        page.wait_for_timeout(400)
        assert page.get_by_role("searchbox").or_(page.locator("#q")).first.input_value() == "diabetes"
        server = Server.start(home.folder, server.port)
        page.get_by_role("button", name="Accept").first.click()
        page.locator(".said, #notice:not([hidden]):not(:has-text('does not answer'))").first.wait_for()
        assert page.locator(".said").count() == 1, page.locator("#notice").inner_text()
        context.close()
    finally:
        server.kill()


CONTRAST = """() => {
  const channel = (c) => { c /= 255; return c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
  const parse = (s) => (s.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const box = e.getBoundingClientRect();
    if (!own || e.closest("svg, .unseen, .skip, noscript, [hidden], option, datalist") || box.width < 2) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(parse(style.color)), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) poor.push(`${ratio.toFixed(2)} ${e.className} ${e.textContent.trim().slice(0, 30)}`);
  }
  return poor;
}"""
