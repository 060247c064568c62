"""`coordinator serve --only web` as a process, and what its listener does to bad connections."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from coordinator.certificates import make_ca_and_server
from coordinator.config import Home
from coordinator.store import Store
from coordinator.web import serving
from coordinator.web.serving import WebService
from coordinator.web.settings import WebSettings
from coordinator.web.tokens import Tokens
from protocol.errors import UsageError
from tests.web import copy_home, small_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return small_home(tmp_path_factory.mktemp("home"), codes=60, versions=1)


@contextmanager
def running(home: Home, **settings: object) -> Iterator[WebService]:
    made = WebService(home, settings=WebSettings(**({"port": 0} | settings)))  # type: ignore[arg-type]
    made.start()
    try:
        yield made
    finally:
        made.stop()


def test_serve_answers_and_ends_with_the_signal(home: Home, tmp_path: Path) -> None:
    mine = copy_home(home, tmp_path)
    with (mine.folder / "coordinator.toml").open("a") as config:
        config.write("\n[web]\nport = 0\n")
    token = Tokens(Store(mine.database_url)).add("ada", "analyst")
    command = [
        str(Path(sys.executable).with_name("coordinator")),
        "serve",
        "--only",
        "web",
        "--home",
        str(mine.folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{url}/api/v1/releases/latest", headers=headers).json()["version"] == 1
        assert httpx.get(f"{url}/readyz").status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    log = mine.folder / "web-access.jsonl"
    assert log.stat().st_mode & 0o077 == 0
    assert '"route": "/api/v1/releases/{version}"' in log.read_text()


def test_it_speaks_tls(home: Home, tmp_path: Path) -> None:
    mine = copy_home(home, tmp_path)
    files = make_ca_and_server(mine.folder / "web-tls", ("127.0.0.1",))
    names = {"certificate": str(files.server), "key": str(files.server_key)}
    with running(mine, **names) as service:
        assert service.url.startswith("https://")
        context = ssl.create_default_context(cafile=files.ca)
        found = httpx.get(f"{service.url}/healthz", verify=context)
        assert found.headers["strict-transport-security"]
        old = ssl.create_default_context(cafile=files.ca)
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{service.url}/healthz", verify=old)


def test_a_certificate_that_is_none_is_named(home: Home) -> None:
    with (
        pytest.raises(UsageError, match="cannot be used"),
        running(home, certificate="study.toml", key="study.toml"),
    ):
        pass


@pytest.mark.parametrize("listen", ["0.0.0.0", "::", "192.0.2.1", "map.example.org"])  # noqa: S104
def test_tokens_do_not_cross_a_network_in_the_clear(home: Home, listen: str) -> None:
    with pytest.raises(UsageError, match="without TLS"):
        WebService(home, settings=WebSettings(listen=listen))


def test_a_port_that_somebody_has_is_named(home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}"), running(home, port=port):
            pass


def ended(line: socket.socket, seconds: float) -> bool:
    """Whether the other side closes within this time."""
    line.settimeout(seconds)
    try:
        while line.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def test_whoever_does_not_speak_is_not_waited_for(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_HEAD_SECONDS", 0.5)
    with running(home, request_seconds=1.0, anonymous="analyst") as service:
        address = ("127.0.0.1", service.port)
        with socket.create_connection(address) as silent, socket.create_connection(address) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
            assert ended(silent, 10)
            assert ended(slow, 10)
        with socket.create_connection(address) as body:
            head = b"POST /api/v1/releases/1/translate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n"
            body.sendall(head + b"Content-Type: application/json\r\n\r\n{")
            body.settimeout(10)
            assert body.recv(65536).startswith(b"HTTP/1.1 408")
        # A connection that is kept is not cut while it says nothing between two requests.
        with httpx.Client(base_url=service.url) as kept:
            assert kept.get("/healthz").status_code == 200
            time.sleep(1.0)
            assert kept.get("/healthz").status_code == 200
