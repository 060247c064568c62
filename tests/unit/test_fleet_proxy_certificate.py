"""The fleet proxy as a process of its own: its certificate changes while connections are open."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from coordinator import certificates
from coordinator.certificates import Certificates, make_ca_and_server, next_authority, switch_authority
from coordinator.renewal import Renewal
from protocol.processes import Keeper, Program, clean_environment, free_port

HEAD = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certificates:
    """A server certificate that has ended a quarter of an hour ago."""
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "SERVER_DAYS", -0.01)
        return make_ca_and_server(tmp_path / "tls", ["localhost"])


@pytest.fixture
def port(files: Certificates, tmp_path: Path) -> Iterator[int]:
    port = free_port()
    argv = (
        *(sys.executable, "-P", "-m", "coordinator.flower.proxy", "--superlink", f"127.0.0.1:{free_port()}"),
        *("--ca", str(files.ca), "--certificate", str(files.server), "--key", str(files.server_key)),
        *("--host", "127.0.0.1", "--port", str(port)),
    )
    keeper = Keeper(Program("proxy", argv, tmp_path, clean_environment(tmp_path)))
    keeper.start()
    try:
        keeper.wait_ready(lambda: blind(port) is not None, 60)
        yield port
        assert keeper.exits == []
    finally:
        keeper.stop()


def blind(port: int) -> ssl.SSLSocket | None:
    """A connection that does not look at the certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=30))
    except OSError:
        return None


def connects(port: int, ca: str) -> bool:
    """Whether a site that trusts these authorities, and looks, can connect."""
    context = ssl.create_default_context(cadata=ca)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
            context.wrap_socket(plain, server_hostname="localhost").close()
    except ssl.SSLCertVerificationError:
        return False
    return True


def soon(port: int, ca: str) -> bool:
    end = time.monotonic() + 60
    while not connects(port, ca):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def test_an_ended_certificate_is_replaced_and_open_connections_go_on(files: Certificates, port: int) -> None:
    ca = files.ca.read_text()
    assert not connects(port, ca)
    with blind(port) as line:  # type: ignore[union-attr]
        line.sendall(HEAD + b"ab")
        said: list[str] = []
        assert Renewal(files.ca.parent, ["localhost"], said.append).look().startswith("it ended on ")
        assert said[0].startswith("Renewed the server certificate: it ended on ")
        assert soon(port, ca)
        line.sendall(b"cd")
        # The connection is the one that was open; its SuperLink is down, which is a 503.
        assert line.recv(100).startswith(b"HTTP/1.1 503")
    assert Renewal(files.ca.parent, ["localhost"], said.append).look() == ""
    assert len(said) == 1


def test_files_that_do_not_fit_leave_the_old_certificate(files: Certificates, port: int) -> None:
    ca = files.ca.read_text()
    certificates.renew_server(files.ca.parent, ["localhost"])
    assert soon(port, ca)
    good = files.server.read_bytes()
    for content in (files.ca.read_bytes(), b"", b"no certificate"):
        files.server.write_bytes(content)
        time.sleep(1.5)
        assert connects(port, ca)
    files.server.write_bytes(good)
    assert soon(port, ca)


def test_a_change_of_authority(files: Certificates, port: int) -> None:
    old = files.ca.read_text()
    certificates.renew_server(files.ca.parent, ["localhost"])
    assert soon(port, old)
    both = next_authority(files.ca.parent)
    assert both == next_authority(files.ca.parent)
    assert both.startswith(old)
    assert connects(port, both)
    switch_authority(files.ca.parent, ["localhost"])
    new = files.ca.read_text()
    assert both == old + new
    assert soon(port, new)
    assert connects(port, both)
    assert not connects(port, old)
    assert certificates.why_renew(files.ca.parent, ["localhost"], now=dt.datetime.now(dt.UTC)) == ""
