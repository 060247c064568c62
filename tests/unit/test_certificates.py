"""The coordinator's authority and server certificate, checked by OpenSSL itself."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.certificates import Certificates, make_ca_and_server, renew_server
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
