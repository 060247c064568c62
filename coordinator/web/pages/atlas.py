"""The map of the embedding: places as bytes for the canvas, and the codes of an area as a table."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from coordinator.exports.cells import csv_bytes
from coordinator.exports.table import Entry
from coordinator.library import OpenRelease
from coordinator.web.pages.facts import facts_of
from coordinator.web.pages.layout import Flat
from coordinator.web.pages.rendering import environment, render
from coordinator.web.problems import ServiceError
from coordinator.web.reading import Opened, Unchanging

router = APIRouter(include_in_schema=False)
MAGIC: Final = b"SMAP"
MOST_CORNERS: Final = 400
PAGE: Final = 50
_STEPS: Final = ("no standard code", "below 50 %", "50 to 90 %", "90 % or more", "given")
Page = Annotated[int, Query(ge=1, le=10**6)]
Colour = Annotated[str, Query(max_length=20)]
Area = Annotated[str, Query(max_length=8000, description="x,y,x,y,... of a polygon's corners, in -1..1.")]


@dataclass(frozen=True, eq=False)
class Colouring:
    """One way to colour the map.

    Attributes:
        name: in the page's form.
        title: for people.
        labels: what the numbers mean, the most frequent first.
        sizes: codes of each.
        number: (n,) of each code.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    sizes: tuple[int, ...]
    number: npt.NDArray[np.uint16]


@router.get("/v/{version}/map")
def atlas(
    reading: Opened, request: Request, area: Area = "", page: int = 1, colour: str = "group"
) -> Response:
    """The map, and the codes of an area if one is given."""
    selection = _selection(reading.release, area, page) if area else None
    return render(
        request,
        "map.html.j2",
        reading=reading,
        colourings=colourings(reading.release),
        colour=colour,
        selection=selection,
    )


@router.get("/v/{version}/map/places")
def places(reading: Unchanging, request: Request) -> Response:
    """Places and colours of all codes, little-endian; 202 while the layout is worked out.

    `SMAP`, u32 n, float32 x n, float32 y n, u32 cluster n, then u16 n for each colouring but the cluster's.
    """
    del request
    facts = facts_of(reading.release)
    layout = facts.layout()
    if facts.failed:
        raise ServiceError(
            500, "The map cannot be laid out", do="Tell the coordinator; the rest of the page works"
        )
    if layout is None:
        return JSONResponse({"state": "working"}, status_code=202, headers={"Retry-After": "2"})
    return Response(as_bytes(reading.release, layout), media_type="application/octet-stream")


@router.get("/v/{version}/map/codes")
def codes(reading: Unchanging, request: Request, row: Annotated[int, Query(ge=0)]) -> Response:
    """What stands in the hint beside a point."""
    del request
    entries = reading.release.map.entries
    if row >= len(entries):
        raise ServiceError(404, f"The version has {len(entries):,} codes")
    html = environment().get_template("hint.html.j2").render(entry=entries[row], version=reading.version)
    return HTMLResponse(html)


@router.get("/v/{version}/map/selection")
def selection(reading: Opened, request: Request, area: Area, page: Page = 1) -> Response:
    """The table of an area's codes, as a part of a page."""
    del request
    found = _selection(reading.release, area, page)
    template = environment().get_template("selection.html.j2")
    return HTMLResponse(template.render(selection=found, version=reading.version))


@router.get("/v/{version}/map/selection.csv")
def selection_csv(reading: Opened, request: Request, area: Area) -> Response:
    """The codes of an area for a spreadsheet."""
    del request
    found = _selection(reading.release, area, 1)
    rows = [
        (
            e.code,
            e.name,
            " ".join(e.sites),
            e.cluster,
            e.standard_code,
            e.standard_name,
            e.confidence,
            e.given,
        )
        for e in found.entries
    ]
    columns = ("code", "name", "sites", "cluster", "standard_code", "standard_name", "probability", "given")
    name = f"{reading.release.map.study.id}-v{reading.number}-area.csv"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(csv_bytes(columns, rows), media_type="text/csv; charset=utf-8", headers=headers)


# --- Details -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Selection:
    """The codes of an area.

    Attributes:
        area: as it was given.
        entries: all of them, by code.
        page: that is shown.
    """

    area: str
    entries: tuple[Entry, ...]
    page: int

    @property
    def shown(self) -> Sequence[Entry]:
        """The rows of the page."""
        return self.entries[(self.page - 1) * PAGE : self.page * PAGE]

    @property
    def pages(self) -> int:
        """How many."""
        return max(1, -(-len(self.entries) // PAGE))

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Clusters' standard codes that most of them are mapped to, with how many."""
        return Counter(e.standard_code for e in self.entries if e.standard_code).most_common(5)


def _selection(release: OpenRelease, area: str, page: int) -> Selection:
    corners = polygon(area)
    layout = facts_of(release).layout()
    if layout is None:
        raise ServiceError(
            503,
            "The map is still being laid out",
            do="Try again in some seconds",
            headers={"Retry-After": "5"},
        )
    inside = np.flatnonzero(within(layout.astype(np.float64), corners))
    entries = tuple(release.map.entries[i] for i in inside)
    return Selection(area, entries, min(max(1, page), max(1, -(-len(entries) // PAGE))))


def polygon(area: str) -> npt.NDArray[np.float64]:
    """(c, 2) corners.

    Raises:
        ServiceError: 422, the text names no polygon.
    """
    try:
        numbers = np.array([float(n) for n in area.split(",")], dtype=np.float64)
    except ValueError:
        numbers = np.zeros(0)
    if (
        len(numbers) < 6
        or len(numbers) % 2
        or len(numbers) > 2 * MOST_CORNERS
        or not np.isfinite(numbers).all()
    ):
        raise ServiceError(
            422,
            "The area is no polygon",
            why=f"it takes x,y of 3 to {MOST_CORNERS} corners, joined by commas",
            do="Draw it on the map",
        )
    return numbers.reshape(-1, 2)


def within(points: npt.NDArray[np.float64], corners: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which of (n, 2) points lie inside a polygon, by the even-odd rule."""
    inside = np.zeros(len(points), dtype=bool)
    x, y = points.T
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crosses = (y0 > y) != (y1 > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            left = x < (x1 - x0) * (y - y0) / (y1 - y0) + x0
        inside ^= crosses & left
    return inside


_MADE: Final[WeakKeyDictionary[OpenRelease, list[Colouring]]] = WeakKeyDictionary()
_BYTES: Final[WeakKeyDictionary[OpenRelease, bytes]] = WeakKeyDictionary()


def colourings(release: OpenRelease) -> list[Colouring]:
    """The ways to colour the map, worked out once."""
    found = _MADE.get(release)
    if found is None:
        found = _MADE[release] = _colourings(release)
    return found


def _colourings(release: OpenRelease) -> list[Colouring]:
    facts = facts_of(release)
    entries = release.map.entries
    sites = ["several sites" if len(e.sites) > 1 else next(iter(e.sites), "no site") for e in entries]
    return [
        _counted("group", "category", facts.groups),
        _counted("site", "site", sites),
        _counted("system", "code system", [e.system for e in entries]),
        _counted("certainty", "certainty", [_STEPS[_step(e)] for e in entries], _STEPS),
    ]


def _counted(name: str, title: str, values: Sequence[str], order: Sequence[str] = ()) -> Colouring:
    sizes = Counter(values)
    labels = [v for v in order if v in sizes] or [
        v for v, _ in sorted(sizes.items(), key=lambda s: (-s[1], s[0]))
    ]
    place = {label: i for i, label in enumerate(labels)}
    number = np.array([place[v] for v in values], dtype=np.uint16)
    return Colouring(name, title, tuple(labels), tuple(sizes[v] for v in labels), number)


def _step(entry: Entry) -> int:
    if not entry.standard_code:
        return 0
    if entry.given:
        return 4
    return 1 if entry.probability < 0.5 else 2 if entry.probability < 0.9 else 3


def as_bytes(release: OpenRelease, layout: Flat) -> bytes:
    """What the canvas draws from."""
    found = _BYTES.get(release)
    if found is None:
        cluster = np.array([e.cluster for e in release.map.entries], dtype="<u4")
        parts = [layout[:, 0].astype("<f4"), layout[:, 1].astype("<f4"), cluster]
        parts += [c.number.astype("<u2") for c in colourings(release)]
        found = MAGIC + struct.pack("<I", len(layout)) + b"".join(p.tobytes() for p in parts)
        _BYTES[release] = found
    return found
