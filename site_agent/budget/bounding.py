"""How much one patient can change a sum."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

Statistic = Literal["margins", "cells"]


def keep_codes(
    patient: npt.NDArray[np.int64], code: npt.NDArray[np.int32], most: int, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Which events to count so that no patient has more than `most` codes; which of them is drawn anew each time.

    Args:
        patient: (m,) of each event, sorted.
        code: (m,) of each event, in any order within a patient.
        most: codes a patient may contribute.
        rng: draws each patient's codes, all equally likely.

    Returns:
        bool (m,); all events of a kept code stay.

    Law: each patient keeps exactly min(most, its distinct codes) codes.
    """
    order = np.lexsort((code, patient))
    p, c = patient[order], code[order]
    first = np.ones(len(p), dtype=bool)
    first[1:] = (p[1:] != p[:-1]) | (c[1:] != c[:-1])
    pair = np.cumsum(first) - 1  # of each sorted event, the number of its (patient, code)
    owner = p[first]
    shuffled = np.lexsort((rng.random(len(owner)), owner))
    starts = (
        np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]]) if len(owner) else np.empty(0, dtype=np.int64)
    )
    rank = np.arange(len(owner)) - np.repeat(starts, np.diff(np.r_[starts, len(owner)]))
    kept = np.zeros(len(owner), dtype=bool)
    kept[shuffled] = rank < most
    found = np.empty(len(p), dtype=bool)
    found[order] = kept[pair]
    return found


def sensitivity(statistic: Statistic, codes_per_patient: int) -> float:
    """L2 distance by which one patient more or less moves counts of distinct patients.

    sqrt(k + 1) for the counts of k codes and of all patients; sqrt(k (k + 1) / 2) for those of their pairs, a code with
    itself included.
    """
    k = codes_per_patient
    return math.sqrt(k + 1 if statistic == "margins" else k * (k + 1) / 2)
