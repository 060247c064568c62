"""The API's endpoint of differences between versions."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from threading import Lock
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, Field

from coordinator.library import OpenRelease
from coordinator.versions.diff import KINDS, STEP, Difference, compare
from coordinator.web.access import require
from coordinator.web.heavy import run_heavy
from coordinator.web.problems import ServiceError
from coordinator.web.reading import Limit, Unchanging, opened

router = APIRouter(prefix="/api/v1", dependencies=[Depends(require("analyst"))], tags=["versions"])
_HELD = 4


class DifferencePage(BaseModel):
    """What changed from one version to another, and what is known of why."""

    before: dict[str, Any] = Field(description="The version that was named with `from`.")
    after: dict[str, Any] = Field(description="The version of the address.")
    step: float = Field(description="Probabilities that moved by less are not listed.")
    causes: list[dict[str, Any]] = Field(description="What differs in what the two were made from.")
    counts: dict[str, int] = Field(
        description="Kind of change -> codes; clusters split and merged; codes unchanged."
    )
    total: int = Field(description="Changes that the filter lets through, on all pages.")
    changes: list[dict[str, Any]] = Field(description="By kind and code.")
    clusters: list[dict[str, Any]] = Field(
        description="Split or merged, the largest first; on the first page, at most 1,000."
    )


class Differences:
    """The differences that were asked for last; each is computed once, by one thread."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, str], Difference] = OrderedDict()
        self._lock = Lock()

    def between(self, before: OpenRelease, after: OpenRelease) -> Difference:
        """What changed; blocks while it is computed."""
        key = (before.manifest.digest, after.manifest.digest)
        with self._lock:
            found = self._held.get(key)
            if found is None:
                found = self._held[key] = compare(before, after, step=STEP)
            self._held.move_to_end(key)
            while len(self._held) > _HELD:
                self._held.popitem(last=False)
        return found


@router.get("/releases/{version}/diff")
async def diff(
    request: Request,
    reading: Unchanging,
    before: Annotated[
        int, Query(alias="from", ge=1, le=10**9, description="The version to compare with.", examples=[1])
    ],
    kind: Annotated[
        str, Query(max_length=40, description=f"One of {', '.join(KINDS)}; all without it.")
    ] = "",
    limit: Limit = 100,
    offset: Annotated[
        int, Query(ge=0, le=10**9, description="Changes before the page; versions never change.")
    ] = 0,
) -> DifferencePage:
    """What changed since another version, and what is known of why: sites that came or left, pairs, a refit."""
    if kind and kind not in KINDS:
        raise ServiceError(422, "There is no such kind of change", do=f"Take one of {', '.join(KINDS)}")
    older = await opened(request, str(before))
    kept: Differences = request.app.state.differences
    found = await run_heavy(lambda: kept.between(older.release, reading.release))
    changes = [c for c in found.changes if not kind or c.kind == kind]
    shown = replace(
        found,
        changes=tuple(changes[offset : offset + limit]),
        clusters=found.clusters[:1000] if offset == 0 else (),
    )
    return DifferencePage(**(shown.facts() | {"counts": dict(found.counts), "total": len(changes)}))
