"""A cohort beside the rest: which codes it has more often, how long its patients live, and what subgroups it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from protocol.errors import UsageError
from site_agent.cohort.files import NO_DAY, CohortStore, Space
from site_agent.cohort.lift import lift
from site_agent.cohort.queries import Filters
from site_agent.cohort.searching import Cohort
from site_agent.cohort.subgroups import Grouping, Method, subgroups
from site_agent.cohort.survival import Survival, kaplan_meier
from site_agent.sources import Progress, silent
from site_agent.sources.columns import EPOCH

By = Literal["code", "standard"]
Censoring = Literal["last-event", "data-end"]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CodeLift:
    """One code in a cohort and in the rest.

    Attributes:
        code: CURIE of the site's code, or of the standard code.
        name: what it is called.
        cohort: patients of the cohort who have it.
        rest: patients of the rest who have it.
        lift: share of the cohort over share of the rest.
        low: lower limit of its 95 % interval.
        high: upper limit.
        asked: whether the cohort was chosen by it.
    """

    code: str
    name: str
    cohort: int
    rest: int
    lift: float
    low: float
    high: float
    asked: bool


@dataclass(frozen=True, eq=False)
class Lives:
    """Survival of the cohort and of the rest.

    Attributes:
        cohort: from the beginning on.
        rest: the same.
        begin: in words, when time begins.
        left_out: patients who died, or were last seen, before it begins.
    """

    cohort: Survival
    rest: Survival
    begin: str
    left_out: int


@dataclass(frozen=True, eq=False)
class Description:
    """What `describe` found out.

    Attributes:
        said: how the cohort was chosen.
        cohort: its patients.
        rest: other patients of the same age, sex and days.
        codes: most overrepresented first, by the lower limit.
        lives: None where no death is known.
    """

    said: str
    cohort: int
    rest: int
    codes: tuple[CodeLift, ...]
    lives: Lives | None


def describe(
    store: CohortStore,
    cohort: Cohort,
    filters: Filters,
    *,
    by: By = "code",
    censoring: Censoring = "last-event",
) -> Description:
    """Compare a cohort with the other patients of the same age, sex and days.

    Args:
        store: the build.
        cohort: of `find_cohort`.
        filters: those that it was found with.
        by: codes as the site has them, or the standard codes that the release maps them to.
        censoring: when the observation of the living ends: at their last event, or when the data end.

    Raises:
        UsageError: the cohort is empty, or there is no rest.
    """
    inside = np.zeros(store.manifest.patients, dtype=bool)
    inside[cohort.rows] = True
    rest = filters.population(store) & ~inside
    if not inside.any() or not rest.any():
        raise UsageError(
            "There is nobody to compare" if inside.any() else "The cohort is empty",
            do="Describe a smaller cohort" if inside.any() else "Ask for less",
        )
    codes = code_lift(store, inside, rest, asked=cohort.codes, by=by)
    lives = survival(store, inside, rest, censoring) if store.manifest.with_death else None
    return Description(cohort.said, int(inside.sum()), int(rest.sum()), codes, lives)


def code_lift(
    store: CohortStore, inside: Flags, rest: Flags, *, asked: tuple[str, ...] = (), by: By = "code"
) -> tuple[CodeLift, ...]:
    """Every code that either group has, by the lower limit of its lift; of equals in order of text.

    Args:
        store: the build.
        inside: (n,) the cohort.
        rest: (n,) whom it is compared with; nobody is in both.
        asked: codes that the cohort was chosen by.
        by: see `describe`.
    """
    codes, names = store.codes["code"], store.codes["name"]
    standard = [s or c for s, c in zip(store.codes["standard"], codes, strict=True)]
    keys = codes if by == "code" else standard
    distinct = sorted(set(keys))
    place = {key: i for i, key in enumerate(distinct)}
    column = np.array([place[key] for key in keys], dtype=np.intp)
    name = dict(zip(reversed(keys), reversed(names), strict=True))
    name |= dict(zip(codes, names, strict=True)) if by == "standard" else {}
    chosen = {keys[i] for i, code in enumerate(codes) if code in set(asked)} | set(asked)
    having, others = (_having(store, group, column, len(distinct)) for group in (inside, rest))
    found = lift(having, int(inside.sum()), others, int(rest.sum()))
    held = np.flatnonzero(having + others)
    order = held[np.argsort(-found.low[held], kind="stable")]
    return tuple(
        CodeLift(
            distinct[i],
            name.get(distinct[i], ""),
            int(having[i]),
            int(others[i]),
            float(found.ratio[i]),
            float(found.low[i]),
            float(found.high[i]),
            distinct[i] in chosen,
        )
        for i in order
    )


def _having(store: CohortStore, group: Flags, column: npt.NDArray[np.intp], n: int) -> npt.NDArray[np.int64]:
    """(n,) patients of a group with each key; several codes of one key count once a patient."""
    rows: sparse.csr_array[Any, tuple[int, int]] = sparse.csr_array(store.incidence[np.flatnonzero(group)])
    owner = np.repeat(np.arange(rows.shape[0], dtype=np.int64), np.diff(rows.indptr))
    cells = np.unique(owner * n + column[rows.indices])
    return np.bincount(cells % n, minlength=n)


def survival(store: CohortStore, inside: Flags, rest: Flags, censoring: Censoring) -> Lives:
    """Survival of both groups; a death on the first day counts after one day.

    Where the window ends before the data do, time begins on the day after it: what the cohort was chosen by is known then.
    Otherwise it begins with the first event, and whoever was chosen by a later one had to live until then.

    Args:
        store: the build, with dates of death.
        inside: (n,) the cohort.
        rest: (n,) the others.
        censoring: see `describe`.
    """
    told, death = store.manifest, store.array("death")
    end = (told.data_end - EPOCH).days
    landmark = told.last is not None and told.last < told.data_end
    if landmark and told.last is not None:
        begin = np.full(told.patients, (told.last - EPOCH).days + 1)
        said = f"the day after the window, {told.last}"
    else:
        begin, said = np.asarray(store.array("first"), dtype=np.int64), "each patient's first event"
    died = (death != NO_DAY) & (death <= end)
    until = (
        np.asarray(store.array("seen"), np.int64) if censoring == "last-event" else np.full(len(begin), end)
    )
    stop = np.where(died, death, until)
    kept = stop >= begin
    time = stop - begin + 1
    curves = [kaplan_meier(time[group & kept], died[group & kept]) for group in (inside, rest)]
    return Lives(curves[0], curves[1], said, int(((inside | rest) & ~kept).sum()))


@dataclass(frozen=True, eq=False)
class Subgroup:
    """One subgroup: its patients, how stably it comes back, and what it has more often than the rest of the cohort."""

    patients: int
    jaccard: float
    codes: tuple[CodeLift, ...]


def find_subgroups(
    store: CohortStore,
    cohort: Cohort,
    k: int,
    *,
    method: Method = "k-means",
    repeats: int = 50,
    by: By = "code",
    space: Space = "joined",
    progress: Progress = silent,
) -> tuple[Grouping, tuple[Subgroup, ...]]:
    """Subgroups of a cohort, the largest first, each beside the rest of the cohort.

    Args:
        store: the build.
        cohort: its patients without a vector are left out.
        k: how many, or 0 for as many as are stable.
        method: see `subgroups`.
        repeats: bootstrap samples.
        by: see `describe`.
        space: of the vectors that are divided; without own vectors it is the harmonised one.
        progress: told the share done.

    Raises:
        UsageError: too few patients.
    """
    rows = np.sort(cohort.rows)
    vectors = np.asarray(store.of(store.space(space))[rows])
    rows, vectors = rows[vectors.any(axis=1)], vectors[vectors.any(axis=1)]
    if len(rows) < 10 * max(k, 2):
        raise UsageError(
            f"A cohort of {len(rows):,} patients is too small to divide",
            why="each subgroup needs about ten",
            do="Ask for more patients, or for fewer subgroups",
        )
    grouping = subgroups(vectors, k, method=method, repeats=repeats, progress=progress)
    found = []
    for group in range(int(grouping.labels.max()) + 1):
        inside, rest = (np.zeros(store.manifest.patients, dtype=bool) for _ in range(2))
        inside[rows[grouping.labels == group]] = True
        rest[rows[grouping.labels != group]] = True
        codes = code_lift(store, inside, rest, by=by) if rest.any() else ()
        found.append(Subgroup(int(inside.sum()), float(grouping.jaccard[group]), codes))
    return grouping, tuple(found)
