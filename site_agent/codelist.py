"""The site's own code list, and the harmonised map joined to it; neither leaves the site."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from protocol.errors import UsageError
from protocol.files import write_atomic
from protocol.published import read_listed, verify_folder
from site_agent.config import Home
from site_agent.keys import coordinator_keys
from site_agent.prepare import Prepared
from site_agent.state import load_state

_COLUMNS = ["code", "sites", "cluster", "standard_code", "probability", "anchored", "candidates"]
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\0")


def write_code_list(home: Home, prepared: Prepared) -> None:
    """Keep codes, the site's descriptions and whether each is in the release, for `apply`."""
    codes, texts = prepared.codes, prepared.descriptions
    released = np.zeros(len(codes), dtype=bool)
    released[prepared.kept.rows] = True
    table = pa.table(
        {
            "code": pa.array(codes),
            "description": pa.array([texts[c].text if c in texts else "" for c in codes]),
            "public": pa.array([c in texts and texts[c].public for c in codes]),
            "released": pa.array(released),
        }
    )
    write_atomic(home.folder / "local" / "codes.parquet", parquet_bytes(table))


@dataclass(frozen=True)
class Applied:
    """What `apply` wrote."""

    version: int
    path: Path
    states: dict[str, int]


def latest_result(home: Home) -> Path:
    """The folder of the newest published release that arrived.

    Raises:
        UsageError: none has.
    """
    version = load_state(home.folder).result_version
    if not version:
        raise UsageError(
            "No published release has arrived yet", do="Leave site-agent run running until one does"
        )
    return home.folder / "results" / f"v{version}"


def apply_result(home: Home) -> Applied:
    """Join the newest release to the site's code list: `harmonised.csv` and `harmonised.parquet`.

    Every code of the site is listed. `state` tells those that were withheld by
    the floors ("not released") from those whose cluster has no standard code.

    Raises:
        UsageError: no release has arrived, or no code list was kept.
        ProtocolError: the release on disk is not what its manifest says.
    """
    folder = latest_result(home)
    manifest = verify_folder(folder, coordinator_keys(home))
    local = home.folder / "local" / "codes.parquet"
    if not local.exists():
        raise UsageError("This site's code list is missing", do="Run site-agent preview once")
    codes = pq.read_table(local)
    # Two sites may use one public system: each has a row a code in the table, with its own name.
    # The very bytes whose digest held, not the file, which another process could have swapped since.
    clusters = read_listed(folder, manifest, "clusters.parquet")
    published = pq.read_table(pa.BufferReader(clusters), columns=_COLUMNS).to_pylist()
    found = {row["code"]: row for row in published if home.config.site in row["sites"]}
    names = codes["code"].to_pylist()
    rows = [found.get(name) for name in names]
    state = [_state(row) for row in rows]
    table = pa.table(
        {
            "code": names,
            "description": codes["description"].to_pylist(),
            "state": state,
            "cluster": pa.array([r and r["cluster"] for r in rows], pa.int32()),
            "standard_code": pa.array([r and r["standard_code"] for r in rows], pa.string()),
            "standard_name": pa.array([r and _standard_name(r) for r in rows], pa.string()),
            "probability": pa.array([r and r["probability"] for r in rows], pa.float32()),
            "anchored": pa.array([r and r["anchored"] for r in rows], pa.bool_()),
            "alternatives": pa.array([r and " ".join(_alternatives(r)) for r in rows], pa.string()),
        }
    )
    target = home.folder / "harmonised.csv"
    write_atomic(home.folder / "harmonised.parquet", parquet_bytes(table))
    write_atomic(target, csv_bytes(table))
    counts = {name: state.count(name) for name in sorted(set(state))}
    return Applied(manifest.version, target, counts)


def _standard_name(row: dict[str, Any]) -> str:
    return next((c["name"] for c in row["candidates"] if c["code"] == row["standard_code"]), "")


def _alternatives(row: dict[str, Any]) -> list[str]:
    return [c["code"] for c in row["candidates"] if c["code"] != row["standard_code"]]


def _state(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not released"
    return "mapped" if row["standard_code"] else "no standard code"


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def csv_bytes(table: pa.Table) -> bytes:
    """CSV whose text cells no spreadsheet takes for a formula."""
    columns = {
        name: [
            ("'" + v if isinstance(v, str) and v.startswith(_FORMULA) else v) for v in table[name].to_pylist()
        ]
        for name in table.column_names
    }
    sink = io.BytesIO()
    pa_csv.write_csv(pa.table(columns, schema=table.schema), sink)
    return sink.getvalue()
