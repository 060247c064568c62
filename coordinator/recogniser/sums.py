"""Sums of vectors of several sources, of which a recogniser is asked what went in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.recogniser.scores import Array


@dataclass(frozen=True, eq=False)
class Sums:
    """Summed vectors and what they are sums of.

    Attributes:
        vectors: (n, d).
        present: (n, S) bool, at least one term is the source's.
    """

    vectors: Array
    present: NDArray[np.bool_]


def unit_tables(tables: Sequence[Array]) -> tuple[Array, ...]:
    """Each source's vectors at unit length, cut to the narrowest: neither length nor width should give a source away.

    Raises:
        ValueError: fewer than two sources, or one without a vector.
    """
    if len(tables) < 2 or any(table.ndim != 2 or not table.size for table in tables):
        raise ValueError("a recogniser needs two sources or more, each with vectors")
    width = min(table.shape[1] for table in tables)
    cut = [np.asarray(table[:, :width], dtype=np.float64) for table in tables]
    return tuple(table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12) for table in cut)


def draw_sums(
    tables: Sequence[Array], n: int, terms: int, rng: np.random.Generator, *, fewest: int = 0
) -> Sums:
    """Sums of `terms` vectors: each of a source drawn at random, and of that source any vector.

    With one term this is isolation, with more a composite.

    Args:
        tables: S sources, (m_s, d) each.
        n: sums.
        terms: of each sum; a source may give several of them.
        rng: draws.
        fewest: where given, a sum has that many terms or more, up to `terms`, each number as often.

    Raises:
        ValueError: no term, or more than `terms`.
    """
    if terms < 1 or not 0 <= fewest <= terms:
        raise ValueError("a sum has one term or more, and no more than there may be")
    source = rng.integers(len(tables), size=(n, terms))
    sizes = np.array([len(table) for table in tables])
    place = np.r_[0, np.cumsum(sizes)[:-1]][source] + (rng.random((n, terms)) * sizes[source]).astype(
        np.int64
    )
    vectors = np.concatenate(tables)[place]
    in_sum = np.ones((n, terms), dtype=bool)
    if fewest:
        in_sum = np.arange(terms) < rng.integers(fewest, terms + 1, size=(n, 1))
        vectors *= in_sum[:, :, None]
    present = np.zeros((n, len(tables)), dtype=bool)
    present[np.nonzero(in_sum)[0], source[in_sum]] = True
    return Sums(vectors.sum(axis=1), present)


def replace_by_noise(sums: Sums, share: float, rng: np.random.Generator) -> Sums:
    """The same sums with a share of their entries replaced by normal noise of the column's mean and deviation.

    Args:
        sums: without noise.
        share: in 0..1, of the entries of each sum.
        rng: draws.

    Raises:
        ValueError: a share outside 0..1.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError("the share of noise must be within 0 and 1")
    n, width = sums.vectors.shape
    noise = rng.normal(sums.vectors.mean(axis=0), sums.vectors.std(axis=0), size=(n, width))
    hit = rng.random((n, width)).argsort(axis=1) < round(share * width)
    return Sums(np.where(hit, noise, sums.vectors), sums.present)
