"""Downloads: the files of a release as they were signed, and every format that is made from them."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from coordinator.exports.formats import FORMATS
from coordinator.web import models as m
from coordinator.web.access import require
from coordinator.web.exported import MEDIA, Exports, media_type
from coordinator.web.heavy import run_heavy
from coordinator.web.problems import ServiceError
from coordinator.web.ranged import Download, send_file
from coordinator.web.reading import Opened, Reading, VersionPath, number_of
from coordinator.web.shelf import Shelf
from protocol.canonical import file_digest
from protocol.published import MANIFEST

router = APIRouter(prefix="/api/v1", dependencies=[Depends(require("analyst"))], tags=["downloads"])
_KINDS: dict[str, Any] = {kind: {} for kind in ("application/octet-stream", *MEDIA.values())}
BYTES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": _KINDS},
    206: {"description": "The part that Range asked for.", "content": _KINDS},
    304: {"description": "Unchanged: If-None-Match names its ETag, which is its SHA-256."},
}


@router.get("/releases/{version}/files")
async def files(reading: Opened) -> m.FileList:
    """The files of a version: what `manifest.json` signs, and itself. Together they verify offline."""
    listed = [
        m.FileLine(name=f.name, bytes=f.bytes, sha256=f.sha256, path=_path(reading, f.name))
        for f in reading.release.manifest.files
    ]
    own = await run_in_threadpool(_manifest, reading)
    listed.append(m.FileLine(name=MANIFEST, bytes=own.size, sha256=own.sha256, path=_path(reading, MANIFEST)))
    return m.FileList(version=reading.number, files=listed)


@router.get("/releases/{version}/files/{name:path}", response_class=Response, responses=BYTES)
async def file(
    request: Request,
    reading: Opened,
    name: Annotated[str, Path(max_length=200, description="As listed.", examples=["mappings.sssom.tsv"])],
) -> Response:
    """One file of a version, byte for byte; with Range and If-Range a download goes on where it broke off."""
    if name == MANIFEST:
        return send_file(request, await run_in_threadpool(_manifest, reading))
    # Only names that the manifest signs: a path never comes from the request.
    found = next((f for f in reading.release.manifest.files if f.name == name), None)
    if found is None:
        raise ServiceError(404, f"Version {reading.number} has no such file", do="List them at …/files")
    saved = f"v{reading.number}-{FilePath(found.name).name}"
    path = reading.release.folder / found.name
    return send_file(request, Download(path, saved, found.bytes, found.sha256, media_type(found.name)))


@router.get("/releases/{version}/exports")
async def exports(request: Request, reading: Opened) -> m.ExportList:
    """The formats that analysts' tools read."""
    kept: Exports = request.app.state.exports
    manifest = reading.release.manifest
    return m.ExportList(
        version=reading.number,
        formats=[
            m.ExportLine(
                format=form,
                available=not kept.why_not(form, manifest),
                why=kept.why_not(form, manifest),
                path=f"/api/v1/releases/{reading.number}/exports/{form}",
            )
            for form in FORMATS
        ],
    )


@router.get("/releases/{version}/exports/{form}", response_class=Response, responses=BYTES)
async def export(
    request: Request,
    version: VersionPath,
    form: Annotated[str, Path(max_length=40, description="As listed.", examples=["fhir-r4"])],
) -> Response:
    """A version in one format. Whoever asks first waits for it to be made."""
    shelf: Shelf = request.app.state.shelf
    kept: Exports = request.app.state.exports
    found = await shelf.version(number_of(version))
    return send_file(request, await run_heavy(lambda: kept.get(found, form)))


def _path(reading: Reading, name: str) -> str:
    return f"/api/v1/releases/{reading.number}/files/{name}"


def _manifest(reading: Reading) -> Download:
    path = reading.release.folder / MANIFEST
    name = f"v{reading.number}-{MANIFEST}"
    return Download(path, name, path.stat().st_size, file_digest(path), "application/json")
