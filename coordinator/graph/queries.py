"""What a graph says of a code: its neighbours, features for a phenotype, and what a drug may treat."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coordinator.graph.edges import RELATIONS, Edges
from coordinator.graph.structure import relatedness
from protocol.errors import UsageError

Array = NDArray[np.float64]
Index = NDArray[np.intp]


@dataclass(frozen=True)
class Neighbour:
    """A code that is related to the one that was asked for; fields as in `Edges`, None for null."""

    code: str
    name: str
    category: str
    weight: float | None
    sign: int
    cosine: float
    p: float | None
    q: float | None
    relation: str
    ends: int


@dataclass(frozen=True)
class Guess:
    """A code of another category, ranked for one code.

    Attributes:
        score: by which codes are ranked, `structure.relatedness`.
        weight: of the edge between them; 0 without one.
        cosine: of their vectors.
        structure: cosine of their places in the smoothed matrix of relations; None where it lacks one of them.
        q: None without an edge, or where the pair was not tested.
    """

    code: str
    name: str
    score: float
    weight: float
    cosine: float
    structure: float | None
    q: float | None


class Graph:
    """Edges with what their codes are called, to look codes up in.

    Args:
        edges: of the graph.
        names: code -> its name, where that is known.
        categories: code -> its category.
        structure: (n, k) places of the edges' codes in the smoothed matrix of relations, unit or zero rows; None without tests
            that were smoothed.
    """

    def __init__(
        self,
        edges: Edges,
        names: Mapping[str, str],
        categories: Mapping[str, str],
        structure: Array | None = None,
    ) -> None:
        self.edges, self.names, self.categories, self.structure = edges, names, categories, structure
        self._place = {code: i for i, code in enumerate(edges.codes)}
        ends = np.concatenate([edges.left, edges.right])
        order = np.argsort(ends, kind="stable")
        self._row = order % max(1, len(edges))
        self._start = np.searchsorted(ends[order], np.arange(len(edges.codes) + 1))

    def neighbours(
        self,
        code: str,
        *,
        k: int | None = None,
        q_most: float | None = None,
        categories: Collection[str] | None = None,
        relations: Collection[str] = RELATIONS,
    ) -> list[Neighbour]:
        """The codes that are related to a code.

        Selected pairs come first, by the size of their weight; then the others by q, those without one last; equal ones by
        |cosine|, then by code.

        Args:
            code: of the graph.
            k: most neighbours; all if None.
            q_most: only pairs with a q of at most this; a pair that was not tested has none.
            categories: only neighbours of these.
            relations: only pairs of these kinds.

        Raises:
            UsageError: the code is not in the graph.
        """
        rows = self._rows(code, q_most, categories, relations)
        return [self._neighbour(code, row) for row in rows[:k]]

    def features(
        self, code: str, *, k: int = 10, q_most: float | None = None, direct: bool = True
    ) -> dict[str, list[Neighbour]]:
        """The nearest related codes of each category: which codes to take for a phenotype of this one.

        Negative relations are left out: they describe who does not have it.

        Args:
            code: the target.
            k: most codes of a category.
            q_most: as for `neighbours`.
            direct: only codes that the regression selected; what they carry explains the others.

        Raises:
            UsageError: the code is not in the graph.
        """
        found: dict[str, list[Neighbour]] = {}
        relations = ("direct",) if direct else RELATIONS
        for other in self.neighbours(code, q_most=q_most, relations=relations):
            group = found.setdefault(other.category, [])
            if other.sign > 0 and len(group) < k:
                group.append(other)
        return {category: group for category, group in sorted(found.items()) if group}

    def neighbourhood(
        self,
        code: str,
        *,
        k: int = 20,
        q_most: float | None = None,
        categories: Collection[str] | None = None,
    ) -> Edges:
        """The edges among a code and its nearest neighbours: a small graph to draw.

        Raises:
            UsageError: the code is not in the graph.
        """
        near = self.neighbours(code, k=k, q_most=q_most, categories=categories)
        part = self.edges.among({code, *(n.code for n in near)})
        if q_most is None:
            return part
        return part.where(part.q <= q_most)

    def ranking(self, code: str, category: str, vectors: ArrayLike, *, k: int | None = None) -> list[Guess]:
        """All codes of a category, the likeliest relation first: a drug's indications, say.

        By `relatedness`: cosine, weight of the edge, a pair without one counting 0, and structure; equal ones by code.

        Args:
            code: for which codes are ranked.
            category: of the codes that are ranked.
            vectors: (n, d) of the graph's codes, in its order.
            k: most of them; all if None.

        Raises:
            UsageError: the code is not in the graph.
        """
        here, points = self._at(code), np.asarray(vectors, dtype=np.float64)
        others = [
            i for i, c in enumerate(self.edges.codes) if i != here and self.categories.get(c) == category
        ]
        rows = np.array(others, dtype=np.intp)
        norm = np.linalg.norm(points[rows], axis=1) * np.linalg.norm(points[here])
        cosine = points[rows] @ points[here] / np.where(norm == 0.0, 1.0, norm)
        edge = {self._other(here, row): row for row in self._incident(here)}
        at = np.array([edge.get(i, -1) for i in others], dtype=np.intp)
        weight = np.zeros(len(rows))
        weight[at >= 0] = np.nan_to_num(self.edges.weight[at[at >= 0]])
        alike = None if self.structure is None else self.structure[rows] @ self.structure[here]
        held = [] if self.structure is None else self.structure[rows].any(axis=1) & self.structure[here].any()
        score = relatedness(cosine, weight, alike)
        order = np.lexsort((rows, -score))[:k]
        return [
            Guess(
                self.edges.codes[rows[i]],
                self.names.get(self.edges.codes[rows[i]], ""),
                float(score[i]),
                float(weight[i]),
                float(cosine[i]),
                float(alike[i]) if alike is not None and held[i] else None,
                _known(self.edges.q[at[i]]) if at[i] >= 0 else None,
            )
            for i in order
        ]

    def _at(self, code: str) -> int:
        place = self._place.get(code)
        if place is None:
            raise UsageError(
                f"The code {code} is not in the graph",
                why="no site released it, or you may not see it",
                do="Look for its spelling with `coordinator search`",
            )
        return place

    def _incident(self, place: int) -> Index:
        """Rows of the edges of a code."""
        return np.asarray(self._row[self._start[place] : self._start[place + 1]])

    def _other(self, place: int, row: int) -> int:
        return int(self.edges.left[row] + self.edges.right[row] - place)

    def _rows(
        self,
        code: str,
        q_most: float | None,
        categories: Collection[str] | None,
        relations: Collection[str],
    ) -> list[int]:
        edges, place = self.edges, self._at(code)
        rows = self._incident(place)
        kept = np.isin(edges.relation[rows], list(relations))
        if q_most is not None:
            kept &= edges.q[rows] <= q_most
        rows = rows[kept]
        if categories is not None:
            rows = self._of_category(place, rows, set(categories))
        q = np.where(np.isnan(edges.q[rows]), 2.0, edges.q[rows])
        size = np.where(edges.ends[rows] > 0, np.abs(edges.weight[rows]), 0.0)
        other = edges.left[rows] + edges.right[rows] - place
        order = np.lexsort((other, -np.abs(edges.cosine[rows]), q, -size, edges.ends[rows] == 0))
        return [int(row) for row in rows[order]]

    def _of_category(self, place: int, rows: Iterable[int], categories: set[str]) -> Index:
        kept = [
            row
            for row in rows
            if self.categories.get(self.edges.codes[self._other(place, row)], "") in categories
        ]
        return np.array(kept, dtype=np.intp)

    def _neighbour(self, code: str, row: int) -> Neighbour:
        e = self.edges
        other = e.codes[self._other(self._place[code], row)]
        return Neighbour(
            other,
            self.names.get(other, ""),
            self.categories.get(other, ""),
            _known(e.weight[row]),
            int(e.sign[row]),
            float(e.cosine[row]),
            _known(e.p[row]),
            _known(e.q[row]),
            str(e.relation[row]),
            int(e.ends[row]),
        )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
