"""Which scores of a pair of codes find what is related: on claims, and on drugs and what they treat.

A scorer takes a `View`, what the pooled counts of some patients give, and returns (n, n) scores; all are judged on the same
pairs. Whoever adds a scorer to `SCORERS` has its rows beside the others'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from coordinator.evaluation import auc, mean_and_error
from coordinator.graph.fewshot import fit_head
from coordinator.graph.halves import halves_of
from coordinator.graph.structure import relatedness
from coordinator.model.selection import select_neighbours
from protocol.messages import Policy
from protocol.statistics import embed, nonempty, ppmi
from protocol.study import parse_study
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.gate import suppress
from tests.benchmarks.real import data, indications, recoded
from tests.benchmarks.real.groups import Pairs, matched, phecodes
from tests.benchmarks.real.tested import Sample
from tests.inprocess import policy

Array = NDArray[np.float64]
DIM = 30
FLOORS = {"default floors": (20, 11), "no floors": (5, 1)}
"""Patients that a code and a pair need; a code of fewer than five has no direction worth the name."""


@dataclass(frozen=True, eq=False)
class View:
    """What the pooled counts of some patients give.

    Attributes:
        codes: (n,) names.
        vectors: (n, d) unit rows.
        halves: the same of either half of the patients; zero rows where a half has no pair of the code.
        released: bool (n, n) cells of the released counts.
        share: (n,) logarithm of how many patients have each code.
        counts: upper triangle of the released counts.
        sample: the events behind them, for tests.
        memo: scores that were computed, by name.
    """

    codes: NDArray[np.object_]
    vectors: Array
    halves: tuple[Array, Array]
    released: NDArray[np.bool_]
    share: Array
    counts: sp.csr_array
    sample: Sample
    memo: dict[str, Array] = field(default_factory=dict)

    @cached_property
    def cosine(self) -> Array:
        return self.vectors @ self.vectors.T

    @cached_property
    def selected(self) -> Array:
        """Weights of each code's own regression, row by row."""
        return np.asarray(select_neighbours(self.vectors, halves=self.halves, threads=1).weights.toarray())

    @property
    def weights(self) -> Array:
        return np.asarray(self.selected + self.selected.T) / 2.0

    @cached_property
    def by_criterion(self) -> Array:
        """Weights with lambda by the information criterion alone: what a fit of one site has."""
        found = np.asarray(select_neighbours(self.vectors, threads=1).weights.toarray())
        return np.asarray(found + found.T) / 2.0

    @cached_property
    def by_sites(self) -> Array:
        """Weights with lambda checked between a third of the patients and the other two, as between sites: what a fit has."""
        halves = halves_of([self.part(third) for third in range(3)])
        found = np.asarray(select_neighbours(self.vectors, halves=halves, threads=1).weights.toarray())
        return np.asarray(found + found.T) / 2.0

    def part(self, third: int) -> Array:
        """Vectors of the released codes by a third of the patients, with floors, as one of three sites has them."""
        s = self.sample
        mine = (np.random.default_rng(s.seed).integers(0, 3, s.first.size) == third)[s.patient]
        counts = count_pairs(
            *(c[mine] for c in (s.patient, s.day, s.code)), s.n, window_days=s.window, threads=1
        )
        shown = counts.pair_patients.copy()
        shown.data = (shown.data >= s.floor).astype(np.int64)
        return points_of(sp.csr_array(counts.events * shown))

    @property
    def both_ways(self) -> Array:
        return _both_ways(self.selected)


def _both_ways(weights: Array) -> Array:
    """Smaller of the two weights where the regressions of both codes select the pair with one sign."""
    agree = np.sign(weights) == np.sign(weights.T)
    return np.where(agree, np.minimum(np.abs(weights), np.abs(weights.T)), 0.0)


def by_weight(view: View, weights: Array | None = None) -> Array:
    """Weights; pairs of equal weight, most of which is 0, by cosine."""
    first = view.weights if weights is None else weights
    order = np.lexsort((view.cosine.ravel(), first.ravel()))
    place = np.empty(order.size)
    place[order] = np.arange(order.size)
    return place.reshape(view.cosine.shape)


def _once(name: str, score: Callable[[View], Array]) -> Callable[[View], Array]:
    """The score, computed once for each view."""

    def found(view: View) -> Array:
        if name not in view.memo:
            view.memo[name] = score(view)
        return view.memo[name]

    return found


MORE: Mapping[str, Callable[[View], Array]] = {
    name: _once(name, score)
    for name, score in {
        "cosine": lambda view: view.cosine,
        "regression": by_weight,
        "both ways": lambda view: by_weight(view, view.both_ways),
        "halves' cosine": lambda view: sum((h @ h.T for h in view.halves), np.zeros(view.cosine.shape)),
        "each pair": lambda view: view.sample.tests.z(view.sample.tests.alone),
        "smoothed": lambda view: view.sample.tests.z(view.sample.tests.smooth),
        "structure": lambda view: view.sample.tests.cosine,
        "relatedness": lambda view: relatedness(view.cosine, view.weights, view.sample.tests.cosine),
        "relatedness without tests": lambda view: relatedness(view.cosine, view.weights),
    }.items()
}
"""All scores; those after the first two are variants or need the events, and are too slow for every table."""
SCORERS: Mapping[str, Callable[[View], Array]] = {name: MORE[name] for name in ("cosine", "regression")}


@cache
def claims() -> recoded.Events:
    """CMS claims in ICD-9-CM."""
    table = data._events()
    day = pd.to_datetime(table["date"]).to_numpy().astype("datetime64[D]").astype(np.int64)
    patient = table["sample"].astype(str) + ":" + table["patient"].astype(str)
    return recoded._events(patient, day, recoded.DIAGNOSIS + table["code"].astype(str))


@cache
def claim_samples() -> NDArray[np.int64]:
    """Sample of each row of `claims`."""
    return data._events()["sample"].to_numpy(dtype=np.int64)


def view_of(
    events: recoded.Events,
    rows: NDArray[np.bool_],
    floors: tuple[int, int],
    seed: int,
    *,
    window: int | None = 30,
) -> View:
    """The view of the events of some rows, which are those of whole patients."""
    rng = np.random.default_rng(seed)
    first = (rng.random(int(events.patient.max()) + 1) < 0.5)[events.patient]
    whole = _counts(events, rows, window)
    kept = suppress(whole, _policy(floors))
    strong = whole.pair_patients[kept.rows][:, kept.rows]
    strong.data = (strong.data >= floors[1]).astype(np.int64)

    def points(counts: PairCounts) -> Array:
        return points_of(sp.csr_array(counts.events[kept.rows][:, kept.rows] * strong))

    halves = tuple(points(_counts(events, rows & part, window)) for part in (first, ~first))
    released = (strong + strong.T).toarray() > 0
    np.fill_diagonal(released, False)
    share = np.log(whole.code_patients[kept.rows].astype(np.float64))
    counts = sp.csr_array(whole.events[kept.rows][:, kept.rows] * strong)
    place = np.full(len(events.names), -1)
    place[kept.rows] = np.arange(len(kept.rows))
    patient, day, code = _columns(events, rows & (place[events.code] >= 0), window)
    drawn = np.zeros(int(events.patient.max()) + 1, dtype=np.bool_)
    drawn[events.patient] = first
    sample = Sample(
        patient, day, place[code].astype(np.int32), len(kept.rows), drawn, window, floors[1], seed
    )
    return View(events.names[kept.rows], points(whole), halves, released, share, counts, sample)  # type: ignore[arg-type]


def points_of(cells: sp.csr_array) -> Array:
    """(n, DIM) vectors of the upper triangle of counts; zero rows of codes without a pair."""
    cells.eliminate_zeros()
    weights = ppmi(cells)
    held = np.flatnonzero(nonempty(weights))
    found = np.zeros((cells.shape[0], DIM))
    vectors = embed(sp.csr_array(weights[held][:, held]), DIM)
    found[held, : vectors.shape[1]] = vectors
    return found


def _columns(
    events: recoded.Events, rows: NDArray[np.bool_], window: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """Patient, day and code of the distinct events of these rows, by patient and day."""
    columns = np.unique(np.stack([events.patient[rows], events.day[rows], events.code[rows]]), axis=1)
    day = columns[1] if window is not None else np.unique(columns[1], return_inverse=True)[1]
    return columns[0].astype(np.int64), day.astype(np.int32), columns[2].astype(np.int32)


def _counts(events: recoded.Events, rows: NDArray[np.bool_], window: int | None) -> PairCounts:
    return count_pairs(*_columns(events, rows, window), len(events.names), window_days=window, threads=1)


def _policy(floors: tuple[int, int]) -> Policy:
    study = parse_study(
        {
            "id": "graph",
            "sites": ["one", "two", "three"],
            "standard": "CODE",
            "minimum_sites": 3,
            "code_systems": [{"prefix": "CODE"}],
            "privacy": {
                "public_data": True,
                "min_code_patients": floors[0],
                "min_pair_patients": floors[1],
                "small_site_patients": 0,
                "margin_rounding": 1,
            },
        },
        "of the benchmark",
    )
    return policy(study)


def phecode_pairs(view: View, *, root: bool = False) -> Pairs:
    """Released cells of one phecode (or of one root), and those of two roots."""
    known = phecodes("9")
    code = np.array([known.get(c[1:], "") if c.startswith(recoded.DIAGNOSIS) else "" for c in view.codes])
    stem = np.array([p.partition(".")[0] for p in code])
    label = stem if root else code
    inside = np.triu(view.released & (code != "")[:, None] & (code != "")[None], 1)
    return Pairs(
        np.argwhere(inside & (label[:, None] == label[None])),
        np.argwhere(inside & (stem[:, None] != stem[None])),
    )


def indication_pairs(view: View, shown: Mapping[str, str], seed: int) -> Pairs:
    """Drugs and what they treat, beside diagnoses as frequent that they do not."""
    drugs = [i for i, c in enumerate(view.codes) if c.startswith(recoded.DRUG)]
    conditions = [i for i, c in enumerate(view.codes) if c.startswith(recoded.DIAGNOSIS)]
    table = indications.database()
    rows = set(zip(table["drug"], table["disease"], strict=True))
    down = table[table["category"] == "NOT"]
    right = rows - set(zip(down["drug"], down["disease"], strict=True))
    of_condition = {j: indications.diseases(view.codes[j], shown) for j in conditions}
    known, unrelated = [], np.zeros(view.released.shape, dtype=bool)
    for i in drugs:
        of_drug = indications.ingredients(view.codes[i], shown)
        for j in conditions:
            said = {(a, b) for a in of_drug for b in of_condition[j]}
            if said & right:
                known.append((i, j))
            unrelated[i, j] = not said & rows
    found, pool = np.array(known, dtype=np.intp).reshape(-1, 2), np.array(conditions, dtype=np.intp)
    return matched(found, unrelated, pool, view.share, np.zeros(len(view.codes), dtype=np.intp), seed)


def scores(view: View, pairs: Pairs) -> dict[str, float]:
    """AUC of each scorer."""
    return {name: pairs.auc(score(view)) for name, score in SCORERS.items()}


def few_shot(view: View, pairs: Pairs, seed: int, share: float = 0.01) -> dict[str, float]:
    """AUC on the other pairs before and after a share of the known pairs, and as many free ones, is learnt."""
    rng = np.random.default_rng(seed)
    known, free = (side[rng.permutation(len(side))] for side in (pairs.known, pairs.free))
    few = max(5, round(share * len(known)))
    taught = np.concatenate([known[:few], free[:few]])
    head = fit_head(
        view.vectors[taught[:, 0]], view.vectors[taught[:, 1]], np.arange(2 * few) < few, seed=seed
    )

    def after(rows: NDArray[np.intp]) -> Array:
        return head.scores(view.vectors[rows[:, 0]], view.vectors[rows[:, 1]])

    rest = Pairs(known[few:], free[few:])
    return {
        "labelled": float(2 * few),
        "cosine": rest.auc(view.cosine),
        "fine-tuned": auc(after(rest.known), after(rest.free)),
    }


def jaccard(
    one: View,
    other: View,
    scorers: Mapping[str, Callable[[View], Array]] = SCORERS,
    *,
    edges: Callable[[View], NDArray[np.bool_]] = lambda view: view.weights > 0,
    share: float = 1.0,
) -> dict[str, float]:
    """Edges among the common codes that both views have, by each scorer with the same number of edges.

    Args:
        one: of some patients.
        other: of others.
        scorers: by name.
        edges: whose number it is, in the view that has fewer.
        share: part of it.
    """
    _, a, b = np.intersect1d(one.codes, other.codes, return_indices=True)
    upper = np.triu_indices(len(a), 1)

    def cells(matrix: NDArray[np.generic], rows: NDArray[np.intp]) -> NDArray[np.generic]:
        return np.asarray(matrix[np.ix_(rows, rows)][upper])

    most = int(share * min(int(cells(edges(v), rows).sum()) for v, rows in ((one, a), (other, b))))
    found = {"edges": float(most)}
    for name, score in scorers.items():
        best = [
            set(np.argsort(-cells(score(v), rows), kind="stable")[:most].tolist())
            for v, rows in ((one, a), (other, b))
        ]
        found[name] = len(best[0] & best[1]) / max(1, len(best[0] | best[1]))
    return found


def table(title: str, measured: list[dict[str, dict[str, float]]]) -> str:
    """Mean and standard error over the seeds, and of each score's difference from the cosine."""
    lines = [title]
    for row in measured[0]:
        shown = []
        for name in measured[0][row]:
            values = [m[row][name] for m in measured]
            if name in {"codes", "pairs", "edges", "labelled", "found"}:
                shown.append(f"{np.mean(values):.0f} {name}")
                continue
            text = f"{name} {mean_and_error(values)}"
            if name != "cosine" and not row.startswith("error"):
                text += f" (gain {mean_and_error([m[row][name] - m[row]['cosine'] for m in measured])})"
            shown.append(text)
        lines.append(f"  {row}: " + "; ".join(shown))
    return "\n".join(lines)
