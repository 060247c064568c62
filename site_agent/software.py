"""Which software this is: its version, and the digest of its files."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import protocol
import site_agent
from protocol.envelope import software_digest


def agent_digest() -> str:
    """Digest of the installed agent: the Python files of `protocol` and `site_agent`."""
    return software_digest(*(Path(str(p.__file__)).parent for p in (protocol, site_agent)))


def version() -> str:
    """The installed version."""
    return importlib.metadata.version("smile-federation")
