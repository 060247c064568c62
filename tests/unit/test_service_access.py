"""Who may do what: tokens, roles, sessions, CSRF, proxies, hosts, rates, sizes, and the headers of answers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import select
from typer.testing import CliRunner

from coordinator.cli import app as command_line
from coordinator.config import Home
from coordinator.store import Store
from coordinator.tables import AccessToken, utc_now
from coordinator.web.access import local_path
from coordinator.web.limits import Buckets
from coordinator.web.sessions import COOKIE, SECURE_COOKIE, Sessions, session_key
from coordinator.web.settings import WebSettings
from coordinator.web.tokens import PREFIX, Tokens, digest_of
from protocol.errors import KeyFileError, UsageError
from tests.web import CODE, Web, small_home, web

READ = f"/releases/1/mappings/{CODE}"
DECISION = {"code": CODE, "target": "ICD10CM:A00000", "verdict": "accept"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return small_home(tmp_path_factory.mktemp("home"), codes=100, versions=1)


@pytest.fixture(scope="module")
def service(home: Home) -> Iterator[Web]:
    with web(home) as made:
        yield made


# --- Tokens --------------------------------------------------------------------------------------------


def test_a_stranger_reads_nothing_but_what_is_open(service: Web) -> None:
    for path in service.client.get("/openapi.json").json()["paths"]:
        plain = (
            path.replace("{version}", "1")
            .replace("{id}", "v1")
            .replace("{code}", CODE)
            .replace("{cluster}", "1")
        )
        plain = plain.replace("{name}", "manifest.json").replace("{form}", "csv")
        expected = 200 if path in {"/healthz", "/readyz", "/fhir/metadata"} else (401, 405)
        assert service.client.get(plain).status_code in (
            expected if isinstance(expected, tuple) else (expected,)
        ), path
    refused = service.client.get(f"/api/v1{READ}")
    assert refused.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("header", ["Bearer x", "Bearer ", "Basic YTpi", "bearer smile_", "Bearer \xe9", ""])
def test_a_wrong_token_is_refused_and_not_taken_for_nobody(home: Home, header: str) -> None:
    with web(home, anonymous="analyst") as service:
        found = service.client.get(f"/api/v1{READ}", headers={"Authorization": header.encode("latin-1")})
        assert found.status_code == (401 if header else 200)


def test_the_database_knows_digests_only(home: Home) -> None:
    tokens = Tokens(Store(home.database_url))
    token = tokens.add("eve", "analyst")
    assert token.startswith(PREFIX)
    assert len(token) >= len(PREFIX) + 43
    assert token.encode() not in home.folder.joinpath("coordinator.db").read_bytes()
    with tokens.store.begin() as session:
        assert digest_of(token) in list(session.scalars(select(AccessToken.digest)))


def test_tokens_end_by_time_and_by_hand(home: Home) -> None:
    with web(home) as service:
        tokens = Tokens(service.client.app.state.library.store)
        token = tokens.add("dan", "analyst", days=1)
        headers = {"Authorization": f"Bearer {token}"}
        service.client.app.state.tokens.forget()
        assert service.client.get(f"/api/v1{READ}", headers=headers).status_code == 200
        with tokens.store.begin() as session:
            session.scalars(select(AccessToken).where(AccessToken.name == "dan")).one().expires = utc_now()
        service.client.app.state.tokens.forget()
        assert service.client.get(f"/api/v1{READ}", headers=headers).status_code == 401
        headers = {"Authorization": f"Bearer {tokens.add('dan', 'analyst')}"}
        service.client.app.state.tokens.forget()
        assert service.client.get(f"/api/v1{READ}", headers=headers).status_code == 200
        tokens.revoke("dan")
        service.client.app.state.tokens.forget()
        assert service.client.get(f"/api/v1{READ}", headers=headers).status_code == 401
        with pytest.raises(UsageError, match="no token of dan"):
            tokens.revoke("dan")


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 65, "a\nb", "-a", "<b>", "\u202eada"])
def test_a_name_goes_into_logs_and_records_and_is_plain(home: Home, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a person's"):
        Tokens(Store(home.database_url)).add(name, "analyst")


def test_the_commands_give_show_and_take_tokens(home: Home) -> None:
    run = CliRunner()
    made = run.invoke(
        command_line, ["token", "add", "kim", "--role", "reviewer", "--days", "3", "--home", str(home.folder)]
    )
    token = made.stdout.strip()
    assert token.startswith(PREFIX)
    listed = run.invoke(command_line, ["token", "list", "--json", "--home", str(home.folder)])
    found = next(t for t in json.loads(listed.stdout) if t["name"] == "kim")
    assert (found["role"], found["state"]) == ("reviewer", "holds")
    assert token not in listed.stdout
    ended = run.invoke(command_line, ["token", "revoke", "kim", "--home", str(home.folder)])
    assert "Revoked 1" in ended.stdout
    refused = run.invoke(command_line, ["token", "add", "kim", "--role", "king", "--home", str(home.folder)])
    assert isinstance(refused.exception, UsageError)


# --- Roles ---------------------------------------------------------------------------------------------


def test_each_role_may_do_what_it_may(service: Web) -> None:
    needs = {
        "/reviews/decisions": ("reviewer", DECISION),
        "/reviews/comments": ("reviewer", {"code": CODE, "text": "hm"}),
        "/reviews/undo": ("reviewer", {"number": 99}),
        "/reviews/assignments": ("coordinator", {"codes": [CODE], "reviewers": []}),
        "/reviews/adjudications": ("coordinator", DECISION),
    }
    order = ["analyst", "reviewer", "coordinator"]
    for path, (role, body) in needs.items():
        for name, has in {"ann": "analyst", "ada": "reviewer", "cyd": "coordinator"}.items():
            status = service.post(path, body, by=name).status_code
            assert (status == 403) == (order.index(has) < order.index(role)), (path, name, status)
            assert status in {201, 403, 409}
    assert service.get("/releases/1/reviews/queue", by="ann").status_code == 403
    assert service.get("/releases/1/reviews/queue?everybody=true", by="ada").status_code == 403
    assert service.get("/releases/1/reviews/queue?everybody=true", by="cyd").status_code == 200


# --- Browsers ------------------------------------------------------------------------------------------


def sign_in(service: Web, name: str) -> None:
    done = service.client.post("/login", data={"token": service.token[name], "next": "/somewhere?x=1"})
    assert (done.status_code, done.headers["location"]) == (303, "/somewhere?x=1")


def test_a_session_is_a_cookie_that_scripts_and_other_sites_do_not_get(home: Home) -> None:
    with web(home) as service:
        done = service.client.post("/login", data={"token": service.token["ada"]})
        cookie = done.headers["set-cookie"]
        assert cookie.startswith(f"{COOKIE}=")
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
        assert service.token["ada"] not in cookie
        assert service.client.get(f"/api/v1{READ}").status_code == 200
        assert service.client.get("/api/v1/releases/1/reviews/queue").status_code == 200
        csrf = _csrf(service)
        service.client.post("/logout", data={"csrf": csrf})
        assert service.client.get(f"/api/v1{READ}").status_code == 401
    with web(home, base="https://localhost") as service:
        cookie = service.client.post("/login", data={"token": service.token["ada"]}).headers["set-cookie"]
        assert cookie.startswith(f"{SECURE_COOKIE}=")
        assert "Secure" in cookie.split("; ")


def test_a_session_ends_with_its_token(home: Home) -> None:
    with web(home) as service:
        tokens = Tokens(service.client.app.state.library.store)
        service.token["fay"] = tokens.add("fay", "analyst")
        sign_in(service, "fay")
        assert service.client.get(f"/api/v1{READ}").status_code == 200
        tokens.revoke("fay")
        service.client.app.state.tokens.forget()
        assert service.client.get(f"/api/v1{READ}").status_code == 401


def test_a_wrong_token_at_the_form_makes_no_session(service: Web) -> None:
    done = service.client.post("/login", data={"token": "smile_nothing"})
    assert (done.status_code, done.headers["location"]) == (303, "/login?failed=1")
    assert "set-cookie" not in done.headers


@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "",
        "/a\r\nX: y",
        "/\x00",
    ],
)
def test_signing_in_leads_to_this_service_only(target: str) -> None:
    assert local_path(target) == "/"


def _csrf(service: Web) -> str:
    """What a page of the session would carry."""
    sessions: Sessions = service.client.app.state.sessions
    session = sessions.read(service.client.cookies[COOKIE])
    assert session is not None
    return sessions.csrf(f"cookie {session.nonce}")


def test_a_cookie_alone_changes_nothing(home: Home) -> None:
    with web(home) as service:
        sign_in(service, "ada")
        post = service.client.post
        assert post("/api/v1/reviews/decisions", json=DECISION).status_code == 403
        assert (
            post("/api/v1/reviews/decisions", json=DECISION, headers={"X-CSRF-Token": "x"}).status_code == 403
        )
        assert post("/logout", data={"csrf": "x"}).status_code == 403
        good = {"X-CSRF-Token": _csrf(service)}
        assert post("/api/v1/reviews/decisions", json=DECISION, headers=good).status_code == 201
        other = good | {"Origin": "http://evil.example"}
        assert post("/api/v1/reviews/decisions", json=DECISION, headers=other).status_code == 403
        cross = good | {"Sec-Fetch-Site": "cross-site"}
        assert post("/api/v1/reviews/decisions", json=DECISION, headers=cross).status_code == 403
        ours = good | {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}
        assert post("/api/v1/reviews/decisions", json=DECISION, headers=ours).status_code == 201
        # Nor does another site's form sign somebody in.
        login = post(
            "/login", data={"token": service.token["ann"]}, headers={"Origin": "http://evil.example"}
        )
        assert login.status_code == 403


def test_proofs_and_cookies_are_bound_to_key_session_and_time(tmp_path: Any) -> None:
    now = [1_000_000.0]
    one = Sessions(b"a" * 32, hours=1, clock=lambda: now[0])
    other = Sessions(b"b" * 32, hours=1, clock=lambda: now[0])
    proof = one.csrf("cookie n")
    assert one.csrf_holds(proof, "cookie n")
    assert not one.csrf_holds(proof, "cookie m")
    assert not other.csrf_holds(proof, "cookie n")
    now[0] += 86_400
    assert one.csrf_holds(proof, "cookie n")
    now[0] += 86_400
    assert not one.csrf_holds(proof, "cookie n")
    for forged in ("", "1", "1.2.3", "1.2.3.4", "1.9999999999.n." + "A" * 43, "\u00e9.x"):
        assert one.read(forged) is None
    path = tmp_path / "key"
    assert session_key(path) == session_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="nobody else may read"):
        session_key(path)


def test_a_page_leads_strangers_to_the_login(service: Web) -> None:
    found = service.client.get("/anything?x=1", headers={"Accept": "text/html"})
    assert found.status_code in {303, 404}
    if found.status_code == 303:
        assert found.headers["location"].startswith("/login?next=%2Fanything")


# --- Proxies, hosts ------------------------------------------------------------------------------------

PROXY: dict[str, Any] = {
    "identity_header": "X-Forwarded-User",
    "trusted_proxies": ["10.1.0.0/16"],
    "role_of": {"ada@north.example": "reviewer", "*": "analyst"},
}
ADA = {"X-Forwarded-User": "ada@north.example"}


def test_a_proxy_names_people(home: Home) -> None:
    with web(home, client="10.1.2.3", **PROXY) as service:
        ask = service.client.get
        assert ask("/api/v1/releases/1/reviews/queue", headers=ADA).status_code == 200
        assert ask("/api/v1/releases/1/reviews/queue", headers={"X-Forwarded-User": "bob"}).status_code == 403
        assert ask(f"/api/v1{READ}", headers={"X-Forwarded-User": "bob"}).status_code == 200
        assert ask(f"/api/v1{READ}").status_code == 401
        for bad in ("a b", "<script>", "x" * 80, "anonymous"):
            assert ask(f"/api/v1{READ}", headers={"X-Forwarded-User": bad}).status_code == 401
        twice = [("X-Forwarded-User", "ada@north.example"), ("X-Forwarded-User", "cyd")]
        assert ask(f"/api/v1{READ}", headers=twice).status_code == 401
        # Its own cookies sign people in, so its forms need our proof too.
        post = service.client.post
        assert post("/api/v1/reviews/decisions", json=DECISION, headers=ADA).status_code == 403
        proof = service.client.app.state.sessions.csrf("proxy ada@north.example")
        done = post("/api/v1/reviews/decisions", json=DECISION, headers=ADA | {"X-CSRF-Token": proof})
        assert (done.status_code, done.json()["by"]) == (201, "ada@north.example")


def test_only_a_trusted_proxy_is_believed(home: Home) -> None:
    with web(home, client="10.2.0.1", anonymous="analyst", **PROXY) as service:
        refused = service.client.get(f"/api/v1{READ}", headers=ADA)
        assert refused.status_code == 401
        assert "trusted proxies only" in refused.json()["what"]
        assert service.get(READ).status_code == 200
    with web(home, client="10.2.0.1") as service:
        assert service.client.get(f"/api/v1{READ}", headers=ADA).status_code == 401


def test_somebody_without_a_role_is_refused(home: Home) -> None:
    with web(home, client="10.1.2.3", **(PROXY | {"role_of": {}})) as service:
        assert service.client.get(f"/api/v1{READ}", headers=ADA).status_code == 403


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"identity_header": "X-User"}, "trusted_proxies"),
        ({"identity_header": "Authorization", "trusted_proxies": ["10.0.0.1"]}, "meaning of its own"),
        ({"trusted_proxies": ["everybody"]}, "everybody"),
        ({"certificate": "a.pem"}, "go together"),
        ({"role_of": {"x": "king"}}, "king"),
        ({"anonymous": "reviewer"}, "analyst"),
    ],
)
def test_settings_that_would_let_anybody_in_are_refused(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ValidationError, match=error):
        WebSettings(**settings)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example:8480"]
)
def test_another_host_name_is_refused(service: Web, host: str) -> None:
    """A site whose name is pointed at 127.0.0.1 would otherwise read in its visitors' browsers."""
    assert service.get(READ, headers={"Host": host}).status_code == 421


def test_named_hosts_are_served(home: Home) -> None:
    with web(home, hosts=["map.example.org"]) as service:
        for host in ("map.example.org", "MAP.example.org:443", "localhost:8480", "[::1]:8480", "127.0.0.1"):
            assert service.get(READ, headers={"Host": host}).status_code == 200


# --- Rates, sizes, headers, log ------------------------------------------------------------------------


def test_who_asks_too_often_is_told_when_to_come_again(home: Home) -> None:
    with web(home, requests_per_second=0.5, burst=3) as service:
        answers = [service.get(READ) for _ in range(5)]
        assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
        assert int(answers[-1].headers["retry-after"]) in {1, 2}
        # Others are not slowed down.
        assert service.get(READ, by="ada").status_code == 200


def test_attempts_to_sign_in_are_limited_harder(home: Home) -> None:
    with web(home, logins_per_minute=3) as service:
        tries = [service.client.post("/login", data={"token": "x"}).status_code for _ in range(5)]
        assert tries == [303, 303, 303, 429, 429]
        wrong = {"Authorization": "Bearer x"}
        found = [service.client.get(f"/api/v1{READ}", headers=wrong).status_code for _ in range(12)]
        assert found == [401] * 10 + [429] * 2
        # Whoever has a good token is not locked out by somebody who guesses.
        assert service.get(READ).status_code == 200


def test_buckets_fill_again_and_forget() -> None:
    now = [0.0]
    buckets = Buckets(2.0, 4, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 1]
    now[0] = 0.5
    assert [buckets.take("a"), buckets.take("a")] == [0, 1]
    for i in range(30_000):
        buckets.take(f"k{i}")
    assert len(buckets._level) <= 20_000


def test_a_large_or_lying_body_is_refused(home: Home) -> None:
    with web(home, body_bytes=2048) as service:
        assert service.post("/releases/1/translate", {"codes": ["x" * 3000]}, by="ann").status_code == 413

        def pieces() -> Iterator[bytes]:
            for _ in range(10):
                yield b" " * 1000

        headers = service.headers("ann") | {"Content-Type": "application/json"}
        found = service.client.post("/api/v1/releases/1/translate", content=pieces(), headers=headers)
        assert found.status_code == 413


def test_what_takes_too_long_is_ended(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(*_: Any, **__: Any) -> None:
        await asyncio.sleep(30)

    monkeypatch.setattr("coordinator.web.reading._nearest", slow)
    with web(home, request_seconds=0.2) as service:
        found = service.get(f"/releases/1/neighbours?code={CODE}")
    assert found.status_code == 504
    assert found.headers["x-content-type-options"] == "nosniff"


def test_every_answer_has_the_headers_that_keep_a_browser_safe(service: Web) -> None:
    service.client.cookies.clear()
    for found in (service.get(READ), service.client.get("/nothing"), service.client.get(f"/api/v1{READ}")):
        policy = found.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "same-origin"
        assert found.headers["cache-control"] == "private, no-cache"
        assert "strict-transport-security" not in found.headers
        assert "server" not in found.headers


def test_hsts_is_sent_over_https_only(home: Home) -> None:
    with web(home, base="https://localhost") as service:
        assert service.get(READ).headers["strict-transport-security"].startswith("max-age=")
    with web(home, client="10.1.0.1", trusted_proxies=["10.1.0.1"]) as service:
        https = {"X-Forwarded-Proto": "https"}
        assert "strict-transport-security" in service.get(READ, headers=https).headers
    with web(home) as service:
        assert (
            "strict-transport-security"
            not in service.get(READ, headers={"X-Forwarded-Proto": "https"}).headers
        )


def test_the_log_says_who_and_what_kind_but_not_what_was_looked_up(home: Home) -> None:
    with web(home) as service:
        service.get(f"{READ}?secret=1")
        service.get("/releases/1/search?text=syphilis")
        service.client.get(f"/api/v1{READ}")
        said = json.dumps(service.records)
        assert service.records[0]["person"] == "ann"
        assert service.records[0]["route"] == "/api/v1/releases/{version}/mappings/{code:path}"
        assert service.records[0]["status"] == 200
        assert "address" not in service.records[0]
        assert service.records[2]["address"] == "127.0.0.1"
        assert not re.search("syphilis|secret|NORTH|smile_", said)


def test_limits_behind_a_proxy_are_by_the_sender(home: Home) -> None:
    with web(
        home,
        client="10.1.0.1",
        trusted_proxies=["10.1.0.1"],
        anonymous="analyst",
        burst=2,
        requests_per_second=0.1,
    ) as s:

        def ask(forwarded: str) -> int:
            return int(s.client.get(f"/api/v1{READ}", headers={"X-Forwarded-For": forwarded}).status_code)

        assert [ask("198.51.100.1") for _ in range(3)] == [200, 200, 429]
        # What the sender wrote before the proxy's own entry is hearsay.
        assert ask("203.0.113.9, 198.51.100.1") == 429
        assert ask("203.0.113.9") == 200
        # One subscriber has a whole /64.
        assert [ask(f"2001:db8::{i}") for i in range(1, 4)] == [200, 200, 429]


def test_a_token_expires_in_days(home: Home) -> None:
    tokens = Tokens(Store(home.database_url))
    tokens.add("zoe", "analyst", days=2)
    found = next(t for t in tokens.all() if t.name == "zoe")
    assert found.stands(utc_now() + timedelta(days=1))
    assert not found.stands(utc_now() + timedelta(days=3))
