"""Subgroups of a cohort: k-means or a Gaussian mixture on unit vectors, and whether they come back in bootstrap samples."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2
from scipy.special import logsumexp

from site_agent.sources import Progress, silent

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]
Method = Literal["k-means", "mixture"]

STABLE = 0.75
"""Of the mean Jaccard index: below it a group is no more than a cut through a cloud (Hennig 2007)."""
_STARTS, _STEPS, _AXES = 5, 50, 16


@dataclass(frozen=True, eq=False)
class Grouping:
    """Patients in groups, the largest first.

    Attributes:
        labels: (n,) group of each patient.
        jaccard: (k,) mean over bootstrap samples of each group's Jaccard index with the group that resembles it most.
        rand: mean adjusted Rand index of the samples' groupings with this one.
        repeats: how many samples.
    """

    labels: Labels
    jaccard: Floats
    rand: float
    repeats: int

    @property
    def stable(self) -> bool:
        """Whether every group comes back."""
        return bool((self.jaccard >= STABLE).all())


def subgroups(
    vectors: npt.ArrayLike,
    k: int = 0,
    *,
    method: Method = "k-means",
    repeats: int = 50,
    most: int = 6,
    seed: int = 0,
    progress: Progress = silent,
) -> Grouping:
    """Divide patients into k groups; with k = 0 into as many as are stable, up to `most`, else 1.

    Each bootstrap sample of the patients is grouped anew, and all patients are put to its nearest groups. A group is
    stable if its mean Jaccard index with the best of them is at least `STABLE`.

    Args:
        vectors: (n, d) rows of unit length; the mixture takes their first 16 principal axes.
        k: how many groups, or 0.
        method: k-means, or a Gaussian mixture with a variance for each axis and group.
        repeats: bootstrap samples.
        most: with k = 0, the largest number that is tried.
        seed: of starts and samples.
        progress: told the share done.

    Source: Hennig 2007 (stability); Hubert and Arabie 1985 (adjusted Rand index).

    Raises:
        ValueError: fewer patients than groups.
    """
    points = np.asarray(vectors, dtype=np.float64)
    if len(points) < max(k, 1):
        raise ValueError("there must be as many patients as groups")
    if method == "mixture":
        points = _axes(points)
    if k:
        return _judged(points, k, method, repeats, seed, progress)
    best = _judged(points, 1, method, 1, seed, silent)
    for i, size in enumerate(range(2, min(most, len(points) // 2) + 1)):
        progress(f"trying {size} subgroups", i / max(1, most - 1))
        found = _judged(points, size, method, repeats, seed, silent)
        if found.stable:
            best = found
    return best


def _judged(points: Floats, k: int, method: Method, repeats: int, seed: int, progress: Progress) -> Grouping:
    rng = np.random.default_rng(seed)
    labels = _by_size(_grouped(points, points, k, method, rng))
    k = int(labels.max()) + 1
    jaccard, rand = np.zeros(k), 0.0
    for i in range(repeats):
        progress("grouping bootstrap samples", i / repeats)
        sample = points[rng.integers(len(points), size=len(points))]
        other = _grouped(sample, points, k, method, rng)
        shared = _shared(labels, other)
        jaccard += (shared / (shared.sum(1, keepdims=True) + shared.sum(0) - shared)).max(axis=1) / repeats
        rand += adjusted_rand(labels, other) / repeats
    return Grouping(labels, jaccard, rand, repeats)


def adjusted_rand(one: Labels, two: Labels) -> float:
    """Agreement of two groupings: 1 where they are the same, 0 on average where they are at random."""
    shared = _shared(one, two)
    pairs = float((shared * (shared - 1)).sum() / 2)
    rows, columns = ((s * (s - 1)).sum() / 2 for s in (shared.sum(1), shared.sum(0)))
    everyone = max(1.0, len(one) * (len(one) - 1) / 2)
    expected, most = float(rows * columns / everyone), float(rows + columns) / 2
    return 1.0 if most == expected else (pairs - expected) / (most - expected)


def _shared(one: Labels, two: Labels) -> Floats:
    """(k, l) how many are in a group of the one and a group of the other; no empty groups."""
    _, one = np.unique(one, return_inverse=True)
    _, two = np.unique(two, return_inverse=True)
    size = int(two.max()) + 1
    return (
        np.bincount(one * size + two, minlength=(int(one.max()) + 1) * size).reshape(-1, size).astype(float)
    )


def _grouped(sample: Floats, points: Floats, k: int, method: Method, rng: np.random.Generator) -> Labels:
    """Group a sample; the nearest of its groups for each of the points."""
    centers = _centers(sample, k, rng)
    if method == "k-means":
        return _nearest(points, centers)
    return _mixture(sample, points, centers)


def _centers(points: Floats, k: int, rng: np.random.Generator) -> Floats:
    """Centers of the best of a few k-means."""
    best, least = points[:1], np.inf
    for _ in range(_STARTS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty group: another start has a better one
            centers, labels = kmeans2(points, k, iter=_STEPS, minit="++", rng=rng)
        spread = float(((points - centers[labels]) ** 2).sum())
        if spread < least:
            best, least = centers, spread
    return best


def _nearest(points: Floats, centers: Floats) -> Labels:
    return np.asarray((points @ centers.T - 0.5 * (centers**2).sum(axis=1)).argmax(axis=1))


def _mixture(sample: Floats, points: Floats, centers: Floats) -> Labels:
    """Expectation maximisation from the k-means groups; each axis of each group has a variance of its own."""
    weight = np.eye(len(centers))[_nearest(sample, centers)]
    floor = 1e-3 * sample.var(axis=0).mean() + 1e-12
    for _ in range(_STEPS):
        size = weight.sum(axis=0) + 1e-9
        mean = (weight.T @ sample) / size[:, None]
        variance = np.maximum((weight.T @ sample**2) / size[:, None] - mean**2, 0.0) + floor
        share = np.log(size / size.sum())
        before, score = weight, _log_density(sample, mean, variance) + share
        weight = np.exp(score - logsumexp(score, axis=1, keepdims=True))
        if np.abs(weight - before).max() < 1e-4:
            break
    return np.asarray((_log_density(points, mean, variance) + share).argmax(axis=1))


def _log_density(points: Floats, mean: Floats, variance: Floats) -> Floats:
    square = (points**2) @ (1 / variance).T - 2 * points @ (mean / variance).T + (mean**2 / variance).sum(1)
    return np.asarray(-0.5 * (square + np.log(variance).sum(1)))


def _axes(points: Floats) -> Floats:
    centred = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    return np.asarray(centred @ axes[: min(_AXES, len(axes))].T)


def _by_size(labels: Labels) -> Labels:
    """The largest group is 0; of equals the one of the first patient."""
    _, first, numbered, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    place = np.empty(len(order), dtype=np.intp)
    place[order] = np.arange(len(order))
    return place[numbered]
