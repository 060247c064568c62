"""A cohort: the patients nearest to a query among those that pass its filters, or all that pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.errors import UsageError
from site_agent.cohort.files import GRAPHS, CohortStore, Space
from site_agent.cohort.index import EXACT_ROWS, PatientIndex, load_graph
from site_agent.cohort.queries import Filters, Query, matching

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Patients of a build.

    Attributes:
        rows: (m,) of the build, nearest first.
        cosine: (m,) with the query; None without one.
        said: how they were chosen, in words.
        codes: of the query and the filters; that the cohort has them says nothing about it.
        approximate: whether the graph found them.
    """

    rows: Rows
    cosine: npt.NDArray[np.float32] | None
    said: str
    codes: tuple[str, ...] = ()
    approximate: bool = False


def patient_index(store: CohortStore, *, space: Space = "joined", exact: bool = False) -> PatientIndex:
    """The build's vectors to search in, by their graph unless `exact`; loading one takes about as long as an exact search.

    Args:
        store: the build.
        space: as the queries' (`Asking`).
        exact: by no graph.

    Raises:
        DataError: the graph is not the one that was written.
    """
    vectors, graph = store.of(store.space(space)), None
    kind = "joined" if store.space(space) == "joined" else "vectors"
    if not exact and store.has(GRAPHS[kind]):
        graph = load_graph(store.intact(GRAPHS[kind]), *vectors.shape)
    return PatientIndex(vectors, graph)


def find_cohort(
    store: CohortStore,
    query: Query | None,
    filters: Filters,
    *,
    k: int = 100,
    least: float = -1.0,
    index: PatientIndex | None = None,
) -> Cohort:
    """The k patients nearest to the query, with a cosine of at least `least`; without a query all that the filters pass.

    Args:
        store: the build.
        query: None for filters alone.
        filters: who may be found.
        k: most patients, where there is a query.
        least: smallest cosine.
        index: of `patient_index`; exact search where it is left out, or is of another space than the query.

    Raises:
        UsageError: as `Filters.allowed`; or neither a query nor a filter.
    """
    if query is None and filters == Filters():
        raise UsageError("No cohort is described", do="Give a patient, codes, a text, a profile, or filters")
    allowed = filters.allowed(store)
    said, codes = _said(store, query, filters)
    if query is None:
        return Cohort(np.flatnonzero(allowed), None, said, codes)
    if query.row is not None:
        allowed[query.row] = False
    if index is None or index.vectors.shape[1] != len(query.vector):
        index = PatientIndex(store.joined if len(query.vector) == store.joined.shape[1] else store.vectors)
    everyone = int(allowed.sum()) >= store.manifest.patients - 1 and query.row is None
    rows, cosine = index.search(query.vector, k, allowed=None if everyone else allowed)
    near = cosine >= least
    graph = index.graph is not None and int(allowed.sum()) > EXACT_ROWS
    return Cohort(rows[near], cosine[near], said, codes, approximate=graph)


def _said(store: CohortStore, query: Query | None, filters: Filters) -> tuple[str, tuple[str, ...]]:
    parts = [f"like {query.said}"] if query is not None else []
    low, high = filters.age
    if filters.age != (None, None):
        parts.append(f"aged {low if low is not None else 0} to {high if high is not None else 'any age'}")
    if filters.sexes:
        parts.append("of sex " + " or ".join(filters.sexes))
    begin, end = filters.seen
    if filters.seen != (None, None):
        parts.append(f"seen from {begin or 'the beginning'} to {end or 'the end'}")
    parts += [f"with {pattern}" for pattern in filters.having]
    parts += [f"without {pattern}" for pattern in filters.lacking]
    names = store.codes["code"]
    named = [names[i] for pattern in (*filters.having, *filters.lacking) for i in matching(store, pattern)]
    return "patients " + ", ".join(parts), (*(query.codes if query is not None else ()), *named)
