"""The fleet proxy, in memory: what it passes on, and what it refuses before reading further."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from coordinator.flower import proxy
from coordinator.flower.proxy import LIMITS, FleetProxy

PULL, PUSH = "/v1/fleet/pull-messages", "/v1/fleet/push-object"
Handler = Callable[[httpx.Request], httpx.Response]


def ask(handler: Handler, method: str, path: str, **options: object) -> httpx.Response:
    """One request through the proxy to a SuperLink that is a function."""

    async def run() -> httpx.Response:
        transport = httpx.MockTransport(handler)
        async with httpx.AsyncClient(base_url="https://superlink", transport=transport) as upstream:
            asgi = httpx.ASGITransport(FleetProxy(upstream))  # type: ignore[arg-type]
            async with httpx.AsyncClient(base_url="https://fleet", transport=asgi) as client:
                return await client.request(method, path, **options)  # type: ignore[arg-type]

    return asyncio.run(run())


def reply(status: int, content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    """An answer that has yet to be read, as from a socket."""

    async def stream() -> AsyncIterator[bytes]:
        yield content

    return httpx.Response(status, content=stream(), headers=headers)


def refuses(request: httpx.Request) -> httpx.Response:
    pytest.fail(f"the SuperLink was asked for {request.url}")


def test_a_fleet_call_passes_both_ways() -> None:
    seen: list[httpx.Request] = []

    def superlink(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        headers = {
            "Content-Type": "application/protobuf",
            "Connection": "close",
            "Server": "uvicorn",
            "X-Kept": "1",
        }
        return reply(401, b"answer", headers)

    headers = {"X-Node-Signature": "abc", "Proxy-Authorization": "secret", "TE": "trailers", "Upgrade": "h2c"}
    response = ask(superlink, "POST", PULL, content=b"question", headers=headers)
    assert (response.status_code, response.content) == (401, b"answer")
    assert response.headers["x-kept"] == "1"
    assert "server" not in response.headers
    (request,) = seen
    assert (str(request.url), request.content) == (f"https://superlink{PULL}", b"question")
    assert request.headers["x-node-signature"] == "abc"
    assert request.headers["host"] == "superlink"
    assert {"proxy-authorization", "te", "upgrade"}.isdisjoint(request.headers)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/v1/control/start-run",
        "/v1/fleet",
        "/v1/fleet/",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?a=b",
        "/v1/fleet/%70ull-messages",
        "/v1/fleet/..%2f..%2fv1/fleet/pull-messages",
        "/v1/fleet/Pull-messages",
        "/V1/fleet/pull-messages",
        "//v1/fleet/pull-messages",
    ],
)
def test_every_other_path_is_not_found(path: str) -> None:
    assert ask(refuses, "POST", path).status_code == 404


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT"])
def test_every_other_method_is_refused(method: str) -> None:
    assert ask(refuses, method, PULL).status_code == 405


@pytest.mark.parametrize("path", LIMITS)
def test_bodies_are_bounded(path: str) -> None:
    limit = LIMITS[path]
    passed = ask(
        lambda request: reply(200, str(len(request.content)).encode()),
        "POST",
        path,
        content=bytes(limit),
    )
    assert passed.text == str(limit)
    assert ask(refuses, "POST", path, content=bytes(limit + 1)).status_code == 413


def test_a_body_without_a_length_is_bounded_too() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    assert ask(refuses, "POST", PUSH, content=endless()).status_code == 413


def test_a_slow_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "BODY_SECONDS", 0.01)

    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(60)
        yield b"b"

    assert ask(refuses, "POST", PUSH, content=slow()).status_code == 408


def test_a_superlink_that_is_down_is_a_503_which_nodes_try_again() -> None:
    def down(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    assert ask(down, "POST", PULL).status_code == 503
    assert ask(lambda request: reply(500, b"database is locked"), "POST", PULL).status_code == 503


def test_refusals_are_logged_without_letting_the_sender_write_lines(caplog: pytest.LogCaptureFixture) -> None:
    ask(refuses, "POST", "/v1/control/x%0aroot logged in" + "y" * 500)
    (record,) = (r for r in caplog.records if r.name == "coordinator.flower.proxy")
    assert record.getMessage().startswith("404: refused POST b'/v1/control/x%0aroot%20logged%20in")
    assert len(record.getMessage()) < 300
