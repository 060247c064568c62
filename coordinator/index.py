"""Building the nearest-code index of a release; `CodeIndex` reads it on either side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import numpy.typing as npt

from protocol.arrays import FloatMatrix, encode_arrays
from protocol.codeindex import EXACT_ROWS, GRAPH, HNSW, LABELS, MAX_EF, VECTORS, CodeIndex, Hit

IntMatrix = npt.NDArray[np.intp]

M, EF_CONSTRUCTION = 16, 200
"""Links a node and build effort."""
ENOUGH = 0.995
"""Share of the nearest codes that the graph must find at publication; the promise to readers is .99."""
_EFFORTS = (64, 96, 128, 192, 256, 384, 512, 768, MAX_EF)
_SAMPLE, _NEAREST, _BATCH = 500, 10, 50


def write_index(folder: Path, codes: Sequence[str], vectors: FloatMatrix) -> None:
    """Write vectors, labels and an HNSW graph over them; equal input gives equal files.

    The metadata of the vectors' file say with which effort (`ef`) the graph finds `ENOUGH`, and what share (`recall`) it then
    finds, measured on codes of this release. Where no effort suffices `ef` is 0 and there is no graph.

    Args:
        folder: the release folder; its `index/` is made.
        codes: n labels in row order.
        vectors: (n, d) rows of unit length.
    """
    (folder / "index").mkdir()
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    graph = build_graph(vectors)
    ef, recall = choose_effort(graph, vectors)
    # One entry: safetensors writes several in any order.
    told = {GRAPH: json.dumps({"ef": ef, "recall": round(recall, 4)})}
    (folder / VECTORS).write_bytes(encode_arrays({"vectors": vectors}, told))
    (folder / LABELS).write_text(json.dumps(list(codes), ensure_ascii=False), encoding="utf-8")
    if ef:
        graph.save_index(str(folder / HNSW))


def build_graph(vectors: FloatMatrix) -> Any:
    """An hnswlib index over (n, d) unit rows, labelled by their numbers."""
    index = hnswlib.Index(space="cosine", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), M=M, ef_construction=EF_CONSTRUCTION, random_seed=0)
    # One thread: the order of insertion, and so the file, is the same every time.
    index.add_items(vectors, np.arange(len(vectors)), num_threads=1)
    return index


def choose_effort(graph: Any, vectors: FloatMatrix) -> tuple[int, float]:
    """The least effort with which a graph finds `ENOUGH` of the ten nearest rows, and the share that it finds.

    Asked are up to 500 rows, evenly spread, and as many points halfway between each and its tenth neighbour: a row is
    linked to its own neighbours, so that what is not in the graph is harder to find. What is as near as the last of the true
    neighbours counts as found: equal vectors have no order.

    A search looks at no more than 2 M ef rows, scattered; that costs as much as all rows in turn where they are twice as many.

    Returns:
        ef and recall; 0 and 1, for exact search, where no effort suffices that is cheaper than it.
    """
    n = len(vectors)
    k = min(_NEAREST, n)
    rows = vectors[np.unique(np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.intp))]
    between = rows + vectors[_nearest(vectors, rows, k)[:, -1]]
    asked = np.vstack([rows, between / np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-12)])
    last = _cosines(vectors, _nearest(vectors, asked, k), asked)[:, -1:]
    for ef in _EFFORTS:
        if ef > max(_EFFORTS[0], n // (4 * M)):
            break
        graph.set_ef(ef)
        try:
            found, _ = graph.knn_query(asked, k=k, num_threads=1)
        except RuntimeError:
            # Not so many can be reached.
            continue
        recall = float((_cosines(vectors, found.astype(np.intp), asked) >= last - 1e-6).mean())
        if recall >= ENOUGH:
            return ef, recall
    return 0, 1.0


def _nearest(vectors: FloatMatrix, asked: FloatMatrix, k: int) -> IntMatrix:
    """(q, k) rows with the largest cosines, the k-th last."""
    found = []
    for start in range(0, len(asked), _BATCH):
        cosines = asked[start : start + _BATCH] @ vectors.T
        # Sorted at that place only: the last of the k is the k-th.
        found.append(np.argpartition(-cosines, k - 1, axis=1)[:, :k])
    return np.concatenate(found)


def _cosines(vectors: FloatMatrix, rows: IntMatrix, asked: FloatMatrix) -> FloatMatrix:
    return np.asarray(np.einsum("qkd,qd->qk", vectors[rows], asked))


__all__ = ["EXACT_ROWS", "CodeIndex", "Hit", "build_graph", "choose_effort", "write_index"]
