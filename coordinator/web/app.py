"""The application: API, FHIR and pages over the versions that one coordinator has published.

Routes:
    /api/v1/...      JSON, described in /openapi.json
    /fhir/...        FHIR R4 ConceptMap and $translate
    /login, /logout  sessions of browsers
    /healthz         the process answers; /readyz: store and newest version are fit for readers; /metrics: figures
    everything else  pages, see `coordinator.web.pages`
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime

from fastapi import Depends, FastAPI

from coordinator.config import Home
from coordinator.library import Library
from coordinator.review.reviews import Reviews
from coordinator.version import VERSION
from coordinator.web import (
    access,
    codes,
    comparing,
    downloads,
    errors,
    fhir,
    health,
    metrics,
    reading,
    related,
    reviewing,
    rounds,
)
from coordinator.web.exported import Exports
from coordinator.web.fresh import Fresh
from coordinator.web.gate import Gate, Log
from coordinator.web.limits import Buckets
from coordinator.web.openapi import describe
from coordinator.web.pages import add_pages
from coordinator.web.sessions import Sessions, session_key
from coordinator.web.settings import WebSettings
from coordinator.web.shelf import Shelf
from coordinator.web.tokens import KnownTokens, Tokens

_TOKENS_HELD = 1.0
"""Twice as many seconds after it was revoked a token lets nobody in any more."""
_STANDINGS_HELD = 1.0
"""Seconds until a decision that another process took in shows."""

_ABOUT = """\
Reads the signed, numbered versions of one study's harmonised code map, and takes reviewers' decisions.

Everything below a version's number never changes. Send `Authorization: Bearer TOKEN`; the coordinator gives tokens.
Errors are `application/problem+json` with `what` happened, `why`, and what to `do`; below `/fhir` an OperationOutcome.
"""


def create_app(home: Home, *, settings: WebSettings | None = None, log: Log | None = None) -> FastAPI:
    """The service of one coordinator.

    Args:
        home: of the coordinator.
        settings: taken in place of those in `coordinator.toml`.
        log: takes one record an answer.

    Returns:
        the application; its `state` has `library`, `reviews`, `settings`, `shelf`, `tokens`, `sessions` and `logins`.

    Raises:
        KeyFileError: the key of the sessions can be read by others.
    """
    settings = settings or home.config.web
    library = Library(home)
    tokens = Fresh(lambda: KnownTokens(Tokens(library.store).all()), _TOKENS_HELD, grace=_TOKENS_HELD)
    sessions = Sessions(session_key(home.folder / "keys" / "web-sessions.key"), hours=settings.session_hours)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.shelf.open_newest()
        yield

    app = api(lifespan)
    app.state.home, app.state.settings, app.state.library = home, settings, library
    app.state.shelf, app.state.started = Shelf(library), datetime.now(UTC)
    app.state.reviews = Reviews(home, library.store, library)
    app.state.standings = Fresh(app.state.reviews.standings, _STANDINGS_HELD)
    vocabulary = home.folder / settings.vocabulary if settings.vocabulary else None
    app.state.exports, app.state.differences = Exports(library, vocabulary), comparing.Differences()
    app.state.tokens, app.state.sessions = tokens, sessions
    app.state.logins = Buckets(settings.logins_per_minute / 60, max(1.0, settings.logins_per_minute))
    app.state.readiness = health.readiness(library.store, app.state.shelf)
    app.state.metrics = metrics.Metrics(home, library.store)
    counted = app.state.metrics.counting(log)
    app.add_middleware(Gate, settings=settings, tokens=tokens, sessions=sessions, log=counted)
    errors.add_handlers(app)
    add_pages(app)
    return app


def api(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None) -> FastAPI:
    """The API and FHIR, without anything behind them: what /openapi.json describes."""
    # Swagger UI and ReDoc load their scripts from a CDN: none is served, and /openapi.json is there for any tool.
    app = FastAPI(
        title="SMILE federation: harmonised codes",
        description=_ABOUT,
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(access.guard)],
        lifespan=lifespan,
        redirect_slashes=False,
    )
    for part in (
        health,
        metrics,
        access,
        reading,
        related,
        codes,
        comparing,
        downloads,
        reviewing,
        rounds,
        fhir,
    ):
        app.include_router(part.router)
    describe(app)
    return app
