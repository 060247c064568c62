"""Laws of notes: one form of writing, pieces that hold all words, pairs that keep their order."""

from __future__ import annotations

import unicodedata

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from site_agent.notes.cleaning import chunks, first_time, line_key, normalised

TEXTS = st.one_of(
    st.text(max_size=200), st.text(alphabet="<br/>-=.\u0301a\u200b\n\r\t A1\u00bd\u212b", max_size=200)
)
LINES = st.lists(st.text(alphabet="ab 1.", max_size=30), max_size=20)


@given(TEXTS)
def test_one_form_of_writing_is_that_of_itself(text: str) -> None:
    plain = normalised(text)
    assert normalised(plain) == plain
    seen = {unicodedata.category(c) for c in plain.replace("\n", "")}
    assert not seen & {"Cc", "Cf", "Cs", "Co", "Cn"}


@given(LINES, st.integers(1, 10))
def test_pieces_hold_all_words_in_order(lines: list[str], longest: int) -> None:
    pieces = list(chunks(lines, longest))
    assert [w for p in pieces for w in p.split()] == [w for line in lines for w in line.split()]
    assert all(1 <= len(p.split()) <= longest for p in pieces)


@given(LINES)
def test_a_line_counts_once(lines: list[str]) -> None:
    seen: set[int] = set()
    once = first_time(lines, seen)
    assert first_time(lines, seen) == []
    assert first_time([line.upper() for line in once], seen) == []
    assert seen == {line_key(line) for line in lines}
    keys = np.array([line_key(line) for line in once], dtype=np.uint64)
    assert len(np.unique(keys)) == len(once)
