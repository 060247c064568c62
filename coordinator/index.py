"""Building the nearest-code index of a release; `CodeIndex` reads it on either side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import hnswlib
import numpy as np

from protocol.arrays import FloatMatrix, encode_arrays
from protocol.codeindex import HNSW, LABELS, VECTORS, CodeIndex, Hit

M, EF_CONSTRUCTION = 32, 400
"""Links a node and build effort, as in the published cohort-search system."""


def write_index(folder: Path, codes: Sequence[str], vectors: FloatMatrix) -> None:
    """Write vectors, labels and an HNSW graph over them; equal input gives equal files.

    Args:
        folder: the release folder; its `index/` is made.
        codes: n labels in row order.
        vectors: (n, d) rows of unit length.
    """
    (folder / "index").mkdir()
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    (folder / VECTORS).write_bytes(encode_arrays({"vectors": vectors}, {}))
    (folder / LABELS).write_text(json.dumps(list(codes), ensure_ascii=False), encoding="utf-8")
    index = hnswlib.Index(space="cosine", dim=vectors.shape[1])
    index.init_index(max_elements=len(codes), M=M, ef_construction=EF_CONSTRUCTION, random_seed=0)
    # One thread: the order of insertion, and so the file, is the same every time.
    index.add_items(vectors, np.arange(len(codes)), num_threads=1)
    index.save_index(str(folder / HNSW))


__all__ = ["CodeIndex", "Hit", "write_index"]
