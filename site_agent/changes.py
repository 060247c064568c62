"""How many patients' events differ between two releases, told from salted fingerprints that stay at the site.

A patient's fingerprint is a 64-bit sum of hashes of the distinct events that count, each hashed with its CURIE and the
days since the patient's first one. It holds neither who the patient is nor when that first day was: new pseudonyms or
newly shifted dates in an export change nothing, as they change no count.

Source: sums of hashes as hashes of multisets: Clarke et al. 2003 (MSet-Add-Hash); the mixing function is that of
SplitMix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """Of all patients of a release.

    Attributes:
        whole: uint64 (p,), sorted: of the codes and days of each patient's events.
        days: uint64 (p,), sorted: of the days alone, which recoding does not change.
    """

    whole: UInt64s
    days: UInt64s


def changed_patients(before: UInt64s, after: UInt64s) -> int:
    """The fewest patients that must have been added, removed or altered between two sorted sets of fingerprints.

    max(|A|, |B|) - |A n B| of multisets. Two patients with the same events have the same fingerprint; who is who does not
    matter, as it does not to the counts.

    Law: at most the number of patients that changed, and 0 only if the fingerprints are the same.
    """
    one, n_one = np.unique(before, return_counts=True)
    two, n_two = np.unique(after, return_counts=True)
    _, at_one, at_two = np.intersect1d(one, two, assume_unique=True, return_indices=True)
    common = int(np.minimum(n_one[at_one], n_two[at_two]).sum())
    return max(len(before), len(after)) - common


@dataclass(frozen=True, eq=False)
class Keys:
    """What a site's salt makes of codes and days.

    Attributes:
        codes: uint64 (n,), one for each CURIE.
        day: added to the days of an event.
        date: added to the days of which only the dates count.
    """

    codes: UInt64s
    day: np.uint64
    date: np.uint64

    @classmethod
    def make(cls, codes: Sequence[str], salt: bytes) -> Self:
        """Keys of these codes; no CURIE is as short as the names of the other two."""
        digests = (hashlib.blake2b(c.encode(), digest_size=8, key=salt).digest() for c in (*codes, "1", "2"))
        keys = np.frombuffer(b"".join(digests), np.dtype("<u8")).astype(np.uint64)
        return cls(keys[:-2], keys[-2], keys[-1])


def patient_fingerprints(
    patient: NDArray[Any], day: NDArray[Any], code: NDArray[Any], keys: Keys, most: int
) -> tuple[UInt64s, UInt64s]:
    """Fingerprints of the events that count of each patient.

    Args:
        patient: (m,), sorted.
        day: (m,), sorted within a patient.
        code: (m,) rows of the code list, sorted within a day.
        keys: of the codes and days.
        most: only so many of a patient's latest distinct events count.

    Returns:
        (p,) of codes and days, and (p,) of the distinct days of all events, in order of the patients.
    """
    if not len(patient):
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    other_patient = np.diff(patient, prepend=patient[0] - 1) != 0
    other_day = other_patient | (np.diff(day, prepend=day[0]) != 0)
    distinct = other_day | (np.diff(code, prepend=code[0]) != 0)
    dates = _sums(_mix(_since(day, other_patient) + keys.date) * other_day, other_patient)
    first, day, code = other_patient[distinct], day[distinct], code[distinct]
    size = np.diff(np.append(np.flatnonzero(first), len(first)))
    if size.max() > most:
        left = np.repeat(size, size) - (np.arange(len(first)) - np.repeat(np.flatnonzero(first), size))
        first = np.where(left == most, True, first)[left <= most]
        day, code = day[left <= most], code[left <= most]
    return _sums(_mix(keys.codes[code] ^ _mix(_since(day, first) + keys.day)), first), dates


def gathered(parts: Iterable[tuple[UInt64s, UInt64s]]) -> Fingerprints:
    """Fingerprints of all patients from those of disjoint groups."""
    whole, days = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for one, two in parts:
        whole.append(one)
        days.append(two)
    return Fingerprints(np.sort(np.concatenate(whole)), np.sort(np.concatenate(days)))


def _since(day: NDArray[Any], first: NDArray[np.bool_]) -> UInt64s:
    """Days since the first row of the same patient."""
    start = np.flatnonzero(first)
    since = np.asarray(day - np.repeat(day[start], np.diff(np.append(start, len(day)))), np.int64)
    return since.view(np.uint64)


def _sums(hashes: UInt64s, first: NDArray[np.bool_]) -> UInt64s:
    """Sums mod 2^64 over each patient's rows, mixed once more."""
    sums: UInt64s = np.add.reduceat(hashes, np.flatnonzero(first))
    return _mix(sums)


def _mix(x: UInt64s) -> UInt64s:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
