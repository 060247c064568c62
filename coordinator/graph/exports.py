"""The graph for other programs: GraphML for networkx, Gephi and Cytoscape, and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from coordinator.exports.cells import Cell, csv_bytes
from coordinator.graph.edges import Edges

_NODE: Final = {"name": "string", "category": "string"}
_EDGE: Final = {
    "weight": "double", "sign": "int", "cosine": "double", "p": "double", "q": "double", "relation": "string", "ends": "int",
}  # fmt: skip
COLUMNS: Final = (
    *(f"{side}{what}" for side in ("left", "right") for what in ("", "_name", "_category")),
    *_EDGE,
)
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_csv(edges: Edges, names: Mapping[str, str], categories: Mapping[str, str]) -> bytes:
    """CSV, one row a pair; what is null is empty, and no cell is a formula.

    Args:
        edges: of the graph.
        names: code -> what it is called, where that is known.
        categories: code -> its category.
    """

    def rows() -> Iterator[tuple[Cell, ...]]:
        for left, right, values in _pairs(edges):
            ends = (x for c in (left, right) for x in (c, names.get(c, ""), categories.get(c, "")))
            yield (*ends, *values)

    return csv_bytes(COLUMNS, rows())


def write_graphml(edges: Edges, names: Mapping[str, str], categories: Mapping[str, str]) -> bytes:
    """GraphML 1.0, undirected: a node for every code of the graph, whose id is the code; what is null is left out.

    Characters that XML cannot hold become U+FFFD; a node whose id was taken before gets a number behind it.

    Args:
        edges: of the graph.
        names: code -> what it is called, where that is known.
        categories: code -> its category.

    Source: Brandes, Eiglsperger, Lerner and Pich 2013 (GraphML).
    """
    ids = _ids(edges.codes)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">',
        *(
            f'<key id="{side}_{name}" for="{side}" attr.name="{name}" attr.type="{kind}"/>'
            for side, keys in (("node", _NODE), ("edge", _EDGE))
            for name, kind in keys.items()
        ),
        '<graph edgedefault="undirected">',
    ]
    for code in edges.codes:
        said = (names.get(code, ""), categories.get(code, ""))
        data = _data("node", zip(_NODE, said, strict=True))
        lines.append(f"<node id={quoteattr(ids[code])}>{data}</node>")
    for left, right, values in _pairs(edges):
        data = _data("edge", zip(_EDGE, values, strict=True))
        lines.append(f"<edge source={quoteattr(ids[left])} target={quoteattr(ids[right])}>{data}</edge>")
    return "\n".join([*lines, "</graph>", "</graphml>", ""]).encode()


def _pairs(edges: Edges) -> Iterator[tuple[str, str, tuple[Cell, ...]]]:
    """Both codes of each pair, and the values from `weight` on."""
    values = (edges.weight, edges.sign, edges.cosine, edges.p, edges.q, edges.relation, edges.ends)
    columns = [np.asarray(c).tolist() for c in (edges.left, edges.right, *values)]
    for left, right, *rest in zip(*columns, strict=True):
        shown = tuple(None if isinstance(x, float) and math.isnan(x) else x for x in rest)
        yield edges.codes[left], edges.codes[right], shown


def _data(side: str, values: Iterator[tuple[str, Cell]]) -> str:
    return "".join(
        f'<data key="{side}_{name}">{escape(_xml(str(value)))}</data>'
        for name, value in values
        if value is not None and value != ""
    )


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _ids(codes: tuple[str, ...]) -> dict[str, str]:
    taken: set[str] = set()
    found = {}
    for code in codes:
        plain = name = _xml(code)
        number = 1
        while name in taken:
            number += 1
            name = f"{plain} ({number})"
        taken.add(name)
        found[code] = name
    return found
