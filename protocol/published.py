"""A published release: one folder whose signed manifest names every file in it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from pydantic import ValidationError

from protocol.canonical import canonical_json, file_digest
from protocol.envelope import pae
from protocol.errors import ProtocolError
from protocol.files import write_atomic
from protocol.keys import PrivateKeys, PublicKeys
from protocol.messages import FileSpec, PublishedManifest

MANIFEST = "manifest.json"
_MAX_MANIFEST = 16 << 20


def list_files(folder: Path) -> tuple[FileSpec, ...]:
    """Every file below the folder but the manifest, by name."""
    return tuple(
        FileSpec(name=p.relative_to(folder).as_posix(), bytes=p.stat().st_size, sha256=file_digest(p))
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    )


def sign_manifest(folder: Path, manifest: PublishedManifest, keys: PrivateKeys) -> None:
    """Write `manifest.json`: the manifest, readable, and the signature over its canonical JSON."""
    document = {
        "manifest": manifest.model_dump(mode="json"),
        "signed_by": keys.public().model_dump(mode="json"),
        "signature": base64.b64encode(keys.sign(_signed(manifest))).decode(),
    }
    write_atomic(folder / MANIFEST, json.dumps(document, indent=1, ensure_ascii=False) + "\n", mode=0o644)


def verify_folder(folder: Path, trust: PublicKeys) -> PublishedManifest:
    """The manifest, if `trust` signed it and the folder holds exactly the files that it names.

    Raises:
        ProtocolError: a file is missing, altered or not listed, or the manifest is malformed.
        EnvelopeError: the signature does not hold.
    """
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ProtocolError(f"The manifest in {folder} is too large")
        document = json.loads(path.read_bytes())
        manifest = PublishedManifest.model_validate_json(json.dumps(document["manifest"]))
        signature = base64.b64decode(document["signature"], validate=True)
    except FileNotFoundError:
        raise ProtocolError(f"{folder} is no published release", why="it has no manifest.json") from None
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError):
        raise ProtocolError(f"The manifest in {folder} does not follow the protocol") from None
    trust.verify(signature, _signed(manifest))
    found = {f.name: f for f in list_files(folder)}
    listed = {f.name: f for f in manifest.files}
    for name in sorted(found.keys() | listed.keys()):
        if found.get(name) != listed.get(name):
            what = "missing" if name not in found else "not listed" if name not in listed else "altered"
            raise ProtocolError(
                f"The file {name} of the release in {folder} is {what}",
                do="Fetch the release again; do not use this copy",
            )
    return manifest


def _signed(manifest: PublishedManifest) -> bytes:
    return pae(b"smile/published", canonical_json(manifest))
