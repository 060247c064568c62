"""Checks of a profile: what was found in numbers, what it means, and what to do about it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from protocol.study import StudySpec
from site_agent.doctor.numbers import Numbers, percent
from site_agent.doctor.profiling import BUSY_DAY, EARLY_YEAR, Profile

Result = Literal["ok", "look", "failed"]

_LEFT_OUT = 0.01  # share of rows; a few bad rows are everywhere
_REPEATED = 0.5  # of rows; values that are taken several times a day are half of many hospitals' rows
_NEW_YEAR = 0.02  # of events; 0.3 % is one day's
_TOP_DAY = 0.05  # of events
_TIMES_USUAL = 5  # a top day has so many times the events of the average day
_BELOW = 0.1  # of events
_UNMAPPED = 0.2  # of events


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    result: Result
    finding: str


def findings(profile: Profile, study: StudySpec, numbers: Numbers) -> list[Check]:
    """All checks that a profile allows."""
    return [
        _data(profile, numbers),
        _left_out(profile, numbers),
        _repeated(profile, numbers),
        _order(profile, numbers),
        _dates(profile, numbers),
        _patients(profile, numbers),
        _codes(profile, study, numbers),
        _systems(profile, study, numbers),
    ]


def _data(p: Profile, n: Numbers) -> Check:
    finding = (
        f"{n.count(p.rows)} rows, {n.count(p.patients)} patients, {n.count(p.codes)} codes{_years(p, n)}"
    )
    if p.patients < p.floor:
        return Check("data", "look", f"{finding}. A code needs {p.floor} patients: bring more patients")
    return Check("data", "ok", finding)


def _years(p: Profile, n: Numbers) -> str:
    told = [y.year for y in p.years if not n.hidden(y.patients)]
    return f", {told[0]} to {told[-1]}" if told else ""


def _left_out(p: Profile, n: Numbers) -> Check:
    if not p.skipped:
        return Check("rows left out", "ok", "none")
    whole = p.rows + p.left_out
    reasons = sorted(p.skipped.items(), key=lambda item: -item[1])
    finding = f"{n.part(p.left_out, whole)}: " + "; ".join(f"{n.part(k, whole)} {r}" for r, k in reasons)
    if p.left_out < _LEFT_OUT * whole:
        return Check("rows left out", "ok", finding)
    return Check("rows left out", "look", f"{finding}. Correct them at the source if they are events")


def _repeated(p: Profile, n: Numbers) -> Check:
    if not p.repeated:
        return Check("repeated rows", "ok", "none")
    finding = f"{n.part(p.repeated, p.rows)} repeat a patient, day and code, and count once"
    if p.repeated < _REPEATED * p.rows:
        return Check("repeated rows", "ok", finding)
    return Check(
        "repeated rows",
        "look",
        f"{finding}. Values taken many times a day do that, and so does a join or a file that is there twice",
    )


def _order(p: Profile, n: Numbers) -> Check:
    if p.runs == p.patients and not p.backwards:
        return Check("order of rows", "ok", "by patient and date")
    said = []
    if p.runs > p.patients:
        said.append("the rows of a patient are not together")
    if p.backwards:
        said.append(f"{n.part(p.backwards, p.rows)} come after a later date of the same patient")
    return Check(
        "order of rows", "ok", f"{'; '.join(said)}. That does no harm: rows are sorted before counting"
    )


def _dates(p: Profile, n: Numbers) -> Check:
    said, look = [], False
    if p.early_events:
        look = True
        said.append(
            f"{n.part(p.early_events, p.events)} events before {EARLY_YEAR}: "
            "such dates often stand for a date of birth or for none"
        )
    if p.new_year > _NEW_YEAR * p.events and not n.hidden(p.new_year):
        look = True
        said.append(
            f"{n.part(p.new_year, p.events)} events on a 1 January: where only the year is known, "
            "leave such rows out rather than give them a day"
        )
    usual = p.events / p.days
    full = p.top_day_events > max(_TOP_DAY * p.events, _TIMES_USUAL * usual)
    # A day that is one patient's is that patient's problem.
    if full and p.top_day_patients >= p.floor and not n.hidden(p.top_day_patients):
        look = True
        said.append(
            f"{n.part(p.top_day_events, p.events)} events of {n.count(p.top_day_patients)} patients on the one day {p.top_day}: "
            "is it a default, or the day on which old records were loaded?"
        )
    if look:
        return Check("dates", "look", "; ".join(said))
    finding = f"none before {EARLY_YEAR}; {percent(p.new_year, p.events)} of events on a 1 January"
    if not n.hidden(p.top_day_patients):
        finding += f"; the fullest day has {percent(p.top_day_events, p.events)} of them"
    return Check("dates", "ok", finding)


def _patients(p: Profile, n: Numbers) -> Check:
    finding = f"half of {n.count(p.patients)} have at most {p.quantile(0.5):,} events"
    if n.tells(0.95, p.patients):
        finding += f", 19 of 20 at most {p.quantile(0.95):,}"
    if not n.tells(0.5, p.patients):
        finding = n.count(p.patients)
    if p.capped_patients:
        finding += f"; with more than {p.cap:,}, of which only the most recent count: {n.part(p.capped_patients, p.patients)}"
        if not n.hidden(p.capped_patients):
            finding += f", and {n.part(p.capped_events, p.events)} events do not count"
    if not p.busy_patients:
        return Check("patients", "ok", finding)
    finding += f"; with more than {BUSY_DAY:,} on one day: {n.count(p.busy_patients)}"
    if n.exact:
        finding += f" (at most {p.largest_day:,})"
    return Check("patients", "look", f"{finding}. Such records are machines or test accounts: leave them out")


def _codes(p: Profile, study: StudySpec, n: Numbers) -> Check:
    over, needed = p.codes - p.codes_below, 2 * study.embedding.codes_per_dim
    finding = (
        f"{n.part(p.codes_below, p.codes)} of the codes have fewer than {p.floor} patients and are withheld, "
        f"with {n.part(p.events_below, p.events)} of the events"
    )
    if over < needed:
        return Check(
            "codes below the floor",
            "look",
            f"{finding}. {n.count(over)} codes are left, {needed} are needed: bring more patients or a longer period",
        )
    if p.events_below > _BELOW * p.events:
        return Check(
            "codes below the floor",
            "look",
            f"{finding}. A roll-up to coarser codes (data.rollup) would keep more of them",
        )
    return Check("codes below the floor", "ok", finding)


def _systems(p: Profile, study: StudySpec, n: Numbers) -> Check:
    events = {
        kind: sum(s.events for s in p.systems if s.kind == kind) for kind in ("standard", "shared", "local")
    }
    said = [
        f"{n.part(events['standard'], p.events)} of the events have codes of the standard {study.standard}",
        f"{n.part(events['shared'], p.events)} of other shared systems",
        f"{n.part(events['local'], p.events)} of the site's own",
    ]
    local = [s for s in p.systems if s.kind == "local"]
    codes, anchored = sum(s.codes for s in local), sum(s.anchored_codes for s in local)
    covered = sum(s.anchored_events for s in local)
    finding = ", ".join(said)
    if local:
        finding += f". Anchors cover {n.part(anchored, codes)} of the own codes, "
        finding += f"and {n.part(covered, events['local'])} of their events"
    unused = p.anchors_without_events
    if unused:
        finding += f"; {n.part(unused, p.anchors)} anchors are of codes without events"
    if unused > p.anchors // 2:
        return Check(
            "code systems",
            "look",
            f"{finding}. Are anchors spelled as the codes in the data, prefix included?",
        )
    if events["local"] - covered > _UNMAPPED * p.events:
        first = ", ".join(u.code for u in p.unanchored)
        if events["local"] == p.events:
            finding += ". Where the data name code systems, translate them in data.systems"
        finding += ". Anchors of the most frequent help most" + (f": {first}" if first else "")
        return Check("code systems", "look", finding)
    return Check("code systems", "ok", finding)
