"""The patients nearest to a vector: exactly, or by an HNSW graph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from site_agent.sources import Progress, silent

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]

M, EF_CONSTRUCTION, EF = 32, 400, 128
"""Links of a node, candidates while building, candidates while searching: those of the ARCH paper's cohort search."""
EXACT_ROWS = 20_000
"""Up to so many rows all cosines are computed: that takes no longer than the graph does, and misses nothing."""
_SPARE = 2
_BLOCK = 1 << 14


def build_graph(vectors: Vectors, *, threads: int = 1, progress: Progress = silent) -> Any:
    """An HNSW graph of the rows that are not zero, labelled by their row; None where hnswlib is not installed.

    Args:
        vectors: (n, d) unit rows, or zero rows.
        threads: with one, equal rows give an equal graph.
        progress: told the share done.
    """
    try:
        import hnswlib  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    graph = hnswlib.Index(space="ip", dim=vectors.shape[1])
    graph.init_index(max_elements=max(1, len(vectors)), M=M, ef_construction=EF_CONSTRUCTION, random_seed=0)
    for start in range(0, len(vectors), _BLOCK):
        progress("building the search graph", start / len(vectors))
        block = np.asarray(vectors[start : start + _BLOCK])
        held = np.flatnonzero(block.any(axis=1))
        if held.size:
            graph.add_items(block[held], start + held, num_threads=threads)
    graph.set_ef(EF)
    return graph


def load_graph(path: Path, n: int, dim: int) -> Any:
    """A graph whose file was written by `build_graph`, or None where hnswlib is not installed; its bytes are believed."""
    try:
        import hnswlib  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    graph = hnswlib.Index(space="ip", dim=dim)
    graph.load_index(str(path), max_elements=max(1, n))
    graph.set_ef(EF)
    return graph


@dataclass(frozen=True, eq=False)
class PatientIndex:
    """Unit vectors of patients, and maybe a graph over them.

    Attributes:
        vectors: (n, d) unit rows; zero rows are never found.
        graph: of `build_graph` or `load_graph`, or None for exact search.
    """

    vectors: Vectors
    graph: Any = None

    def search(
        self, vector: npt.ArrayLike, k: int, *, allowed: Flags | None = None
    ) -> tuple[Rows, npt.NDArray[np.float32]]:
        """The k rows with the largest cosine, best first; of equals the first row.

        With few allowed rows, or so large a k that the graph would look at a tenth of all, all cosines are computed.

        Args:
            vector: (d,) of unit length.
            k: how many; fewer if there are not so many.
            allowed: (n,) which rows may be found; all if None.

        Returns:
            (m,) rows and their cosines.
        """
        query = np.asarray(vector, dtype=np.float32)
        n, count = len(self.vectors), len(self.vectors) if allowed is None else int(allowed.sum())
        if self.graph is not None and count > EXACT_ROWS:
            asked = k if allowed is None else math.ceil(_SPARE * k * n / count)
            if asked <= n // 10:
                found = self._by_graph(query, k, asked, allowed)
                if found is not None:
                    return found
        return self._exact(query, k, allowed)

    def _by_graph(
        self, query: Vectors, k: int, asked: int, allowed: Flags | None
    ) -> tuple[Rows, npt.NDArray[np.float32]] | None:
        if asked > EF:
            self.graph.set_ef(2 * asked)
        try:
            labels, _ = self.graph.knn_query(query[None, :], k=asked, num_threads=1)
        except RuntimeError:
            return None  # fewer can be reached, as where very many rows are equal
        finally:
            if asked > EF:
                self.graph.set_ef(EF)
        rows = labels[0].astype(np.intp)
        if allowed is not None:
            rows = rows[allowed[rows]]
        if len(rows) < k:
            return None
        # Rows in order of the disk: a third of the page faults.
        rows = np.sort(rows)
        return _best(rows, np.asarray(self.vectors[rows]) @ query, k)

    def _exact(self, query: Vectors, k: int, allowed: Flags | None) -> tuple[Rows, npt.NDArray[np.float32]]:
        rows, cosines = np.empty(0, dtype=np.intp), np.empty(0, dtype=np.float32)
        for start in range(0, len(self.vectors), _BLOCK):
            block = self.vectors[start : start + _BLOCK]
            if allowed is None:
                places = np.arange(start, start + len(block))
                near = np.asarray(block) @ query
            else:
                inside = np.flatnonzero(allowed[start : start + _BLOCK])
                if not inside.size:
                    continue
                places, near = start + inside, np.asarray(block[inside]) @ query
            # A zero row has cosine 0 with everything; so has hardly any other.
            zero = np.flatnonzero(near == 0.0)
            if zero.size:
                empty = zero[~np.asarray(self.vectors[places[zero]]).any(axis=1)]
                places, near = np.delete(places, empty), np.delete(near, empty)
            few, best = _best(places, near, k)
            rows, cosines = _best(np.append(rows, few), np.append(cosines, best), k)
        return rows, cosines


def _best(rows: Rows, cosines: npt.NDArray[Any], k: int) -> tuple[Rows, npt.NDArray[np.float32]]:
    if 0 < k < len(rows):
        least = np.partition(cosines, len(rows) - k)[len(rows) - k]
        near = cosines >= least
        rows, cosines = rows[near], cosines[near]
    order = np.lexsort((rows, -cosines))[: max(k, 0)]
    return rows[order], np.asarray(cosines[order], dtype=np.float32)
