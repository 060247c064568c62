"""How well vectors of codes agree with the ontology, with co-occurrence, and with known pairs.

Source: Resnik 1995 (similarity); KEEP, section on intrinsic evaluation (10 nearest and 150 random codes, 250 repeats,
median); Beam et al. 2020 (power at a level).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from protocol.keep.ontology import IsA

Array = NDArray[np.float64]
Truth = Callable[[int], Array]
"""Row -> (n,) how near every code truly is to that one."""

NEAREST, OTHERS, REPEATS = 10, 150, 250


def information_content(graph: IsA, occurrences: ArrayLike) -> Array:
    """-log of the share of occurrences that fall to a code or its descendants, in nats; 0 for the root.

    Args:
        graph: n codes.
        occurrences: (n,) of each code itself, its descendants' not included; one is added to each, so that no
            code's content is infinite.

    Returns:
        (n,).
    """
    own = np.asarray(occurrences, dtype=np.float64) + 1.0
    below = np.asarray(graph.ancestors.astype(np.float64).T @ own)
    return np.asarray(np.log(own.sum()) - np.log(below))


def resnik(graph: IsA, content: Array, rows: NDArray[np.int64]) -> Truth:
    """Resnik similarity: the information content of the most informative common ancestor.

    Args:
        graph: the codes.
        content: (n,) `information_content`.
        rows: the graph's rows of the codes that are compared.
    """
    above = sp.csc_array(sp.csr_array(graph.ancestors[rows]).astype(np.float64))

    def similarity(one: int) -> Array:
        common = np.flatnonzero(above[[one]].toarray()[0])
        return np.asarray((above[:, common].toarray() * content[common]).max(axis=1))

    return similarity


def association(counts: sp.csr_array) -> Truth:
    """How often two codes occur together beside what their margins let expect: C_ij N / (r_i r_j).

    Args:
        counts: full symmetric (n, n) counts; of patients that the vectors were not made from.
    """
    full = sp.csr_array(counts).astype(np.float64)
    margin = np.maximum(np.asarray(full.sum(axis=1)).ravel(), 1.0)

    def lift(one: int) -> Array:
        return np.asarray(full[[one]].toarray()[0] * margin.sum() / (margin * margin[one]))

    return lift


def neighbour_correlation(
    vectors: NDArray[np.floating],
    truth: Truth,
    *,
    nearest: int = NEAREST,
    others: int = OTHERS,
    repeats: int = REPEATS,
    seed: int = 0,
) -> float:
    """Median rank correlation of cosine with the truth, around codes drawn at random.

    Each repeat draws a code, takes its truly nearest codes (of equally near ones, any) and random others, and
    correlates (Spearman) the cosines with the truth over these. All that is drawn depends on the seed only, and not on
    the vectors: with one seed, different vectors are judged by the same pairs.

    Args:
        vectors: (n, d).
        truth: of the same n codes.
        nearest: codes that are taken for their nearness.
        others: codes that are drawn besides.
        repeats: draws of a code.
        seed: of all draws.

    Raises:
        ValueError: fewer than nearest + others + 1 codes.
    """
    n = len(vectors)
    if n < nearest + others + 1:
        raise ValueError(f"{n} codes are too few for {nearest} nearest and {others} others of each")
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(length > 0, length, 1.0)
    rng = np.random.default_rng(seed)
    found = np.full(repeats, np.nan)
    for repeat in range(repeats):
        one = int(rng.integers(n))
        near = truth(one)
        shuffled = rng.permutation(np.delete(np.arange(n), one))
        order = shuffled[np.argsort(-near[shuffled], kind="stable")]
        chosen = np.concatenate([order[:nearest], rng.choice(order[nearest:], others, replace=False)])
        found[repeat] = _rank_correlation(unit[chosen] @ unit[one], near[chosen])
    return float(np.nanmedian(found)) if np.isfinite(found).any() else float("nan")


def power(known: ArrayLike, random: ArrayLike, *, level: float = 0.05) -> float:
    """Share of known pairs that score above all but `level` of random pairs of the same kinds of codes.

    Args:
        known: (m,) scores of pairs that are known to belong together.
        random: (k,) scores of random pairs.
        level: the share of random pairs that may pass.

    Raises:
        ValueError: no known or no random pairs.

    Law: an increasing transformation of all scores changes nothing.
    """
    positive, null = np.asarray(known, dtype=np.float64), np.asarray(random, dtype=np.float64)
    if not positive.size or not null.size:
        raise ValueError(f"{positive.size} known and {null.size} random pairs have no power")
    return float(np.mean(positive > np.quantile(null, 1.0 - level, method="higher")))


def _rank_correlation(one: Array, other: Array) -> float:
    """Spearman's; nan where either side is constant."""
    x, y = (rankdata(side) for side in (one, other))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size > 0.0 else float("nan")
