"""Related codes by the version's graph, and the filters that the API and the pages share."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from coordinator.graph.queries import Graph, Neighbour
from coordinator.web import models as m
from coordinator.web.access import require
from coordinator.web.problems import ServiceError
from coordinator.web.reading import Categories, Reading, Unchanging
from protocol.errors import UsageError

router = APIRouter(prefix="/api/v1", dependencies=[Depends(require("analyst"))])
MOST: Final = 100
"""Codes that one question gets: a drawing of more says nothing."""

Code = Annotated[m.PlainText, Query(max_length=600, description="A code of the release.", examples=[m.CODE])]
Most = Annotated[int, Query(ge=1, le=MOST, description="How many.")]
LargestQ = Annotated[
    float | None,
    Query(
        ge=0,
        le=1,
        description="Only pairs with at most this false-discovery rate; pairs that were not tested have none.",
    ),
]


class RelatedCode(BaseModel):
    """A code that is related to the one that was asked for."""

    code: str = Field(examples=["RxNorm:6809"])
    name: str = Field(description="Empty where nobody said. Text of others: escape it.")
    category: str = Field(examples=["medication"])
    weight: float | None = Field(
        description="Mean of the two regression weights; 0: selected by neither; null: of one cluster, so never offered."
    )
    sign: int = Field(description="1: they go together; -1: one speaks against the other.")
    cosine: float = Field(description="Of the two vectors.")
    p: float | None = Field(description="One-sided p-value; null: the pair was not tested.")
    q: float | None = Field(description="False-discovery rate; null: the pair was not tested.")
    relation: str = Field(
        description="direct, indirect (significant, explained by other codes) or family.", examples=["direct"]
    )

    @classmethod
    def of(cls, found: Neighbour) -> RelatedCode:
        """From the graph's."""
        return cls(
            code=found.code,
            name=m.short(found.name),
            category=found.category,
            weight=found.weight,
            sign=found.sign,
            cosine=found.cosine,
            p=found.p,
            q=found.q,
            relation=found.relation,
        )


class RelatedCodes(BaseModel):
    """What is related to a code."""

    version: int
    code: str
    items: list[RelatedCode] = Field(description="The strongest relation first.")


@router.get("/releases/{version}/related", tags=["search"])
def related(
    reading: Unchanging,
    code: Code,
    k: Most = 20,
    q_most: LargestQ = None,
    category: Categories = [],  # noqa: B006 - FastAPI copies it
) -> RelatedCodes:
    """The codes of other clusters that a code is related to, by the version's graph."""
    found = related_to(reading, code, k, q_most, category)
    return RelatedCodes(
        version=reading.number, code=reading.entry(code).code, items=[RelatedCode.of(n) for n in found]
    )


def related_to(
    reading: Reading, code: str, k: int, q_most: float | None, categories: list[str]
) -> list[Neighbour]:
    """The neighbours of a code in the version's graph.

    Raises:
        ServiceError: 404, there is no graph or no such code; 409, several systems have the code.
        UsageError: the study has no such category.
    """
    graph = graph_of(reading)
    reading.release.prefixes((), categories)
    return graph.neighbours(reading.entry(code).code, k=k, q_most=q_most, categories=categories or None)


def graph_of(reading: Reading) -> Graph:
    """The version's graph.

    Raises:
        ServiceError: 404, the version was published without one.
    """
    try:
        return reading.release.graph
    except UsageError as error:
        raise ServiceError(404, error.what, why=error.why, do=error.do) from None
