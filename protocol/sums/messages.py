"""The messages of a secure sum's steps, around those of `protocol.secure_sum`."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from protocol.messages import HexDigest, Message
from protocol.sections import Identifier
from protocol.secure_sum import MIN_SITES, ParticipantList, ReceivedList
from protocol.sums.kinds import Statistic
from protocol.sums.proposal import SumName, SumProposal

Step = Literal["offer", "participants", "advertise", "share", "mask", "received", "unmask", "close"]
STEPS: tuple[Step, ...] = (
    "offer",
    "participants",
    "advertise",
    "share",
    "mask",
    "received",
    "unmask",
    "close",
)

COUNTS = "counts.safetensors"
"""The file of a sum's outcome that holds its values."""
MAX_MATERIAL = 256 << 20


def step_id(name: str, attempt: int, step: Step) -> str:
    """The identifier of one step, by which the transport knows it."""
    return f"{name}-{attempt}-{STEPS.index(step)}"


class SumCall(Message):
    """The coordinator's signed call for one step; the material travels beside it, by its digest."""

    name: SumName
    study_digest: HexDigest
    attempt: int = Field(ge=1, le=1000)
    step: Step
    material: HexDigest = Field(description="SHA-256 of the bytes of the step's `StepMaterial`.")
    expires: AwareDatetime


class StepMaterial(Message):
    """What a step needs of the steps before; the sites' own signed messages among it."""

    proposal: SumProposal | None = Field(None, description="offer")
    sites: ParticipantList | None = Field(None, description="participants")
    messages: tuple[str, ...] = Field((), description="advertise, share, mask, unmask: of the step before.")
    received: ReceivedList | None = Field(None, description="received")
    result: str = Field("", description="close: the signed `PooledSum`.")
    basis: str = Field(
        "", description="offer: the file of an earlier sum's values, which the proposal follows from."
    )


class SumOffer(Message):
    """A site's signed answer to a proposal that a person there has approved."""

    proposal: HexDigest
    site: Identifier
    commitment: HexDigest = Field(description="To the data behind its vector; see `secure_sum.commit`.")


class PooledSum(Message):
    """The outcome; signed by the coordinator, beside the files that it names."""

    schema_version: Literal[1] = 1
    study_digest: HexDigest
    name: SumName
    statistic: Statistic
    session: HexDigest = Field(description="Digest of the participant list.")
    proposal: HexDigest
    shape_digest: HexDigest
    vocabulary_digest: HexDigest
    codes: int = Field(ge=1)
    cells: int = Field(ge=1)
    sites: tuple[Identifier, ...] = Field(min_length=MIN_SITES, description="Whose counts are in the sum.")
    faulty: tuple[Identifier, ...] = Field((), description="Sites that sent shares other than those dealt.")
    small_cells: Literal["zero", "include"]
    differential_privacy: str = Field(
        "",
        max_length=100,
        description="What the noise of each site promises its patients; empty: no promise.",
    )
    files: dict[str, HexDigest] = Field(description="File -> SHA-256.")
    created: AwareDatetime


class SumReceipt(Message):
    """A site's signed word that the outcome arrived and that it has forgotten the sum's keys."""

    session: HexDigest
    site: Identifier
    result: HexDigest = Field(description="Digest of the `PooledSum`.")
