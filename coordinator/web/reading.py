"""The API's reading endpoints: releases, mappings, clusters, neighbours, search, translation."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from coordinator.exports.table import Entry
from coordinator.library import OpenRelease, Version
from coordinator.review.standing import State
from coordinator.version import SOFTWARE
from coordinator.web import models as m
from coordinator.web.access import require
from coordinator.web.columns import columns_of
from coordinator.web.cursors import read_cursor, write_cursor
from coordinator.web.problems import NotModified, ServiceError
from coordinator.web.shelf import Shelf
from protocol.codeindex import EXACT_ROWS
from protocol.errors import UsageError

router = APIRouter(prefix="/api/v1", dependencies=[Depends(require("analyst"))])

VersionPath = Annotated[
    str,
    Path(
        pattern="^(latest|[1-9][0-9]{0,8})$",
        description="Number of a version, or `latest`.",
        examples=["latest"],
    ),
]
CodePath = Annotated[
    str, Path(max_length=600, description="A CURIE, or a bare code that one system has.", examples=[m.CODE])
]
Systems = Annotated[
    list[str], Query(max_length=200, description="Prefixes of code systems; may be repeated.")
]
Categories = Annotated[
    list[str], Query(max_length=200, description="Categories of code systems; may be repeated.")
]
Cursor = Annotated[str, Query(max_length=2000, description="`next` of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Items a page.")]


@dataclass(frozen=True)
class Reading:
    """A version that a request reads."""

    version: Version
    release: OpenRelease

    @property
    def number(self) -> int:
        """Of the version."""
        return self.version.number

    def entry(self, code: str) -> Entry:
        """The row of a code.

        Raises:
            ServiceError: 404, the release has no such code; 409, several systems have it.
        """
        found = self.release.entries.get(code)
        if found is not None:
            return found
        try:
            return self.release.entry(code)
        except UsageError as error:
            status = 409 if "several" in error.what else 404
            raise ServiceError(status, error.what, why=error.why, do=error.do) from None


def number_of(version: str) -> int | None:
    """The number in a path; None for `latest`."""
    return None if version == "latest" else int(version)


async def opened(request: Request, version: VersionPath) -> Reading:
    """The version of the path, verified and open."""
    shelf: Shelf = request.app.state.shelf
    found, release = await shelf.open(number_of(version))
    return Reading(found, release)


async def unchanging(
    request: Request, response: Response, reading: Annotated[Reading, Depends(opened)]
) -> Reading:
    """A version whose answer depends on nothing else: it has an ETag, and is not computed for who has it."""
    if "state" in request.query_params:
        return reading  # which depends on reviewers as well
    asked = f"{reading.version.digest} {SOFTWARE} {request.url.path}?{request.url.query}"
    etag = f'W/"{hashlib.sha256(asked.encode("utf-8", "replace")).hexdigest()[:32]}"'
    if etag in request.headers.get("if-none-match", ""):
        raise NotModified(etag)
    response.headers["etag"] = etag
    return reading


Opened = Annotated[Reading, Depends(opened)]
Unchanging = Annotated[Reading, Depends(unchanging)]


@router.get("/releases", tags=["releases"])
async def releases(request: Request) -> m.ReleaseList:
    """All published versions."""
    known = await request.app.state.shelf.versions()
    standing = [v.number for v in known if v.withdrawn is None]
    return m.ReleaseList(
        latest=standing[-1] if standing else None, releases=[m.ReleaseLine.of(v) for v in known]
    )


@router.get("/releases/{version}", tags=["releases"])
async def release(reading: Unchanging) -> m.ReleaseFacts:
    """One version: what it holds, and what it was made from."""
    return m.ReleaseFacts.of_open(reading.version, reading.release, mapped=columns_of(reading.release).mapped)


# --- Mappings ------------------------------------------------------------------------------------------


@router.get("/releases/{version}/mappings", tags=["mappings"])
async def mappings(
    request: Request,
    reading: Unchanging,
    system: Systems = [],  # noqa: B006 - FastAPI copies it
    category: Categories = [],  # noqa: B006
    standard_code: Annotated[
        str | None,
        Query(max_length=600, description="Only codes with this standard code; empty: without one."),
    ] = None,
    cluster: Annotated[int | None, Query(ge=0, le=2**53, description="Only codes of this cluster.")] = None,
    site: Annotated[
        str | None, Query(max_length=64, description="Only codes that this site released.")
    ] = None,
    given: Annotated[
        bool | None, Query(description="Only codes whose standard code was given, or only others.")
    ] = None,
    at_least: Annotated[float, Query(ge=0, le=1, description="Smallest probability.")] = 0.0,
    at_most: Annotated[float, Query(ge=0, le=1, description="Largest probability.")] = 1.0,
    state: Annotated[
        State | None, Query(description="Only codes outside the standard system whose review stands here.")
    ] = None,
    cursor: Cursor = "",
    limit: Limit = 100,
) -> m.MappingPage:
    """The codes of a version and where they belong, sorted by code; filters join with and."""
    reading.release.prefixes(system, category)
    columns = columns_of(reading.release)
    mask = columns.everything()
    if system:
        mask &= columns.of_system(system)
    if category:
        mask &= columns.of_category(category)
    if standard_code is not None:
        mask &= columns.of_standard(standard_code)
    if cluster is not None:
        mask &= columns.cluster == cluster
    if site is not None:
        mask &= columns.of_site(site)
    if given is not None:
        mask &= columns.given == given
    if at_least > 0.0 or at_most < 1.0:
        mask &= (columns.probability >= at_least) & (columns.probability <= at_most)
    if state is not None:
        mask &= columns.of_state(state, await request.app.state.standings.get())
        mask &= ~columns.of_system([reading.release.map.study.standard])
    rows = np.flatnonzero(mask)
    filters = [
        sorted(system),
        sorted(category),
        standard_code,
        cluster,
        site,
        given,
        at_least,
        at_most,
        state,
    ]
    digest, start = reading.version.digest, 0
    if cursor:
        last = read_cursor(cursor, digest, filters)
        start = int(np.searchsorted(rows, bisect_right(columns.codes, last)))
    shown = rows[start : start + limit]
    more = start + limit < len(rows)
    return m.MappingPage.model_construct(
        version=reading.number,
        total=len(rows),
        items=[m.MappingLine.of(reading.release.map.entries[i]) for i in shown],
        next=write_cursor(digest, filters, columns.codes[shown[-1]]) if more else None,
    )


# --- Clusters ------------------------------------------------------------------------------------------


@router.get("/releases/{version}/clusters", tags=["clusters"])
async def clusters(
    reading: Unchanging,
    smallest: Annotated[int, Query(ge=1, le=10**9, description="Fewest codes in a cluster.")] = 1,
    cursor: Cursor = "",
    limit: Limit = 100,
) -> m.ClusterPage:
    """The clusters of synonyms, by number."""
    digest, filters = reading.version.digest, ["clusters", smallest]
    columns, start = columns_of(reading.release), 0
    held = columns.clusters[columns.sizes >= smallest]
    if cursor:
        last = read_cursor(cursor, digest, filters)
        # Whoever knows the version can write a cursor of their own.
        start = int(np.searchsorted(held, int(last[:18]) if last.isdecimal() else -1, side="right"))
    shown = [(int(n), reading.release.clusters[int(n)]) for n in held[start : start + limit]]
    standard = reading.release.map.study.standard
    return m.ClusterPage(
        version=reading.number,
        total=len(held),
        items=[
            m.ClusterLine(
                cluster=number,
                size=len(entries),
                codes=[e.code for e in entries[:10]],
                standard_codes=[e.code for e in entries if e.system == standard][:10],
            )
            for number, entries in shown
        ],
        next=write_cursor(digest, filters, str(shown[-1][0])) if start + limit < len(held) else None,
    )


@router.get("/releases/{version}/clusters/{cluster}", tags=["clusters"])
async def cluster(
    reading: Unchanging, cluster: Annotated[int, Path(ge=0, le=2**53, description="Its number.")]
) -> m.ClusterDetail:
    """One cluster and its codes."""
    entries = reading.release.clusters.get(cluster)
    if entries is None:
        raise ServiceError(404, f"Version {reading.number} has no cluster {cluster}")
    return m.ClusterDetail(
        version=reading.number,
        cluster=cluster,
        size=len(entries),
        items=[m.MappingLine.of(e) for e in entries[:1000]],
    )


# --- Search --------------------------------------------------------------------------------------------


@router.get("/releases/{version}/neighbours", tags=["search"])
async def neighbours(
    reading: Unchanging,
    code: Annotated[str, Query(max_length=600, description="A code of the release.", examples=[m.CODE])],
    k: Annotated[int, Query(ge=1, le=200, description="How many.")] = 10,
    system: Systems = [],  # noqa: B006
    category: Categories = [],  # noqa: B006
) -> m.Neighbours:
    """The codes whose vectors have the largest cosine with a code's."""
    entry = reading.entry(code)
    return await _nearest(reading, entry.code, k, system, category)


@router.post("/releases/{version}/neighbours", tags=["search"])
async def neighbours_of_vector(reading: Opened, query: m.VectorQuery) -> m.Neighbours:
    """The codes whose vectors have the largest cosine with a vector of yours."""
    with np.errstate(over="ignore"):
        vector = np.array(query.vector, dtype=np.float32)
    if not np.isfinite(vector).all() or not np.any(vector):
        raise ServiceError(
            422, "The vector has no direction", why="it is zero, or larger than a float can say"
        )
    return await _nearest(reading, vector, query.k, query.systems, query.categories)


async def _nearest(
    reading: Reading, query: Any, k: int, systems: list[str], categories: list[str]
) -> m.Neighbours:
    release = reading.release
    if release.index.hnsw is not None or len(release.index.codes) <= EXACT_ROWS:
        # Well under a millisecond: handing it to another thread would take longer.
        hits = release.neighbours(query, k, systems=systems, categories=categories)
    else:
        hits = await run_in_threadpool(release.neighbours, query, k, systems=systems, categories=categories)
    items = []
    for hit in hits:
        e = release.entries[hit.code]
        items.append(
            m.Near.model_construct(
                code=e.code, name=m.short(e.name), category=e.category, similarity=hit.similarity
            )
        )
    return m.Neighbours.model_construct(version=reading.number, items=items)


@router.get("/releases/{version}/search", tags=["search"])
async def search(
    reading: Unchanging,
    text: Annotated[
        str, Query(min_length=1, max_length=200, description="Code, name or synonym.", examples=["diabetes"])
    ],
    k: Annotated[int, Query(ge=1, le=200, description="How many.")] = 20,
    system: Systems = [],  # noqa: B006
    category: Categories = [],  # noqa: B006
) -> m.TextHits:
    """The codes that a text fits best."""
    # A few milliseconds of Python: in another thread it would hold up all other answers for longer than here.
    found = reading.release.find(text, k, systems=system, categories=category)
    return m.TextHits(
        version=reading.number,
        items=[m.TextHit(code=f.code, name=m.short(f.name), score=f.score, where=f.where) for f in found],
    )


# --- Translation ---------------------------------------------------------------------------------------


@router.get("/releases/{version}/translate", tags=["translation"])
async def translate(
    reading: Unchanging,
    code: Annotated[str, Query(max_length=600, description="A code of the release.", examples=[m.CODE])],
    reverse: Annotated[
        bool, Query(description="Which codes are mapped to it? All of them are given.")
    ] = False,
    at_least: Annotated[
        float, Query(ge=0, le=1, description="Leave out what was found and is less probable.")
    ] = 0.0,
) -> m.Translations:
    """Where a code goes; reversed, every code that comes to it. An unknown code is an answer, not an error."""
    return _translated(reading, [code], reverse=reverse, at_least=at_least)


@router.post("/releases/{version}/translate", tags=["translation"])
async def translate_many(reading: Opened, query: m.TranslateQuery) -> m.Translations:
    """Where up to 1,000 codes go, in the order of the question."""
    return _translated(reading, query.codes, reverse=query.reverse, at_least=query.at_least)


def _translated(reading: Reading, codes: list[str], *, reverse: bool, at_least: float) -> m.Translations:
    results = []
    for code in codes:
        entry = reading.release.entries.get(code)
        results.append(
            m.Translation.model_construct(
                code=code,
                known=entry is not None,
                items=[
                    m.MappingLine.of(e)
                    for e in translated(reading.release, code, reverse=reverse, at_least=at_least)
                ],
            )
        )
    return m.Translations.model_construct(version=reading.number, reverse=reverse, results=results)


def translated(release: OpenRelease, code: str, *, reverse: bool, at_least: float = 0.0) -> list[Entry]:
    """The row of a code that has a standard code; reversed, of every code with that standard code.

    Args:
        release: to look in.
        code: a CURIE.
        reverse: from a standard code back.
        at_least: leave out what was found and is less probable.
    """
    if reverse:
        found = list(release.sources.get(code, ()))
    else:
        entry = release.entries.get(code)
        found = [entry] if entry is not None and entry.standard_code else []
    return [e for e in found if e.given or e.probability >= at_least]
