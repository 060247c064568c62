"""The coordinator's authority and server certificate, checked by OpenSSL itself."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from coordinator import certificates
from coordinator.certificates import (
    CA_DAYS,
    RENEW_DAYS,
    SERVER_DAYS,
    Certificates,
    check_authority,
    facts,
    make_ca_and_server,
    make_loopback,
    next_authority,
    renew_server,
    switch_authority,
    why_renew,
)
from protocol.errors import KeyFileError, UsageError


def handshake(files: Certificates, ca: Path, name: str) -> None:
    """A TLS handshake in memory of this machine; raises what the client's side raises."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.server, files.server_key)
    client = ssl.create_default_context(cafile=ca)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as line:
                line.recv(1)
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as line:
            line.send(b"x")
    finally:
        ours.close()
        thread.join()


def test_a_client_that_trusts_the_authority_accepts_the_names(tmp_path: Path) -> None:
    files = make_ca_and_server(tmp_path / "tls", ["map.example.org", "192.0.2.7"])
    for name in ("map.example.org", "192.0.2.7", "localhost", "127.0.0.1"):
        handshake(files, files.ca, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(files, files.ca, "other.example.org")
    stranger = make_ca_and_server(tmp_path / "other", ["map.example.org"])
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(files, stranger.ca, "map.example.org")


def test_modes_and_no_overwriting(tmp_path: Path) -> None:
    files = make_ca_and_server(tmp_path / "tls", [])
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "tls").iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "server.crt": 0o644, "server.key": 0o600}
    before = files.ca.read_bytes()
    with pytest.raises(KeyFileError, match="already"):
        make_ca_and_server(tmp_path / "tls", [])
    assert files.ca.read_bytes() == before


def test_renewing_keeps_the_authority(tmp_path: Path) -> None:
    files = make_ca_and_server(tmp_path, ["old.example.org"])
    ca, server = files.ca.read_bytes(), x509.load_pem_x509_certificate(files.server.read_bytes())
    renew_server(tmp_path, ["new.example.org"])
    assert files.ca.read_bytes() == ca
    assert x509.load_pem_x509_certificate(files.server.read_bytes()).public_key() != server.public_key()
    handshake(files, files.ca, "new.example.org")
    with pytest.raises(KeyFileError):
        renew_server(tmp_path / "nothing", [])


@pytest.mark.parametrize(
    "host", ["", "a b", "https://map.example.org", "map..org", "map.example.org:8443", "ü.org"]
)
def test_a_host_that_is_none_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError, match="neither a host name nor an IP address"):
        make_ca_and_server(tmp_path / "tls", [host])
    assert not (tmp_path / "tls").exists()


# --- When to renew -------------------------------------------------------------------------------------

NAMES = ["map.example.org"]


def days(number: float) -> dt.datetime:
    """So many days from now."""
    return dt.datetime.now(dt.UTC) + dt.timedelta(days=number)


def test_a_server_certificate_is_renewed_long_before_its_end(tmp_path: Path) -> None:
    make_ca_and_server(tmp_path, NAMES)
    assert why_renew(tmp_path, NAMES, now=days(0)) == ""
    assert why_renew(tmp_path, NAMES, now=days(SERVER_DAYS - RENEW_DAYS - 1)) == ""
    assert why_renew(tmp_path, NAMES, now=days(SERVER_DAYS - RENEW_DAYS + 1)).startswith("it ends on ")
    assert why_renew(tmp_path, NAMES, now=days(SERVER_DAYS + 1)).startswith("it ended on ")
    assert why_renew(tmp_path, ["new.example.org"], now=days(0)) == "it is not for new.example.org"


def test_a_renewal_that_was_killed_is_finished(tmp_path: Path) -> None:
    files = make_ca_and_server(tmp_path / "tls", NAMES)
    other = make_ca_and_server(tmp_path / "other", NAMES)
    folder = tmp_path / "tls"
    good = files.server_key.read_bytes()
    for torn in (other.server_key.read_bytes(), b""):
        files.server_key.write_bytes(torn)
        assert why_renew(folder, NAMES, now=days(0))
        files.server_key.write_bytes(good)
    assert why_renew(folder, NAMES, now=days(0)) == ""
    for path in (other.server, other.server_key):
        (folder / path.name).write_bytes(path.read_bytes())
    assert why_renew(folder, NAMES, now=days(0)) == "another authority signed it"
    renew_server(folder, NAMES)
    handshake(files, files.ca, NAMES[0])


def test_an_authority_is_watched_and_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = make_ca_and_server(tmp_path, NAMES)
    old = tmp_path / "old.crt"
    old.write_bytes(files.ca.read_bytes())
    assert check_authority(tmp_path, now=days(CA_DAYS - 367)) == ""
    assert "coordinator certificate new-authority" in check_authority(tmp_path, now=days(CA_DAYS - 363))
    with pytest.raises(KeyFileError, match="no site can connect"):
        check_authority(tmp_path, now=days(CA_DAYS + 1))
    with pytest.raises(KeyFileError, match="There is no next authority"):
        switch_authority(tmp_path, NAMES)
    both = tmp_path / "both.crt"
    both.write_text(next_authority(tmp_path))
    handshake(files, both, NAMES[0])
    assert [f.what for f in facts(tmp_path)] == ["server", "authority", "next authority"]

    # Killed between the two files: nothing else is done before it is run again.
    with monkeypatch.context() as patch:
        real = Path.replace
        patch.setattr(Path, "replace", lambda p, to: real(p, to) if p.name == "ca.key" else p.missing())
        with pytest.raises(AttributeError):
            switch_authority(tmp_path, NAMES)
    for step in (renew_server, lambda folder, _: next_authority(folder)):
        with pytest.raises(KeyFileError, match="are not of each other") as caught:
            step(tmp_path, NAMES)
        assert "certificate switch again" in str(caught.value)

    # Killed after the authority's files were moved: the next look makes the server certificate.
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "renew_server", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            switch_authority(tmp_path, NAMES)
    assert why_renew(tmp_path, NAMES, now=days(0)) == "another authority signed it"
    renew_server(tmp_path, NAMES)
    handshake(files, both, NAMES[0])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files, old, NAMES[0])


def test_an_authority_that_ends_first_does_not_lead_to_endless_renewal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "CA_DAYS", 30)
    make_ca_and_server(tmp_path, NAMES)
    server, authority = facts(tmp_path)
    assert server.ends == authority.ends
    assert why_renew(tmp_path, NAMES, now=days(0)) == ""


def test_the_loopback_certificate_is_made_anew_and_keeps_no_authority(tmp_path: Path) -> None:
    first = make_loopback(tmp_path).ca.read_bytes()
    files = make_loopback(tmp_path)
    assert files.ca.read_bytes() != first
    assert not files.ca_key.exists()
    handshake(files, files.ca, "127.0.0.1")
