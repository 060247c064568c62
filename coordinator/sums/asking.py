"""What a sum is to be over: the codes of a file, or what follows from a finished sum."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from coordinator.config import Home
from coordinator.sums.outcome import outcome_folder, read_outcome
from coordinator.sums.record import SumStore
from protocol.cohort import CohortQuestion
from protocol.errors import ProtocolError, StudyError, UsageError
from protocol.secure_sum.fixed import Int64Vector
from protocol.secure_sum.state import need
from protocol.study import StudySpec
from protocol.sums import (
    COUNTS,
    GraphBasis,
    PooledHalves,
    PooledMargins,
    PooledSum,
    Statistic,
    SumProposal,
    pack_basis,
    pooled_smoother,
    read_margins,
    tested_pairs,
)
from protocol.vocabulary import curie


@dataclass(frozen=True)
class Asked:
    """What a sum is to be over.

    Attributes:
        statistic: one of `protocol.sums.KINDS`.
        vocabulary: sorted standard codes.
        margins: the pooled margins, for cells.
        graph: what tests of association follow from.
        cohort: whose patients are counted.
    """

    statistic: Statistic
    vocabulary: tuple[str, ...]
    margins: PooledMargins | None = None
    graph: GraphBasis | None = None
    cohort: CohortQuestion | None = None


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
    _, values, vocabulary = finished(home, name, "margins")
    return Asked("cells", vocabulary, read_margins(values))


def pairs_of(home: Home, name: str, statistic: Statistic) -> Asked:
    """What a sum over tested pairs follows from: a finished sum of graph-margins.

    Raises:
        RoundError: it is not finished.
        UsageError: it is of another statistic.
    """
    _, values, vocabulary = finished(home, name, "graph-margins")
    return Asked(statistic, vocabulary, graph=GraphBasis(rows=tuple(values.tolist())))


def blocks_of(home: Home, name: str) -> Asked:
    """What a sum of graph-blocks follows from: a finished sum of graph-halves, and the smoother that follows from it.

    Raises:
        RoundError: it is not finished.
        UsageError: it is of another statistic.
        FitError: no structure stands out of the noise.
    """
    result, values, vocabulary = finished(home, name, "graph-halves")
    rows = need(proposal_of(home, result).graph).rows
    smoothing = pooled_smoother(values, tested_pairs(rows, home.study), home.study)
    halves = PooledHalves(name=name, result=result.digest, rank=len(smoothing.values))
    return Asked("graph-blocks", vocabulary, graph=GraphBasis(rows=rows, halves=halves))


def proposal_of(home: Home, result: PooledSum) -> SumProposal:
    """What a finished sum was opened with.

    Raises:
        ProtocolError: the stored proposal was altered.
    """
    proposal = SumStore(home.folder / "sums" / result.name).load().proposal
    if proposal.digest != result.proposal:
        raise ProtocolError(
            f"The proposal of sum {result.name} was altered", do="Restore it from your backup; do not use it"
        )
    return proposal


def basis_of(home: Home, proposal: SumProposal) -> str:
    """What goes to the sites beside a proposal: the pooled halves that it follows from; empty if there are none."""
    halves = proposal.graph.halves if proposal.graph else None
    return pack_basis((outcome_folder(home, halves.name) / COUNTS).read_bytes()) if halves else ""


def finished(home: Home, name: str, statistic: Statistic) -> tuple[PooledSum, Int64Vector, tuple[str, ...]]:
    """A finished sum of one statistic, its values and its vocabulary.

    Raises:
        RoundError: it is not finished.
        UsageError: it is of another statistic.
    """
    result, arrays, vocabulary = read_outcome(home, name)
    if result.statistic != statistic:
        raise UsageError(f"The sum {name} is of {result.statistic}, not of {statistic}")
    return result, arrays["values"], vocabulary


# --- What each statistic follows from --------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """What `coordinator sum open` is told for a statistic.

    Attributes:
        option: that says it: `codes` is a file, the others are finished sums.
        asked: makes of it what is summed.
    """

    option: Literal["codes", "margins", "halves"]
    asked: Callable[[Home, str], Asked]


def _codes(statistic: Statistic) -> Given:
    return Given("codes", lambda home, path: Asked(statistic, read_codes(Path(path), home.study)))


def _pairs(statistic: Statistic) -> Given:
    return Given("margins", lambda home, name: pairs_of(home, name, statistic))


GIVEN: Final[dict[Statistic, Given]] = {
    "margins": _codes("margins"),
    "cells": Given("margins", margins_of),
    "graph-margins": _codes("graph-margins"),
    "graph-alone": _pairs("graph-alone"),
    "graph-halves": _pairs("graph-halves"),
    "graph-blocks": Given("halves", blocks_of),
}


def asked_for(home: Home, statistic: Statistic, **options: str) -> Asked:
    """What is summed, from the options of `coordinator sum open`; those left out are empty.

    Raises:
        UsageError: another option is given than the one that the statistic needs, or it cannot be used.
    """
    given = GIVEN.get(statistic)
    if given is None:
        raise UsageError(f"A sum of {statistic} is not opened like this", do="Run coordinator cohort ask")
    if [name for name, value in options.items() if value] != [given.option]:
        raise UsageError(f"A sum of {statistic} needs --{given.option}, and no other source")
    return given.asked(home, options[given.option])
