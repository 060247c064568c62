"""What the pictures of a profile show, in the terminal and on the page alike."""

from __future__ import annotations

from typing import NamedTuple

from site_agent.doctor.profiling import Profile

_MOST_BARS = 40


class Bar(NamedTuple):
    """One bar of a histogram.

    Attributes:
        label: what it counts.
        number: how many.
        patients: at least so many patients are behind it.
    """

    label: str
    number: int
    patients: int


def patients_by_events(profile: Profile) -> list[Bar]:
    """Patients by their number of events, in bins that double."""
    bins: dict[int, int] = {}
    for size, n in profile.sizes.items():
        bins[size.bit_length() - 1] = bins.get(size.bit_length() - 1, 0) + n
    if not bins:
        return []
    return [
        Bar(_range(1 << k, (2 << k) - 1), bins.get(k, 0), bins.get(k, 0))
        for k in range(min(bins), max(bins) + 1)
    ]


def events_by_year(profile: Profile) -> list[Bar]:
    """Events by year, or by 2, 5, 10 or more years where there are many."""
    if not profile.years:
        return []
    first, last = profile.years[0].year, profile.years[-1].year
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if (last // s) - (first // s) < _MOST_BARS)
    bars = []
    for start in range(first - first % step, last + 1, step):
        within = [y for y in profile.years if start <= y.year < start + step]
        # Patients of several years may be the same ones.
        patients = max((y.patients for y in within), default=0)
        bars.append(Bar(_range(start, start + step - 1, ""), sum(y.events for y in within), patients))
    return bars


def _range(low: int, high: int, form: str = ",") -> str:
    return f"{low:{form}}" if low == high else f"{low:{form}}–{high:{form}}"
