"""Keys and masks: X25519 -> HKDF-SHA256 -> AES-256-CTR keystream, read as integers modulo 2^64.

A keystream is made and used in blocks, so memory depends on neither the number of
sites nor that of cells.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.envelope import pae
from protocol.errors import ProtocolError
from protocol.secure_sum.shamir import RandomBytes

Ring: TypeAlias = npt.NDArray[np.uint64]
"""(cells,) integers modulo 2^64, little-endian."""

RING = np.dtype("<u8")
BLOCK = 1 << 16
"""Cells of one block: 512 KiB, which stays in a processor's cache."""
KEY_BYTES = 32
_NONCE = 12


@dataclass(frozen=True, repr=False)
class Mask:
    """A keystream that is added to (or, if `negative`, subtracted from) a vector."""

    key: bytes
    negative: bool

    def inverse(self) -> Mask:
        """The mask that takes this one away."""
        return Mask(self.key, not self.negative)


def public_bytes(private: bytes) -> bytes:
    """The X25519 public key, 32 bytes, of a private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _agree(private: bytes, public: bytes, info: bytes) -> bytes:
    try:
        key = X25519PrivateKey.from_private_bytes(private)
        shared = key.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # a point of small order gives an all-zero secret
        raise ProtocolError("A site's ephemeral key is not an acceptable X25519 key") from None
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(shared)


def pair_mask(session: str, site: str, private: bytes, other: str, public: bytes) -> Mask:
    """The mask that `site` adds and `other` subtracts, or the other way round: the lesser name adds.

    Args:
        session: digest of the participant list, which names study, round and statistic.
        private: the mask key of `site`.
        public: the mask key of `other`.
    Law: the masks of a pair cancel, whichever side computes them.

    Raises:
        ProtocolError: `public` is no acceptable key.
    """
    ends = sorted([(site, public_bytes(private)), (other, public)])
    (low, low_key), (high, high_key) = ends
    info = pae(b"smile/sum/pair", session.encode(), low.encode(), high.encode(), low_key, high_key)
    return Mask(_agree(private, public, info), negative=site > other)


def self_mask(session: str, site: str, seed: bytes) -> Mask:
    """A site's own mask, from its 32-byte seed."""
    info = pae(b"smile/sum/self", session.encode(), site.encode())
    return Mask(HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=info).derive(seed), negative=False)


def apply_masks(values: npt.NDArray[Any], masks: Sequence[Mask], out: Ring) -> str:
    """Write values plus all masks, modulo 2^64, to `out`.

    Args:
        values: (cells,) int64 or uint64.
        masks: each key must be used for one vector only.
        out: (cells,) uint64; may be the memory of `values`, or a file mapped into memory.

    Returns:
        SHA-256, in hex, of the little-endian bytes written.
    """
    ciphers = [
        (Cipher(algorithms.AES256(m.key), modes.CTR(bytes(16))).encryptor(), m.negative) for m in masks
    ]
    zeros, state = bytes(8 * BLOCK), hashlib.sha256()
    stream = bytearray(8 * BLOCK + 15)  # update_into wants room for a cipher block more
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK].astype(RING)
        for cipher, negative in ciphers:
            cipher.update_into(memoryview(zeros)[: block.nbytes], stream)
            mask = np.frombuffer(stream, RING, len(block))
            if negative:
                block -= mask
            else:
                block += mask
        out[start : start + BLOCK] = block
        state.update(block.data)
    return state.hexdigest()


@dataclass(frozen=True, repr=False)
class Channel:
    """The one-way channel in which one site hands its shares to another."""

    session: str
    adverts: str
    sender: str
    receiver: str

    def seal(self, text: bytes, private: bytes, public: bytes, random: RandomBytes = os.urandom) -> bytes:
        """AES-256-GCM under the key of the sender's private and the receiver's public share key.

        Raises:
            ProtocolError: `public` is no acceptable key.
        """
        key = _agree(private, public, self._info(public_bytes(private), public))
        nonce = random(_NONCE)
        return nonce + AESGCM(key).encrypt(nonce, text, self._data())

    def open(self, box: bytes, private: bytes, public: bytes) -> bytes:
        """What `seal` sealed, with the receiver's private and the sender's public share key.

        Raises:
            ProtocolError: altered, or sealed by, to or for anything else.
        """
        key = _agree(private, public, self._info(public, public_bytes(private)))
        try:
            return AESGCM(key).decrypt(box[:_NONCE], box[_NONCE:], self._data())
        except (InvalidTag, ValueError):
            raise ProtocolError(
                f"The shares of {self.sender} do not open",
                why="they were altered, or made for another sum",
                do="Have the coordinator start a new attempt; if it happens again, without that site",
            ) from None

    def _info(self, sender_key: bytes, receiver_key: bytes) -> bytes:
        return pae(b"smile/sum/channel", self._data(), sender_key, receiver_key)

    def _data(self) -> bytes:
        parts = (self.session, self.adverts, self.sender, self.receiver)
        return pae(b"smile/sum/shares", *(p.encode() for p in parts))
