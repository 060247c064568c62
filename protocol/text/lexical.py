"""A text encoder that needs nothing: character n-grams, each with its own fixed random signs.

The vector of a text is the sum of its words' vectors; a word's that of its n-grams', each a vector of signs from a hash:

    v(text) = sum over distinct words w of a(w) / |G(w)|^(1/4) sum over g in G(w) of s(g),  G(w) the n-grams of <w>

This is feature hashing (Weinberger et al. 2009) and a random projection (Achlioptas 2003) in one step: cosines estimate
those of the n-gram counts. Nothing is fitted, so the space is the same at every party. It knows spelling only: `renal` and
`kidney` are strangers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from protocol.canonical import digest
from protocol.text.abbreviations import TABLE_DIGEST
from protocol.text.encoder import Float32s, check_words, hash_signs, unit_rows

_VERSION: Final = 1
_SIZES: Final = (2, 3, 4)
_COMMON: Final = (
    "a an and as at by classified due elsewhere for from in not of on or other site specified the to type "
    "unspecified with without"
)
_COMMON_WEIGHT: Final = 0.3
"""Of words that many titles have. Counted like the others they cost abbreviated titles 5 points of hits@1."""
_WORD: Final = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class LexicalEncoder:
    """Character n-grams with hashed signs.

    Attributes:
        dim: columns; any number will do, and fewer are the first ones of more.
    """

    dim: int = 128
    name: str = "lexical"

    @cached_property
    def digest(self) -> str:
        """Of the rules above and the abbreviation tables; not of `dim`."""
        return digest(["lexical", _VERSION, list(_SIZES), _COMMON, _COMMON_WEIGHT, TABLE_DIGEST])

    def encode(self, texts: Sequence[str]) -> Float32s:
        """(n, dim) unit rows; see `TextEncoder.encode`."""
        check_words(texts)
        if not texts:
            return np.zeros((0, self.dim), dtype=np.float32)
        words = [sorted(set(_words(text))) for text in texts]
        place = {w: i for i, w in enumerate(sorted({w for found in words for w in found}))}
        vectors = np.stack([self._word(w) for w in place])
        return unit_rows(np.stack([vectors[[place[w] for w in found]].sum(axis=0) for found in words]))

    def _word(self, word: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        marked = f"<{word}>"
        grams = [marked[i : i + n] for n in _SIZES for i in range(len(marked) - n + 1)]
        total = np.zeros(self.dim, dtype=np.int64)
        for gram in grams:
            total += hash_signs(gram, self.dim)
        weight = _COMMON_WEIGHT if word in _COMMON_WORDS else 1.0
        return np.asarray(total * (weight / len(grams) ** 0.25))


_COMMON_WORDS: Final = frozenset(_COMMON.split())


def _words(text: str) -> list[str]:
    """Words without case and accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return _WORD.findall("".join(c for c in plain if not unicodedata.combining(c)))
