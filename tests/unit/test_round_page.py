"""Rounds in the API and on the page: who may see them, what is not known, and text of other parties."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from coordinator.flower.desk import SiteProgress
from coordinator.store import Submission
from coordinator.tables import Site
from coordinator.web.pages.rounds import SITE_WORDS, said, time_left
from coordinator.web.rounds import SiteLine, moment
from tests.hub import Hub
from tests.web import Web, web

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\N{RIGHT-TO-LEFT OVERRIDE} gnihsihp"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    hub = Hub(tmp_path_factory.mktemp("rounds"))
    hub.enrol("lake", "north", "south")
    hub.open_round("r1")
    desk = hub.desk("r1")
    desk.report(SiteProgress(site="lake", state="offline", detail="The site's node is not connected."))
    desk.report(SiteProgress(site="north", state="receiving", bytes_done=5_000_000, bytes_total=20_000_000))
    desk.report(SiteProgress(site="south", state="refused", detail=HOSTILE))
    with hub.store.begin() as session:
        session.get_one(Site, "south").contact = HOSTILE
    return hub


@pytest.fixture(scope="module")
def service(hub: Hub) -> Iterator[Web]:
    with web(hub.home) as made:
        yield made


def page(service: Web, path: str, by: str = "cyd") -> Any:
    return service.client.get(path, headers=service.headers(by) | {"accept": "text/html"})


@pytest.mark.parametrize(
    "path", ["/api/v1/rounds", "/api/v1/rounds/r1", "/rounds", "/rounds/r1", "/rounds/r1/now"]
)
def test_only_the_coordinator_sees_rounds(service: Web, path: str) -> None:
    answers = {by: page(service, path, by).status_code for by in ("ann", "ada", "cyd")}
    assert answers == {"ann": 403, "ada": 403, "cyd": 200}
    assert service.client.get(path).status_code == 401


def test_the_list_and_one_round_say_the_same(service: Web) -> None:
    listed = service.get("/rounds", "cyd").json()["rounds"]
    one = service.get("/rounds/r1", "cyd").json()
    assert [{k: one[k] for k in line} for line in listed] == listed
    assert one["deadline"].endswith("Z")
    assert one["events"] and one["events"][0]["state"] == "open"
    assert one["version"] is None and one["share"] is None and one["quorum"] == 3


def test_what_is_not_known_is_null_and_never_zero(service: Web, hub: Hub) -> None:
    sites = {s["site"]: s for s in service.get("/rounds/r1", "cyd").json()["sites"]}
    assert list(sites) == list(hub.home.study.sites)
    assert (sites["north"]["bytes_done"], sites["north"]["bytes_total"]) == (5_000_000, 20_000_000)
    for site in ("lake", "south", "west"):
        assert sites[site]["bytes_done"] is None and sites[site]["bytes_total"] is None
    assert sites["west"]["state"] == "not enrolled" and sites["west"]["updated"] is None
    shown = page(service, "/rounds/r1").text
    row = shown.partition('data-site="west"')[2].partition("</tr>")[0]
    assert "0 bytes" not in row and row.count("missing") == 3


def test_text_of_sites_is_escaped_and_turned_around_by_nobody(service: Web) -> None:
    for path in ("/rounds/r1", "/rounds/r1/now"):
        shown = page(service, path).text
        assert "<script>alert" not in shown and "<img" not in shown
        assert "&lt;script&gt;alert" in shown
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in shown


def test_who_is_offline_is_to_be_called(service: Web) -> None:
    row = page(service, "/rounds/r1").text.partition('data-site="lake"')[2].partition("</tr>")[0]
    assert "<b>Call</b> <bdi>it@lake.example</bdi>" in row


def test_the_page_works_without_scripts_and_under_the_policy(service: Web) -> None:
    answer = page(service, "/rounds/r1")
    assert '<noscript><meta http-equiv="refresh"' in answer.text
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]* src=)", answer.text) and " style=" not in answer.text
    assert not re.search(r'\son[a-z]+="', answer.text)
    part = page(service, "/rounds/r1/now").text
    assert "<html" not in part
    assert _timeless(part).strip() in _timeless(answer.text)


def _timeless(text: str) -> str:
    return re.sub(r"\d\d:\d\d:\d\d", "", text)


def test_an_unknown_round_is_not_found(service: Web) -> None:
    for path in ("/api/v1/rounds/none", "/rounds/none"):
        assert page(service, path).status_code == 404
    for path in ("/api/v1/rounds/NONE", "/rounds/..%2fx", "/rounds/" + "a" * 33):
        assert page(service, path).status_code in {404, 422}


def test_a_round_that_ended_is_not_asked_for_any_more(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.enrol("lake", "north", "south")
    hub.open_round("r1")
    hub.store.move_round("r1", "aborted", "The study has ended")
    hub.store.record_submission(
        Submission(round="r1", site="lake", envelope_digest="a" * 64, state="refused")
    )
    with web(hub.home) as service:
        shown = page(service, "/rounds/r1").text
        assert 'data-over="yes"' in shown and "rounds.js" not in shown and "http-equiv" not in shown
        assert "The study has ended" in shown
        assert "Rounds" in page(service, "/").text
        assert "/rounds" not in page(service, "/", "ada").text


def test_no_round_yet_is_said(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    with web(hub.home) as service:
        assert service.get("/rounds", "cyd").json() == {"rounds": []}
        assert "coordinator round open" in page(service, "/rounds").text


def test_every_state_has_words_and_a_new_one_is_called_what_it_is() -> None:
    line = SiteLine(
        site="x", state="levitating", detail="", bytes_done=None, bytes_total=None, updated=None, contact=""
    )
    assert said(line) == ("levitating", "wait")
    assert {look for _, look in SITE_WORDS.values()} == {"good", "bad", "warn", "busy", "wait"}
    # A site that was not heard of, or was too late, does not look as if all were well.
    assert all(SITE_WORDS[s][1] != "good" for s in ("invited", "offline", "late", "refused", "excluded"))


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (timedelta(days=3, hours=5), "in 3 days"),
        (timedelta(days=1, hours=5), "in 29 hours"),
        (timedelta(minutes=90), "in 90 minutes"),
        (timedelta(minutes=1), "in 1 minute"),
        (timedelta(seconds=20), "in less than a minute"),
        (timedelta(0), "has passed"),
        (timedelta(days=-1), "has passed"),
    ],
)
def test_time_left(left: timedelta, words: str) -> None:
    assert time_left(left) == words


def test_a_desk_s_time_is_read_or_is_none() -> None:
    assert moment("2026-11-02T10:00:00+00:00") == datetime(2026, 11, 2, 10, tzinfo=UTC)
    assert moment("") is None and moment("yesterday") is None
