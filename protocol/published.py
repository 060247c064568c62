"""A published release: one folder whose signed manifest names every file in it.

A version that was fitted with the release of a site which has since withdrawn is marked: beside its files
lies `withdrawn-SITE.json`, the signed `Tombstone`. A marked version does not verify. Where its files were
erased, the mark alone is left.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pydantic import ValidationError

from protocol.canonical import canonical_json, digest, file_digest
from protocol.envelope import pae
from protocol.errors import ProtocolError
from protocol.files import write_atomic
from protocol.keylist import VerifiedKeys
from protocol.keys import PrivateKeys, PublicKeys
from protocol.messages import FileSpec, PublishedManifest, Tombstone
from protocol.signed import open_signed, sign_message

Trust: TypeAlias = PublicKeys | VerifiedKeys
"""The coordinator's key, or its keys as a site has followed them."""
MANIFEST = "manifest.json"
_MARKS = "withdrawn-*.json"
MAX_MANIFEST = 16 << 20
_AGAIN = "Fetch the release again; do not use this copy"


def list_files(folder: Path) -> tuple[FileSpec, ...]:
    """Every file below the folder but the manifest, by name."""
    return tuple(_spec(folder, name) for name in _names(folder))


def sign_manifest(folder: Path, manifest: PublishedManifest, keys: PrivateKeys) -> None:
    """Write `manifest.json`: the manifest, readable, and the signature over its canonical JSON."""
    document = {
        "manifest": manifest.model_dump(mode="json"),
        "signed_by": keys.public().model_dump(mode="json"),
        "signature": base64.b64encode(keys.sign(_signed(manifest))).decode(),
    }
    write_atomic(folder / MANIFEST, json.dumps(document, indent=1, ensure_ascii=False) + "\n", mode=0o644)


def mark_withdrawn(folder: Path, tombstone: Tombstone, keys: PrivateKeys) -> None:
    """Mark a version as one that nobody should use any more; its other files are left as they are."""
    write_atomic(folder / f"withdrawn-{tombstone.site}.json", sign_message(tombstone, keys), mode=0o644)


def marks(folder: Path, trust: Trust) -> list[Tombstone]:
    """The withdrawals with which a version is marked.

    Raises:
        ProtocolError: a mark is malformed.
        EnvelopeError: `trust` did not sign it.
    """
    signer = trust if isinstance(trust, PublicKeys) else trust.current
    return [open_signed(p.read_bytes(), Tombstone, signer) for p in sorted(folder.glob(_MARKS))]


def verify_folder(folder: Path, trust: Trust, *, withdrawn: bool = False) -> PublishedManifest:
    """The manifest, if `trust` signed it and the folder holds exactly the files that it names.

    Args:
        folder: of one version.
        trust: who may have signed.
        withdrawn: accept a version that is marked as withdrawn.

    Raises:
        ProtocolError: a file is missing, altered or not listed, the manifest is malformed, or the version
            is withdrawn.
        EnvelopeError: the signature does not hold.
    """
    if not withdrawn and (found_marks := marks(folder, trust)):
        raise _withdrawn(folder, found_marks[0])
    path = folder / MANIFEST
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise ProtocolError(f"The manifest in {folder} is too large")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ProtocolError(f"{folder} is no published release", why="it has no manifest.json") from None
    manifest = verify_manifest(data, trust, where=str(folder))
    found, listed = set(_names(folder)), {f.name: f for f in manifest.files}
    for name in sorted(found | listed.keys()):
        what = "missing" if name not in found else "not listed" if name not in listed else ""
        if what or _spec(folder, name) != listed[name]:
            what = what or "altered"
            raise ProtocolError(
                f"The file {name} of the release in {folder} is {what}",
                do=_AGAIN,
            )
    return manifest


def verify_manifest(data: bytes, trust: Trust, *, where: str) -> PublishedManifest:
    """The manifest in the bytes of a `manifest.json`, if `trust` signed it; nothing is said of the files.

    Args:
        data: of the file.
        trust: who may have signed.
        where: named in messages.

    Raises:
        ProtocolError: the manifest is malformed.
        EnvelopeError: the signature does not hold.
    """
    document = _document(data, where)
    known = trust if isinstance(trust, PublicKeys) else trust.key(document.signer.digest)
    known.verify(document.signature, _signed(document.manifest))
    return document.manifest


def claimed_signer(data: bytes, *, where: str) -> PublicKeys:
    """The keys that a `manifest.json` says it was signed with: a claim, to be compared with what people were told.

    Raises:
        ProtocolError: the manifest is malformed.
    """
    return _document(data, where).signer


class _Document(NamedTuple):
    manifest: PublishedManifest
    signer: PublicKeys
    signature: bytes


def _document(data: bytes, where: str) -> _Document:
    try:
        document = json.loads(data.decode())
        return _Document(
            PublishedManifest.model_validate_json(json.dumps(document["manifest"])),
            PublicKeys.model_validate(document["signed_by"]),
            base64.b64decode(document["signature"], validate=True),
        )
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError):
        raise ProtocolError(f"The manifest in {where} does not follow the protocol") from None


def read_listed(folder: Path, manifest: PublishedManifest, name: str) -> bytes:
    """The bytes of one file of a release, if they are those that the manifest names.

    For what a parser is given after `verify_folder`: the very bytes that it gets are the ones
    whose digest was compared, whatever became of the file in between.

    Raises:
        ProtocolError: the manifest lists no such file, or it is missing or altered.
    """
    listed = next((f for f in manifest.files if f.name == name), None)
    try:
        data = (folder / name).read_bytes() if listed else b""
    except OSError:
        listed = None
    if listed is None:
        raise ProtocolError(f"The release in {folder} has no file {name}", do=_AGAIN)
    if digest(data) != listed.sha256:
        raise ProtocolError(
            f"The file {name} of the release in {folder} changed while it was read", do=_AGAIN
        )
    return data


def _names(folder: Path) -> list[str]:
    left_out = {folder / MANIFEST, *folder.glob(_MARKS)}
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p not in left_out)
    return [p.relative_to(folder).as_posix() for p in files]


def _spec(folder: Path, name: str) -> FileSpec:
    path = folder / name
    return FileSpec(name=name, bytes=path.stat().st_size, sha256=file_digest(path))


def _signed(manifest: PublishedManifest) -> bytes:
    return pae(b"smile/published", canonical_json(manifest))


def _withdrawn(folder: Path, tombstone: Tombstone) -> ProtocolError:
    return ProtocolError(
        f"The release in {folder} was withdrawn on {tombstone.at:%Y-%m-%d}",
        why=f"site {tombstone.site} has left the study: {tombstone.reason}",
        do="Use the newest version, and delete your copies of this one",
    )
