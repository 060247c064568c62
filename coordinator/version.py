"""The name, version and digest of the software that makes releases."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import coordinator
import protocol
from protocol.envelope import software_digest
from protocol.version import NAME, SOFTWARE, VERSION


@cache
def coordinator_digest() -> str:
    """Digest of the installed coordinator: the Python files of `protocol` and `coordinator`."""
    return software_digest(*(Path(str(p.__file__)).parent for p in (protocol, coordinator)))


__all__ = ["NAME", "SOFTWARE", "VERSION", "coordinator_digest"]
