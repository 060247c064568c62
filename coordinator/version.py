"""The name, version and digest of the software that makes releases."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from pathlib import Path

import coordinator
import protocol
from protocol.envelope import software_digest

NAME = "smile-federation"
VERSION = importlib.metadata.version(NAME)
SOFTWARE = f"{NAME} {VERSION}"


@cache
def coordinator_digest() -> str:
    """Digest of the installed coordinator: the Python files of `protocol` and `coordinator`."""
    return software_digest(*(Path(str(p.__file__)).parent for p in (protocol, coordinator)))
