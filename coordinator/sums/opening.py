"""Opening a sum: vocabulary, roster and, for pairs of codes, the pooled margins, in one proposal."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from coordinator.config import Home
from coordinator.sums.outcome import read_outcome
from coordinator.sums.record import SumRecord, SumStore
from protocol.errors import RoundError, StudyError, UsageError
from protocol.keys import PublicKeys
from protocol.study import StudySpec, validation_reasons
from protocol.sums import PooledMargins, Roster, Statistic, SumProposal, layout, read_margins
from protocol.vocabulary import curie


@dataclass(frozen=True)
class Asked:
    """What a sum is to be over.

    Attributes:
        statistic: margins first, then cells.
        vocabulary: sorted standard codes.
        margins: the pooled margins, for cells.
    """

    statistic: Statistic
    vocabulary: tuple[str, ...]
    margins: PooledMargins | None = None


def read_codes(path: Path, study: StudySpec) -> tuple[str, ...]:
    """The vocabulary from a CSV file with a column `code`; codes without a prefix are of the standard system.

    Raises:
        UsageError: no file, or no such column.
        DataError: a malformed code.
        StudyError: a code of another system.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if "code" not in (reader.fieldnames or ()):
                raise UsageError(f"The file {path} has no column 'code'", do="Give it a first line: code")
            texts = [(row["code"] or "").strip() for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"The codes in {path} cannot be read", why=str(error)) from None
    standard = study.standard
    found = set()
    for text in filter(None, texts):
        prefix, colon, rest = text.partition(":")
        if colon and prefix != standard:
            raise StudyError(
                f"{text[:80]} in {path} is no code of the standard system {standard}",
                do="A sum is over standard codes only; sites count their local codes by their anchors",
            )
        found.add(curie(standard, rest if colon else text))
    if not found:
        raise UsageError(f"The file {path} names no code")
    return tuple(sorted(found))


def margins_of(home: Home, name: str) -> Asked:
    """What a sum of cells follows from: a finished sum of margins, with its vocabulary.

    Raises:
        RoundError: it is not finished.
        UsageError: it is no sum of margins.
    """
    result, arrays, vocabulary = read_outcome(home, name)
    if result.statistic != "margins":
        raise UsageError(f"The sum {name} is of {result.statistic}, not of margins")
    return Asked("cells", vocabulary, read_margins(arrays["values"]))


def open_sum(
    home: Home,
    name: str,
    asked: Asked,
    *,
    enrolled: Mapping[str, PublicKeys],
    nodes: Mapping[str, int],
    days: int = 30,
) -> SumRecord:
    """Store a new sum; nothing is sent before `run_sum`.

    Args:
        home: the coordinator.
        name: 1 to 24 of a-z, 0-9 and -.
        asked: what is summed.
        enrolled: site -> keys, of all enrolled sites.
        nodes: site -> Flower node.
        days: until the sites answer no longer.

    Raises:
        UsageError: the name is taken, or the sum cannot be put together; the reason follows.
        StudyError: the study sums nothing.
        RoundError: too few sites are enrolled.
        DataError: the margins allow no sum of cells.
    """
    study, store = home.study, SumStore(home.folder / "sums" / name)
    if study.sharing.counts != "summed":
        raise StudyError(
            "This study sums no counts",
            why="it says sharing.counts = none",
            do="Agree on counts = summed in the study file at every party",
        )
    if (store.folder / "sum.json").exists():
        raise UsageError(f"Sum {name!r} exists", do="Take a new name; coordinator sum status lists them")
    needed = study.sharing.minimum_summed_sites
    if len(enrolled) < needed:
        raise RoundError(
            f"{len(enrolled)} sites are enrolled, and the study sums {needed} or more",
            do="Enrol the missing sites first",
        )
    try:
        proposal = SumProposal(
            study_digest=study.digest,
            name=name,
            statistic=asked.statistic,
            vocabulary=asked.vocabulary,
            margins=asked.margins,
            minimum=needed,
            roster=Roster(study_digest=study.digest, keys=dict(enrolled)),
            expires=datetime.now(UTC).replace(microsecond=0) + timedelta(days=days),
        )
    except ValidationError as error:
        raise UsageError(f"The sum {name!r} cannot be opened", why=validation_reasons(error)) from None
    layout(proposal, study)
    record = SumRecord(proposal=proposal, nodes={s: nodes[s] for s in enrolled if s in nodes})
    store.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    store.save(record)
    return record
