"""Scores of a published release against truth: clusters, retrieval of standard codes, and pairs.

Every score carries a standard error, a 95 % interval, the number of units it is over and what chance reaches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coordinator.evaluation import (
    Interval,
    ami,
    auc_interval,
    bootstrap,
    chance_hits,
    chance_mrr,
    mean_interval,
    random_halves,
    rank_correlation,
    ranks,
)
from coordinator.scoring.truth import GradedPair, LabelledPair, Published, Truth

HITS = (1, 5, 10, 20)
MRR = "MRR"
RETRIEVAL = (*(f"hits@{k}" for k in HITS), MRR)
ALL = "all"
_LEAST = 2  # codes of a group, below which there is no agreement to measure


@dataclass(frozen=True)
class Score:
    """One figure of a release.

    Attributes:
        metric: what is measured.
        group: of which codes or pairs.
        n: codes, queries or pairs that it is over.
        value: the figure.
        error: its standard error.
        low, high: ends of the 95 % interval.
        chance: what no knowledge at all is expected to reach.
        detail: candidates or negatives, in words; or empty.
    """

    metric: str
    group: str
    n: int
    value: float
    error: float
    low: float
    high: float
    chance: float
    detail: str = ""

    @classmethod
    def of(
        cls, metric: str, group: str, n: int, interval: Interval, *, chance: float = 0.0, detail: str = ""
    ) -> Score:
        """From an interval."""
        return cls(
            metric, group, n, interval.value, interval.error, interval.low, interval.high, chance, detail
        )


def scored_codes(release: Published, truth: Truth, *, with_anchored: bool) -> NDArray[np.bool_]:
    """(n,) codes that are scored: their concept is known and, unless asked for, no anchor touches them."""
    known = np.array([code in truth.concept for code in release.codes], dtype=bool)
    return known if with_anchored else known & ~release.touched


def cluster_scores(
    release: Published, truth: Truth, scored: NDArray[np.bool_], by: str, *, seed: int = 0
) -> list[Score]:
    """AMI of clusters and concepts: over all scored codes, and within each group (`Truth.group`).

    A group without two codes of one concept is left out: it has no synonyms to find.
    """
    rows = np.flatnonzero(scored)
    names = [truth.group(release.codes[i], by) for i in rows]
    groups: list[tuple[str, NDArray[np.intp]]] = [(ALL, rows)]
    if len(set(names)) > 1:
        groups += [(g, rows[[i for i, name in enumerate(names) if name == g]]) for g in sorted(set(names))]
    found = []
    for name, here in groups:
        meant = np.unique([truth.concept[release.codes[i]] for i in here], return_inverse=True)[1]
        if len(here) < 2 * _LEAST or len(np.unique(meant)) == len(here):
            continue
        label = release.cluster[here]
        statistic = _agreement(meant, label)
        detail = f"{len(np.unique(meant)):,} concepts, {len(np.unique(label)):,} clusters"
        interval = random_halves(statistic, len(here), draws=40, seed=seed)
        interval = replace(interval, high=min(interval.high, 1.0))
        found.append(Score.of("AMI", name, len(here), interval, detail=detail))
    return found


def _agreement(meant: NDArray[np.intp], label: NDArray[np.int64]) -> Callable[[NDArray[np.intp]], float]:
    return lambda draw: ami(meant[draw], label[draw])


def retrieval_scores(
    release: Published, truth: Truth, scored: NDArray[np.bool_], *, seed: int = 0
) -> list[Score]:
    """hits@k and MRR of local code -> standard code, among the released standard codes of the code's type.

    A standard code that no anchor touches is right if it has the query's concept. Anchored standard codes
    are candidates too: nobody knows beforehand which are taken. Queries without a right candidate are left out.
    """
    standard = np.array([code.startswith(f"{release.standard}:") for code in release.codes], dtype=bool)
    kind = np.array([truth.type_of(code, release.types) for code in release.codes], dtype=object)
    found: list[int] = []
    per_query: list[tuple[int, int]] = []
    for name in sorted(set(kind[standard])):
        candidates = np.flatnonzero(standard & (kind == name))
        by_concept: dict[str, set[int]] = {}
        for position, i in enumerate(candidates):
            if scored[i]:
                by_concept.setdefault(truth.concept[release.codes[i]], set()).add(position)
        queries = [
            i
            for i in np.flatnonzero(scored & ~standard & (kind == name))
            if truth.concept[release.codes[i]] in by_concept
        ]
        if queries:
            right = [by_concept[truth.concept[release.codes[i]]] for i in queries]
            found += ranks(release.vectors[queries], release.vectors[candidates], right).tolist()
            per_query += [(len(candidates), len(r)) for r in right]
    if not found:
        return []
    sizes = sorted({c for c, _ in per_query})
    detail = f"{sizes[0]:,} candidates" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,} candidates"
    rank, group = np.array(found), f"local code → {release.standard}"
    by_size = Counter(c for c, _ in per_query)

    def chance(of: Callable[[int, list[int]], float]) -> float:
        return sum(n * of(c, [t for size, t in per_query if size == c]) for c, n in by_size.items()) / len(
            rank
        )

    scores = [
        Score.of(
            f"hits@{k}",
            group,
            len(rank),
            mean_interval(rank <= k, seed=seed),
            chance=chance(lambda c, t, k=k: chance_hits(c, t, (k,))[k]),  # type: ignore[misc]
            detail=detail,
        )
        for k in HITS
    ]
    mrr = mean_interval(1.0 / rank, seed=seed)
    return [*scores, Score.of(MRR, group, len(rank), mrr, chance=chance(chance_mrr), detail=detail)]


@dataclass(frozen=True)
class _Strata:
    """Scores of the positive and negative pairs of one kind, by unordered pair of code systems."""

    positive: dict[tuple[str, str], list[float]]
    negative: dict[tuple[str, str], list[float]]


def pair_scores(
    release: Published, pairs: Sequence[LabelledPair], truth: Truth, *, nulls: int = 10, seed: int = 0
) -> list[Score]:
    """AUC of the cosine by kind of pair, and by pair of code systems where there are several.

    Args:
        release: what was published.
        pairs: known pairs; those with a code that is not in the release are left out.
        truth: what codes mean.
        nulls: pairs drawn for each positive one of a kind without negatives: of the same two code systems,
            not a known pair of any kind, and not of one concept.
        seed: of the nulls and of the resampling.
    """
    row = {code: i for i, code in enumerate(release.codes)}
    here = [p for p in pairs if p.one in row and p.other in row]
    known = {frozenset((row[p.one], row[p.other])) for p in here}
    rng = np.random.default_rng(seed)
    found = []
    for kind in sorted({p.kind for p in here}):
        own = [p for p in here if p.kind == kind]
        positive = [(row[p.one], row[p.other]) for p in own if p.positive]
        negative = [(row[p.one], row[p.other]) for p in own if not p.positive]
        drawn = not negative
        if drawn:
            meaning = [truth.concept.get(code, code) for code in release.codes]
            negative = matched_nulls(release.systems, meaning, positive, known, nulls, rng)
        strata = _Strata(_by_systems(release, positive), _by_systems(release, negative))
        both = [s for s in sorted(strata.positive) if s in strata.negative]
        groups = [(kind, both)]
        if len(both) > 1:
            groups += [(f"{kind}, {' – '.join(s)}", [s]) for s in both]
        for name, systems in groups:
            yes = [x for s in systems for x in strata.positive[s]]
            no = [x for s in systems for x in strata.negative[s]]
            if yes and no:
                detail = f"{len(no):,} {'drawn' if drawn else 'given'} negatives"
                interval = auc_interval(yes, no, seed=seed)
                found.append(Score.of("AUC", name, len(yes), interval, chance=0.5, detail=detail))
    return found


def matched_nulls(
    systems: Sequence[str],
    meaning: Sequence[str],
    positive: Sequence[tuple[int, int]],
    known: set[frozenset[int]],
    each: int,
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Pairs of codes drawn at random, `each` for a positive pair and of its two code systems.

    A known pair or one of equal meaning is drawn again, up to 20 times: two small systems may have no other.

    Args:
        systems: (n,) the code system of each row.
        meaning: (n,) what each row means; no two rows of a null have the same.
        positive: rows of each pair.
        known: pairs that are no nulls.
        each: how many for each positive pair.
        rng: what draws.
    """
    members: dict[str, NDArray[np.intp]] = {
        name: np.flatnonzero(np.array(systems, dtype=object) == name) for name in set(systems)
    }
    found = []
    for one, other in positive:
        left, right = members[systems[one]], members[systems[other]]
        for _ in range(each):
            for _attempt in range(20):
                pair = int(rng.choice(left)), int(rng.choice(right))
                if meaning[pair[0]] != meaning[pair[1]] and frozenset(pair) not in known:
                    found.append(pair)
                    break
    return found


def graded_scores(release: Published, pairs: Sequence[GradedPair], *, seed: int = 0) -> list[Score]:
    """Spearman's correlation of the cosine with a known similarity, by kind of pair."""
    row = {code: i for i, code in enumerate(release.codes)}
    here = [p for p in pairs if p.one in row and p.other in row]
    found = []
    for kind in sorted({p.kind for p in here}):
        own = [p for p in here if p.kind == kind]
        cosine = _cosines(release, [(row[p.one], row[p.other]) for p in own])
        grade = np.array([p.similarity for p in own])
        if len(own) >= _LEAST:
            interval = bootstrap(_correlation(cosine, grade), len(own), draws=500, seed=seed)
            found.append(Score.of("Spearman correlation", kind, len(own), interval))
    return found


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> Callable[[NDArray[np.intp]], float]:
    return lambda draw: rank_correlation(one[draw], other[draw])


def _by_systems(release: Published, pairs: Sequence[tuple[int, int]]) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for (i, j), cosine in zip(pairs, _cosines(release, pairs).tolist(), strict=True):
        one, other = sorted((release.systems[i], release.systems[j]))
        found.setdefault((one, other), []).append(cosine)
    return found


def _cosines(release: Published, pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    left, right = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
    return np.asarray(np.sum(release.vectors[left] * release.vectors[right], axis=1))
