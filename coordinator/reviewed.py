"""Reviewed mappings as a release holds them: `reviews.parquet`, apart from what the model says."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from protocol.messages import PublishedManifest
from protocol.published import read_listed

FILE: Final = "reviews.parquet"
SCHEMA: Final = pa.schema(
    [
        ("code", pa.string()),
        ("target", pa.string()),
        ("verdict", pa.string()),
        ("state", pa.string()),
        ("relation", pa.string()),
        ("reviewers", pa.int32()),
        ("reviewed_by", pa.list_(pa.string())),
        ("adjudicated", pa.bool_()),
        ("decided", pa.timestamp("ms", tz="UTC")),
    ]
)


@dataclass(frozen=True)
class Reviewed:
    """What people say of a code and a target when a version is published.

    Attributes:
        code: the CURIE.
        target: of the standard system; "" for "no standard code is right", and where somebody is unsure of the code itself.
        verdict: accept, reject or unsure.
        state: of the code: accepted, rejected, unsure or conflict.
        relation: what the target is to the code: exact, broad, narrow or close; "" where nobody said.
        reviewers: how many people's word this is.
        reviewed_by: their pseudonyms, or names where the coordinator says so.
        adjudicated: the last of them ended a conflict of others.
        decided: when the last of them decided.
    """

    code: str
    target: str
    verdict: Literal["accept", "reject", "unsure"]
    state: Literal["accepted", "rejected", "unsure", "conflict"]
    relation: str
    reviewers: int
    reviewed_by: tuple[str, ...]
    adjudicated: bool
    decided: datetime

    @property
    def settled(self) -> bool:
        """Nobody who counts disagrees, and the verdict is one."""
        return self.state in {"accepted", "rejected"}


def write_reviews(folder: Path, reviews: Sequence[Reviewed], codes: Collection[str]) -> None:
    """Write the rows of these codes; the file is there without any too."""
    kept = set(codes)
    rows = [{**asdict(r), "reviewed_by": list(r.reviewed_by)} for r in reviews if r.code in kept]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / FILE)


def read_reviews(folder: Path, manifest: PublishedManifest) -> Mapping[str, tuple[Reviewed, ...]]:
    """Code -> what people say of it, from a folder that `verify_folder` has accepted; nothing without the file.

    Raises:
        ProtocolError: the file changed since.
    """
    found: defaultdict[str, list[Reviewed]] = defaultdict(list)
    if all(file.name != FILE for file in manifest.files):
        return {}
    for row in pq.read_table(io.BytesIO(read_listed(folder, manifest, FILE))).to_pylist():
        row["reviewed_by"] = tuple(row["reviewed_by"])
        row["decided"] = row["decided"].astimezone(UTC)
        found[row["code"]].append(Reviewed(**row))
    return {code: tuple(rows) for code, rows in found.items()}
