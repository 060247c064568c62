"""`Release` and its bytes: the arrays and the manifest that describes each of them.

Only the site's gate and `decode_release` make a `Release`; only the coordinator's
intake makes a `VerifiedRelease`. Tests hold both rules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from protocol.arrays import FloatMatrix, IntVector, decode_arrays, encode_arrays
from protocol.canonical import canonical_json
from protocol.errors import ProtocolError
from protocol.messages import ArraySpec, ReleaseManifest
from protocol.signed import parse

CODE_PATIENTS = "code-patients"
COOCCURRENCE = "cooccurrence"
"""Name of the view that every release has."""
TEXT = "text"
"""Name of the view of descriptions."""
_MANIFEST = "manifest"


@dataclass(frozen=True)
class SourceView:
    """What one way of looking at a site's codes says of them.

    Attributes:
        name: the view's name in the study, such as `cooccurrence`.
        rows: int32 (m,) rows of the site's code list, increasing.
        matrix: float32 (m, p), one row a code.
    """

    name: str
    rows: IntVector
    matrix: FloatMatrix


@dataclass(frozen=True)
class Release:
    """A gated release: what leaves, and nothing else."""

    manifest: ReleaseManifest
    arrays: Mapping[str, npt.NDArray[Any]]

    def views(self) -> tuple[SourceView, ...]:
        """The source views, in the manifest's order."""
        return _views(self)


@dataclass(frozen=True)
class VerifiedRelease:
    """A release that was opened, verified and bound to the study, the round and the site's sequence."""

    manifest: ReleaseManifest
    arrays: Mapping[str, npt.NDArray[Any]]
    round: str
    signer: str

    def views(self) -> tuple[SourceView, ...]:
        """The source views, in the manifest's order."""
        return _views(self)


def _views(release: Release | VerifiedRelease) -> tuple[SourceView, ...]:
    names = [s.name.split("/")[1] for s in release.manifest.arrays if s.name.endswith("/matrix")]
    return tuple(
        SourceView(n, release.arrays[f"view/{n}/rows"], release.arrays[f"view/{n}/matrix"]) for n in names
    )


def view_arrays(view: SourceView) -> dict[str, npt.NDArray[Any]]:
    """The arrays under which a view travels."""
    return {
        f"view/{view.name}/rows": np.asarray(view.rows, dtype="<i4"),
        f"view/{view.name}/matrix": np.asarray(view.matrix, dtype="<f4"),
    }


def describe(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[ArraySpec, ...]:
    """Name, type, shape and digest of each array, by name."""
    return tuple(
        ArraySpec(
            name=name,
            dtype=cast(Any, array.dtype.name),
            shape=array.shape,
            sha256=hashlib.sha256(np.ascontiguousarray(array).data).hexdigest(),
        )
        for name, array in sorted(arrays.items())
    )


def encode_release(release: Release) -> bytes:
    """One safetensors file whose metadata hold the manifest."""
    return encode_arrays(release.arrays, {_MANIFEST: canonical_json(release.manifest).decode()})


def decode_release(data: bytes) -> Release:
    """Parse and check a release against its own manifest.

    Raises:
        ProtocolError: damaged, or arrays and manifest do not agree.
    """
    arrays, metadata = decode_arrays(data)
    if _MANIFEST not in metadata:
        raise ProtocolError("The release has no manifest")
    manifest = parse(metadata[_MANIFEST].encode(), ReleaseManifest)
    try:
        described = describe(arrays)
    except ValidationError:
        raise ProtocolError("The release holds an array whose name, type or shape no release has") from None
    if described != manifest.arrays:
        raise ProtocolError("The release's arrays are not those of its manifest")
    _check_shapes(manifest, arrays)
    return Release(manifest, MappingProxyType(arrays))


def _check_shapes(manifest: ReleaseManifest, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Everything that later steps rely on, so that a hostile release fails here and nowhere else."""
    n = len(manifest.codes)
    if len(set(manifest.codes)) != n:
        raise ProtocolError("The release lists a code twice")
    if any(a.row >= n for a in manifest.anchors):
        raise ProtocolError("An anchor points past the release's codes")
    names = set(arrays) - {CODE_PATIENTS}
    patients = arrays.get(CODE_PATIENTS)
    if patients is None or patients.shape != (n,) or patients.dtype != np.int64:
        raise ProtocolError("The release has no patient count for each code")
    if (patients < 0).any():
        raise ProtocolError("The release has a negative patient count")
    views = {name.split("/")[1] for name in names if name.count("/") == 2}
    if names != {f"view/{v}/{part}" for v in views for part in ("rows", "matrix")} or not views:
        raise ProtocolError("The release's arrays are not whole views")
    for view in views:
        rows, matrix = arrays[f"view/{view}/rows"], arrays[f"view/{view}/matrix"]
        if rows.dtype != np.int32 or rows.ndim != 1 or matrix.dtype != np.float32 or matrix.ndim != 2:
            raise ProtocolError(f"View {view!r} has arrays of a wrong type or shape")
        if (
            rows.size == 0
            or matrix.shape[0] != rows.size
            or not 1 <= matrix.shape[1] <= manifest.policy.max_dim
        ):
            raise ProtocolError(f"View {view!r} has a matrix of a wrong shape")
        if rows[0] < 0 or rows[-1] >= n or (np.diff(rows) <= 0).any():
            raise ProtocolError(f"View {view!r} has rows that are not increasing rows of the code list")
