"""The consortium's knowledge graph: which codes are related, how surely, and what that is good for.

`edges` merges the regression's weights with the tests' p-values into one table; `tables` keeps it as Parquet; `exports`
writes it for other programs; `queries` looks codes up in it. `building` makes it of a fit, on `halves` of the sites;
`published` reads it of a release, and `fewshot` teaches a relation from a few labelled pairs.
"""

from coordinator.graph.edges import Edges, Significance, merge_edges
from coordinator.graph.exports import write_csv, write_graphml
from coordinator.graph.queries import Graph, Neighbour
from coordinator.graph.tables import EDGES, edges_table, read_edges

__all__ = [
    "EDGES",
    "Edges",
    "Graph",
    "Neighbour",
    "Significance",
    "edges_table",
    "merge_edges",
    "read_edges",
    "write_csv",
    "write_graphml",
]
