"""How well presence was recognised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Of one source: said to be in, beside truly in.

    Attributes:
        mcc: Matthews' correlation; 0 at chance, and where everything or nothing is said to be in.
        balanced_accuracy: mean of the shares found of what is in and of what is not; 0.5 at chance.
        f1_present: F1 of "it is in".
        f1_absent: F1 of "it is not in".
    """

    mcc: float
    balanced_accuracy: float
    f1_present: float
    f1_absent: float


def presence_scores(present: NDArray[np.bool_], said: NDArray[np.bool_]) -> tuple[Scores, ...]:
    """Scores of each source.

    Args:
        present: (n, S) what went into each of n sums.
        said: (n, S) what the recogniser says.

    Raises:
        ValueError: the shapes differ.
    """
    if present.shape != said.shape or present.ndim != 2:
        raise ValueError("present and said must both be (n, S)")
    return tuple(_one(present[:, s], said[:, s]) for s in range(present.shape[1]))


def correlation(true: Labels, said: Labels, n_classes: int) -> float:
    """Matthews' correlation of several classes, R_K; 0 where only one class occurs or is said.

    Args:
        true: (n,) classes 0..n_classes-1.
        said: (n,) the same.
        n_classes: K.

    Law: 1 for equal labels of two classes or more; with K = 2 it is the correlation of two binary variables.
    Source: Gorodkin 2004.
    """
    table = np.zeros((n_classes, n_classes))
    np.add.at(table, (true, said), 1.0)
    rows, columns, total = table.sum(axis=1), table.sum(axis=0), table.sum()
    scale = (total**2 - rows @ rows) * (total**2 - columns @ columns)
    return float((np.trace(table) * total - rows @ columns) / np.sqrt(scale)) if scale > 0 else 0.0


def _one(present: NDArray[np.bool_], said: NDArray[np.bool_]) -> Scores:
    hit, right_no = float((present & said).sum()), float((~present & ~said).sum())
    false, missed = float((~present & said).sum()), float((present & ~said).sum())
    shares = [part / whole for part, whole in ((hit, hit + missed), (right_no, right_no + false)) if whole]
    return Scores(
        mcc=correlation(present.astype(np.int64), said.astype(np.int64), 2),
        balanced_accuracy=float(np.mean(shares)),
        f1_present=_f1(hit, false, missed),
        f1_absent=_f1(right_no, missed, false),
    )


def _f1(hit: float, false: float, missed: float) -> float:
    return 2.0 * hit / (2.0 * hit + false + missed) if hit else 0.0
