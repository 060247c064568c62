"""Rounds as they go on: a list, and one round with every site; for the coordinator only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from coordinator.roundstates import COLLECTING
from coordinator.web.access import CoordinatorDependency
from coordinator.web.pages.rendering import render
from coordinator.web.rounds import RoundNow, RoundPath, SiteLine, all_rounds, one_round

router = APIRouter(include_in_schema=False)

ROUND_TONE: Final = {"delivered": "good", "published": "good", "lapsed": "bad", "aborted": "muted"}
"""State of a round -> how it looks; others are under way."""

SITE_WORDS: Final = {
    "invited": ("not heard of yet", "wait"),
    "offline": ("offline", "warn"),
    "preparing": ("preparing its release", "busy"),
    "awaiting-approval": ("waiting for approval at the site", "busy"),
    "sealed": ("sealed, about to be fetched", "busy"),
    "receiving": ("receiving", "busy"),
    "received": ("received, to be checked", "busy"),
    "accepted": ("accepted", "good"),
    "refused": ("refused", "bad"),
    "late": ("late", "warn"),
    "excluded": ("excluded", "wait"),
    "withdrawn": ("has left the study", "wait"),
    "not enrolled": ("not enrolled", "warn"),
    "sending": ("sending the result", "busy"),
    "delivered": ("has the result", "good"),
}
"""State of a site in a round -> how it is called, and how it looks."""

_OVER: Final = frozenset({"delivered", "aborted"})
_ACCEPTED: Final = frozenset({"accepted", "sending", "delivered"})
_SIGN: Final = {"good": "✓", "bad": "✕", "warn": "!", "busy": "…", "wait": "–"}


@router.get("/rounds")
def listed(request: Request, person: CoordinatorDependency) -> Response:
    """All rounds, the one opened last first."""
    del person
    return render(request, "rounds.html.j2", rounds=all_rounds(request).rounds, tone=ROUND_TONE)


@router.get("/rounds/{round}")
def one(request: Request, person: CoordinatorDependency, round: RoundPath) -> Response:  # noqa: A002
    """One round; the page keeps itself up to date."""
    del person
    return render(request, "round.html.j2", **_shown(one_round(request, round)))


@router.get("/rounds/{round}/now")
def now(request: Request, person: CoordinatorDependency, round: RoundPath) -> Response:  # noqa: A002
    """The part of the page that changes, for its script."""
    del person
    return render(request, "round_now.html.j2", **_shown(one_round(request, round)))


def _shown(found: RoundNow) -> dict[str, Any]:
    moment = datetime.now(UTC).replace(microsecond=0)
    return {
        "now": found,
        "moment": moment,
        "over": found.state in _OVER,
        "left": time_left(found.deadline - moment) if found.state in COLLECTING else "",
        "accepted": sum(s.state in _ACCEPTED for s in found.sites),
        "asked": sum(s.state not in {"excluded", "withdrawn", "not enrolled"} for s in found.sites),
        "tone": ROUND_TONE,
        "said": {s.site: said(s) for s in found.sites},
        "sign": _SIGN,
    }


def said(site: SiteLine) -> tuple[str, str]:
    """How a site's state is called, and how it looks; a state that is new here is called what it is."""
    return SITE_WORDS.get(site.state, (site.state, "wait"))


def time_left(left: timedelta) -> str:
    """Until the deadline, in the largest unit that says something."""
    seconds = int(left.total_seconds())
    if seconds <= 0:
        return "has passed"
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * size or (seconds >= size and unit == "minute"):
            n = seconds // size
            return f"in {n} {unit}{'s' if n > 1 else ''}"
    return "in less than a minute"
