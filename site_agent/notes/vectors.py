"""The note vector of each patient: the mean of the encoder's unit vectors of the pieces of the patient's notes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from protocol.text import has_word
from site_agent.notes.cache import ChunkCache
from site_agent.notes.cleaning import LineShares, chunks, first_time, sentences
from site_agent.notes.staging import StagedNotes
from site_agent.sources import Progress, silent

Vectors = npt.NDArray[np.float32]
_BATCH = 512
"""Pieces that are encoded at once."""


@dataclass
class NoteCounts:
    """What became of the notes.

    Attributes:
        notes: of the build's patients within its days; of equal ones of one day one.
        patients: who have one.
        lines: sentences and lines in them.
        templates: of these, lines that so many patients have that they belong to a form.
        copied: of these, lines that an earlier note of the patient has.
        pieces: that were made into vectors.
        removed: kind of identifier -> places.
        terms: of these, sentences that were left out for a word of the label.
    """

    notes: int = 0
    patients: int = 0
    lines: int = 0
    templates: int = 0
    copied: int = 0
    pieces: int = 0
    terms: int = 0
    removed: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, eq=False)
class NoteVectors:
    """Note vectors of n patients.

    Attributes:
        vectors: (n, e) unit rows; zero rows for patients without a note.
        counts: what became of the notes.
    """

    vectors: Vectors
    counts: NoteCounts


def line_shares(staged: StagedNotes) -> LineShares:
    """In how many patients' notes each line is."""
    shares = LineShares()
    for _, texts in staged.patients():
        shares.add(line for text in texts for line in sentences(text))
    return shares


def note_vectors(
    staged: StagedNotes,
    shares: LineShares,
    encode: ChunkCache,
    n: int,
    dim: int,
    *,
    terms: re.Pattern[str] | None = None,
    progress: Progress = silent,
) -> NoteVectors:
    """(n, dim) note vectors; memory holds these and some hundred pieces.

        w_i = mean over the pieces of note i of their unit vectors, t_p = mean over the notes i of patient p of w_i / |w_i|,
        then brought to unit length

    Args:
        staged: notes without identifiers.
        shares: of `line_shares`, by which lines of a form are known.
        encode: the encoder.
        n: patients of the build.
        dim: the encoder's columns.
        terms: sentences in which this is found are left out, if anything.
        progress: told the share done.

    Law: a note once more, or a line copied into a later note, changes nothing.
    """
    counts = NoteCounts(notes=staged.count(), removed=staged.removed)
    total = np.zeros((n, dim), dtype=np.float32)
    waiting: list[tuple[int, list[str]]] = []
    size = 0
    for row, texts in staged.patients():
        counts.patients += 1
        for pieces in _pieces(texts, shares, terms, counts):
            waiting.append((row, pieces))
            size += len(pieces)
        if size >= _BATCH:
            progress(f"vectors of notes: {counts.patients:,} patients", row / max(n, 1))
            _add(total, waiting, encode)
            waiting, size = [], 0
    _add(total, waiting, encode)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return NoteVectors(np.asarray(total / np.where(length == 0, 1, length), dtype=np.float32), counts)


def _pieces(
    texts: Collection[str], shares: LineShares, terms: re.Pattern[str] | None, counts: NoteCounts
) -> Iterator[list[str]]:
    """Of each note in order of days, the pieces that are to be encoded."""
    seen: set[int] = set()
    for text in texts:
        lines = sentences(text)
        counts.lines += len(lines)
        own = [line for line in lines if not shares.is_template(line)]
        counts.templates += len(lines) - len(own)
        new = first_time(own, seen)
        counts.copied += len(own) - len(new)
        if terms is not None:
            # What is left of a sentence would tell nearly as much: "Known, stable on treatment".
            told = [line for line in new if not terms.search(line)]
            counts.terms += len(new) - len(told)
            new = told
        pieces = [piece for piece in chunks(new) if has_word(piece)]
        counts.pieces += len(pieces)
        if pieces:
            yield pieces


def _add(total: Vectors, waiting: list[tuple[int, list[str]]], encode: ChunkCache) -> None:
    if not waiting:
        return
    vectors = encode.encode([piece for _, pieces in waiting for piece in pieces])
    at = 0
    for row, pieces in waiting:
        note = vectors[at : at + len(pieces)].mean(axis=0)
        at += len(pieces)
        length = float(np.linalg.norm(note))
        if length > 0:
            total[row] += note / length
