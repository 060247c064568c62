"""The first page: one search box, the release in figures, and what is new."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from coordinator.library import Version
from coordinator.web.pages.facts import facts_of
from coordinator.web.pages.rendering import render, url
from coordinator.web.reading import Opened

router = APIRouter(include_in_schema=False)


@router.get("/")
def first(request: Request) -> Response:
    """The newest version that stands."""
    return latest(request, "")


@router.get("/latest")
@router.get("/latest/{page:path}")
def latest(request: Request, page: str = "") -> Response:
    """The same page of the newest version: an address that stays while versions come."""
    standing = [v for v in request.app.state.known_versions.now() if v.withdrawn is None]
    if not standing:
        return render(request, "nothing.html.j2")
    # The path as it was written: an encoded slash in a code stays one.
    raw = request.scope.get("raw_path", b"").decode("ascii", "replace").partition("?")[0]
    tail = raw.removeprefix("/latest").strip("/") if page else ""
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(url(standing[-1], tail) + query, status_code=307)


@router.get("/v/{version}")
def home(reading: Opened, request: Request) -> Response:
    """A version's own page."""
    facts = facts_of(reading.release)
    manifest = reading.release.manifest
    received = [s for s in manifest.sites if s.state == "received"]
    return render(
        request,
        "home.html.j2",
        reading=reading,
        facts=facts,
        received=received,
        absent=[s for s in manifest.sites if s.state != "received"],
        before=before(request, reading.version),
    )


def before(request: Request, version: Version) -> Version | None:
    """The newest version before this one that stands."""
    known = request.app.state.known_versions.now()
    return next((v for v in reversed(known) if v.number < version.number and v.withdrawn is None), None)
