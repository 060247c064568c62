"""Which codes each patient has within a window of days, and how often: from coded events to one row a patient."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from site_agent.sources.columns import EPOCH

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

YEAR = 365.25
LEAST_YEARS = 1.0
"""Follow-up counts as at least a year: one stay of three days is not a hundred stays a year."""


@dataclass(frozen=True)
class Window:
    """The days that count, both included; None means without a bound."""

    first: date | None = None
    last: date | None = None

    def days(self) -> tuple[int, int]:
        """Days since 1970-01-01."""
        low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
        return (
            low if self.first is None else (self.first - EPOCH).days,
            high if self.last is None else (self.last - EPOCH).days,
        )


@dataclass(frozen=True, eq=False)
class PatientCodes:
    """Codes of m patients, each code once.

    Attributes:
        patient: (m,) numbers, ascending.
        first: (m,) first day with an event in the window.
        last: (m,) last day with an event in the window.
        seen: (m,) last day with an event at all.
        start: (m + 1,) where the codes of each patient begin in `code` and `days`.
        code: (k,) rows of the code list, ascending for each patient.
        days: (k,) on how many days of the window the patient has the code.
        outside: patients without an event in the window.
    """

    patient: Int64s
    first: Int32s
    last: Int32s
    seen: Int32s
    start: Int64s
    code: Int32s
    days: Int32s
    outside: int = 0


def gather(patient: Int64s, day: Int32s, code: Int32s, window: Window) -> PatientCodes:
    """The codes of each patient in the window. The same code twice on one day is one.

    Args:
        patient: (n,) numbers; rows are sorted by patient, day and code.
        day: (n,) days since 1970-01-01.
        code: (n,) rows of a code list.
        window: which days count.

    Law: any order of patients gives the same rows; days outside the window change `seen` and `outside` alone.
    """
    low, high = window.days()
    everyone, start = np.unique(patient, return_index=True)
    ends = np.append(start[1:], len(patient))
    within = (day >= low) & (day <= high)
    new = np.ones(len(patient), dtype=bool)
    new[1:] = (patient[1:] != patient[:-1]) | (day[1:] != day[:-1]) | (code[1:] != code[:-1])
    kept = within & new
    number = np.repeat(np.arange(len(everyone)), ends - start)[kept]
    held, first_row, n_rows = np.unique(number, return_index=True, return_counts=True)
    days_kept = day[kept]
    size = int(code.max(initial=0)) + 1
    cells, times = np.unique(number.astype(np.int64) * size + code[kept], return_counts=True)
    owner = np.searchsorted(held, cells // size)
    return PatientCodes(
        patient=everyone[held],
        first=days_kept[first_row],
        last=days_kept[first_row + n_rows - 1],
        seen=day[ends - 1][held] if len(held) else day[:0],
        start=np.searchsorted(owner, np.arange(len(held) + 1)).astype(np.int64),
        code=(cells % size).astype(np.int32),
        days=times.astype(np.int32),
        outside=len(everyone) - len(held),
    )


def follow_up(first: npt.NDArray[Any], last: npt.NDArray[Any]) -> Floats:
    """Years from the first to the last day, both included, and at least `LEAST_YEARS`."""
    days = last.astype(np.float64) - first + 1.0
    return np.asarray(np.maximum(days / YEAR, LEAST_YEARS), dtype=np.float64)
