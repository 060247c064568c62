"""What protects a secret file: its owner and mode, and the passphrase's part in a key file (`protocol.keys`)."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import BaseModel, ConfigDict, Field

from protocol.errors import KeyFileError

_MAX_PASSPHRASE_LINE = 4096

Passphrase: TypeAlias = Callable[[], str]
"""Asks a person, or reads a file: called only when a passphrase is needed."""
MIN_PASSPHRASE = 12
"""Characters; who holds a stolen file can guess without end."""


class KeyCost(BaseModel):
    """What one guess of a passphrase costs; the default is RFC 9106's second recommended option: 64 MiB, three passes.

    An altered file can ask for no more memory than the first recommended option.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    iterations: int = Field(3, ge=1, le=16, description="Passes over the memory: t.")
    lanes: int = Field(4, ge=1, le=16, description="p.")
    memory_kib: int = Field(1 << 16, ge=128, le=1 << 21, description="m, in KiB.")


def passphrase_cipher(passphrase: str, salt: bytes, cost: KeyCost) -> AESGCM:
    """AES-256-GCM under the key that Argon2id derives from a passphrase."""
    # One text has several spellings in Unicode; keyboards and systems differ in which one they give.
    text = unicodedata.normalize("NFC", passphrase).encode()
    argon2 = Argon2id(
        salt=salt, length=32, iterations=cost.iterations, lanes=cost.lanes, memory_cost=cost.memory_kib
    )
    return AESGCM(argon2.derive(text))


def passphrase_from_file(path: Path) -> str:
    """The first line of a private file, or of an open descriptor such as /dev/fd/3.

    Raises:
        KeyFileError: missing, open to other users, or empty.
    """
    # systemd hands credentials to one service alone, by an access list that the mode does not show.
    if Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) not in path.parents:
        check_private_file(path)
    with path.open("rb") as stream:
        line = stream.readline(_MAX_PASSPHRASE_LINE).rstrip(b"\r\n")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise KeyFileError(f"The file {path} holds no passphrase", do="Write it on the first line, in UTF-8")
    return text


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
