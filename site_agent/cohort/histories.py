"""What each patient had before a day, in order, and whether an outcome came after it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.errors import UsageError

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]

LONGEST = 100
"""The last codes before the day; one code on one day is one."""
LEAST_OUTCOMES = 50
"""Patients with the outcome, and as many without, below which nothing is predicted."""


@dataclass(frozen=True, eq=False)
class Histories:
    """Of n patients.

    Attributes:
        start: (n + 1,) where each patient's codes begin in `code`.
        code: (k,) rows of the code list, by day.
        outcome: (n,) whether the outcome came on the day or later.
        had: patients who are left out, since they had the outcome before the day.
    """

    start: Int64s
    code: Int32s
    outcome: Flags
    had: int = 0


def histories(parts: Iterable[tuple[Int64s, Int32s, Int32s]], day: int, outcome: Flags) -> Histories:
    """Patients with an event before the day and one on it or later, who did not have the outcome before.

    Args:
        parts: (patient, day, code), sorted by patient, day and code; a patient is in one part alone.
        day: since 1970-01-01.
        outcome: (codes,) which codes are the outcome.

    Raises:
        UsageError: too few patients have the outcome, or do not have it.

    Law: what a patient has on the day or later changes `outcome` alone.
    """
    codes, sizes, positive, had = [], [], [], 0
    for patient, when, code in parts:
        if not len(patient):
            continue
        new = np.ones(len(patient), dtype=bool)
        new[1:] = (patient[1:] != patient[:-1]) | (when[1:] != when[:-1]) | (code[1:] != code[:-1])
        patient, when, code = patient[new], when[new], code[new]  # noqa: PLW2901
        _, first = np.unique(patient, return_index=True)
        for low, high in zip(first, np.append(first[1:], len(patient)), strict=True):
            middle = low + int(np.searchsorted(when[low:high], day))
            if not low < middle < high:
                continue
            if outcome[code[low:middle]].any():
                had += 1
                continue
            codes.append(code[max(low, middle - LONGEST) : middle])
            sizes.append(len(codes[-1]))
            positive.append(bool(outcome[code[middle:high]].any()))
    found = np.array(positive, dtype=bool)
    if min(found.sum(), (~found).sum()) < LEAST_OUTCOMES:
        raise UsageError(
            f"Too few patients to predict: {int(found.sum()):,} have the outcome, {int((~found).sum()):,} do not",
            why=f"{LEAST_OUTCOMES} of each are needed, with events before the day and after it",
            do="Choose a commoner outcome, or another day",
        )
    return Histories(np.r_[0, np.cumsum(sizes)].astype(np.int64), np.concatenate(codes), found, had)
