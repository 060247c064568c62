"""The pages as the server makes them: addresses, escaping, forms without scripts, errors, and where points lie."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.config import Home
from coordinator.library import Library
from coordinator.web.pages import atlas
from coordinator.web.pages.concept import bars, chosen
from coordinator.web.pages.facts import facts_of
from coordinator.web.pages.layout import LANDMARKS, flat_layout
from coordinator.web.pages.rendering import STATIC, concept_url, shown, signed
from tests.big_release import HOSTILE_NAMES
from tests.web import CODE, Web, copy_home, small_home, web

VOID = {"meta", "link", "input", "br", "hr", "img", "use", "rect", "line", "circle", "path"}


class Page(HTMLParser):
    """What a browser would make of a page, as far as tests ask."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [a for t, a in self.tags if t == tag]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return small_home(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def pages(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web(copy_home(home, tmp_path_factory.mktemp("running"))) as running:
        facts_of(running.client.app.state.library.open()).wait()  # type: ignore[attr-defined]
        yield running


def look(pages: Web, path: str, by: str = "ann", status: int = 200, **more: Any) -> Page:
    answer = pages.client.get(path, headers=pages.headers(by) | {"accept": "text/html"}, **more)
    assert answer.status_code == status, answer.text[:300]
    return Page(answer.text)


def say(pages: Web, path: str, by: str, **fields: Any) -> Any:
    return pages.client.post(path, data=fields, headers=pages.headers(by) | {"accept": "text/html"})


EVERY = [
    "/v/2",
    "/v/2/search?q=kidney",
    "/v/2/search",
    f"/v/2/concept/{CODE}",
    "/v/2/concept/ICD10CM:A00000",
    "/v/2/map",
    "/v/2/map?area=-1,-1,1,-1,1,1,-1,1",
    "/v/2/coverage",
    "/v/2/review",
    "/v/2/changes/since/1",
    "/v/2/downloads",
    "/versions",
    "/login",
]


@pytest.mark.parametrize("path", EVERY)
@pytest.mark.parametrize("by", ["ann", "cyd"])
def test_each_page_is_whole_and_accessible(pages: Web, path: str, by: str) -> None:
    page = look(pages, path, by)
    assert page.open == []
    assert [a["lang"] for a in page.all("html")] == ["en"]
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("header")[:1]) == 1
    headings = [int(t[1]) for t, _ in page.tags if re.fullmatch("h[1-6]", t)]
    assert headings[0] == 1 and all(b - a <= 1 for a, b in pairwise(headings))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    labelled = {a.get("for") for a in page.all("label")}
    for control in page.all("input") + page.all("select") + page.all("textarea"):
        assert control.get("type") == "hidden" or control["id"] in labelled
    for table_heading in page.all("th"):
        assert table_heading["scope"] in {"row", "col"}
    for picture in page.all("svg"):
        assert picture.get("aria-hidden") == "true" or picture.get("aria-label")
    assert page.tags[[t for t, _ in page.tags].index("body") + 1][1]["href"] == "#main"


@pytest.mark.parametrize("path", EVERY)
def test_nothing_comes_from_elsewhere_and_nothing_is_inline(pages: Web, path: str) -> None:
    page = look(pages, path, "cyd")
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "formaction"):
            assert re.match(r"[/#?]|$", attributes.get(name, "")), (tag, attributes)
        assert not [n for n in attributes if n.startswith("on") or n == "style"], (tag, attributes)
    assert not [t for t, a in page.tags if t == "style" or (t == "script" and "src" not in a)]


def test_files_of_the_page_name_no_other_server() -> None:
    for path in STATIC.iterdir():
        found = set(re.findall(r"https?://[^\s\"')]+", path.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, path.name


def test_files_of_the_page_are_kept_by_browsers(pages: Web) -> None:
    page = look(pages, "/v/2")
    for sheet in page.all("link"):
        answer = pages.client.get(sheet["href"])
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]


@pytest.mark.parametrize("number", range(len(HOSTILE_NAMES)))
def test_hostile_names_are_harmless(pages: Web, number: int) -> None:
    code = f"{('NORTH', 'SOUTH', 'LOINC')[number % 3]}:{number:06d}"
    for path in (f"/v/2/concept/{code}", f"/v/2/search?q={quote(code[:-1])}", f"/v/2/review?task={code}"):
        answer = pages.client.get(path, headers=pages.headers("cyd") | {"accept": "text/html"})
        page = Page(answer.text)
        assert page.open == [] and len(answer.text) < 60_000
        assert not page.all("img") and all(
            a.get("src", "").startswith("/static/") for a in page.all("script")
        )
        assert "\u202e" not in answer.text and "\u2028" not in answer.text
        assert "alert(1)" not in "".join(str(a) for _, a in page.tags if "href" in a)


def test_a_permanent_address_leads_back_to_its_code(pages: Web) -> None:
    for code in ("ICD9CM:250.00", "X:a/b", "X:a b?c#d%2F", "X:é"):
        address = concept_url(3, code)
        assert address.isascii() and unquote(address) == f"/v/3/concept/{code}" and "?" not in address
    answer = pages.client.get(f"/latest/concept/{CODE}", headers=pages.headers("ann"))
    assert answer.headers["location"] == f"/v/2/concept/{CODE}"
    assert pages.client.get("/", headers=pages.headers("ann")).headers["location"] == "/v/2"


def test_a_whole_code_leads_to_its_page(pages: Web) -> None:
    answer = pages.client.get(f"/v/2/search?q={CODE}", headers=pages.headers("ann"))
    assert (answer.status_code, answer.headers["location"]) == (303, f"/v/2/concept/{CODE}")


def test_search_filters_and_pages(pages: Web) -> None:
    page = look(pages, "/v/2/search?q=NORTH&system=NORTH&page=2")
    rows = [a["href"] for a in page.all("a") if a.get("class") == "row"]
    assert rows and all("/concept/NORTH:" in r for r in rows)
    assert not [a for a in look(pages, "/v/2/search?q=zzzz").all("a") if a.get("class") == "row"]
    assert len(look(pages, "/v/2/suggest?q=NORTH").all("a")) == 8


def test_the_concept_page_keeps_machine_and_people_apart(pages: Web) -> None:
    entry = pages.client.app.state.library.open(2).entry(CODE)  # type: ignore[attr-defined]
    page = look(pages, f"/v/2/concept/{CODE}", "ada")
    text = " ".join(page.text.split())
    machine, people = text.index("Machine evidence"), text.index("People’s decisions")
    assert machine < people < text.index("Nobody has said anything")
    assert machine < text.index("Known pairs that the fit used") < people
    for candidate in entry.candidates:
        assert candidate.code in page.text
    near = pages.client.app.state.library.open(2).neighbours(CODE, 3)  # type: ignore[attr-defined]
    assert f"{near[0].similarity:.3f}" in page.text


def test_bars_leave_zero_to_the_right_side(pages: Web) -> None:
    entry = pages.client.app.state.library.open(2).entry(CODE)  # type: ignore[attr-defined]
    drawn = bars(chosen(entry))
    assert drawn
    for bar in drawn:
        assert bar.start == 50.0 if bar.value >= 0 else bar.start + bar.width == pytest.approx(50.0)
        assert bar.start >= 0 and bar.start + bar.width <= 100.0 + 1e-9


def test_review_works_without_scripts_and_can_be_undone(pages: Web) -> None:
    code = "SOUTH:000013"
    task = look(pages, f"/v/2/review?task={code}", "ada")
    fields = {a["name"]: a.get("value", "") for a in task.all("input") if a.get("type") == "hidden"}
    assert fields["code"] == code
    sent = fields | {"verdict": "accept", "comment": "<script>alert(1)</script> right"}
    answer = say(pages, "/v/2/review/decide", "ada", **sent)
    assert answer.status_code == 303 and "said=" in answer.headers["location"]
    number = re.search(r"said=(\d+)", answer.headers["location"])
    assert number
    after = look(pages, answer.headers["location"], "ada")
    assert f"Recorded as number {number[1]}" in " ".join(after.text.split())
    said = look(pages, f"/v/2/concept/{code}", "ada")
    assert "accepted" in said.text and "<script>alert(1)</script> right" in said.text
    undone = say(pages, "/v/2/review/undo", "ada", code=code, number=number[1])
    assert undone.status_code == 303
    assert "Waiting for a decision" in look(pages, f"/v/2/concept/{code}", "ada").text


def test_two_who_disagree_are_shown_to_a_coordinator_who_ends_it(pages: Web) -> None:
    code = "SOUTH:000016"
    target = pages.client.app.state.library.open(2).entry(code).standard_code  # type: ignore[attr-defined]
    for name, verdict in (("ada", "accept"), ("ben", "reject")):
        assert (
            say(pages, "/v/2/review/decide", name, code=code, target=target, verdict=verdict).status_code
            == 303
        )
    page = look(pages, f"/v/2/review?state=conflict&task={code}", "cyd")
    assert [a for a in page.all("input") if a.get("name") == "adjudicate"] and "disagree" in page.text
    refused = say(
        pages, "/v/2/review/decide", "ben", code=code, target=target, verdict="accept", adjudicate="true"
    )
    assert refused.status_code == 403
    ended = say(
        pages, "/v/2/review/decide", "cyd", code=code, target=target, verdict="accept", adjudicate="true"
    )
    assert ended.status_code == 303
    assert "adjudicated: accepted" in look(pages, f"/v/2/concept/{code}", "ann").text


def test_blind_reviewers_see_nothing_of_each_other(pages: Web) -> None:
    code = "SOUTH:000019"
    target = pages.client.app.state.library.open(2).entry(code).standard_code  # type: ignore[attr-defined]
    assert say(pages, "/v/2/review/assign", "cyd", code=code, reviewers="ada ben").status_code == 303
    said = {"code": code, "target": target, "verdict": "reject", "comment": "a secret opinion"}
    assert say(pages, "/v/2/review/decide", "ada", **said).status_code == 303
    for path in (f"/v/2/concept/{code}", f"/v/2/review?task={code}", "/v/2/review?state=all"):
        for name in ("ben", "ann"):
            assert "a secret opinion" not in look(pages, path, name).text
    assert "Some of it is hidden" in look(pages, f"/v/2/concept/{code}", "ben").text
    assert say(pages, "/v/2/review/assign", "ada", code=code, reviewers="").status_code == 403


def test_analysts_look_on(pages: Web) -> None:
    page = look(pages, f"/v/2/concept/{CODE}", "ann")
    assert not [a for a in page.all("form") if "review" in a.get("action", "")]
    assert say(pages, "/v/2/review/decide", "ann", code=CODE, verdict="unsure").status_code == 403


def test_a_wrong_target_says_what_to_do(pages: Web) -> None:
    answer = say(pages, "/v/2/review/decide", "ada", code=CODE, other="no such code", verdict="accept")
    page = Page(answer.text)
    assert (
        answer.status_code == 422
        and "no standard code of version 2" in page.text
        and "What to do" in page.text
    )


@pytest.mark.parametrize("path", ["/v/9", "/v/2/concept/NOPE:1", "/nothing/here", "/v/2/changes/since/9"])
def test_errors_are_pages(pages: Web, path: str) -> None:
    page = look(pages, path, status=404)
    assert "Not found" in page.text and page.open == []


def test_strangers_are_led_to_the_form(pages: Web) -> None:
    answer = pages.client.get(f"/v/2/concept/{CODE}?x=1", headers={"accept": "text/html"})
    assert answer.status_code == 303 and answer.headers["location"].startswith(
        "/login?next=%2Fv%2F2%2Fconcept"
    )
    form = Page(pages.client.get(answer.headers["location"]).text)
    assert [a["value"] for a in form.all("input") if a.get("name") == "next"] == [f"/v/2/concept/{CODE}?x=1"]
    assert 'value="/"' in pages.client.get("/login?next=https://evil.example").text
    assert "lets nobody in" in pages.client.get("/login?failed=1").text


def test_coverage_shows_no_zero_for_what_was_not_released(pages: Web) -> None:
    release = pages.client.app.state.library.open(2)  # type: ignore[attr-defined]
    found = facts_of(release).coverage
    brute = {(e.standard_code, s) for e in release.map.entries if e.standard_code for s in e.sites}
    held = {(found.concepts[i], found.sites[j]) for i, j in np.argwhere(found.counts)}
    assert held == brute
    answer = pages.client.get("/v/2/coverage", headers=pages.headers("ann")).text
    assert not re.search(r'<td class="n[^"]*">0<', answer)


def test_the_map_s_bytes_hold_what_they_say(pages: Web) -> None:
    answer = pages.client.get("/v/2/map/places", headers=pages.headers("ann"))
    data, release = answer.content, pages.client.app.state.library.open(2)  # type: ignore[attr-defined]
    n = struct.unpack("<4sI", data[:8])[1]
    ways = atlas.colourings(release)
    assert (data[:4], n, len(data)) == (b"SMAP", len(release.map.entries), 8 + n * (12 + 2 * len(ways)))
    assert np.array_equal(np.frombuffer(data, "<f4", n, 8), facts_of(release).wait()[:, 0])
    system = next(w for w in ways if w.name == "system")
    assert [system.labels[i] for i in system.number] == [e.system for e in release.map.entries]
    assert all(sum(w.sizes) == n for w in ways)


def test_an_area_lists_its_codes_and_gives_a_table(pages: Web) -> None:
    release = pages.client.app.state.library.open(2)  # type: ignore[attr-defined]
    xy = facts_of(release).wait()
    area = "-1.1,-1.1,0,-1.1,0,1.1,-1.1,1.1"
    wanted = [e.code for e, (x, _) in zip(release.map.entries, xy, strict=True) if x < 0]
    lines = pages.client.get(f"/v/2/map/selection.csv?area={area}", headers=pages.headers("ann")).text
    assert [line.split(",")[0] for line in lines.splitlines() if re.match("[A-Z0-9]+:", line)] == wanted
    assert f"{len(wanted):,} codes in this area" in look(pages, f"/v/2/map?area={area}").text
    assert "no polygon" in look(pages, "/v/2/map/selection?area=1,2,x", status=422).text


@given(st.integers(0, 2**32 - 1), st.integers(3, 12))
@settings(max_examples=30, deadline=None)
def test_points_within_a_convex_polygon_are_those_left_of_all_sides(seed: int, corners: int) -> None:
    rng = np.random.default_rng(seed)
    turn = np.sort(rng.uniform(0, 2 * np.pi, corners))
    polygon = np.c_[np.cos(turn), np.sin(turn)]
    points = rng.uniform(-1.2, 1.2, (200, 2))
    side = np.roll(polygon, -1, axis=0) - polygon
    left = np.array([side[:, 0] * (y - polygon[:, 1]) - side[:, 1] * (x - polygon[:, 0]) for x, y in points])
    assert np.array_equal(atlas.within(points, polygon), (left > 0).all(axis=1))


@pytest.mark.parametrize("n", [0, 1, 2, 19, 300, LANDMARKS + 200])
def test_the_layout_is_within_the_frame_and_the_same_each_time(n: int) -> None:
    rng = np.random.default_rng(n)
    rows = rng.standard_normal((n, 4)).astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    flat = flat_layout(rows)
    assert flat.shape == (n, 2) and np.abs(flat).max(initial=0) <= 1 and np.isfinite(flat).all()
    if n <= 300:
        assert np.array_equal(flat, flat_layout(rows))


def test_neighbours_stay_neighbours_on_the_map() -> None:
    rng = np.random.default_rng(1)
    centre = rng.standard_normal((12, 16))
    of = np.repeat(np.arange(12), 40)
    rows = centre[of] + 0.3 * rng.standard_normal((480, 16))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    flat = flat_layout(rows).astype(np.float64)
    far = np.linalg.norm(flat[:, None] - flat[None], axis=2) + 9 * np.eye(480)
    assert (of[far.argsort(axis=1)[:, :5]] == of[:, None]).mean() > 0.95


def test_codes_of_one_vector_can_all_be_seen() -> None:
    rows = np.tile(np.eye(4, dtype=np.float32)[:1], (50, 1))
    flat = flat_layout(rows)
    assert len(np.unique(flat, axis=0)) == 50


def test_the_hierarchy_is_that_of_the_codes(pages: Web, home: Home) -> None:
    release = Library(home).open(2)
    facts = facts_of(release)
    by_code = release.entries
    for entry in list(by_code.values())[:60]:
        family = facts.family(entry)
        bare = entry.local.replace(".", "")
        assert all(bare.startswith(e.local.replace(".", "")) and e.code != entry.code for e in family.above)
        assert all(e.local.replace(".", "").startswith(bare) and e.code != entry.code for e in family.below)
        if entry.system == "NORTH":
            assert not (family.above or family.below or family.chapter)


def test_words() -> None:
    assert [signed(v) for v in (1.04, -2.0, 0.01, -0.01)] == ["+1.0", "−2.0", "0.0", "0.0"]
    assert shown("-x") == "-x" and shown("'x") == "'x" and len(shown("y" * 10**6)) == 160


def test_the_package_ships_its_files() -> None:
    folder = Path(atlas.__file__).parent
    assert (folder / "static" / "page.css").is_file() and (folder / "templates" / "base.html.j2").is_file()
    for source in [*folder.glob("static/*.js"), *folder.glob("templates/*")]:
        assert "cdn" not in source.read_text().lower()
