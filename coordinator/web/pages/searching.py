"""Search: a page of results, and suggestions while somebody types."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from coordinator.exports.table import Entry
from coordinator.library import OpenRelease
from coordinator.web.models import PlainText
from coordinator.web.pages.rendering import concept_url, environment, render
from coordinator.web.reading import Opened
from protocol.textindex import Found

router = APIRouter(include_in_schema=False)
Text = Annotated[PlainText, Query(max_length=500)]
Names = Annotated[list[str], Query(max_length=200)]
Page = Annotated[int, Query(ge=1, le=200)]
SUGGESTED: Final = 8
PAGE: Final = 25


@dataclass(frozen=True)
class Result:
    """A code that was found, with its row of the map."""

    found: Found
    entry: Entry


@router.get("/v/{version}/search")
def search(
    reading: Opened,
    request: Request,
    q: Text = "",
    system: Names = [],  # noqa: B006 - FastAPI copies it
    category: Names = [],  # noqa: B006
    page: Page = 1,
) -> Response:
    """Codes that a text finds, by what it was found in; a code that is typed whole leads to its own page."""
    q = q.strip()
    system, category = [s for s in system if s], [c for c in category if c]
    if q in reading.release.entries and page == 1 and not system and not category:
        return RedirectResponse(concept_url(reading.version, q), status_code=303)
    results = _found(reading.release, q, page * PAGE + 1, system, category) if q else []
    shown = results[(page - 1) * PAGE : page * PAGE]
    grouped: dict[str, list[Result]] = defaultdict(list)
    for result in shown:
        grouped[result.found.where].append(result)
    systems = reading.release.map.study.code_systems
    return render(
        request,
        "search.html.j2",
        reading=reading,
        q=q,
        grouped=grouped,
        page=page,
        more=len(results) > page * PAGE,
        first=(page - 1) * PAGE + 1,
        last=(page - 1) * PAGE + len(shown),
        chosen_systems=system,
        chosen_categories=category,
        systems=[s.prefix for s in systems],
        categories=sorted({s.category for s in systems}),
    )


@router.get("/v/{version}/suggest")
def suggest(reading: Opened, request: Request, q: Text = "") -> Response:
    """The list below the search box."""
    del request
    results = _found(reading.release, q.strip(), SUGGESTED, [], []) if q.strip() else []
    html = environment().get_template("suggest.html.j2").render(results=results, version=reading.version)
    return HTMLResponse(html)


def _found(release: OpenRelease, q: str, k: int, systems: list[str], categories: list[str]) -> list[Result]:
    found = release.find(q, k, systems=systems, categories=categories)
    return [Result(f, release.entries[f.code]) for f in found]
