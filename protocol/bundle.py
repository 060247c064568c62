"""A published release as one file: what travels back to a site inside an envelope."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from protocol.arrays import decode_arrays, encode_arrays
from protocol.errors import ProtocolError
from protocol.files import sync_folder
from protocol.messages import FileSpec, PublishedManifest
from protocol.published import MANIFEST, Trust, list_files, verify_folder

MAX_BUNDLE = 4 << 30


def encode_bundle(folder: Path) -> bytes:
    """All files of a release folder as named byte arrays."""
    names = [MANIFEST, *(f.name for f in list_files(folder))]
    return encode_arrays({n: np.frombuffer((folder / n).read_bytes(), dtype=np.uint8) for n in names}, {})


def unpack_bundle(data: bytes, target: Path, *, trust: Trust, content: str) -> PublishedManifest:
    """Write the files to a temporary folder, verify it as a release, then rename it to `target`.

    Args:
        content: digest of the manifest that the envelope announced.

    Raises:
        ProtocolError: a file name is not allowed, or the files are not what the manifest says.
        EnvelopeError: the manifest's signature does not hold.
    """
    if len(data) > MAX_BUNDLE:
        raise ProtocolError(f"A bundle of {len(data)} bytes is refused")
    arrays, _ = decode_arrays(data)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
    try:
        for name, array in arrays.items():
            _check_name(name)
            path = work / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(array.astype(np.uint8, copy=False).tobytes())
        manifest = verify_folder(work, trust)
        if manifest.digest != content:
            raise ProtocolError("The result's header and manifest do not agree")
        if not target.exists():
            work.chmod(0o755)
            work.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _check_name(name: str) -> None:
    """A file, or a file in one folder; never a path that leaves the release."""
    try:
        FileSpec(name=name, bytes=0, sha256="0" * 64)
    except ValueError:
        raise ProtocolError(f"The bundle holds a file of the forbidden name {name[:80]!r}") from None
