"""The map of a verified release, read from its tables."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from coordinator.exports.table import Entry, PublishedMap
from coordinator.exports.tables import CLUSTERS, EVIDENCE, read_rows
from coordinator.reviewed import Reviewed, read_reviews
from protocol.errors import ProtocolError
from protocol.messages import PublishedManifest
from protocol.published import read_listed
from protocol.study import StudySpec


def read_map(folder: Path, manifest: PublishedManifest) -> PublishedMap:
    """The map of a release folder that `verify_folder` has accepted.

    Raises:
        ProtocolError: the table changed since, or the release is of another version of this software.
    """
    listed = {file.name: file for file in manifest.files}
    try:
        reviews = read_reviews(folder, manifest)
        data = [read_listed(folder, manifest, listed[name].name) for name in (CLUSTERS, EVIDENCE)]
        study = StudySpec.model_validate(manifest.study)
        entries = [Entry(**row) for row in read_rows(*(pq.read_table(io.BytesIO(d)) for d in data))]
    except (ValidationError, pa.ArrowException, KeyError) as error:
        raise ProtocolError(
            f"The map in {folder} cannot be read",
            why=f"this software does not know its form ({type(error).__name__})",
            do=f"Export it with the software that wrote it: {manifest.software}",
        ) from None
    judged = (replace(e, accepted=_accepted(e, reviews.get(e.code, ()))) for e in entries)
    return PublishedMap(manifest, study, tuple(sorted(judged, key=lambda e: e.code)), reviews)


def _accepted(entry: Entry, reviews: Sequence[Reviewed]) -> str | None:
    said = (r for r in reviews if r.settled and r.verdict == "accept" and r.target == entry.standard_code)
    return next((r.relation for r in said if r.target), None)
