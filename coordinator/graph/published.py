"""The graph of a published release."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.exports.table import Entry
from coordinator.graph.queries import Graph
from coordinator.graph.structure import STRUCTURE, places
from coordinator.graph.tables import EDGES, read_edges
from protocol.errors import ProtocolError, UsageError
from protocol.messages import PublishedManifest
from protocol.published import read_listed


def has_graph(manifest: PublishedManifest) -> bool:
    """Whether a release was published with a graph."""
    return any(file.name == EDGES for file in manifest.files)


def read_graph(folder: Path, manifest: PublishedManifest, entries: Iterable[Entry]) -> Graph:
    """The graph of a release folder that `verify_folder` has accepted.

    Args:
        folder: of the release.
        manifest: of that folder.
        entries: its map's, for names and categories.

    Raises:
        UsageError: the release has none.
        ProtocolError: the table changed since, or cannot be read.
    """
    if not has_graph(manifest):
        raise UsageError(
            f"Version {manifest.version} has no graph",
            why="it was published without one",
            do="The coordinator sets graph = true in coordinator.toml and publishes the next version with it",
        )
    rows = sorted(entries, key=lambda e: e.code)
    edges = read_edges(_table(folder, manifest, EDGES), tuple(e.code for e in rows))
    names = {e.code: e.name for e in rows if e.name}
    structure = None
    if any(file.name == STRUCTURE for file in manifest.files):
        structure = places(_table(folder, manifest, STRUCTURE), edges.codes)
    return Graph(edges, names, {e.code: e.category for e in rows}, structure)


def _table(folder: Path, manifest: PublishedManifest, name: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(read_listed(folder, manifest, name)))
    except pa.ArrowException as error:
        raise ProtocolError(
            "The graph of the release cannot be read",
            why=f"{name} is no Parquet file ({type(error).__name__})",
            do="Get the release again",
        ) from None
