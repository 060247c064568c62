"""One code: what the fit found for it, and what people said, kept apart."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from coordinator.exports.table import Entry
from coordinator.web import models as m
from coordinator.web.access import PersonDependency, require
from coordinator.web.reading import CodePath, Opened
from coordinator.web.reviewing import review_of

router = APIRouter(prefix="/api/v1", dependencies=[Depends(require("analyst"))], tags=["mappings"])


@router.get("/releases/{version}/mappings/{code:path}")
async def mapping(
    reading: Opened, code: CodePath, request: Request, person: PersonDependency
) -> m.MappingDetail:
    """A code, the candidates and evidence of the fit, and what reviewers said of it."""
    entry = reading.entry(code)
    standings = await request.app.state.standings.get()
    return m.MappingDetail.model_construct(
        **m.line_fields(entry),
        version=reading.number,
        found=found_of(entry),
        review=review_of(standings.get(entry.code), person),
    )


def found_of(entry: Entry) -> m.Found:
    """What the fit found, and from what."""
    return m.Found.model_construct(
        candidates=[m.CandidateLine.of(c) for c in entry.candidates],
        evidence=[
            m.SiteEvidence.model_construct(site=e.site, members=e.members, cosine=e.cosine)
            for e in entry.evidence
        ],
        similarity=entry.similarity,
    )
