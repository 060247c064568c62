"""The coordinator's own certificate authority and its server certificate (X.509, EC P-256).

Sites trust this one authority for the connection and no other, so no public authority is needed
and none can be tricked into a certificate for the coordinator's name.

    ca.crt, ca.key           the authority; sites hold the certificate
    server.crt, server.key   what the fleet proxy shows; renewed by itself
    next/ca.crt, ca.key      the authority to come, while sites take it in
    loopback/                what the SuperLink shows on this machine; made anew at each start
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import KeyFileError, UsageError
from protocol.files import write_atomic

CA_DAYS, SERVER_DAYS = 3650, 825
RENEW_DAYS = 60
"""A server certificate that ends sooner is replaced; nobody but its clients notices."""
CA_WARN_DAYS = 365
"""An authority that ends sooner must be changed: every site has to take the next one in."""
_LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Certificates:
    """Paths of the four files; the two keys have mode 0600."""

    ca: Path
    ca_key: Path
    server: Path
    server_key: Path

    @classmethod
    def at(cls, folder: Path) -> Certificates:
        """The files of a folder, whether or not they are there."""
        return cls(folder / "ca.crt", folder / "ca.key", folder / "server.crt", folder / "server.key")


@dataclass(frozen=True)
class CertificateFacts:
    """What people want to know of a certificate.

    Attributes:
        what: `server`, `authority` or `next authority`.
        names: host names and addresses that it is for; none for an authority.
        begins, ends: UTC.
        fingerprint: SHA-256 of the certificate, in hex, as `openssl x509 -fingerprint -sha256` shows it.
    """

    what: str
    names: tuple[str, ...]
    begins: dt.datetime
    ends: dt.datetime
    fingerprint: str

    def days(self, now: dt.datetime) -> int:
        """Whole days until it ends; negative once it has."""
        return (self.ends - now).days


def make_ca_and_server(folder: Path, hosts: Sequence[str]) -> Certificates:
    """Make an authority (10 years) and a server certificate (825 days) that it signs.

    Args:
        folder: where the files go; private.
        hosts: DNS names and IP addresses by which sites reach the coordinator; the loopback
            names are added, since the services on this machine use the same certificate.

    Raises:
        KeyFileError: there is an authority already.
        UsageError: a host is neither a name nor an address.
    """
    files = Certificates.at(folder)
    if files.ca.exists() or files.ca_key.exists():
        raise KeyFileError(
            f"There is a certificate authority in {folder} already",
            why="every enrolled site trusts it",
            do="Renew the server certificate instead: coordinator certificate renew",
        )
    names = _alternative_names(hosts)
    key, certificate = _make_authority(files)
    _issue(files, key, certificate, names)
    return files


def make_loopback(folder: Path) -> Certificates:
    """A certificate for services that talk on this machine only, of an authority whose key is forgotten at once.

    What was there is replaced, so it never needs to be renewed.

    Args:
        folder: of `make_ca_and_server`; the files go below it.
    """
    below = folder / "loopback"
    shutil.rmtree(below, ignore_errors=True)
    files = make_ca_and_server(below, ())
    files.ca_key.unlink()
    return files


def facts(folder: Path) -> list[CertificateFacts]:
    """The server's certificate, the authority's, and the next authority's if there is one.

    Raises:
        KeyFileError: one cannot be read.
    """
    files, coming = Certificates.at(folder), Certificates.at(folder / "next")
    found = [_facts("server", files.server), _facts("authority", files.ca)]
    return found + ([_facts("next authority", coming.ca)] if coming.ca.exists() else [])


def why_renew(folder: Path, hosts: Sequence[str], *, now: dt.datetime) -> str:
    """Why the server certificate must be replaced, in words; empty if it need not be.

    Args:
        folder: of `make_ca_and_server`.
        hosts: names and addresses that it must be for.
        now: UTC, with its zone.

    Raises:
        KeyFileError: the authority's certificate cannot be read.
    """
    files = Certificates.at(folder)
    authority = _load(files.ca)
    try:
        server = _load(files.server)
        key = serialization.load_pem_private_key(files.server_key.read_bytes(), None)
        if key.public_key() != server.public_key():
            return "it is of another key"  # a renewal was interrupted
        server.verify_directly_issued_by(authority)
    except (KeyFileError, OSError, ValueError):
        return "it cannot be read, or another authority signed it"
    except (TypeError, InvalidSignature):
        return "another authority signed it"
    if missing := [h for h in dict.fromkeys((*hosts, *_LOOPBACK)) if h not in _names(server)]:
        return f"it is not for {', '.join(missing)}"
    ends = server.not_valid_after_utc
    # One that the authority's own end has cut short is not made longer by renewing it.
    if ends - now < dt.timedelta(days=RENEW_DAYS) and ends < authority.not_valid_after_utc:
        return f"it {'ended' if ends <= now else 'ends'} on {ends:%Y-%m-%d}"
    return ""


def check_authority(folder: Path, *, now: dt.datetime) -> str:
    """A warning for people if the authority ends within a year; empty otherwise.

    Raises:
        KeyFileError: it has ended, so no site can connect; or it cannot be read.
    """
    ends = _load(Certificates.at(folder).ca).not_valid_after_utc
    if ends <= now:
        raise KeyFileError(
            f"The certificate authority that all sites trust ended on {ends:%Y-%m-%d}",
            why="no site can connect any more",
            do="coordinator certificate new-authority, give its file to every site, then coordinator certificate switch",
        )
    if ends - now < dt.timedelta(days=CA_WARN_DAYS):
        return (
            f"The certificate authority that all sites trust ends on {ends:%Y-%m-%d}: begin the change with "
            "coordinator certificate new-authority"
        )
    return ""


def next_authority(folder: Path) -> str:
    """Make the authority to come, beside the present one, unless that was done before.

    Returns:
        both certificates as PEM, the present one first: what sites must trust until `switch_authority`.

    Raises:
        KeyFileError: there is no authority in the folder.
    """
    files, coming = Certificates.at(folder), Certificates.at(folder / "next")
    _load(files.ca)
    if coming.ca.exists() and not coming.ca_key.exists():
        raise _half_switched(folder)
    if not coming.ca.exists():
        _make_authority(coming)
    return files.ca.read_text() + coming.ca.read_text()


def switch_authority(folder: Path, hosts: Sequence[str]) -> Certificates:
    """Put the next authority in the present one's place, with a server certificate of its own.

    Interrupted, it can be run again.

    Raises:
        KeyFileError: there is no next authority.
        UsageError: a host is neither a name nor an address.
    """
    files, coming = Certificates.at(folder), Certificates.at(folder / "next")
    if not coming.ca_key.exists() and not coming.ca.exists():
        raise KeyFileError(
            f"There is no next authority in {folder}",
            do="Make it with coordinator certificate new-authority, and give its file to every site first",
        )
    if coming.ca_key.exists():
        coming.ca_key.replace(files.ca_key)
    coming.ca.replace(files.ca)
    return renew_server(folder, hosts)


def _half_switched(folder: Path) -> KeyFileError:
    return KeyFileError(
        f"The authority in {folder} and its key are not of each other",
        why="a change of authority was interrupted",
        do="Run coordinator certificate switch again",
    )


def _make_authority(files: Certificates) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name("SMILE federation CA")
    now = dt.datetime.now(dt.UTC)
    certificate = (
        _builder(subject, subject, key.public_key(), now + dt.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    files.ca.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(files.ca_key, _pem(key), mode=0o600)
    write_atomic(files.ca, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    return key, certificate


def renew_server(folder: Path, hosts: Sequence[str]) -> Certificates:
    """Replace the server certificate and its key; sites need nothing new, since the authority stays.

    Raises:
        KeyFileError: there is no authority in the folder, or its files cannot be read.
        UsageError: a host is neither a name nor an address.
    """
    files = Certificates.at(folder)
    try:
        key = serialization.load_pem_private_key(files.ca_key.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate(files.ca.read_bytes())
    except (OSError, ValueError) as error:
        raise KeyFileError(f"The certificate authority in {folder} cannot be read", why=str(error)) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyFileError(f"{files.ca_key} is not the key of an authority that was made here")
    if key.public_key() != certificate.public_key():
        raise _half_switched(folder)
    _issue(files, key, certificate, _alternative_names(hosts))
    return files


def _issue(
    files: Certificates,
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    names: x509.SubjectAlternativeName,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(days=SERVER_DAYS)
    certificate = (
        _builder(
            _name("SMILE federation coordinator"),
            ca.subject,
            key.public_key(),
            min(ends, ca.not_valid_after_utc),
        )
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    write_atomic(files.server_key, _pem(key), mode=0o600)
    write_atomic(files.server, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, ends: dt.datetime
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(ends)
    )


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KeyFileError(f"The certificate {path} cannot be read", why=str(error)) from None


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = map(str, found.get_values_for_type(x509.IPAddress))
    return (*found.get_values_for_type(x509.DNSName), *addresses)


def _facts(what: str, path: Path) -> CertificateFacts:
    found = _load(path)
    digest = found.fingerprint(hashes.SHA256()).hex()
    return CertificateFacts(
        what, _names(found), found.not_valid_before_utc, found.not_valid_after_utc, digest
    )


def _alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys((*hosts, *_LOOPBACK)):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
            continue
        except ValueError:
            pass
        labels = host.split(".")
        if not host.isascii() or not all(
            label.replace("-", "").isalnum() and len(label) < 64 for label in labels
        ):
            raise UsageError(
                f"{host!r} is neither a host name nor an IP address", do="Write map.example.org or 192.0.2.7"
            )
        names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
