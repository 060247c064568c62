"""Pairwise validation: do two patients with one label lie nearer to each other than one with it and one without?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from site_agent.cohort.fusion import hard_negatives

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of patients, each list with the same m patients who have the label in first place.

    Attributes:
        anchor: (m,) with the label.
        same: (m,) another one with the label.
        other: (m,) one without, at random.
        hard: (m,) one without, among the nearest by codes alone.
    """

    anchor: Rows
    same: Rows
    other: Rows
    hard: Rows


def draw_pairs(codes: Vectors, label: Flags, rows: Rows, *, most: int = 5000, seed: int = 0) -> Pairs:
    """Pairs among the rows.

    Args:
        codes: (n, p) unit code vectors as they are, by which hard negatives are the nearest.
        label: (n,).
        rows: patients that nothing was learnt from; at least two with the label and one without.
        most: pairs of each kind.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    with_, without = rows[label[rows]], rows[~label[rows]]
    anchor = rng.choice(with_, most)
    # Another one than the anchor: a step of 1 to k - 1 around the ring.
    place = np.searchsorted(with_, anchor) if (np.diff(with_) > 0).all() else _places(with_, anchor)
    same = with_[(place + rng.integers(1, len(with_), most)) % len(with_)]
    near = hard_negatives(codes, label, rows)
    hard = np.array([rng.choice(near[int(a)]) for a in anchor])
    return Pairs(anchor, same, rng.choice(without, most), hard)


def pair_area(vectors: Vectors, pairs: Pairs) -> tuple[float, float]:
    """P(cosine of a pair of one label > cosine of a pair of two), for random and for hard negatives; ties count half.

    Args:
        vectors: (n, d) unit rows, or zero rows.
        pairs: of `draw_pairs`.
    """
    one = _cosine(vectors, pairs.anchor, pairs.same)
    return tuple(_area(one, _cosine(vectors, pairs.anchor, o)) for o in (pairs.other, pairs.hard))  # type: ignore[return-value]


def _places(rows: Rows, wanted: Rows) -> Rows:
    order = np.argsort(rows)
    return np.asarray(order[np.searchsorted(rows, wanted, sorter=order)])


def _cosine(vectors: Vectors, one: Rows, other: Rows) -> Floats:
    return np.asarray(np.einsum("ij,ij->i", vectors[one], vectors[other]), dtype=np.float64)


def _area(high: Floats, low: Floats) -> float:
    """The Mann-Whitney statistic over the number of comparisons."""
    ranks = rankdata(np.concatenate([high, low]))[: len(high)].sum()
    return float((ranks - len(high) * (len(high) + 1) / 2) / (len(high) * len(low)))
