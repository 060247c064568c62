"""Notes as lines that say something: one form of writing, no templates, nothing that was copied forward."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]

CHUNK_WORDS: Final = 40
"""Words of a chunk, at most. A model of 256 tokens reads some 150 words of clinical text; shorter ones say one thing each."""
TEMPLATE_SHARE: Final = 0.3
"""A line that the notes of so many of the patients have belongs to the form, and says nothing of one of them."""
TEMPLATE_PATIENTS: Final = 20
_CELLS: Final = 1 << 22
_ROWS: Final = 2
_BREAK: Final = re.compile(r"\r\n|[\r\n\v\f\x85\u2028\u2029]|<br ?/?>", re.IGNORECASE)
_SPACE: Final = re.compile(r"\s+")
_SENTENCE: Final = re.compile(r"(?<=[.;!?])\s+(?=[A-Z0-9-])")
_RULE: Final = re.compile(r"[-_=*~#.+|]{3,}")
_KEPT: Final = frozenset("\t\n\v\f\r\x85")
_INVISIBLE: Final = frozenset({"Cf", "Cc", "Co", "Cn", "Cs"})
_PART: Final = re.compile(r"[\W_]+")


def normalised(text: str) -> str:
    """One form of each character (NFKC), no control or invisible characters, no ruled lines; line breaks stay.

    Law: doing it twice changes nothing more.
    """
    # What cannot be seen goes first: without it, letters and marks may meet that are one character.
    seen = "".join(c for c in text if c in _KEPT or unicodedata.category(c) not in _INVISIBLE)
    lines = []
    for line in _BREAK.split(unicodedata.normalize("NFKC", seen)):
        plain = _SPACE.sub(" ", _RULE.sub(" ", line)).strip()
        if plain:
            lines.append(plain)
    return "\n".join(lines)


def sentences(text: str) -> list[str]:
    """Sentences and lines, in order; those without a letter are left out."""
    parts = (part.strip() for line in text.split("\n") for part in _SENTENCE.split(line))
    return [_SPACE.sub(" ", part) for part in parts if any(c.isalpha() for c in part)]


def line_key(line: str) -> int:
    """64 bits that are the same for lines that differ in case, numbers, punctuation and spaces only."""
    plain = _PART.sub(" ", re.sub(r"[0-9]+", "0", line.casefold())).strip()
    return int.from_bytes(blake2b(plain.encode(), digest_size=8).digest(), "little")


def chunks(lines: Sequence[str], longest: int = CHUNK_WORDS) -> Iterator[str]:
    """Lines put together to at most `longest` words; a longer line is cut.

    Law: the words of all chunks are those of all lines, in order.
    """
    held: list[str] = []
    for line in lines:
        words = line.split()
        if held and len(held) + len(words) > longest:
            yield " ".join(held)
            held = []
        while len(words) > longest:
            yield " ".join(words[:longest])
            words = words[longest:]
        held += words
    if held:
        yield " ".join(held)


def first_time(lines: Iterable[str], seen: set[int]) -> list[str]:
    """Lines that a patient's notes did not have before; `seen` learns the new ones."""
    new = []
    for line in lines:
        key = line_key(line)
        if key not in seen:
            seen.add(key)
            new.append(line)
    return new


class LineShares:
    """How many patients have each line: two rows of counters by hash, 32 MB however many lines there are.

    A count-min sketch (Cormode and Muthukrishnan 2005): no count is too low, and too high only where both counters are
    shared with other lines.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((_ROWS, _CELLS), dtype=np.uint32)
        self.patients = 0

    def add(self, lines: Iterable[str]) -> None:
        """Take in the lines of one patient's notes; each counts once."""
        self.patients += 1
        keys = np.fromiter({line_key(line) for line in lines}, dtype=np.uint64)
        for row, cells in enumerate(_places(keys)):
            np.add.at(self._counts[row], cells, np.uint32(1))

    def is_template(self, line: str) -> bool:
        """Whether as many patients have it as a template's line has."""
        cells = _places(np.array([line_key(line)], dtype=np.uint64))
        count = min(int(self._counts[row, at[0]]) for row, at in enumerate(cells))
        return count >= max(TEMPLATE_PATIENTS, TEMPLATE_SHARE * self.patients)


def _places(keys: Keys) -> list[npt.NDArray[np.intp]]:
    return [((keys >> np.uint64(shift)) % np.uint64(_CELLS)).astype(np.intp) for shift in (0, 32)]
