"""The API's rounds: how each one stands, and every site in it; for the coordinator only.

What a site says of itself, why a release was refused and whom to call are between that site and the coordinator.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, Field

from coordinator import rounds
from coordinator.config import Home
from coordinator.rounds import SiteState
from coordinator.store import Store
from coordinator.tables import Round, RoundEvent
from coordinator.web.access import require
from coordinator.web.problems import ServiceError
from protocol.errors import RoundError
from protocol.vocabulary import IDENTIFIER

router = APIRouter(prefix="/api/v1", tags=["rounds"], dependencies=[Depends(require("coordinator"))])

RoundPath = Annotated[str, Path(pattern=f"^{IDENTIFIER.pattern}$", description="Name of a round.")]


class RoundLine(BaseModel):
    """A round in a list."""

    round: str = Field(description="Its name.", examples=["2026-q4"])
    state: str = Field(
        description="planned, open, collecting, closed, fitting, fitted, publishing, published, delivered, lapsed or aborted.",
        examples=["collecting"],
    )
    opened: datetime = Field(description="UTC; of a planned round, when it opens.")
    deadline: datetime = Field(description="UTC; nothing that comes later is taken in.")
    by_file: bool = Field(description="Calls and releases are carried as files; no site has a line.")

    @classmethod
    def of(cls, found: Round) -> RoundLine:
        """From the store's."""
        return cls(
            round=found.name,
            state=found.state,
            opened=found.opened.replace(tzinfo=UTC),
            deadline=found.expires.replace(tzinfo=UTC),
            by_file=found.by_file,
        )


class RoundList(BaseModel):
    """All rounds."""

    rounds: list[RoundLine] = Field(description="The one opened last first.")


class SiteLine(BaseModel):
    """A site in a round. What is not known is null, never zero."""

    site: str = Field(examples=["north"])
    state: str = Field(
        description="invited, offline, preparing, awaiting-approval, sealed, receiving, received, accepted, refused, late, "
        "excluded, withdrawn, not enrolled, sending or delivered.",
        examples=["awaiting-approval"],
    )
    detail: str = Field(description="In words, the site's own among them: text of another party.")
    bytes_done: int | None = Field(description="Bytes of its release, or of its result, that have crossed.")
    bytes_total: int | None = Field(description="Of how many.")
    updated: datetime | None = Field(description="UTC; since when or as of when it is so.")
    contact: str = Field(description="Whom to call, as the site's enrolment says.")

    @classmethod
    def of(cls, found: SiteState) -> SiteLine:
        """From the round's."""
        known = found.bytes_total > 0
        return cls(
            site=found.site,
            state=found.state,
            detail=found.detail,
            bytes_done=found.bytes_done if known else None,
            bytes_total=found.bytes_total if known else None,
            updated=moment(found.updated),
            contact=found.contact,
        )


class EventLine(BaseModel):
    """One move of a round, or one thing decided about it."""

    at: datetime = Field(description="UTC.")
    state: str = Field(description="Where the round stood from then on.")
    detail: str

    @classmethod
    def of(cls, found: RoundEvent) -> EventLine:
        """From the store's."""
        return cls(at=found.at.replace(tzinfo=UTC), state=found.state, detail=found.detail)


class RoundNow(RoundLine):
    """A round as it stands at this moment."""

    quorum: int = Field(description="Accepted releases without which nothing is fitted.")
    step: str = Field(description="What is done in this state, if it takes long.")
    share: float | None = Field(description="How much of that is done, 0 to 1; null if nothing is.")
    version: int | None = Field(description="The newest version that was published from it.")
    sites: list[SiteLine] = Field(description="Every site of the study.")
    events: list[EventLine] = Field(description="Its history, the first event first.")


@router.get("/rounds")
def all_rounds(request: Request) -> RoundList:
    """All rounds, for the coordinator."""
    store: Store = request.app.state.library.store
    return RoundList(rounds=[RoundLine.of(r) for r in reversed(store.rounds())])


@router.get("/rounds/{round}")
def one_round(request: Request, round: RoundPath) -> RoundNow:  # noqa: A002 - the parameter's name
    """A round, every site in it and its history, for the coordinator."""
    return round_now(request.app.state.home, request.app.state.library.store, round)


def round_now(home: Home, store: Store, name: str) -> RoundNow:
    """What is stored of a round.

    Raises:
        ServiceError: 404, there is none of this name; 503, this process is kept out of its desk.
    """
    try:
        found = store.round(name)
    except RoundError as error:
        raise ServiceError(404, error.what, do="See /rounds") from None
    try:
        sites = [SiteLine.of(s) for s in rounds.site_states(home, store, name)]
    except PermissionError:
        raise ServiceError(
            503,
            f"How the sites of round {name} stand cannot be read",
            why="the web service's account may not read the folder rounds of the coordinator's home",
            do="Let it read that folder, or use coordinator round watch",
        ) from None
    published = [v.version for v in store.versions() if v.round == name]
    return RoundNow(
        **RoundLine.of(found).model_dump(),
        quorum=home.study.quorum,
        step=found.step,
        share=found.share if found.step else None,
        version=published[-1] if published else None,
        sites=sites,
        events=[EventLine.of(e) for e in store.round_events(name)],
    )


def moment(text: str) -> datetime | None:
    """A time that a round's desk holds as text; None for none."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC) if text else None
    except ValueError:
        return None
