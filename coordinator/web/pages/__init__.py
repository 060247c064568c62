"""The pages that people look at: made on the server, with small scripts that they work without.

Addresses carry the version, `/v/3/concept/NORTH:dm2`, and stay what they are; `/latest/...` leads to the newest.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from coordinator.library import Library
from coordinator.web.fresh import Fresh
from coordinator.web.pages import (
    atlas,
    concept,
    coverage,
    difference,
    entrance,
    home,
    related,
    reviewing,
    rounds,
    searching,
    versions,
)
from coordinator.web.pages.rendering import STATIC, assets


class _Kept(StaticFiles):
    """Files under a path that changes when they do: a browser need not ask again."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def add_pages(app: FastAPI) -> None:
    """Add the pages to the service."""
    library: Library = app.state.library
    app.state.known_versions = Fresh(library.versions, 1.0)
    app.state.error_page = entrance.error_page
    for part in (
        home,
        searching,
        concept,
        related,
        atlas,
        coverage,
        reviewing,
        difference,
        versions,
        rounds,
        entrance,
    ):
        app.include_router(part.router)
    app.mount(assets(), _Kept(directory=STATIC), name="static")
