"""What a code is related to: a drawing, a cloud of words and a list, each to be had as a file."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from coordinator.graph.exports import write_csv
from coordinator.web.models import PlainText
from coordinator.web.pages.drawing import colours, draw_cloud, draw_graph
from coordinator.web.pages.rendering import concept_url, render, url
from coordinator.web.reading import Opened
from coordinator.web.related import MOST, Code, Most, graph_of, related_to

router = APIRouter(include_in_schema=False)
Category = Annotated[PlainText, Query(max_length=200)]
LargestQ = Annotated[Literal["", "0.01", "0.05", "0.1"], Query()]


@router.get("/v/{version}/related")
def related(
    reading: Opened,
    request: Request,
    code: Code,
    k: Most = 20,
    q_most: LargestQ = "",
    category: Category = "",
) -> Response:
    """The page of a code's relations."""
    entry, graph = reading.entry(code), graph_of(reading)
    limit, wanted = float(q_most) if q_most else None, [category] if category else []
    near = related_to(reading, code, k, limit, wanted)
    among = graph.neighbourhood(entry.code, k=k, q_most=limit, categories=wanted or None)

    def link(other: str) -> str:
        return url(reading.version, "related", code=other, k=k, q_most=q_most, category=category)

    return render(
        request,
        "related.html.j2",
        reading=reading,
        entry=entry,
        near=near,
        drawing=draw_graph(entry.code, entry.name, near, among, link=link) if near else "",
        cloud=draw_cloud(near, link=link) if near else "",
        colour=colours(n.category for n in near),
        categories=sorted(set(graph.categories.values())),
        tested=bool(np.isfinite(graph.edges.q).any()),
        most=MOST,
        given={"code": entry.code, "k": k, "q_most": q_most, "category": category},
        concept=concept_url(reading.version, entry.code),
    )


@router.get("/v/{version}/related/{file}")
def download(
    reading: Opened,
    file: Literal["graph.svg", "cloud.svg", "related.csv"],
    code: Code,
    k: Most = 20,
    q_most: LargestQ = "",
    category: Category = "",
) -> Response:
    """The drawing, the cloud, or the pairs among a code and its neighbours."""
    entry, graph = reading.entry(code), graph_of(reading)
    limit, wanted = float(q_most) if q_most else None, [category] if category else []
    near = related_to(reading, code, k, limit, wanted)
    among = graph.neighbourhood(entry.code, k=k, q_most=limit, categories=wanted or None)
    kind = "image/svg+xml"
    if file == "graph.svg":
        data = draw_graph(entry.code, entry.name, near, among).encode()
    elif file == "cloud.svg":
        data = draw_cloud(near).encode()
    else:
        data, kind = write_csv(among, graph.names, graph.categories), "text/csv; charset=utf-8"
    saved = f"v{reading.number}-{file}"
    return Response(data, media_type=kind, headers={"content-disposition": f'attachment; filename="{saved}"'})
