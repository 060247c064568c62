"""What a site stores of its sums.

sums/memory.json             states (with secrets) and the memory of all sums; replaced as one
sums/roster.offered.json     the coordinator's latest list of sites and keys
sums/NAME/proposal.json      what the coordinator asked for
sums/NAME/preview.json       what a person is shown and approves
sums/NAME/offer.json         the secret nonce of the commitment; from here on the vector stays as it is
sums/NAME/vector.safetensors the site's own counts, and `noised.safetensors` where noise was added
sums/NAME/days.safetensors   salted fingerprints of patients, `cohort.safetensors` of those counted in a cohort; they stay
sums/NAME/basis.safetensors  the values of the earlier sum that it follows from, if the site needs them
sums/NAME/material.json      of the step at hand
sums/NAME/pooled.json        the signed outcome; then states, vectors and nonce are gone
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import Field

from protocol.arrays import decode_arrays, encode_arrays
from protocol.errors import DataError, ProtocolError, UsageError
from protocol.files import write_atomic
from protocol.locking import exclusive
from protocol.messages import HexDigest, Message, Policy
from protocol.secure_sum import SiteSum, SumLedger, SumSubject
from protocol.secure_sum.fixed import Int64Vector
from protocol.signed import parse
from protocol.sums import SumProposal

M = TypeVar("M", bound=Message)


class SumMemory(Message):
    """The memory of all sums, and the states of those under way by session."""

    ledger: SumLedger = SumLedger()
    states: dict[HexDigest, SiteSum] = Field(default={}, repr=False)


class CohortAnswer(Message):
    """What would be said of a cohort; it stays at the site, but for `answer`, masked."""

    meaning: HexDigest = Field(description="Of the question, without its title.")
    patients: int = Field(description="How many there are.")
    everyone: int = Field(description="Patients of the build.")
    answer: int = Field(description="Rounded; 0 below the floor.")
    floor: int
    step: int
    sticks_to: str = Field("", description="The earlier question whose answer this is, if it is one's.")


class SumPreview(Message):
    """What would enter a sum; its digest is what a person approves."""

    site: str
    subject: SumSubject
    proposal: HexDigest
    vocabulary_digest: HexDigest
    codes: int = Field(description="Of the vocabulary.")
    roster: HexDigest = Field(description="The trusted list of sites and keys.")
    minimum: int = Field(description="Fewest sites in the sum.")
    data: HexDigest = Field(description="Of the counts behind the vector.")
    values: HexDigest = Field(description="SHA-256 of the vector: int64, little-endian.")
    policy: Policy | None = Field(
        description="Floors below which a count enters as zero; none: all as they are."
    )
    nonzero: int = Field(description="Cells that are not zero.")
    largest: int
    withheld_codes: int
    withheld_pairs: int
    other_codes: int = Field(description="Codes of this site that the vocabulary does not have.")
    noise: bool = Field(description="Whether noise is added before masking.")
    answer: CohortAnswer | None = Field(None, description="Where a cohort is counted.")


class Offer(Message):
    """The secret behind a commitment."""

    preview: HexDigest
    nonce: HexDigest = Field(repr=False)


@dataclass(frozen=True)
class SumFolder:
    """The folder of all sums of a site."""

    root: Path

    def memory(self) -> SumMemory:
        """States and memory.

        Raises:
            ProtocolError: the file is damaged.
        """
        path = self.root / "memory.json"
        return parse(path.read_bytes(), SumMemory) if path.exists() else SumMemory()

    def remember(self, memory: SumMemory) -> None:
        """Store states and memory, before anything that follows from them is sent."""
        write_atomic(self.root / "memory.json", memory.model_dump_json())

    def locked(self) -> AbstractContextManager[None]:
        """One process at a time changes a sum: the agent that answers, or a command that counts."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return exclusive(self.root / ".lock")

    def names(self) -> list[str]:
        """Sums that were proposed, by name."""
        return sorted(p.parent.name for p in self.root.glob("*/proposal.json"))

    def proposal(self, name: str) -> SumProposal:
        """What the coordinator asked for.

        Raises:
            UsageError: no such sum was proposed.
        """
        found = self._load(name, "proposal", SumProposal)
        if found is None:
            raise UsageError(
                f"No sum {name!r} was proposed to this site",
                why=f"there are: {', '.join(self.names())}" if self.names() else "nothing was proposed yet",
                do="Keep site-agent run running; a proposal comes with coordinator sum run",
            )
        return found

    def preview(self, name: str) -> SumPreview | None:
        """What a person was shown last."""
        return self._load(name, "preview", SumPreview)

    def offer(self, name: str) -> Offer | None:
        """The commitment's secret, once one was sent."""
        return self._load(name, "offer", Offer)

    def pooled(self, name: str) -> bytes | None:
        """The signed outcome, once it arrived."""
        path = self.root / name / "pooled.json"
        return path.read_bytes() if path.exists() else None

    def keep(self, name: str, what: SumProposal | SumPreview | Offer) -> None:
        """Store a part of a sum."""
        part = {SumProposal: "proposal", SumPreview: "preview", Offer: "offer"}[type(what)]
        if isinstance(what, SumProposal):
            (self.root / name / "basis.safetensors").unlink(missing_ok=True)  # of another proposal
        write_atomic(self.root / name / f"{part}.json", what.model_dump_json())

    def keep_vector(self, name: str, values: Int64Vector, part: str = "vector") -> None:
        """Store the counts of a sum."""
        write_atomic(self.root / name / f"{part}.safetensors", encode_arrays({"values": values}, {}))

    def vector(self, name: str, part: str = "vector") -> Int64Vector | None:
        """The counts of a sum; None if they are not here.

        Raises:
            DataError: the file is damaged.
        """
        try:
            data = (self.root / name / f"{part}.safetensors").read_bytes()
            return np.ascontiguousarray(decode_arrays(data)[0]["values"], dtype=np.int64)
        except FileNotFoundError:
            return None
        except (ProtocolError, KeyError):
            raise DataError(
                f"The stored counts of sum {name} are damaged", do=f"Run site-agent sums preview {name}"
            ) from None

    def begun_before(self, name: str) -> list[tuple[str, Int64Vector]]:
        """Other sums for which this site has made an offer, and the days of their patients.

        Raises:
            DataError: a file is damaged.
        """
        found = []
        for other in self.names():
            days = self.vector(other, "days")
            begun = self.offer(other) is not None or self.pooled(other) is not None
            if other != name and begun and days is not None:
                found.append((other, days))
        return found

    def material(self, name: str) -> bytes | None:
        """The bytes of the step at hand."""
        path = self.root / name / "material.json"
        return path.read_bytes() if path.exists() else None

    def keep_material(self, name: str, data: bytes) -> None:
        """Store what a step came with."""
        write_atomic(self.root / name / "material.json", data)

    def basis(self, name: str) -> bytes | None:
        """The file of the earlier sum's values that a proposal follows from, as it came with it."""
        path = self.root / name / "basis.safetensors"
        return path.read_bytes() if path.exists() else None

    def keep_basis(self, name: str, data: bytes) -> None:
        """Store it, once it was checked."""
        write_atomic(self.root / name / "basis.safetensors", data)

    def close(self, name: str, outcome: bytes) -> None:
        """Store the signed outcome and forget every secret of the sum; its place in the memory stays."""
        write_atomic(self.root / name / "pooled.json", outcome)
        memory = self.memory()
        states = {s: state for s, state in memory.states.items() if state.sites.subject.round != name}
        self.remember(memory.model_copy(update={"states": states}))
        for part in ("offer.json", "vector.safetensors", "noised.safetensors", "basis.safetensors"):
            (self.root / name / part).unlink(missing_ok=True)

    def _load(self, name: str, part: str, kind: type[M]) -> M | None:
        path = self.root / name / f"{part}.json"
        return parse(path.read_bytes(), kind) if path.exists() else None
