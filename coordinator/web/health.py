"""What a supervisor or a load balancer asks."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import anyio
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from coordinator.migrations import HEAD, stated_revision
from coordinator.store import Store
from coordinator.web.fresh import Fresh
from coordinator.web.problems import ServiceError
from coordinator.web.shelf import Shelf

router = APIRouter(tags=["health"])

READY_HELD = 5.0
"""Anybody may ask: the database and the files are looked at no more often than after so many seconds."""
_PATIENCE = 10.0
_log = logging.getLogger(__name__)


class Health(BaseModel):
    """The service answers."""

    status: str = Field("ok", description="Always `ok`.")


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the process answers; it asks nobody else."""
    return Health()


@router.get("/readyz")
async def readyz(request: Request) -> Health:
    """Whether readers can be served: the database answers and fits this software, the newest version is verified and open.

    Otherwise 503, and `why` names each reason. Having published nothing yet is none.
    """
    readiness: Fresh[tuple[str, ...]] = request.app.state.readiness
    reasons: tuple[str, ...] = ("the database does not answer",)
    with anyio.move_on_after(_PATIENCE):
        reasons = await readiness.get()
    if reasons:
        raise ServiceError(
            503,
            "The service is not ready",
            why="; ".join(reasons),
            do="Read what coordinator serve printed; it says more",
            headers={"Retry-After": "10"},
        )
    return Health()


def readiness(store: Store, shelf: Shelf) -> Fresh[tuple[str, ...]]:
    """Why readers cannot be served, looked up again every few seconds; nothing if they can."""
    return Fresh(lambda: tuple(_reasons(store, shelf)), READY_HELD)


def _reasons(store: Store, shelf: Shelf) -> Iterator[str]:
    # Strangers read these: what the database or a file said of itself goes to the log only.
    try:
        revision = stated_revision(store.engine)
        if revision != HEAD:
            yield f"the database is of revision {revision or 'none'}, and this program needs {HEAD}"
            return
        shelf.open_newest()
    except SQLAlchemyError as error:
        _log.error("not ready: the database does not answer (%s)", type(error).__name__)
        yield "the database does not answer"
        return
    if not shelf.ready:
        _log.error("not ready: %s", shelf.trouble)
        yield "the newest version does not verify"
