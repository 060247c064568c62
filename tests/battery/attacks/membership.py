"""Membership inference: was a patient, all of whose events the attacker knows, among a site's patients?

The attacker holds a release, and patients of the same population drawn independently, from which shadow sites are made:
each contains a random half of the patients in question. Every statistic is a function of (released values, patient); its
distribution with and without the patient comes from the shadow sites.

Source: Homer et al. 2008 (statistics of margins); Sankararaman et al. 2009 (their likelihood ratio); Shokri et al. 2017
(shadow models); Carlini et al. 2022 (LiRA: a likelihood ratio for each patient).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import poisson, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from protocol.arrays import FloatMatrix
from protocol.release import CODE_PATIENTS, decode_release
from tests.battery.attacks.population import Flags, Floats, Index, Population, Site

BINS = (0, 1, 4, 8, 14, 25, 60, np.inf)
"""Expected patients of a pair; pairs about the floor say most, for there one patient decides whether it counts."""
_LEAST_SPREAD = 0.02


@dataclass(frozen=True)
class Seen:
    """What is seen of a site, laid over all n codes of the population.

    Attributes:
        values: float32 (n, n) symmetric: cosines of released vectors, or counts; NaN where nothing was released.
        margins: (n,) released patients of each code; NaN for codes that were withheld, or where none are published.
    """

    values: FloatMatrix
    margins: Floats


def see_release(released: bytes, codes: Sequence[str]) -> Seen:
    """Read a site's released bytes as the coordinator would."""
    release = decode_release(released)
    place = {code: i for i, code in enumerate(codes)}
    row = np.array([place[c] for c in release.manifest.codes])
    view = release.views()[0]
    seen = see_vectors(view.matrix, row[view.rows], len(codes))
    seen.margins[row] = release.arrays[CODE_PATIENTS]
    return seen


def see_vectors(vectors: FloatMatrix, row: Index, n_codes: int) -> Seen:
    """Cosines of vectors alone, as in a published release."""
    values = np.full((n_codes, n_codes), np.nan, np.float32)
    values[np.ix_(row, row)] = vectors @ vectors.T
    return Seen(values, np.full(n_codes, np.nan))


def see_counts(site: Site) -> Seen:
    """Exact counts of pairs and codes, as no site releases them: what the attack must succeed on."""
    upper = site.counts.pair_patients.toarray()
    full = upper + np.triu(upper, 1).T
    return Seen(np.log1p(full).astype(np.float32), site.counts.code_patients.astype(np.float64))


@dataclass(frozen=True)
class Reference:
    """What the attacker knows of the population, for a site of a given size.

    Attributes:
        size: patients of the site.
        expected: (n, n) symmetric, expected patients of each pair.
        weight: (n, n), expected change of a pair's PPMI by one patient who has it.
        share: (n,), share of patients with each code.
        covariance: (n, n), of having codes.
        noise: variance that rounding adds to a released count.
    """

    size: int
    expected: Floats
    weight: Floats
    share: Floats
    covariance: Floats
    noise: float


def know(population: Population, reference: Index, size: int, *, floor: int, rounding: int) -> Reference:
    """Learn the population from independent patients.

    With pi = P(Poisson(mu) >= floor) and L the PPMI at the expected counts, the expected PPMI of a pair is pi L; one more
    patient adds P(Poisson(mu) = floor - 1) L by crossing the floor and pi / mu by growth.
    """
    counts = population.count(reference)
    scale = size / len(reference)

    def expected(upper: sparse.csr_array[Any, tuple[int, int]]) -> Floats:
        dense = upper.toarray() * scale
        return np.asarray(dense + np.triu(dense, 1).T)

    events, patients = expected(counts.events), expected(counts.pair_patients)
    kept = poisson.sf(floor - 1, patients)
    sums = (kept * events).sum(axis=1)
    chance = np.outer(sums, sums) / sums.sum()
    ratio = np.log(np.divide(events, chance, out=np.ones_like(events), where=(events > 0) & (chance > 0)))
    level = np.maximum(ratio, 0)
    weight = poisson.pmf(floor - 1, patients) * level + np.where(level > 0, kept / np.maximum(patients, 1), 0)
    has = population.has(reference).astype(np.float32)
    return Reference(
        size, patients, weight, has.mean(axis=0), np.cov(has.T), rounding**2 / 12 if rounding > 1 else 0.0
    )


@dataclass(frozen=True)
class Shadows:
    """Mean and spread of each released value over the shadow sites, in the upper triangle; and a 0 where too few have it."""

    mean: Floats
    spread: Floats
    usable: Flags


def summarise(seen: Sequence[Seen]) -> Shadows:
    """Moments over shadow sites, ignoring values that a site did not release."""
    n = len(seen[0].margins)
    count, total, square = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, n))
    for one in seen:
        held = ~np.isnan(one.values)
        value = np.where(held, one.values, 0).astype(np.float64)
        count += held
        total += value
        square += value**2
    least = max(4, len(seen) // 4)
    mean = total / np.maximum(count, 1)
    spread = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 0))
    return Shadows(mean, np.maximum(spread, _LEAST_SPREAD), np.triu((count >= least) & (spread > 1e-6), 1))


def statistics(
    seen: Seen,
    shadows: Shadows,
    reference: Reference,
    pairs: sparse.csr_array[Any, tuple[int, int]],
    has: Flags,
) -> dict[str, Floats]:
    """Each statistic of one site for each of t patients.

    Args:
        pairs: (t, n^2), which pairs each patient has.
        has: (t, n), which codes.

    Returns:
        name -> (t,): `similarity`, the mean over the patient's pairs of (value - mean of shadows) / spread;
        `sensitivity`, the sum weighted by what one patient moves; `margins`, the likelihood ratio of the released
        patient counts; and `bin i`, `similarity` over pairs of about one expected size.
    """
    held = shadows.usable & ~np.isnan(seen.values)
    z = np.where(held, (np.nan_to_num(seen.values) - shadows.mean) / shadows.spread, 0)
    found = {
        "similarity": (pairs @ z.ravel()) / np.maximum(pairs @ held.ravel().astype(np.float64), 1),
        "sensitivity": pairs @ (z * reference.weight / shadows.spread).ravel(),
        "margins": _margin_ratio(seen.margins, reference, has),
    }
    bin_of = np.digitize(reference.expected, BINS[1:-1])
    for i in range(len(BINS) - 1):
        found[f"bin {i}"] = pairs @ np.where(bin_of == i, z, 0).ravel()
    return found


def _margin_ratio(margins: Floats, reference: Reference, has: Flags) -> Floats:
    """(x - p)' S^-1 (c - N p) with S = N Cov + rounding: the log likelihood ratio, up to a constant, of Gaussian counts."""
    held = np.flatnonzero(~np.isnan(margins))
    if not held.size:
        return np.zeros(len(has))
    share = reference.share[held]
    spread = reference.size * reference.covariance[np.ix_(held, held)]
    # A code that the reference never saw has no variance there.
    spread[np.diag_indices(len(held))] += reference.noise + 0.1
    residual = np.linalg.solve(spread, margins[held] - reference.size * share)
    return np.asarray((has[:, held] - share) @ residual)


def auc(score: Floats, inside: Flags) -> float:
    """P(score of one inside > score of one outside), ties half: 0.5 is chance."""
    rank, n_in = rankdata(score), int(inside.sum())
    return float((rank[inside].sum() - n_in * (n_in + 1) / 2) / (n_in * (len(inside) - n_in)))


def found_at(score: Floats, inside: Flags, false_alarms: float = 0.01) -> float:
    """Share of those inside who are named when this share of those outside is named wrongly (true positive rate)."""
    return float((score[inside] > np.quantile(score[~inside], 1 - false_alarms)).mean())


def likelihood_ratio(shadow: Floats, inside: Flags, target: Floats) -> Floats:
    """LiRA with one variance: log N(x; in, s^2) / N(x; out, s^2) for each patient, moments from (sites, t) shadows.

    A patient's own distance between in and out is shrunk half way to that of all patients: a few dozen shadow
    sites hardly tell it.
    """
    n_in = np.maximum(inside.sum(axis=0), 1)
    n_out = np.maximum((~inside).sum(axis=0), 1)
    mean_in = (shadow * inside).sum(axis=0) / n_in
    mean_out = (shadow * ~inside).sum(axis=0) / n_out
    around = shadow - np.where(inside, mean_in, mean_out)
    spread = around.std(axis=0) + 1e-12
    step = (mean_in - mean_out) / spread
    step = (step + step.mean()) / 2
    place = (target - (mean_in + mean_out) / 2) / spread
    return np.asarray(place * step)


Table = Mapping[str, Floats]
"""Statistic -> (sites, t)."""

EMBEDDING = ("similarity", "sensitivity", *(f"bin {i}" for i in range(len(BINS) - 1)))


def attack(shadow: Table, shadow_inside: Flags, target: Table, *, margins: bool) -> dict[str, Floats]:
    """Scores (target sites, t) of each attack, all trained on the shadow sites only.

    Returns:
        `similarity`, `sensitivity`, and with margins `margins`: the plain statistics; `LiRA` of the second;
        `regression`: logistic regression on all statistics of the vectors; with margins `all`: on these and the counts.
    """
    scores = {name: target[name] for name in ("similarity", "sensitivity")}
    ratio = likelihood_ratio(shadow["sensitivity"], shadow_inside, target["sensitivity"])
    scores["LiRA"] = ratio
    scores["regression"] = _regression(shadow, shadow_inside, target, EMBEDDING)
    if margins:
        scores["margins"] = target["margins"]
        scores["all"] = _regression(shadow, shadow_inside, target, (*EMBEDDING, "margins"))
    return scores


def _regression(shadow: Table, inside: Flags, target: Table, names: Sequence[str]) -> Floats:
    def stack(table: Table) -> Floats:
        return np.stack([table[name].ravel() for name in names], axis=1)

    scale = StandardScaler().fit(stack(shadow))
    model = LogisticRegression(max_iter=1000).fit(scale.transform(stack(shadow)), inside.ravel())
    shape = target[names[0]].shape
    return np.asarray(model.decision_function(scale.transform(stack(target))).reshape(shape))
