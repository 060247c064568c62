"""Canonical JSON and digests: one text for one value, so that parties can compare hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

_CHUNK = 1 << 20


def canonical_json(value: BaseModel | dict[str, Any] | list[Any]) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces; NaN and infinities are refused.

    Raises:
        ValueError: a non-finite number.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return json.dumps(
        plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(value: BaseModel | dict[str, Any] | list[Any] | bytes) -> str:
    """SHA-256, in hex, of bytes or of a value's canonical JSON."""
    return hashlib.sha256(value if isinstance(value, bytes) else canonical_json(value)).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes, read in 1 MiB chunks."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def fingerprint(hexdigest: str) -> str:
    """The first 80 bits of a digest in groups of four, for people to compare aloud."""
    return " ".join(hexdigest[i : i + 4] for i in range(0, 20, 4))
