"""Keys of a party: an Ed25519 key that signs and a hybrid HPKE key that opens what is sealed to it.

Sealing uses ML-KEM-768 + X25519 (X-Wing), so that health data sealed today stay
sealed against a later quantum attack; plain X25519 is read too, for parties whose
library has no ML-KEM. Private keys lie in one JSON file of mode 0600. With a
passphrase their bytes are AES-256-GCM under a key from Argon2id (RFC 9106), and
everything else in the file is bound as additional data::

    key     = Argon2id(NFC(passphrase), salt, t, p, m), 32 bytes
    secrets = AES-256-GCM(key, nonce, sealing || signing, PAE("smile/private-keys", the file without `secrets`))
"""

from __future__ import annotations

import base64
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from protocol.canonical import canonical_json, digest, fingerprint
from protocol.errors import EnvelopeError, KeyFileError
from protocol.files import sync_folder
from protocol.keyfile import MIN_PASSPHRASE, KeyCost, Passphrase, check_private_file, passphrase_cipher

SuiteName = Literal["mlkem768-x25519", "x25519"]

_MLKEM_PUBLIC = 1184
_MLKEM_SEED = 64
_X25519 = 32
_ED25519 = 32
_SECRETS: dict[str, int] = {"mlkem768-x25519": _MLKEM_SEED + _X25519, "x25519": _X25519}
_SALT, _NONCE = 16, 12
_MAX_KEY_FILE = 64 << 10
_KEMS = {"mlkem768-x25519": hpke.KEM.MLKEM768_X25519, "x25519": hpke.KEM.X25519}

SealingPublic = hpke.MLKEM768X25519PublicKey | x25519.X25519PublicKey


def pae(*parts: bytes) -> bytes:
    """Pre-authentication encoding: injective over lists of byte strings."""
    return struct.pack(">Q", len(parts)) + b"".join(struct.pack(">Q", len(p)) + p for p in parts)


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
        # Base64 has spare bits: one text for one key, or a key could come back under another digest.
        if base64.b64encode(base64.b64decode(value, validate=True)).decode() != value:
            raise ValueError("not in canonical form")
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

    def save(self, path: Path, passphrase: Passphrase | None = None, *, cost: KeyCost | None = None) -> None:
        """Write a new file of mode 0600.

        Args:
            path: must not exist.
            passphrase: gives the text that `load` will need; without it the file's mode is the only protection.
            cost: of deriving the key; the second recommended option of RFC 9106 if not given.

        Raises:
            KeyFileError: the file exists (a key is never overwritten), or the passphrase is too short.
        """
        content = self._plain() if passphrase is None else self._protected(passphrase(), cost or KeyCost())
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise KeyFileError(
                f"The key file {path} exists", do="Move it away if you want a new key"
            ) from None
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(canonical_json(content))
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            path.unlink()
            raise
        sync_folder(path.parent)

    @classmethod
    def load(cls, path: Path, passphrase: Passphrase | None = None) -> Self:
        """Read a file from `save`.

        Args:
            path: the key file.
            passphrase: called only if the file is protected. Giving one demands protection: a plain file
                in place of a protected one is refused.

        Raises:
            KeyFileError: missing, readable by others, owned by someone else, or not a key; protected and
                no passphrase given, or a wrong one, or altered; not protected although a passphrase is given.
        """
        content = _read_key_file(path)
        if isinstance(content, _ProtectedKeyFile):
            if passphrase is None:
                raise KeyFileError(
                    f"The key file {path} is protected by a passphrase",
                    do="Run the command in a terminal, where it asks, "
                    "or name a file of mode 0600 that holds it in SMILE_PASSPHRASE_FILE",
                )
            sealing, signing = _unprotect(content, passphrase(), path)
        else:
            if passphrase is not None:
                raise KeyFileError(
                    f"The key file {path} has no passphrase, but is expected to have one",
                    why="it was replaced, or its protection was removed",
                    do="Find out who wrote there; restore it from your backup, or enrol anew",
                )
            sealing, signing = _decoded(content.sealing), _decoded(content.signing)
        if (len(sealing), len(signing)) != (_SECRETS[content.suite], _ED25519):
            raise _not_a_key_file(path)
        keys = cls(content.suite, sealing, signing)
        if isinstance(content, _ProtectedKeyFile) and keys.public() != content.public:
            raise _not_a_key_file(path)
        return keys

    def _plain(self) -> dict[str, Any]:
        return {"suite": self.suite, "sealing": _encoded(self.sealing), "signing": _encoded(self.signing)}

    def _protected(self, passphrase: str, cost: KeyCost) -> dict[str, Any]:
        if len(passphrase) < MIN_PASSPHRASE:
            raise KeyFileError(
                f"The passphrase has fewer than {MIN_PASSPHRASE} characters",
                why="who steals the file can guess it without end",
                do="Take a longer one; four or five words that no one would put together will do",
            )
        salt, nonce = os.urandom(_SALT), os.urandom(_NONCE)
        head = {
            "protection": "argon2id-aes256gcm",
            "suite": self.suite,
            "public": self.public().model_dump(),
            "cost": cost.model_dump(),
            "salt": _encoded(salt),
            "nonce": _encoded(nonce),
        }
        cipher = passphrase_cipher(passphrase, salt, cost)
        secrets = cipher.encrypt(nonce, self.sealing + self.signing, _file_data(head))
        return head | {"secrets": _encoded(secrets)}


class _KeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    suite: SuiteName
    sealing: str
    signing: str


class _ProtectedKeyFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    protection: Literal["argon2id-aes256gcm"]
    suite: SuiteName
    public: PublicKeys
    cost: KeyCost
    salt: str
    nonce: str
    secrets: str


_FILES: TypeAdapter[_KeyFile | _ProtectedKeyFile] = TypeAdapter(_KeyFile | _ProtectedKeyFile)


def key_file_public(path: Path) -> PublicKeys | None:
    """The public keys that a protected key file names, without its passphrase; None if it is not protected.

    They are not proved before `PrivateKeys.load`: good for showing a fingerprint in a question, for nothing else.

    Raises:
        KeyFileError: as `PrivateKeys.load`.
    """
    content = _read_key_file(path)
    return content.public if isinstance(content, _ProtectedKeyFile) else None


def _read_key_file(path: Path) -> _KeyFile | _ProtectedKeyFile:
    check_private_file(path)
    try:
        with path.open("rb") as stream:
            return _FILES.validate_json(stream.read(_MAX_KEY_FILE))
    except (ValidationError, OSError):
        # The parser's message could quote the key: say nothing of the content.
        raise _not_a_key_file(path) from None


def _unprotect(content: _ProtectedKeyFile, passphrase: str, path: Path) -> tuple[bytes, bytes]:
    salt, nonce, secrets = _decoded(content.salt), _decoded(content.nonce), _decoded(content.secrets)
    if len(salt) != _SALT or len(nonce) != _NONCE:
        raise _not_a_key_file(path)
    cipher = passphrase_cipher(passphrase, salt, content.cost)
    try:
        plain = cipher.decrypt(nonce, secrets, _file_data(content.model_dump(exclude={"secrets"})))
    except InvalidTag:
        raise KeyFileError(
            f"The key file {path} does not open",
            why="the passphrase is wrong, or the file was altered",
            do="Try again; if you are sure of the passphrase, restore the file from your backup",
        ) from None
    return plain[:-_ED25519], plain[-_ED25519:]


def _file_data(head: dict[str, Any]) -> bytes:
    return pae(b"smile/private-keys", canonical_json(head))


def _not_a_key_file(path: Path) -> KeyFileError:
    return KeyFileError(f"{path} is not a key file", do="Restore it from your backup, or enrol anew")


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str) -> bytes:
    """Empty for what is no base64: no key has that length."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""
