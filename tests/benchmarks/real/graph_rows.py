"""The rows of a table for one draw: pairs of one phecode, how much of what is found comes back in other patients, indications."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from coordinator.evaluation import placements
from tests.benchmarks.real import indications, recoded
from tests.benchmarks.real.graph import (
    FLOORS,
    MORE,
    SCORERS,
    Array,
    View,
    by_weight,
    claim_samples,
    claims,
    few_shot,
    indication_pairs,
    jaccard,
    phecode_pairs,
    scores,
    view_of,
)
from tests.benchmarks.real.groups import Pairs, phecodes


def significant(view: View, level: float = 0.05) -> NDArray[np.bool_]:
    """Pairs that the smoothed test finds at this false discovery rate."""
    return np.asarray(view.sample.tests.q(view.sample.tests.smooth) <= level)


def tested_only(score: Callable[[View], Array]) -> Callable[[View], Array]:
    """The score, with pairs that are not tested, or withheld, after all others."""
    return lambda view: np.where(view.sample.tests.tested, score(view), -np.inf)


def found_only(score: Callable[[View], Array]) -> Callable[[View], Array]:
    """The score, with pairs that the smoothed test does not find after all others."""
    return lambda view: np.where(significant(view), score(view), -np.inf)


FREQUENT: Mapping[str, Callable[[View], Array]] = {
    "cosine": MORE["cosine"],
    "cosine of tested": tested_only(MORE["cosine"]),
    "halves' cosine": MORE["halves' cosine"],
    "regression": MORE["regression"],
    "regression of tested": tested_only(MORE["regression"]),
    "regression of found": found_only(MORE["regression"]),
    "each pair": tested_only(MORE["each pair"]),
    "smoothed": tested_only(MORE["smoothed"]),
}
"""Whose edges are compared: tests look at frequent pairs only, so that cosines are held to the same pairs too."""


def power(view: View, pairs: Pairs, level: float, test: str) -> dict[str, float]:
    """Share of the known tested pairs that a test finds, and that cosines and regressions put among as many first pairs."""
    tests = view.sample.tests
    found = tests.q(tests.alone if test == "each pair" else tests.smooth) <= level
    upper = np.triu(tests.tested, 1)
    most = int((found & upper).sum())
    known = tuple(pairs.known.T)
    row = {"pairs": float(len(pairs.known)), "found": float(most), test: float(found[known].mean())}
    for name, score in SCORERS.items():
        values = score(view)
        least = np.sort(values[upper])[-max(1, most)]
        row[name] = float((values[known] >= least).mean()) if most else 0.0
    return row


def among_tested(view: View, pairs: Pairs) -> Pairs:
    """The pairs that are tested and not withheld."""
    inside = view.sample.tests.tested
    return Pairs(pairs.known[inside[tuple(pairs.known.T)]], pairs.free[inside[tuple(pairs.free.T)]])


def label_errors(
    view: View, pairs: Pairs, scorers: Mapping[str, Callable[[View], Array]]
) -> dict[str, float]:
    """Standard errors of each score's gain in AUC over the cosine, known pairs drawn anew by whole phecodes.

    The linear part of the AUC is the mean of the known pairs' placements among the free ones (DeLong, DeLong and
    Clarke-Pearson 1988); the pairs of a phecode share codes and are not independent.
    """
    label = np.array([phecodes("9")[view.codes[i][1:]] for i in pairs.known[:, 0]])
    group = np.unique(label, return_inverse=True)[1]

    def place(score: Callable[[View], Array]) -> Array:
        values = score(view)
        return placements(values[tuple(pairs.known.T)], values[tuple(pairs.free.T)])[0]

    base, errors = place(scorers["cosine"]), {}
    for name, score in scorers.items():
        apart = place(score) - base
        sums = np.bincount(group, apart - apart.mean())
        errors[name] = float(np.sqrt(np.sum(sums**2)) / len(apart))
    return errors


def same_phecode_rows(one: View, other: View) -> dict[str, dict[str, float]]:
    """AUC, power and stability of same-phecode pairs, on released cells and on tested pairs."""
    pairs = phecode_pairs(one)
    tested = among_tested(one, pairs)
    size = {"codes": float(len(one.codes)), "pairs": float(len(pairs.known))}
    rows = {
        "same phecode, AUC": {name: pairs.auc(score(one)) for name, score in MORE.items()} | size,
        "error of its gain by drawing phecodes": label_errors(one, pairs, MORE),
        "same phecode among tested pairs, AUC": {name: tested.auc(score(one)) for name, score in MORE.items()}
        | {"pairs": float(len(tested.known))},
    }
    for level in (0.05, 0.1):
        for test in ("each pair", "smoothed"):
            rows[f"power at an FDR of {level:.0%}, {test}"] = power(one, tested, level, test)
    return rows | {
        "stability, Jaccard": jaccard(one, other),
        "stability of a quarter, Jaccard": jaccard(one, other, share=0.25),
        "stability of what both regressions select, Jaccard": jaccard(
            one,
            other,
            {name: MORE[name] for name in ("cosine", "both ways", "halves' cosine")},
            edges=lambda view: view.both_ways > 0,
        ),
        "stability of what is selected by the criterion, Jaccard": chosen(
            one, other, lambda v: v.by_criterion
        ),
        "stability of what is selected by halves of sites, Jaccard": chosen(one, other, lambda v: v.by_sites),
        "stability of what is found, Jaccard": jaccard(one, other, FREQUENT, edges=significant),
        "stability of what is found and selected, Jaccard": jaccard(
            one, other, FREQUENT, edges=lambda view: significant(view) & (view.weights > 0)
        ),
    }


def chosen(one: View, other: View, weights: Callable[[View], Array]) -> dict[str, float]:
    """Stability of the regression's edges where lambda is chosen in another way."""
    scorers = {"cosine": MORE["cosine"], "regression": lambda view: by_weight(view, weights(view))}
    return jaccard(one, other, scorers, edges=lambda view: weights(view) > 0)


def claims_rows(seed: int, floors: str) -> dict[str, dict[str, float]]:
    """Same-phecode pairs, stability and fine-tuning: three samples of the claims, others for each seed, against the rest."""
    events = claims()
    splits = np.random.default_rng(0).permutation(np.array(list(combinations(range(1, 7), 3))))
    first = splits[seed]
    one, other = (
        view_of(events, np.isin(claim_samples(), first, invert=late), FLOORS[floors], seed)
        for late in (False, True)
    )
    taught = few_shot(one, phecode_pairs(one, root=True), seed)
    return {**same_phecode_rows(one, other), "same root, 1 % taught, AUC": taught}


def uci_rows(seed: int, floors: str) -> dict[str, dict[str, float]]:
    """Same-phecode pairs and stability: a random half of the patients of UCI's hospitals against the other."""
    events = recoded.uci_events()
    half = (np.random.default_rng(100 + seed).random(int(events.patient.max()) + 1) < 0.5)[events.patient]
    one, other = (view_of(events, rows, FLOORS[floors], seed, window=None) for rows in (half, ~half))
    return same_phecode_rows(one, other)


def indication_rows(seed: int, source: str) -> dict[str, dict[str, float]]:
    """Indications on a random four fifths of the patients."""
    events = recoded.synthea_events() if source == "Synthea" else recoded.uci_events()
    shown = indications.displays() if source == "Synthea" else {}
    window, floors = (30, (5, 2)) if source == "Synthea" else (None, (20, 11))
    chosen = np.random.default_rng(seed).random(int(events.patient.max()) + 1) < 0.8
    view = view_of(events, chosen[events.patient], floors, seed, window=window)
    pairs = indication_pairs(view, shown, seed)
    return {
        "indicated, AUC": scores(view, pairs)
        | {"relatedness without tests": pairs.auc(MORE["relatedness without tests"](view))}
        | {"pairs": float(len(pairs.known))},
        "indicated, 10 % taught, AUC": few_shot(view, pairs, seed, 0.1),
    }
