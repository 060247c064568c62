"""Laws of names as vectors: expansion ends, and a vector depends on its own text only."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.text import LexicalEncoder, Projected, encode_names, expand
from protocol.text.abbreviations import _OF
from protocol.text.encoder import has_word, hash_signs
from protocol.vocabulary import Category

CATEGORIES = sorted(_OF)
categories = st.sampled_from(CATEGORIES)
clinical = st.lists(
    st.sampled_from(
        ["DMII", "w/o", "FX", "lt", "l", "nos", "mg/mL", "inj", "10", "heart", "d/t", "(", "type", "II", "MI"]
    ),
    min_size=1,
    max_size=8,
).map(" ".join)
texts = st.one_of(clinical, st.text(max_size=60))
words = texts.filter(has_word)
ENCODER = LexicalEncoder(64)


@given(texts, categories)
@settings(max_examples=300, deadline=None)
def test_expanding_twice_is_expanding_once(text: str, category: Category) -> None:
    once = expand(text, category)
    assert expand(once, category) == once


@given(texts, categories)
@settings(max_examples=200, deadline=None)
def test_digits_are_never_lost(text: str, category: Category) -> None:
    """Strengths and sizes survive; DM2 and Greek styles of writing digits aside."""
    plain = [t for t in text.split() if t.isascii() and t.isdigit()]
    kept = expand(text, category).split()
    assert all(kept.count(t) >= plain.count(t) for t in plain)


@given(st.lists(words, min_size=1, max_size=6), st.lists(words, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_vector_depends_on_its_own_text_only(some: list[str], others: list[str]) -> None:
    both = ENCODER.encode(some + others)
    np.testing.assert_array_equal(both[: len(some)], ENCODER.encode(some))
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1.0, atol=1e-6)


@given(words)
@settings(max_examples=60, deadline=None)
def test_case_order_and_repetition_of_words_do_not_count(text: str) -> None:
    turned = " ".join(reversed(text.split()))
    first, second, twice = ENCODER.encode([text, turned, f"{text} {text}"])
    # A casefolded word may be another one only where Unicode's own mapping is not stable; order never counts.
    np.testing.assert_allclose(first, second, atol=1e-6)
    np.testing.assert_allclose(first, twice, atol=1e-6)


@given(st.lists(st.tuples(words, categories), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_equal_names_have_equal_vectors(named: list[tuple[str, Category]]) -> None:
    names, kinds = [n for n, _ in named], [k for _, k in named]
    twice = encode_names(ENCODER, names + names, kinds + kinds)
    np.testing.assert_array_equal(twice[: len(names)], twice[len(names) :])


@given(st.text(max_size=20), st.integers(1, 200), st.integers(0, 100))
def test_fewer_signs_are_the_first_of_more(text: str, n: int, more: int) -> None:
    np.testing.assert_array_equal(hash_signs(text, n), hash_signs(text, n + more)[:n])
    assert set(np.unique(hash_signs(text, n))) <= {-1, 1}


def test_projections_keep_cosines() -> None:
    """Johnson and Lindenstrauss: the error of a cosine has a standard deviation near sqrt(1 / dim) at most."""
    names = [
        f"{kind} of the {site}"
        for kind in ("fracture", "burn", "neoplasm")
        for site in ("arm", "leg", "skin", "eye")
    ]
    wide = LexicalEncoder(1024)
    full = wide.encode(names)
    small = Projected(wide, 256).encode(names)
    error = (full @ full.T - small @ small.T)[np.triu_indices(len(names), 1)]
    assert np.sqrt(np.mean(error**2)) < 1.0 / np.sqrt(256)
