"""A secure sum of counts over the standard codes: what is summed, and the messages around `protocol.secure_sum`.

The vocabulary V is fixed first: a sorted list of standard codes in the coordinator's signed
proposal. A site counts its local codes as the standard codes that its anchors name. Two
statistics, each a vector of int64 that is added modulo 2^64:

    margins   patients of each code (n), row sums of C of each code (n), patients (1)
    cells     C_jk of the agreed pairs j <= k, by row and then by column

In a differentially private study, where nothing bounds what one patient adds to C, distinct patients stand for pairs of
events: in `cells` those of the pair, in `margins` those of the code once more in place of its row sum.

C is the symmetric matrix of co-occurring pairs of events over V. The agreed pairs are those
whose count, expected from the pooled margins r, is large enough: r_j r_k / sum(r) >= minimum.
Both sides derive them by `agreed_cells`, so a site can check what it is asked for.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from protocol.canonical import digest
from protocol.errors import DataError, ProtocolError
from protocol.files import atomic_file
from protocol.keys import PublicKeys
from protocol.messages import Curie, HexDigest, Message
from protocol.sections import Identifier
from protocol.secure_sum import MIN_SITES, ParticipantList, ReceivedList, SumSubject
from protocol.secure_sum.fixed import Int64Vector
from protocol.study import StudySpec

Statistic = Literal["margins", "cells"]
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

SumName = Annotated[str, StringConstraints(pattern="^[a-z0-9-]{1,24}$")]
MAX_CODES = 100_000
MAX_AGREED = 1 << 24
"""Pairs of codes in one sum: a vector of 128 MiB."""
MAX_MATERIAL = 64 << 20
MAX_MESSAGE = 4 << 20
_LENGTH = struct.Struct(">I")


def step_id(name: str, attempt: int, step: Step) -> str:
    """The identifier of one step, by which the transport knows it."""
    return f"{name}-{attempt}-{STEPS.index(step)}"


# --- Who takes part ------------------------------------------------------------------------------------


class Roster(Message):
    """The sites of a study and their keys, as the coordinator says; nobody trusts it before people compared it."""

    study_digest: HexDigest
    keys: dict[Identifier, PublicKeys] = Field(min_length=MIN_SITES, max_length=500)

    @property
    def fingerprint(self) -> str:
        """Ten groups of four hex digits, for the sites to compare with one another.

        Longer than that of one key: who writes the list could search for two lists that agree in
        the digits compared, which at 80 bits takes 2^40 trials and at 160 bits 2^80.
        """
        return " ".join(self.digest[i : i + 4] for i in range(0, 40, 4))


# --- What is summed ------------------------------------------------------------------------------------


class PooledMargins(Message):
    """The outcome of the sum of margins, from which the pairs of the next sum follow."""

    code_patients: tuple[int, ...] = Field(description="(n,) sums of the sites' distinct patients of a code.")
    rows: tuple[int, ...] = Field(description="(n,) row sums of C, the pairs of events that a code is in.")
    patients: int = Field(description="Sum of the sites' patients.")


class SumProposal(Message):
    """What the coordinator asks the sites to sum; what a person at each site approves rests on it."""

    study_digest: HexDigest
    name: SumName
    statistic: Statistic
    vocabulary: tuple[Curie, ...] = Field(min_length=1, max_length=MAX_CODES)
    margins: PooledMargins | None = Field(None, description="Of the same vocabulary; for cells only.")
    minimum: int = Field(ge=MIN_SITES, le=500, description="Fewest sites in the sum.")
    roster: Roster
    expires: AwareDatetime

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(a >= b for a, b in zip(self.vocabulary, self.vocabulary[1:], strict=False)):
            raise ValueError("the vocabulary must be sorted, each code once")
        if (self.margins is not None) != (self.statistic == "cells"):
            raise ValueError("cells need pooled margins, and margins need none")
        if self.margins is not None and not (
            len(self.margins.code_patients) == len(self.margins.rows) == len(self.vocabulary)
        ):
            raise ValueError("the pooled margins are of another vocabulary")
        if self.roster.study_digest != self.study_digest:
            raise ValueError("the roster is of another study")
        return self


class CellIndex(NamedTuple):
    """Agreed pairs of codes: row <= column, both (m,) int32 rows of the vocabulary."""

    row: npt.NDArray[np.int32]
    column: npt.NDArray[np.int32]


class SumLayout(NamedTuple):
    """What the cells of a sum's vector mean; `pairs` is None for margins."""

    subject: SumSubject
    pairs: CellIndex | None


def vocabulary_digest(vocabulary: tuple[str, ...]) -> str:
    """SHA-256 of the list of codes."""
    return digest(list(vocabulary))


def agreed_cells(rows: npt.ArrayLike, minimum: int, total: int | None = None) -> CellIndex:
    """The pairs j <= k with r_j r_k >= minimum * total, in order of j, then of k.

    Products are of float64, which every machine rounds alike, so all parties get the same pairs.
    Negative margins, which noise can make, count as zero.

    Args:
        rows: (n,) pooled row sums r.
        minimum: least expected count of a pair, r_j r_k / total.
        total: sum(r) unless given, as the number of patients where r counts the patients of each code.

    Raises:
        DataError: no pair is left, or more than 2^24.
    """
    r = np.maximum(np.asarray(rows, dtype=np.float64), 0.0)
    whole = float(r.sum()) if total is None else float(max(total, 1))
    bound = max(minimum * whole, np.finfo(np.float64).tiny)
    found, size = [], 0
    for j in np.flatnonzero(r):
        columns = (np.flatnonzero(r[j] * r[j:] >= bound) + j).astype(np.int32)
        size += len(columns)
        if size > MAX_AGREED:
            raise DataError(
                f"More than {MAX_AGREED:,} pairs of codes have an expected count of {minimum} or more",
                do="Raise sharing.minimum_expected in the study, or sum over fewer codes",
            )
        found.append((np.full(len(columns), j, dtype=np.int32), columns))
    if not size:
        raise DataError(
            f"No pair of codes has an expected count of {minimum} or more",
            why="the pooled margins are too small",
            do="Lower sharing.minimum_expected in the study, or sum again with more data",
        )
    return CellIndex(np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found]))


def layout(proposal: SumProposal, study: StudySpec) -> SumLayout:
    """What a proposal asks for, derived anew by each party.

    Raises:
        DataError: the margins allow no such sum.
    """
    codes = len(proposal.vocabulary)
    pairs, cells, pairs_digest = None, 2 * codes + 1, ""
    if proposal.margins is not None:
        total = proposal.margins.patients if study.differential_privacy.enabled else None
        pairs = agreed_cells(proposal.margins.rows, study.sharing.minimum_expected, total)
        cells = len(pairs.row)
        pairs_digest = digest(pairs.row.astype("<i4").tobytes() + pairs.column.astype("<i4").tobytes())
    shape = {
        "statistic": proposal.statistic,
        "vocabulary": vocabulary_digest(proposal.vocabulary),
        "pairs": pairs_digest,
        "small_cells": study.sharing.small_cells,
    }
    subject = SumSubject(
        study_digest=proposal.study_digest,
        round=proposal.name,
        statistic=proposal.statistic,
        shape_digest=digest(shape),
        cells=cells,
    )
    return SumLayout(subject, pairs)


def read_margins(values: Int64Vector) -> PooledMargins:
    """Margins from their vector (2n + 1,)."""
    codes = (len(values) - 1) // 2
    return PooledMargins(
        code_patients=tuple(values[:codes].tolist()),
        rows=tuple(values[codes : 2 * codes].tolist()),
        patients=int(values[-1]),
    )


# --- Messages ------------------------------------------------------------------------------------------


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


# --- Answers as files ----------------------------------------------------------------------------------


class Answer(NamedTuple):
    """A site's signed message, and the masked vector that may travel behind it."""

    message: bytes
    vector: memoryview


def write_answer(path: Path, message: bytes, vector: npt.NDArray[np.uint64] | None = None) -> None:
    """A file of the message's length (4 bytes, big-endian), the message, and the vector's bytes, little-endian."""
    with atomic_file(path) as stream:
        stream.write(_LENGTH.pack(len(message)))
        stream.write(message)
        if vector is not None:
            stream.write(np.ascontiguousarray(vector, dtype="<u8").data)


def read_answer(path: Path) -> Answer:
    """Parse a file of `write_answer`; nothing in it is checked yet. The vector stays on the disk until it is read.

    Raises:
        ProtocolError: it is not of this form.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        head = stream.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else MAX_MESSAGE + 1
        if length > MAX_MESSAGE or _LENGTH.size + length > size:
            raise ProtocolError("A site's answer is cut short, or its message is too long")
        mapped = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    begin = _LENGTH.size + length
    return Answer(bytes(mapped[_LENGTH.size : begin]), mapped[begin:])


def roster_differences(ours: Roster, theirs: Mapping[str, PublicKeys]) -> list[str]:
    """Each site whose keys differ, or that one of the two lists lacks; in words."""
    found = []
    for site in sorted({*ours.keys, *theirs}):
        left, right = ours.keys.get(site), theirs.get(site)
        if left != right:
            found.append(
                f"{site}: {left.fingerprint if left else 'absent'} here, "
                f"{right.fingerprint if right else 'absent'} there"
            )
    return found
