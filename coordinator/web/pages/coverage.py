"""Which site has codes for which concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from coordinator.library import OpenRelease
from coordinator.web.models import PlainText
from coordinator.web.pages.facts import facts_of
from coordinator.web.pages.rendering import render
from coordinator.web.reading import Opened

router = APIRouter(include_in_schema=False)
PAGE: Final = 50
Show = Literal["all", "gaps", "everywhere", "one"]
Order = Literal["code", "sites", "codes"]


@dataclass(frozen=True)
class Row:
    """A concept.

    Attributes:
        counts: codes of each site that are mapped to it; 0 where the site released none.
        largest: of these, for the shade.
    """

    code: str
    name: str
    counts: tuple[int, ...]

    @property
    def sites(self) -> int:
        """How many sites have a code for it."""
        return sum(c > 0 for c in self.counts)


@router.get("/v/{version}/coverage")
def coverage(
    reading: Opened,
    request: Request,
    show: Show = "all",
    order: Order = "code",
    group: Annotated[PlainText, Query(max_length=100)] = "",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:
    """Concepts by site."""
    release = reading.release
    found = facts_of(release).coverage
    held = found.counts > 0
    n_sites, total = held.sum(axis=1), found.counts.sum(axis=1)
    mask = {
        "all": np.ones(len(held), dtype=bool),
        "gaps": n_sites < len(found.sites),
        "everywhere": n_sites == len(found.sites),
        "one": n_sites == 1,
    }[show]
    chapters = facts_of(release).chapters
    if group:
        mask &= np.array([c == group for c in chapters], dtype=bool)
    rows = np.flatnonzero(mask)
    if order != "code":
        rows = rows[np.argsort(-(n_sites if order == "sites" else total)[rows], kind="stable")]
    pages = max(1, -(-len(rows) // PAGE))
    page = min(page, pages)
    picked = [int(i) for i in rows[(page - 1) * PAGE : page * PAGE]]
    return render(
        request,
        "coverage.html.j2",
        reading=reading,
        rows=[_row(release, found.concepts[i], tuple(int(c) for c in found.counts[i])) for i in picked],
        sites=found.sites,
        absent=[s for s in release.manifest.sites if s.state != "received"],
        covered=[int(c) for c in held.sum(axis=0)],
        codes=[int(c) for c in found.counts.sum(axis=0)],
        withheld={
            s.site: s.statistics.codes_suppressed for s in release.manifest.sites if s.statistics is not None
        },
        concepts=len(found.concepts),
        everywhere=int((n_sites == len(found.sites)).sum()),
        one=int((n_sites == 1).sum()),
        total=len(rows),
        page=page,
        pages=pages,
        show=show,
        order=order,
        group=group,
        groups=sorted(set(chapters)),
    )


def _row(release: OpenRelease, code: str, counts: tuple[int, ...]) -> Row:
    entry = release.entries.get(code)
    return Row(code, entry.name if entry else "", counts)
