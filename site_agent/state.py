"""What a site remembers between runs: its place in the sequences of releases and results."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from protocol.files import write_atomic
from protocol.messages import Message
from protocol.signed import parse


class SiteState(Message):
    """The last release that the coordinator has accepted and the last result that arrived."""

    accepted_sequence: int = Field(0, ge=0)
    accepted_digest: str = ""
    sealed: dict[str, str] = Field(
        default_factory=dict, description="Round -> digest of the key it was sealed to."
    )
    result_version: int = Field(0, ge=0)
    result_digest: str = ""


def load_state(folder: Path) -> SiteState:
    """The state file, or a new state.

    Raises:
        ProtocolError: the file is damaged.
    """
    path = folder / "state.json"
    return parse(path.read_bytes(), SiteState) if path.exists() else SiteState()


def save_state(folder: Path, state: SiteState) -> None:
    """Replace the state file atomically."""
    write_atomic(folder / "state.json", state.model_dump_json(indent=1))
