"""A second writer of envelopes, after the format's description alone.

It imports nothing of `protocol`, so that a mistake there is not made here too, and it
writes what `protocol.envelope.seal` would never write: the bad vectors.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK = 1 << 20
MAGIC = b"SMILENV1"
KEMS = {"mlkem768-x25519": hpke.KEM.MLKEM768_X25519, "x25519": hpke.KEM.X25519}


def pae(*parts: bytes) -> bytes:
    return struct.pack(">Q", len(parts)) + b"".join(struct.pack(">Q", len(p)) + p for p in parts)


def frame(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def stream(label: str, length: int) -> bytes:
    """Bytes that anyone can make again: SHAKE-256 of a label."""
    return hashlib.shake_256(label.encode()).digest(length)


@dataclass(frozen=True)
class Party:
    """Keys that are no secret: all are SHAKE-256 of a label."""

    suite: str
    sealing: bytes
    signing: bytes

    @classmethod
    def named(cls, name: str, suite: str) -> Party:
        length = 96 if suite == "mlkem768-x25519" else 32
        label = f"smile-federation test key, not a secret: {name}"
        return cls(suite, stream(f"{label}, sealing", length), stream(f"{label}, signing", 32))

    @property
    def public(self) -> dict[str, str]:
        public = self.x25519.public_key().public_bytes_raw()
        if self.suite == "mlkem768-x25519":
            public = self.mlkem.public_key().public_bytes_raw() + public
        signing = self.ed25519.public_key().public_bytes_raw()
        encode = base64.b64encode
        return {"suite": self.suite, "sealing": encode(public).decode(), "signing": encode(signing).decode()}

    @property
    def digest(self) -> str:
        return hashlib.sha256(canonical(self.public)).hexdigest()

    @property
    def x25519(self) -> x25519.X25519PrivateKey:
        return x25519.X25519PrivateKey.from_private_bytes(self.sealing[-32:])

    @property
    def mlkem(self) -> mlkem.MLKEM768PrivateKey:
        return mlkem.MLKEM768PrivateKey.from_seed_bytes(self.sealing[:64])

    @property
    def ed25519(self) -> ed25519.Ed25519PrivateKey:
        return ed25519.Ed25519PrivateKey.from_private_bytes(self.signing)

    def wrap(self, content_key: bytes, head: bytes) -> bytes:
        """The content key, sealed to this party."""
        key: Any = self.x25519.public_key()
        if self.suite == "mlkem768-x25519":
            key = hpke.MLKEM768X25519PublicKey(self.mlkem.public_key(), key)
        suite = hpke.Suite(KEMS[self.suite], hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
        return suite.encrypt(content_key, key, info=pae(b"smile/key", head))


def chunk(content_key: bytes, head: bytes, index: int, piece: bytes, *, final: bool) -> bytes:
    data = pae(
        b"smile/chunk", hashlib.sha256(head).digest(), struct.pack(">Q", index), b"\x01" if final else b"\x00"
    )
    return AESGCM(content_key).encrypt(index.to_bytes(12, "big"), piece, data)


def chunks(content_key: bytes, head: bytes, plain: bytes) -> list[bytes]:
    pieces = [plain[i : i + CHUNK] for i in range(0, len(plain), CHUNK)] or [b""]
    return [chunk(content_key, head, i, p, final=i == len(pieces) - 1) for i, p in enumerate(pieces)]


def body(wrapped: bytes, parts: Sequence[bytes]) -> bytes:
    return frame(wrapped) + b"".join(frame(part) for part in parts) + struct.pack(">I", 0)


def signed_data(head: bytes, content: bytes) -> bytes:
    return pae(b"smile/envelope", head, hashlib.sha256(content).digest())


def envelope(head: bytes, content: bytes, signature: bytes) -> bytes:
    return MAGIC + frame(head) + content + signature


def split(data: bytes) -> tuple[bytes, bytes, list[bytes], bytes]:
    """Header, wrapped key, chunks and signature of a well-formed envelope."""
    rest = data[len(MAGIC) :]
    frames = []
    while True:
        (length,) = struct.unpack(">I", rest[:4])
        frames.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
        if not length and len(frames) > 2:
            return frames[0], frames[1], frames[2:-1], rest
