"""What the coordinator stores of a sum.

    sums/NAME/sum.json              SumRecord: proposal, nodes, attempt
    sums/NAME/NAME-ATTEMPT-STEP/    the desk of a step: call, material, the sites' answers
    pooled/NAME/                    the outcome

A step is over once the material of the next is laid out; the material is what was decided. So the
folders are the whole state: whoever runs the sum again goes on from what they hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from coordinator.flower.desk import RoundDesk
from protocol.canonical import canonical_json, digest
from protocol.errors import RoundError
from protocol.files import write_atomic
from protocol.keys import PrivateKeys
from protocol.messages import Message
from protocol.sections import Identifier
from protocol.signed import parse, sign_message
from protocol.sums import STEPS, Step, StepMaterial, SumCall, SumProposal, step_id


class SumRecord(Message):
    """One sum."""

    proposal: SumProposal
    nodes: dict[Identifier, int] = Field(description="Site -> Flower node.")
    attempt: int = Field(1, ge=1, le=1000)
    without: tuple[Identifier, ...] = Field((), description="Sites that this attempt leaves out.")

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of this attempt, by name."""
        return tuple(sorted(set(self.nodes) - set(self.without)))


@dataclass(frozen=True)
class SumStore:
    """The folder of one sum.

    Args:
        folder: its name is the sum's.
    """

    folder: Path

    @property
    def name(self) -> str:
        """The sum's name."""
        return self.folder.name

    def load(self) -> SumRecord:
        """The sum.

        Raises:
            RoundError: there is none of this name.
        """
        try:
            return parse((self.folder / "sum.json").read_bytes(), SumRecord)
        except FileNotFoundError:
            raise RoundError(
                f"There is no sum {self.name!r}", do="List them with coordinator sum status"
            ) from None

    def save(self, record: SumRecord) -> None:
        """Store the sum."""
        write_atomic(self.folder / "sum.json", record.model_dump_json())

    def desk(self, record: SumRecord, step: Step) -> RoundDesk:
        """The desk of a step of the sum's present attempt."""
        return RoundDesk(self.folder / step_id(self.name, record.attempt, step))

    def material(self, record: SumRecord, step: Step) -> StepMaterial | None:
        """What a step was begun with; None before it was."""
        path = self.desk(record, step).material
        return parse(path.read_bytes(), StepMaterial) if path.exists() else None

    def lay_out(self, record: SumRecord, step: Step, material: StepMaterial, keys: PrivateKeys) -> RoundDesk:
        """Begin a step: its material and its signed call are on the disk when this returns."""
        desk, data = self.desk(record, step), canonical_json(material)
        call = SumCall(
            name=self.name,
            study_digest=record.proposal.study_digest,
            attempt=record.attempt,
            step=step,
            material=digest(data),
            expires=record.proposal.expires,
        )
        desk.open(sign_message(call, keys), {s: record.nodes[s] for s in record.sites})
        write_atomic(desk.material, data)
        return desk

    def step(self, record: SumRecord) -> Step | None:
        """The last step that was begun; None before the first."""
        begun = [s for s in STEPS if self.desk(record, s).material.exists()]
        return begun[-1] if begun else None
