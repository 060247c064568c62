"""Ranking the targets of a code by everything that is known: latent vectors, support, position among the others, text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Index

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "latent": 0.25,
    "support": 1.0,
    "profile": 0.25,
    "text": 30.0,
    "known": 8.0,
}
LEAST = 50
"""Hidden anchors below which the default weights stand."""
_QUANTILES = np.linspace(0.02, 0.98, 40)
_NEAREST = 10
N_PROFILE = len(_QUANTILES) + _NEAREST
_BLOCK = 500  # rows whose cosines with all others are formed at once
_PROFILE_AXES = 5
_PRIOR_MATCHES, _PRIOR_GAP = 5.0, 0.2
_RATIO_FLOOR = 0.05  # scale of the log ratio of supports that rounding of counts alone explains


def csls(cosine: Array, k: int = 10) -> Array:
    """Cosines less the mean cosine of either side's k nearest: a code that is near to everything ranks lower.

    2 c_ij - mean of the k largest of row i - mean of the k largest of column j.

    Args:
        cosine: (n, m).
        k: neighbours; fewer where there are fewer.

    Source: Conneau, Lample, Ranzato, Denoyer and Jegou 2018.
    """
    row, column = min(k, cosine.shape[1]), min(k, cosine.shape[0])
    near_row = np.partition(cosine, -row, axis=1)[:, -row:].mean(axis=1)
    near_column = np.partition(cosine, -column, axis=0)[-column:].mean(axis=0)
    return np.asarray(2.0 * cosine - near_row[:, None] - near_column[None])


def text_likeness(one: NDArray[np.floating], other: NDArray[np.floating]) -> Array:
    """(n, m) corrected cosines of descriptions (`csls`); where one side has none, nothing is said.

    A row without a description has zeros for all; a candidate without one has the row's mean.

    Args:
        one: (n, p), rows of zeros where there is none.
        other: (m, p), by the same encoder.
    """
    found = np.zeros((len(one), len(other)))
    rows, columns = np.flatnonzero(one.any(axis=1)), np.flatnonzero(other.any(axis=1))
    if len(rows) and len(columns):
        x, y = unit_rows(one[rows].astype(np.float64)), unit_rows(other[columns].astype(np.float64))
        said = csls(x @ y.T)
        found[rows] = said.mean(axis=1, keepdims=True)
        found[np.ix_(rows, columns)] = said
    return found


def support_ratio(one: Array, other: Array, gaps: Array, matched: Array) -> Array:
    """Log likelihood ratio of how often two codes are used, for a pair that is one code against any pair.

    The difference of log supports is Laplace about 0 for a match, with the mean absolute difference of the matches
    known so far as its scale, and normal with the mean and variance of all pairs otherwise. Sites that use codes
    differently have a wide scale, and support then says little.

    Args:
        one: (n,) log share of patients with the code.
        other: (m,).
        gaps: (k,) differences of log share of codes that are known to be one.
        matched: (n, m) weights of probable matches. Before any, the scale is .25, and that counts as five matches.
    """
    difference = one[:, None] - other[None]
    weight = float(matched.sum()) + len(gaps) + _PRIOR_MATCHES
    total = float(np.sum(matched * np.abs(difference)) + np.abs(gaps).sum()) + _PRIOR_MATCHES * _PRIOR_GAP
    scale = total / weight + _RATIO_FLOOR
    variance = max(float(difference.var()), _RATIO_FLOOR**2)
    any_pair = -((difference - difference.mean()) ** 2) / (2 * variance) - np.log(2 * np.pi * variance) / 2
    return np.asarray(-np.abs(difference) / scale - np.log(2 * scale) - any_pair)


def profile(matrix: Array) -> Array:
    """How a code's cosines with all others at its site are distributed: it needs no common coordinates.

    Quantiles of the cosines and the ten largest, standardised within the site.

    Args:
        matrix: (n, p) one row a code.

    Returns:
        (n, 50).

    Law: rotating the columns, or renumbering the other codes, changes nothing.
    Source: Artetxe, Labaka and Agirre 2018, section 3.2, who sort the whole row.
    """
    points = unit_rows(matrix)
    n = len(points)
    found = np.zeros((n, N_PROFILE))
    if n < 2:
        return found
    for low in range(0, n, _BLOCK):
        rows = np.arange(low, min(low + _BLOCK, n))
        cosine = points[rows] @ points.T
        off = np.ones(cosine.shape, dtype=bool)
        off[np.arange(len(rows)), rows] = False
        others = cosine[off].reshape(len(rows), n - 1)
        nearest = -np.sort(-others, axis=1)[:, :_NEAREST]
        nearest = np.pad(nearest, ((0, 0), (0, _NEAREST - nearest.shape[1])), mode="edge")
        found[rows] = np.hstack([np.quantile(others, _QUANTILES, axis=1).T, nearest])
    return np.asarray((found - found.mean(axis=0)) / np.maximum(found.std(axis=0), 1e-9))


def profile_likeness(one: Array, other: Array) -> Array:
    """(n, m) minus the squared distance of profiles along their five leading principal axes, each of variance 1."""
    both = np.vstack([one, other])
    centred = both - both.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    lead = np.argsort(-values)[:_PROFILE_AXES]
    axes = vectors[:, lead] / np.sqrt(np.maximum(values[lead], 1e-9))
    x, y = (one - both.mean(axis=0)) @ axes, (other - both.mean(axis=0)) @ axes
    return np.asarray(2.0 * x @ y.T - np.sum(x**2, axis=1)[:, None] - np.sum(y**2, axis=1)[None])


@dataclass(frozen=True, eq=False)
class Fusion:
    """Weights of the features in the score of a pair; the score's softmax over candidates is P(target | code).

    Attributes:
        names: of the features.
        weights: one a feature.
        n: codes with a known target that the weights were learnt from; 0 for the default.
    """

    names: tuple[str, ...]
    weights: NDArray[np.float64]
    n: int = 0

    def score(self, features: Mapping[str, Array]) -> Array:
        """(n, m) weighted sum of the features' matrices."""
        return np.asarray(sum(w * features[name] for name, w in zip(self.names, self.weights, strict=True)))


def default_fusion(names: tuple[str, ...]) -> Fusion:
    """The weights without anything to learn from."""
    return Fusion(names, np.array([DEFAULT_WEIGHTS[name] for name in names]))


def learn_fusion(
    tasks: Sequence[tuple[Mapping[str, Array], Index]], *, names: tuple[str, ...], prior_codes: float = 10.0
) -> Fusion:
    """Conditional logit with positive weights, drawn to the default where there is little to learn from.

    Maximises sum_i [w'f_(i, right_i) - log sum_j exp w'f_ij] - prior_codes / 2 sum_f log(w_f / w_f0)^2.

    Args:
        tasks: features, name -> (n, m), and the column (n,) of each code's target. The features must not have been
            fitted to these targets: hide the anchors, as calibration does.
        names: of the features.
        prior_codes: strength of the prior, in codes.

    Source: McFadden 1974.
    """
    start = default_fusion(names)
    n = sum(len(right) for _, right in tasks)
    if n < LEAST:
        return start
    stacks = [np.stack([features[name] for name in names], axis=-1) for features, _ in tasks]
    chosen = [stack[np.arange(len(right)), right] for stack, (_, right) in zip(stacks, tasks, strict=True)]

    def loss(theta: Array) -> tuple[float, Array]:
        weights = start.weights * np.exp(theta)
        value, slope = prior_codes / 2 * float(theta @ theta), prior_codes * theta
        for stack, right in zip(stacks, chosen, strict=True):
            logit = stack @ weights
            level = logsumexp(logit, axis=1, keepdims=True)
            expected = np.einsum("nm,nmf->f", np.exp(logit - level), stack)
            value += float(np.sum(level) - np.sum(right @ weights))
            slope = slope + (expected - right.sum(axis=0)) * weights
        return value, slope

    bounds = [(-4.0, 4.0)] * len(names)
    best = minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B", bounds=bounds)
    return Fusion(names, start.weights * np.exp(best.x), n)
