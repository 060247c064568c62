"""Exports of a release: made once, kept beside it, served as files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from threading import Lock
from typing import Final

from coordinator.exports.formats import COPIED, FORMATS, RELATED, WITH_CONCEPTS
from coordinator.exports.writing import export_release
from coordinator.graph.published import has_graph
from coordinator.graph.tables import EDGES
from coordinator.library import Library, Version
from coordinator.version import coordinator_digest
from coordinator.web.problems import ServiceError
from coordinator.web.ranged import Download
from protocol.canonical import file_digest
from protocol.files import write_atomic
from protocol.messages import PublishedManifest

SUFFIX: Final = {
    "sssom": "sssom.tsv",
    "clusters": "clusters.parquet",
    "embeddings": "embeddings.parquet",
    "stcm": "stcm.csv",
    "crm": "crm.csv",
    "usagi": "usagi.csv",
    "fhir-r4": "r4.json",
    "fhir-r5": "r5.json",
    "csv": "csv",
    "parquet": "parquet",
    "graphml": "graphml",
    "edges-csv": "edges.csv",
}
"""How a format's file ends."""
MEDIA: Final = {
    "tsv": "text/tab-separated-values; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
    "graphml": "application/xml",
    "md": "text/markdown; charset=utf-8",
    "html": "text/html; charset=utf-8",
}
CONCEPT_MAP: Final = "concept-map"
"""The R4 resource under the id that this service gives it."""
_NO_GRAPH: Final = "this version was published without a graph"


class Exports:
    """Makes and keeps the formats of versions.

    They lie in `releases/vN-exports`, so that they go with what they were made from when a site withdraws.

    Args:
        library: of the coordinator.
        vocabulary: folder of the OMOP vocabularies; None without.
    """

    def __init__(self, library: Library, vocabulary: Path | None) -> None:
        self.library, self.vocabulary = library, vocabulary
        self._locks: dict[tuple[str, str], Lock] = {}
        self._made: dict[tuple[str, str], Download] = {}
        self._lock = Lock()

    def why_not(self, form: str, manifest: PublishedManifest | None = None) -> str:
        """Why a format cannot be had here, or of the version with this manifest; "" if it can."""
        if form in RELATED and manifest is not None and not has_graph(manifest):
            return _NO_GRAPH
        if form in WITH_CONCEPTS and self.vocabulary is None:
            return "it names concept ids, and [web] vocabulary names no folder of OMOP vocabularies"
        return ""

    def get(self, version: Version, form: str) -> Download:
        """The file of a format; blocks while it is made.

        Raises:
            ServiceError: 404, no such format; 409, it cannot be had here; 410, the version was withdrawn meanwhile.
            FederationError: it cannot be made from this release.
        """
        if form not in {*FORMATS, CONCEPT_MAP}:
            raise ServiceError(
                404, f"There is no format {form!r}"[:120], do=f"Take one of {', '.join(FORMATS)}"
            )
        why = self.why_not(form)
        if form in RELATED and not (version.folder / EDGES).is_file():
            why = _NO_GRAPH
        if why:
            raise ServiceError(409, f"The format {form} cannot be had here", why=why)
        key = (version.digest, form)
        with self._lock:
            lock = self._locks.setdefault(key, Lock())
        with lock:
            found = self._made.get(key)
            if found is None or not found.path.is_file():
                found = self._made[key] = self._make(version, form)
        return found

    def _make(self, version: Version, form: str) -> Download:
        suffix = "json" if form == CONCEPT_MAP else SUFFIX[form]
        kept = version.folder.with_name(f"{version.folder.name}-exports") / self._edition(version, form)
        path = kept / f"{form}.{suffix}"
        if not path.is_file():
            kept.mkdir(parents=True, exist_ok=True, mode=0o700)
            if form == CONCEPT_MAP:
                self._concept_map(version, path)
            else:
                export_release(
                    version.folder,
                    path,
                    form,
                    trust=self.library.home.keys.public(),
                    vocabulary=None if form in {*COPIED, *RELATED} else self.vocabulary,
                )
        if self.library.version(version.number).withdrawn is not None:
            path.unlink(missing_ok=True)
            raise ServiceError(410, f"Version {version.number} was withdrawn")
        study = self.library.home.study.id
        return Download(
            path,
            f"{study}-v{version.number}.{suffix}",
            path.stat().st_size,
            file_digest(path),
            media_type(path.name),
        )

    def _concept_map(self, version: Version, path: Path) -> None:
        resource = json.loads(self.get(version, "fhir-r4").path.read_bytes())
        named = {"resourceType": "ConceptMap", "id": f"v{version.number}"} | resource
        write_atomic(path, json.dumps(named, ensure_ascii=False, separators=(",", ":")))

    def _edition(self, version: Version, form: str) -> str:
        """What the file depends on: release, software, and vocabularies."""
        parts = [version.digest, coordinator_digest()]
        if self.vocabulary is not None and form not in {*COPIED, *RELATED}:
            parts += [
                f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}"
                for p in sorted(self.vocabulary.glob("*.csv"))
            ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def media_type(name: str) -> str:
    """Of a file, by its ending."""
    return MEDIA.get(name.rpartition(".")[2], "application/octet-stream")
