"""The coordinator's own certificate authority and its server certificate (X.509, EC P-256).

Sites trust this one authority for the connection and no other, so no public authority is needed
and none can be tricked into a certificate for the coordinator's name.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.errors import KeyFileError, UsageError
from protocol.files import write_atomic

CA_DAYS, SERVER_DAYS = 3650, 825
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
            do="Renew the server certificate instead, or move the folder away and enrol all sites again",
        )
    names = _alternative_names(hosts)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name("SMILE federation CA")
    certificate = (
        _builder(subject, subject, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(files.ca_key, _pem(key), mode=0o600)
    write_atomic(files.ca, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)
    _issue(files, key, certificate, names)
    return files


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
    _issue(files, key, certificate, _alternative_names(hosts))
    return files


def _issue(
    files: Certificates,
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    names: x509.SubjectAlternativeName,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name("SMILE federation coordinator"), ca.subject, key.public_key(), SERVER_DAYS)
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
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=days))
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
