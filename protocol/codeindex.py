"""Nearest codes of a published release, exact or by HNSW, loaded only after verification."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from protocol.arrays import FloatMatrix, FloatVector, decode_arrays
from protocol.errors import ProtocolError, UsageError
from protocol.messages import PublishedManifest
from protocol.published import Trust, read_listed, verify_folder

VECTORS, LABELS, HNSW = "index/vectors.safetensors", "index/labels.json", "index/hnsw.bin"
GRAPH = "graph"
"""Metadata of the vectors' file: JSON with `ef`, the graph's effort, and `recall`, what it then finds."""

EXACT_ROWS = 10_000
"""Up to so many rows all cosines are computed: at 128 dimensions that takes a fifth of a millisecond, and misses nothing."""
MAX_EF = 1024
"""The largest effort that a release may ask for; where it does not suffice, exact search is as fast."""
_SPARE = 2
"""Candidates that the graph is asked for, for each that is wanted: the last ones of a list are found least surely."""
_BATCH = 64

_Rows: TypeAlias = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Hit:
    """A code near the query, and the cosine of the two."""

    code: str
    similarity: float


@dataclass(frozen=True, eq=False)
class CodeIndex:
    """Codes and their unit vectors. Safe for threads: a search changes nothing.

    Attributes:
        codes: n CURIEs, the labels of the rows.
        vectors: float32 (n, d), unit rows.
        hnsw: a loaded hnswlib index over the same rows, its ef set, or None for exact search.
        ef: that effort: how many candidates a search of the graph keeps.
    """

    codes: tuple[str, ...]
    vectors: FloatMatrix
    hnsw: Any = None
    ef: int = 0

    @classmethod
    def load(cls, release: Path, *, trust: Trust, exact: bool = False) -> Self:
        """Verify the whole release folder, then `read` its index.

        Raises:
            ProtocolError: the release is not what the manifest says.
            EnvelopeError: its signature does not hold.
        """
        return cls.read(release, verify_folder(release, trust), exact=exact)

    @classmethod
    def read(cls, release: Path, manifest: PublishedManifest, *, exact: bool = False) -> Self:
        """The index of a release folder that `verify_folder` has accepted.

        hnswlib crashes on hostile bytes, so it sees the file only after the
        release's signature and the file's digest hold, and then as a private copy of
        the bytes whose digest was compared: nobody can exchange the file in between.
        It still believes what the coordinator signed; `exact` believes nothing but the
        vectors. Where hnswlib is not installed, or the release has no graph, search is
        exact too: a matrix product.

        Raises:
            ProtocolError: a file of the index changed since, or does not hold what it should.
        """
        arrays, told = decode_arrays(read_listed(release, manifest, VECTORS))
        codes, vectors = _labels(read_listed(release, manifest, LABELS)), arrays.get("vectors")
        if vectors is None or vectors.ndim != 2 or len(codes) != len(vectors):
            raise ProtocolError(f"The index in {release} does not hold one vector a code")
        hnsw, ef = None, _effort(told)
        if ef and not exact and _hnswlib() is not None:
            hnsw = _load_hnsw(read_listed(release, manifest, HNSW), *vectors.shape)
            # Once, here: it is a field of the graph, which searches in other threads would read halfway.
            hnsw.set_ef(ef)
        return cls(codes, vectors, hnsw, ef)

    def search(
        self, query: str | FloatVector, k: int = 10, *, systems: Collection[str] = frozenset()
    ) -> list[Hit]:
        """The k codes with the largest cosine to a code or a vector, best first; the code itself is left out.

        All cosines are computed where `systems` leave at most `EXACT_ROWS` rows. Above that the graph is asked, if there
        is one, and what it finds is limited to the systems; if less than k is left, all cosines of theirs are.

        Args:
            query: a CURIE, a bare code that only one system has, or (d,).
            k: how many.
            systems: prefixes to which hits are limited; all if empty.

        Raises:
            UsageError: the code is not in the release, or the vector has another length or no direction.
        """
        row = self.row(query) if isinstance(query, str) else None
        vector = self.vectors[row] if row is not None else np.asarray(query, dtype=np.float32)
        return self._hits(self._unit(vector), k, systems, row)

    def search_many(
        self, queries: FloatMatrix, k: int = 10, *, systems: Collection[str] = frozenset()
    ) -> list[list[Hit]]:
        """`search` for each row of (q, d); exact search multiplies many of them at once.

        Raises:
            UsageError: the vectors have another length, or one has no direction.
        """
        vectors = [self._unit(v) for v in np.asarray(queries, dtype=np.float32)]
        if self._asks_graph(systems):
            return [self._hits(v, k, systems, None) for v in vectors]
        spans, found = self._spans(systems), []
        for start in range(0, len(vectors), _BATCH):
            batch = np.stack(vectors[start : start + _BATCH])
            cosines = np.vstack([self.vectors[s] @ batch.T for s in spans] or [np.empty((0, len(batch)))])
            found += [self._best(cosines[:, i], spans, k, None) for i in range(len(batch))]
        return found

    def row(self, code: str) -> int:
        """The row of a CURIE, or of a bare code that only one system has.

        Raises:
            UsageError: no code, or several, are meant.
        """
        exact = self._row_of.get(code)
        found = self._rows_of_bare.get(code, ()) if exact is None else (exact,)
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

    @cached_property
    def _prefixes(self) -> tuple[str, ...]:
        return tuple(sorted({code.partition(":")[0] for code in self.codes}))

    @cached_property
    def _system(self) -> _Rows:
        number = {prefix: i for i, prefix in enumerate(self._prefixes)}
        return np.array([number[code.partition(":")[0]] for code in self.codes], dtype=np.intp)

    @cached_property
    def _rows(self) -> Mapping[str, _Rows]:
        return {prefix: np.flatnonzero(self._system == i) for i, prefix in enumerate(self._prefixes)}

    @cached_property
    def _row_of(self) -> Mapping[str, int]:
        return {code: row for row, code in enumerate(self.codes)}

    @cached_property
    def _rows_of_bare(self) -> Mapping[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for row, code in enumerate(self.codes):
            bare = code.partition(":")[2]
            found[bare] = (*found.get(bare, ()), row)
        return found

    def _unit(self, vector: FloatVector) -> FloatVector:
        if vector.shape != self.vectors.shape[1:]:
            raise UsageError(f"The query has shape {vector.shape}, the index {self.vectors.shape[1:]}")
        length = float(np.linalg.norm(vector))
        if not 0 < length < math.inf:
            raise UsageError("The query has no direction", why="it is zero, or not of finite numbers")
        return vector / length

    def _hits(self, vector: FloatVector, k: int, systems: Collection[str], own: int | None) -> list[Hit]:
        if self._asks_graph(systems):
            rows = self._by_graph(vector, k + (own is not None), systems)
            if rows is not None:
                return self._sorted(rows, self.vectors[rows] @ vector, k, own)
        spans = self._spans(systems)
        cosines = [self.vectors[span] @ vector for span in spans]
        return self._best(np.concatenate(cosines) if cosines else np.empty(0), spans, k, own)

    def _asks_graph(self, systems: Collection[str]) -> bool:
        return self.hnsw is not None and self._count(systems) > EXACT_ROWS

    def _count(self, systems: Collection[str]) -> int:
        return sum(len(self._rows.get(s, ())) for s in set(systems)) if systems else len(self.codes)

    def _spans(self, systems: Collection[str]) -> list[slice | _Rows]:
        """Rows to look at; a system's are one stretch where codes are sorted, and need not be copied then."""
        if not systems:
            return [slice(0, len(self.codes))]
        found: list[slice | _Rows] = []
        for rows in (self._rows[s] for s in sorted(set(systems)) if s in self._rows):
            whole = int(rows[-1]) - int(rows[0]) + 1 == len(rows)
            found.append(slice(int(rows[0]), int(rows[-1]) + 1) if whole else rows)
        return found

    def _best(
        self, cosines: FloatVector, spans: Sequence[slice | _Rows], k: int, own: int | None
    ) -> list[Hit]:
        wanted = min(k + (own is not None), len(cosines))
        if wanted < 1:
            return []
        places = _largest(cosines, wanted)
        if len(spans) == 1 and isinstance(spans[0], slice):
            return self._sorted(places + spans[0].start, cosines[places], k, own)
        rows = np.concatenate([np.arange(s.start, s.stop) if isinstance(s, slice) else s for s in spans])
        return self._sorted(rows[places], cosines[places], k, own)

    def _by_graph(self, vector: FloatVector, k: int, systems: Collection[str]) -> _Rows | None:
        """At least k rows, or None where the graph cannot give them for less than all cosines cost."""
        n, asked = len(self.codes), k if _SPARE * k <= self.ef else _SPARE * k
        if systems:
            # hnswlib's own filter calls Python for every candidate; all that ef looks at are found anyway.
            asked = _SPARE * max(self.ef, math.ceil(_SPARE * k * n / self._count(systems)))
        if asked > n // 10:
            return None
        try:
            labels, _ = self.hnsw.knn_query(vector[None, :], k=asked, num_threads=1)
        except RuntimeError:
            # Fewer can be reached, as where very many rows are equal.
            return None
        rows = labels[0].astype(np.intp)
        if systems:
            rows = rows[: asked // _SPARE]
            wanted = [i for i, prefix in enumerate(self._prefixes) if prefix in systems]
            rows = rows[np.isin(self._system[rows], wanted)]
        return rows if len(rows) >= k else None

    def _sorted(self, rows: _Rows, cosines: FloatVector, k: int, own: int | None) -> list[Hit]:
        order = np.lexsort((rows, -cosines))
        hits = [Hit(self.codes[rows[i]], float(cosines[i])) for i in order if rows[i] != own]
        return hits[: max(k, 0)]


def _largest(values: FloatVector, k: int) -> _Rows:
    """Places of the k largest values and of all that equal the least of them; k from 1 to n.

    k blocks have a largest value of at least `least`, so the k-th largest of all is no smaller. What is smaller need not be
    sorted: a tenth of the time of a partition of all.
    """
    blocks = len(values) // _BATCH
    if blocks > k:
        tops = values[: blocks * _BATCH].reshape(blocks, _BATCH).max(axis=1)
        places = np.flatnonzero(values >= np.partition(tops, blocks - k)[blocks - k])
    else:
        places = np.arange(len(values))
    few = values[places]
    return np.asarray(places[few >= np.partition(few, len(few) - k)[len(few) - k]])


def _labels(data: bytes) -> tuple[str, ...]:
    try:
        labels = json.loads(data.decode())
    except (ValueError, RecursionError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(code, str) for code in labels):
        raise ProtocolError("The labels of the index are not a list of codes")
    return tuple(labels)


def _effort(told: Mapping[str, str]) -> int:
    try:
        ef = json.loads(told[GRAPH])["ef"]
    except (ValueError, LookupError, TypeError, RecursionError):
        ef = None
    if type(ef) is not int or not 0 <= ef <= MAX_EF:
        raise ProtocolError(
            "The index does not say how much effort its graph needs", why=f"a whole number up to {MAX_EF}"
        )
    return ef


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
