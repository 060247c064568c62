"""What a supervisor or a load balancer asks."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from coordinator.web.problems import ServiceError
from coordinator.web.shelf import Shelf

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The service answers."""

    status: str = Field("ok", description="Always `ok`.")


@router.get("/healthz")
async def healthz() -> Health:
    """Whether the process answers."""
    return Health()


@router.get("/readyz")
async def readyz(request: Request) -> Health:
    """Whether the newest version is verified and open, or there is none yet."""
    shelf: Shelf = request.app.state.shelf
    if not shelf.ready:
        raise ServiceError(
            503, "The newest version cannot be served", why="it does not verify", do="Read the service's log"
        )
    return Health()
