"""Keys of a party: an Ed25519 key that signs and a hybrid HPKE key that opens what is sealed to it.

Sealing uses ML-KEM-768 + X25519 (X-Wing), so that health data sealed today stay
sealed against a later quantum attack; plain X25519 is read too, for parties whose
library has no ML-KEM. Private keys lie in one PEM-like JSON file of mode 0600.
"""

from __future__ import annotations

import base64
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from protocol.canonical import canonical_json, digest, fingerprint
from protocol.errors import EnvelopeError, KeyFileError

SuiteName = Literal["mlkem768-x25519", "x25519"]

_MLKEM_PUBLIC = 1184
_MLKEM_SEED = 64
_X25519 = 32
_KEMS = {"mlkem768-x25519": hpke.KEM.MLKEM768_X25519, "x25519": hpke.KEM.X25519}

SealingPublic = hpke.MLKEM768X25519PublicKey | x25519.X25519PublicKey


def hpke_suite(name: SuiteName) -> hpke.Suite:
    """HPKE (RFC 9180) with HKDF-SHA256 and AES-256-GCM over the named KEM."""
    return hpke.Suite(_KEMS[name], hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class PublicKeys(BaseModel):
    """What others must know of a party; `fingerprint` is what people compare."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: SuiteName
    sealing: str = Field(
        max_length=4096, description="Base64 of the raw KEM public key (ML-KEM first, then X25519)."
    )
    signing: str = Field(max_length=64, description="Base64 of the raw Ed25519 public key.")

    @field_validator("sealing", "signing")
    @classmethod
    def _base64(cls, value: str) -> str:
        base64.b64decode(value, validate=True)
        return value

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        return digest(self)

    @property
    def fingerprint(self) -> str:
        """Five groups of four hex digits."""
        return fingerprint(self.digest)

    def sealing_key(self) -> SealingPublic:
        """The KEM public key.

        Raises:
            EnvelopeError: the bytes are no key of the suite.
        """
        raw = base64.b64decode(self.sealing)
        try:
            if self.suite == "x25519":
                return x25519.X25519PublicKey.from_public_bytes(raw)
            return hpke.MLKEM768X25519PublicKey(
                mlkem.MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC]),
                x25519.X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC:]),
            )
        except ValueError:
            raise EnvelopeError(f"The sealing key {self.fingerprint} is not a {self.suite} key") from None

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return only if the signature holds.

        Raises:
            EnvelopeError: it does not, or the key is malformed.
        """
        try:
            key = ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(self.signing))
            key.verify(signature, data)
        except (InvalidSignature, ValueError):
            raise EnvelopeError(
                "The signature does not hold",
                why=f"the bytes were altered or not signed by {self.fingerprint}",
                do="Have it sent again; if it happens twice, compare fingerprints with the sender",
            ) from None


@dataclass(frozen=True, repr=False)
class PrivateKeys:
    """A party's private keys; never printed, never in an environment variable."""

    suite: SuiteName
    sealing: bytes
    signing: bytes

    @classmethod
    def generate(cls, suite: SuiteName = "mlkem768-x25519") -> Self:
        """Fresh keys from the operating system's generator."""
        sealing = x25519.X25519PrivateKey.generate().private_bytes_raw()
        if suite == "mlkem768-x25519":
            sealing = mlkem.MLKEM768PrivateKey.generate().private_bytes_raw() + sealing
        return cls(suite, sealing, ed25519.Ed25519PrivateKey.generate().private_bytes_raw())

    def __repr__(self) -> str:
        """Public parts only: secrets do not reach logs."""
        return f"PrivateKeys({self.public().fingerprint})"

    def public(self) -> PublicKeys:
        """The matching public keys."""
        sealing = self._x25519().public_key().public_bytes_raw()
        if self.suite == "mlkem768-x25519":
            sealing = self._mlkem().public_key().public_bytes_raw() + sealing
        signing = ed25519.Ed25519PrivateKey.from_private_bytes(self.signing).public_key().public_bytes_raw()
        encode = base64.b64encode
        return PublicKeys(
            suite=self.suite, sealing=encode(sealing).decode(), signing=encode(signing).decode()
        )

    def opening_key(self) -> hpke.MLKEM768X25519PrivateKey | x25519.X25519PrivateKey:
        """The KEM private key."""
        if self.suite == "x25519":
            return self._x25519()
        return hpke.MLKEM768X25519PrivateKey(self._mlkem(), self._x25519())

    def sign(self, data: bytes) -> bytes:
        """A 64-byte Ed25519 signature (RFC 8032)."""
        return ed25519.Ed25519PrivateKey.from_private_bytes(self.signing).sign(data)

    def _x25519(self) -> x25519.X25519PrivateKey:
        return x25519.X25519PrivateKey.from_private_bytes(self.sealing[-_X25519:])

    def _mlkem(self) -> mlkem.MLKEM768PrivateKey:
        return mlkem.MLKEM768PrivateKey.from_seed_bytes(self.sealing[:_MLKEM_SEED])

    def save(self, path: Path) -> None:
        """Write a new file of mode 0600.

        Raises:
            KeyFileError: the file exists; a key is never overwritten.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = canonical_json(
            {
                "suite": self.suite,
                "sealing": base64.b64encode(self.sealing).decode(),
                "signing": base64.b64encode(self.signing).decode(),
            }
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise KeyFileError(
                f"The key file {path} exists", do="Move it away if you want a new key"
            ) from None
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file from `save`.

        Raises:
            KeyFileError: missing, readable by others, owned by someone else, or not a key.
        """
        check_private_file(path)
        try:
            content = _KeyFile.model_validate_json(path.read_bytes())
            keys = cls(content.suite, base64.b64decode(content.sealing), base64.b64decode(content.signing))
            keys.public()
        except (ValidationError, ValueError):
            # The parser's message could quote the key: say nothing of the content.
            raise KeyFileError(
                f"{path} is not a key file", do="Restore it from your backup, or enrol anew"
            ) from None
        return keys


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    suite: SuiteName
    sealing: str
    signing: str


def check_private_file(path: Path) -> None:
    """Return only if a secret file is there, ours, and closed to all others.

    Raises:
        KeyFileError: it is not.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise KeyFileError(
            f"There is no key file {path}", do="Run init first, or restore your backup"
        ) from None
    if status.st_uid != os.geteuid():
        raise KeyFileError(f"The key file {path} belongs to another user", do=f"Run: chown $(id -un) {path}")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise KeyFileError(f"The key file {path} can be read by other users", do=f"Run: chmod 600 {path}")
