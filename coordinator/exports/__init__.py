"""Writers of the formats that analysts' tools read."""

from __future__ import annotations

import shutil
from pathlib import Path

from protocol.errors import UsageError
from protocol.files import atomic_file
from protocol.keys import PublicKeys
from protocol.published import verify_folder

FORMATS = {"sssom": "mappings.sssom.tsv", "clusters": "clusters.parquet", "embeddings": "embeddings.parquet"}
"""Format -> the file of a release folder that holds it."""


def export_release(release: Path, output: Path, form: str, *, trust: PublicKeys) -> None:
    """Copy one format out of a verified release.

    Raises:
        UsageError: the format is unknown.
        ProtocolError: the release folder is not what its manifest says.
    """
    if form not in FORMATS:
        raise UsageError(f"There is no format {form!r}", do=f"Take one of {', '.join(FORMATS)}")
    verify_folder(release, trust)
    with (release / FORMATS[form]).open("rb") as source, atomic_file(output, mode=0o644) as target:
        shutil.copyfileobj(source, target)
