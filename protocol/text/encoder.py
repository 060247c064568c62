"""What a text encoder is: a fixed function from a name to a point of a space that all parties share."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import shake_128
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from protocol.errors import StudyError
from protocol.text.abbreviations import expand
from protocol.vocabulary import Category

Float32s: TypeAlias = npt.NDArray[np.float32]
"""(n, dim)."""


class TextEncoder(Protocol):
    """A fixed function from texts to unit vectors.

    Attributes:
        name: shown in messages.
        digest: SHA-256, in hex, of everything that the vectors depend on: weights, tokenizer, pooling, rules.
        dim: columns of what `encode` returns.
    """

    @property
    def name(self) -> str:
        """Shown in messages."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of everything that the vectors depend on."""
        ...

    @property
    def dim(self) -> int:
        """Columns of what `encode` returns."""
        ...

    def encode(self, texts: Sequence[str]) -> Float32s:
        """(n, dim) unit rows, one a text.

        Raises:
            ValueError: a text has no letter and no digit.

        Law: a row depends on its own text only, not on the texts beside it: `encode(a + b) == encode(a) ++ encode(b)`.
        """
        ...


@dataclass(frozen=True)
class Projected:
    """An encoder turned into fewer dimensions by a fixed random projection.

    The basis comes from a hash and no data, so that it is the same at every party. Cosines keep their values up to about
    1/sqrt(dim) (Johnson and Lindenstrauss 1984; signs in place of normals: Achlioptas 2003).

    Raises:
        StudyError: more dimensions than the encoder has.
    """

    encoder: TextEncoder
    dim: int

    def __post_init__(self) -> None:
        if self.dim > self.encoder.dim:
            raise StudyError(
                f"text.dim is {self.dim}, and the text encoder {self.name!r} has {self.encoder.dim} dimensions",
                do=f"Set text.dim to at most {self.encoder.dim} in the study, at every party",
            )

    @property
    def name(self) -> str:
        """The encoder's name."""
        return self.encoder.name

    @property
    def digest(self) -> str:
        """The encoder's digest; the number of dimensions stands beside it in the study."""
        return self.encoder.digest

    def encode(self, texts: Sequence[str]) -> Float32s:
        """(n, dim) unit rows."""
        full = self.encoder.encode(texts)
        return full if self.dim == self.encoder.dim else unit_rows(full.astype(np.float64) @ self._basis)

    @cached_property
    def _basis(self) -> npt.NDArray[np.float64]:
        """(encoder.dim, dim) orthonormal columns."""
        signs = [hash_signs(f"text projection {row}", self.dim) for row in range(self.encoder.dim)]
        basis, triangle = np.linalg.qr(np.array(signs, dtype=np.float64))
        return np.asarray(basis * np.sign(np.diag(triangle)))


def hash_signs(text: str, n: int) -> npt.NDArray[np.int8]:
    """(n,) signs, +1 or -1, that look random and are the same on every machine: the first n bits of SHAKE128."""
    raw = np.frombuffer(shake_128(text.encode()).digest((n + 7) // 8), dtype=np.uint8)
    return (2 * np.unpackbits(raw)[:n].astype(np.int8) - 1).astype(np.int8)


def unit_rows(matrix: npt.NDArray[np.floating]) -> Float32s:
    """(n, p) float32 rows of length one.

    Raises:
        ValueError: a row is zero or not finite.
    """
    length = np.linalg.norm(matrix.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(length).all() and (length > 0).all()):
        raise ValueError("a text has no direction")
    return np.asarray(matrix / length, dtype=np.float32)


def has_word(text: str) -> bool:
    """Whether a text has a letter or a digit, without which there is nothing to encode."""
    # Ligatures such as U+FC5E count as letters and come apart into marks alone.
    return any(c.isalnum() for c in unicodedata.normalize("NFKD", text))


def check_words(texts: Sequence[str]) -> None:
    """Return only if there is something to encode in each text.

    Raises:
        ValueError: there is not.
    """
    for text in texts:
        if not has_word(text):
            raise ValueError(f"the text {text!r} has no letter and no digit")


def encode_names(encoder: TextEncoder, texts: Sequence[str], categories: Sequence[Category]) -> Float32s:
    """Vectors of names of codes, abbreviations written out first; equal names are encoded once.

    Args:
        encoder: of the study.
        texts: (n,) names, each with a letter or a digit.
        categories: (n,) what kind of code each names.

    Returns:
        (n, dim) unit rows.
    """
    plain = [expand(text, category) for text, category in zip(texts, categories, strict=True)]
    distinct = {text: place for place, text in enumerate(dict.fromkeys(plain))}
    if not distinct:
        return np.zeros((0, encoder.dim), dtype=np.float32)
    return encoder.encode(list(distinct))[[distinct[text] for text in plain]]
