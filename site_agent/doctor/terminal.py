"""The examination for people at a terminal, and as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from protocol.console import out, table
from site_agent.doctor.examination import Examination
from site_agent.doctor.numbers import percent
from site_agent.doctor.picture import Bar, events_by_year, patients_by_events
from site_agent.doctor.profiling import Profile

_WIDTH = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


def show(found: Examination) -> None:
    """Print the checks, both histograms and the code systems."""
    table("Doctor", ["check", "result", "what was found"], [list(c) for c in found.checks()])
    p = found.profile
    if p is None:
        return
    _histogram("Patients by their number of events", patients_by_events(p), p.patients)
    _histogram("Events by year", events_by_year(p), p.events)
    rows = [
        [s.prefix, f"{s.kind}, {s.category}", s.codes, s.events, percent(s.events, p.events)]
        + [percent(s.events_below, s.events)]
        + (
            [percent(s.anchored_codes, s.codes), percent(s.anchored_events, s.events)]
            if s.kind == "local"
            else ["", ""]
        )
        for s in p.systems
    ]
    out.print()
    columns = ["system", "kind", "codes", "events", "share", "events below the floor", "codes anchored"]
    table("Code systems", [*columns, "events anchored"], rows)


def as_json(found: Examination) -> dict[str, Any]:
    """All numbers, exactly: for the site alone."""
    p = found.profile
    return {
        "checks": [c._asdict() for c in found.checks()],
        "profile": None if p is None else _profile_json(p),
        "estimate": None if found.estimate is None else asdict(found.estimate),
    }


def _profile_json(p: Profile) -> dict[str, Any]:
    numbers = asdict(p)
    del numbers["sizes"], numbers["partition_pairs"]
    return numbers | {
        "left_out": p.left_out,
        "early_events": p.early_events,
        "codes_below": p.codes_below,
        "events_below": p.events_below,
        "capped_patients": p.capped_patients,
        "capped_events": p.capped_events,
        "events_a_patient": {f"{q:g}": p.quantile(q) for q in _QUANTILES},
        "patients_by_events": {b.label: b.number for b in patients_by_events(p)},
        "years": [y._asdict() for y in p.years],
        "unanchored": [u._asdict() for u in p.unanchored],
    }


def _histogram(title: str, bars: Sequence[Bar], whole: int) -> None:
    out.print(f"\n[bold]{title}[/]")
    most = max((b.number for b in bars), default=0)
    label = max((len(b.label) for b in bars), default=0)
    plain = not out.encoding.lower().startswith("utf")
    number = max((len(f"{b.number:,}") for b in bars), default=0)
    empty = 0
    for bar in bars:
        empty = 0 if bar.number else empty + 1
        if empty > 2:
            continue  # years between a default date and the first record
        name = bar.label.replace("–", "-") if plain else bar.label
        drawn = _drawn(bar.number, most, plain=plain)
        line = (
            f"  {name:>{label}}  {drawn:<{_WIDTH}}  {bar.number:>{number},}  {percent(bar.number, whole):>7}"
        )
        out.print("  ..." if empty == 2 else line, markup=False)


def _drawn(count: int, most: int, *, plain: bool) -> str:
    """A bar in eighths of a character; what is not nothing is seen."""
    eighths = max(1, round(8 * _WIDTH * count / most)) if count else 0
    if plain:
        return "#" * -(-eighths // 8)
    return _EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
