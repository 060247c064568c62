"""What a site remembers between runs: its place in the sequences of releases and results."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import AwareDatetime, Field

from protocol.files import write_atomic
from protocol.messages import HexDigest, Message
from protocol.signed import parse


class SealedFor(Message):
    """What a round was answered with: one content for one key, whatever is prepared later."""

    recipient: HexDigest = Field(description="Digest of the round's key.")
    content: HexDigest = Field(description="Digest of the manifest.")
    expires: AwareDatetime = Field(description="When the envelope expires.")


class SiteState(Message):
    """The last release that the coordinator has accepted and the last result that arrived."""

    accepted_sequence: int = Field(0, ge=0)
    accepted_digest: str = ""
    sealed: dict[str, SealedFor] = Field(default_factory=dict, description="Round -> what was sealed for it.")
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


def sweep(folder: Path, *below: str) -> None:
    """Remove the parts of files and folders that a killed process left: some hold plaintext.

    Args:
        folder: the site's home.
        below: folders in it in which nobody writes at the time.
    """
    for name in below:
        for part in (folder / name).glob(".part-*"):
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)
