"""Nearest codes of a published release, exact or by HNSW, loaded only after verification."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from protocol.arrays import FloatMatrix, FloatVector, decode_arrays
from protocol.errors import ProtocolError, UsageError
from protocol.published import Trust, read_listed, verify_folder

VECTORS, LABELS, HNSW = "index/vectors.safetensors", "index/labels.json", "index/hnsw.bin"


@dataclass(frozen=True)
class Hit:
    """A code near the query, and the cosine of the two."""

    code: str
    similarity: float


@dataclass(frozen=True)
class CodeIndex:
    """Codes and their unit vectors.

    Attributes:
        codes: n CURIEs, the labels of the rows.
        vectors: float32 (n, d), unit rows.
        hnsw: a loaded hnswlib index over the same rows, or None for exact search.
    """

    codes: tuple[str, ...]
    vectors: FloatMatrix
    hnsw: Any = None

    @classmethod
    def load(cls, release: Path, *, trust: Trust, exact: bool = False) -> Self:
        """Verify the whole release folder, then read its index.

        hnswlib crashes on hostile bytes, so it sees the file only after the
        release's signature and the file's digest hold, and then as a private copy of
        the bytes whose digest was compared: nobody can exchange the file in between.
        It still believes what the coordinator signed; `exact` believes nothing but the
        vectors. Where hnswlib is not installed, search is exact too: a matrix product.

        Raises:
            ProtocolError: the release is not what the manifest says.
            EnvelopeError: its signature does not hold.
        """
        manifest = verify_folder(release, trust)
        arrays, _ = decode_arrays(read_listed(release, manifest, VECTORS))
        codes, vectors = _labels(read_listed(release, manifest, LABELS)), arrays.get("vectors")
        if vectors is None or vectors.ndim != 2 or len(codes) != len(vectors):
            raise ProtocolError(f"The index in {release} does not hold one vector a code")
        hnsw = None
        if not exact and _hnswlib() is not None:
            hnsw = _load_hnsw(read_listed(release, manifest, HNSW), *vectors.shape)
        return cls(codes, vectors, hnsw)

    def search(self, query: str | FloatVector, k: int = 10) -> list[Hit]:
        """The k codes with the largest cosine to a code or a vector, best first; the code itself is left out.

        Raises:
            UsageError: the code is not in the release, or the vector has another length.
        """
        row = self.row(query) if isinstance(query, str) else None
        vector = self.vectors[row] if row is not None else np.asarray(query, dtype=np.float32)
        if vector.shape != self.vectors.shape[1:]:
            raise UsageError(f"The query has shape {vector.shape}, the index {self.vectors.shape[1:]}")
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        wanted = min(k + (row is not None), len(self.codes))
        rows = self._nearest(vector, wanted)
        cosines = self.vectors[rows] @ vector
        hits = [
            Hit(self.codes[r], float(c))
            for r, c in sorted(zip(rows, cosines, strict=True), key=lambda x: -x[1])
        ]
        own = self.codes[row] if row is not None else None
        return [h for h in hits if h.code != own][:k]

    def row(self, code: str) -> int:
        """The row of a CURIE, or of a bare code that only one system has.

        Raises:
            UsageError: no code, or several, are meant.
        """
        exact = [i for i, c in enumerate(self.codes) if c == code]
        found = exact or [i for i, c in enumerate(self.codes) if c.partition(":")[2] == code]
        if not found:
            raise UsageError(
                f"The code {code!r} is not in this release",
                why="it was never seen, suppressed at its site, or is local to another site",
                do="Write it as PREFIX:code, with dots as at the source",
            )
        if len(found) > 1:
            raise UsageError(
                f"{code!r} is a code of several systems",
                do="Write one of " + ", ".join(self.codes[i] for i in found),
            )
        return found[0]

    def _nearest(self, vector: FloatVector, k: int) -> Sequence[int]:
        if self.hnsw is None:
            cosines = self.vectors @ vector
            rows = np.argpartition(-cosines, k - 1)[:k]
            return [int(r) for r in rows]
        self.hnsw.set_ef(max(200, 2 * k))
        labels, _ = self.hnsw.knn_query(vector[None, :], k=k)
        return [int(r) for r in labels[0]]


def _labels(data: bytes) -> tuple[str, ...]:
    try:
        labels = json.loads(data.decode())
    except (ValueError, RecursionError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(code, str) for code in labels):
        raise ProtocolError("The labels of the index are not a list of codes")
    return tuple(labels)


def _hnswlib() -> Any:
    try:
        import hnswlib  # noqa: PLC0415 - an extra that a site may leave out
    except ImportError:
        return None
    return hnswlib


def _load_hnsw(data: bytes, n: int, dim: int) -> Any:
    index = _hnswlib().Index(space="cosine", dim=dim)
    # hnswlib reads a file by its name; this one lies in a folder of mode 0700 that nobody else was told of.
    with tempfile.TemporaryDirectory() as private:
        copy = Path(private) / "hnsw.bin"
        copy.write_bytes(data)
        try:
            index.load_index(str(copy), max_elements=n)
        except RuntimeError as error:
            raise ProtocolError(
                "The HNSW index of the release cannot be loaded", why=str(error)[:200]
            ) from None
    return index
