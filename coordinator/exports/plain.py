"""Plain tables: every code of the release, its standard codes too."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.exports.cells import csv_bytes
from coordinator.exports.table import Entry, PublishedMap
from coordinator.exports.tables import by_site

COLUMNS = (
    "code", "name", "category", "standard_code", "standard_name", "predicate", "probability", "anchored", "cluster", "posterior",
    "similarity", "sites", "alternatives", "evidence",
)  # fmt: skip


def write_csv(published: PublishedMap) -> bytes:
    """CSV; `sites`, `alternatives` and `evidence` are JSON."""
    return csv_bytes(COLUMNS, (_cells(e) for e in published.entries))


def write_parquet(published: PublishedMap) -> bytes:
    """Parquet, with lists as lists and floats as the release has them."""
    rows = published.entries
    table = pa.table(
        {
            "code": pa.array([e.code for e in rows], pa.string()),
            "name": pa.array([e.name for e in rows], pa.string()),
            "category": pa.array([e.category for e in rows], pa.string()),
            "standard_code": pa.array([e.standard_code for e in rows], pa.string()),
            "standard_name": pa.array([e.standard_name for e in rows], pa.string()),
            "predicate": pa.array([e.predicate or "" for e in rows], pa.string()),
            "probability": pa.array([e.probability for e in rows], pa.float32()),
            "anchored": pa.array([e.anchored for e in rows], pa.bool_()),
            "cluster": pa.array([e.cluster for e in rows], pa.int32()),
            "posterior": pa.array([e.posterior for e in rows], pa.float32()),
            "similarity": pa.array([e.similarity for e in rows], pa.float32()),
            "sites": pa.array([list(e.sites) for e in rows], pa.list_(pa.string())),
            "alternatives": pa.array([list(e.alternatives) for e in rows], pa.list_(pa.string())),
            "evidence": by_site(rows),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _cells(e: Entry) -> list[str | int | float | bool | None]:
    rounded = [{"site": p.site, "members": p.members, "cosine": round(p.cosine, 4)} for p in e.evidence]
    return [
        e.code,
        e.name,
        e.category,
        e.standard_code,
        e.standard_name,
        e.predicate,
        e.confidence,
        e.anchored,
        e.cluster,
        round(e.posterior, 4),
        round(e.similarity, 4),
        _json(list(e.sites)),
        _json(list(e.alternatives)),
        _json(rounded),
    ]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
