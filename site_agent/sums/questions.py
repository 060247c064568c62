"""What a site remembers of the questions that it has answered: how many, and what it said of whom.

An answer counts as given from the first signer's yes on. The salted fingerprints of who was counted stay in the folder of
the sum for good: whatever is asked later is held against them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np

from protocol.errors import GateError
from site_agent.changes import UInt64s
from site_agent.config import Home
from site_agent.gate.cohorts import Counted, Decided, decide
from site_agent.ledger import Entry
from site_agent.released import site_salt
from site_agent.sums.folder import CohortAnswer, SumFolder, SumPreview

COUNTED = "cohort"
"""The part of a sum's folder that holds the fingerprints."""


def fingerprints(home: Home, patients: Sequence[int]) -> UInt64s:
    """Sorted salted fingerprints of patients, by their numbers; two of 300,000 are the same once in four hundred million."""
    salt = site_salt(home.folder)
    hashes = (
        hashlib.blake2b(int(p).to_bytes(8, "little", signed=True), digest_size=8, key=salt).digest()
        for p in patients
    )
    return np.sort(np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64))


def given(folder: SumFolder, entries: Sequence[Entry], name: str = "") -> dict[str, datetime]:
    """Questions other than `name` that a signer has said yes to, the first one first, and when."""
    found: dict[str, datetime] = {}
    for entry in entries:
        other = str(entry.facts.get("sum"))
        if entry.event == "sum-approved" and other not in (name, *found):
            preview = folder.preview(other)
            if preview is not None and preview.answer is not None:
                found[other] = datetime.fromisoformat(entry.time)
    return found


def remembered(folder: SumFolder, entries: Sequence[Entry], name: str) -> list[Counted]:
    """Answers to other questions that were found afresh, the first one first.

    Raises:
        GateError: the memory of one is gone, so that nothing can be held against it.
    """
    found = []
    for other in given(folder, entries, name):
        preview, patients = folder.preview(other), folder.vector(other, COUNTED)
        if preview is None or preview.answer is None or preview.answer.sticks_to:
            continue
        if patients is None or len(patients) != preview.answer.patients:
            raise GateError(
                f"What this site remembers of question {other} is gone",
                ("an answer could be subtracted from that one",),
                do=f"Restore sums/{other}/{COUNTED}.safetensors from a backup; until then no question is answered",
            )
        found.append(Counted(other, preview.answer.meaning, patients.view(np.uint64), preview.answer.answer))
    return found


def decided(
    home: Home,
    folder: SumFolder,
    entries: Sequence[Entry],
    name: str,
    meaning: str,
    patients: UInt64s,
    everyone: int,
) -> CohortAnswer:
    """What this site may say of a cohort beside all that it has said.

    Raises:
        GateError: as `remembered`.
    """
    earlier = remembered(folder, entries, name)
    said: Decided = decide(patients, meaning, earlier, home.policy(), everyone)
    return CohortAnswer(
        meaning=meaning,
        patients=len(patients),
        everyone=everyone,
        answer=said.answer,
        floor=said.floor,
        step=said.step,
        sticks_to=said.sticks_to,
    )


def answer_data(folder: SumFolder, answer: CohortAnswer, patients: UInt64s) -> str:
    """SHA-256 by which the memory of sums knows what is behind an answer.

    An answer that was given before is behind two sums: their memberships must not single out a site. Where it is 0, any
    total is that of the others alone, whatever was asked before.
    """
    if answer.sticks_to and answer.answer:
        before = folder.preview(answer.sticks_to)
        if before is not None:
            return before.data
    return hashlib.sha256(
        b"smile/sum/cohort" + bytes.fromhex(answer.meaning) + patients.astype("<u8").tobytes()
    ).hexdigest()


def check_limit(home: Home, folder: SumFolder, entries: Sequence[Entry], name: str) -> None:
    """Return only if one question more may be answered.

    Raises:
        GateError: as many as the site allows were answered in these days.
    """
    rule, now = home.config.cohort, datetime.now(UTC)
    since = now - timedelta(days=rule.question_days)
    recent = sorted(when for when in given(folder, entries, name).values() if when > since)
    if len(recent) >= rule.questions:
        free = recent[-rule.questions] + timedelta(days=rule.question_days) if rule.questions else None
        raise GateError(
            "No further question is answered now",
            (f"{len(recent)} were answered in {rule.question_days} days, and {rule.questions} are allowed",),
            do=f"Answer it after {free:%Y-%m-%d}, or raise cohort.questions in site.toml"
            if free
            else "Raise cohort.questions in site.toml",
        )


def check_still(
    home: Home, folder: SumFolder, entries: Sequence[Entry], name: str, preview: SumPreview
) -> None:
    """Return only if what was previewed is still what may be said: another question may have been approved since.

    Raises:
        GateError: it is not, or the limit is reached.
    """
    if preview.answer is None:
        return
    check_limit(home, folder, entries, name)
    patients = folder.vector(name, COUNTED)
    again = None
    if patients is not None:
        told = preview.answer
        again = decided(home, folder, entries, name, told.meaning, patients.view(np.uint64), told.everyone)
    if again != preview.answer:
        raise GateError(
            "The answer that was shown is not the one that may be given now",
            ("another question was approved since, or the floors have changed",),
            do=f"Run site-agent cohort questions preview {name} again",
        )
