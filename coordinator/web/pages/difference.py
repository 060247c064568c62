"""What changed between two versions."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from coordinator.versions.diff import KINDS, Difference
from coordinator.versions.listing import difference_csv
from coordinator.web.comparing import Differences
from coordinator.web.pages.home import before as version_before
from coordinator.web.pages.rendering import render, url
from coordinator.web.problems import ServiceError
from coordinator.web.reading import Opened, Reading, opened

router = APIRouter(include_in_schema=False)
PAGE: Final = 50
CLUSTERS: Final = 20
SAID: Final = {
    "target": ("Another standard code", "Codes that map elsewhere now"),
    "unmapped": ("Lost its standard code", "Codes without a standard code now"),
    "mapped": ("Got a standard code", "Codes that had none before"),
    "removed": ("No longer released", "Codes that only the older version holds"),
    "added": ("New", "Codes that only the newer version holds"),
    "given": ("Given or no longer given", "The same target, which sites have begun or ceased to give"),
    "reviewed": ("Reviewed", "The same target, of which people say something else"),
    "probability": ("Probability moved", "The same target, by 0.1 or more more or less probable"),
}
"""Kind of change -> its name and what it means."""


@router.get("/v/{version}/changes")
def changes(reading: Opened, request: Request, since: Annotated[int, Query(ge=0)] = 0) -> Response:
    """Leads to the comparison with `since`, or with the version before."""
    before = version_before(request, reading.version)
    number = since or (before.number if before else 0)
    if not number:
        others = [v for v in request.app.state.known_versions.now() if v.withdrawn is None]
        return render(request, "changes.html.j2", reading=reading, found=None, others=others, said=SAID)
    return RedirectResponse(url(reading.version, f"changes/since/{number}"), status_code=303)


@router.get("/v/{version}/changes/since/{before}.csv")
async def compared_csv(reading: Opened, request: Request, before: int) -> Response:
    """All changes for a spreadsheet."""
    found = await _difference(request, reading, before)
    name = f"{reading.release.map.study.id}-v{before}-to-v{reading.number}.csv"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    data = await run_in_threadpool(difference_csv, found)
    return Response(data, media_type="text/csv; charset=utf-8", headers=headers)


@router.get("/v/{version}/changes/since/{before}")
async def compared(
    reading: Opened,
    request: Request,
    before: int,
    kind: Annotated[str, Query(max_length=40)] = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    """The changes of one kind, or all, in pages."""
    found = await _difference(request, reading, before)
    if kind and kind not in KINDS:
        raise ServiceError(422, "There is no such kind of change", do=f"Take one of {', '.join(KINDS)}")
    picked = [c for c in found.changes if not kind or c.kind == kind]
    pages = max(1, -(-len(picked) // PAGE))
    page = min(page, pages)
    return await run_in_threadpool(
        render,
        request,
        "changes.html.j2",
        reading=reading,
        found=found,
        counts=found.counts,
        others=[v for v in request.app.state.known_versions.now() if v.withdrawn is None],
        changes=picked[(page - 1) * PAGE : page * PAGE],
        total=len(picked),
        clusters=found.clusters[:CLUSTERS],
        kind=kind,
        page=page,
        pages=pages,
        said=SAID,
    )


async def _difference(request: Request, reading: Reading, before: int) -> Difference:
    older = await opened(request, str(before))
    kept: Differences = request.app.state.differences
    return await run_in_threadpool(kept.between, older.release, reading.release)
