"""The objective F of the plug-in fit (see the package), its parameters, and what stays fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy import linalg
from scipy.special import xlogy

from coordinator.model import relations, vmf
from coordinator.model.factor import Array, Presence, View
from coordinator.model.relations import ClusterPairs, Relatedness, Relations


class Weights(NamedTuple):
    """Of the last three terms of F: w, w w_s, w w_r."""

    mixture: float
    similarity: float
    relatedness: float


@dataclass(frozen=True, eq=False)
class Problem:
    """What stays fixed at one kappa."""

    views: tuple[View, ...]
    where: Presence
    prior: sp.csr_array | None
    similar: Relations | None
    graphs: tuple[sp.csr_array, sp.csr_array] | None
    related: Relations | None
    weights: Weights
    messages: bool
    kappa: float


@dataclass(frozen=True, eq=False)
class State:
    """All parameters: U, the (r_s, d) loadings, mu, r, (a, b), and (W, a_R)."""

    points: Array
    loadings: tuple[Array, ...]
    centers: Array
    responsibilities: sp.csr_array
    link: tuple[float, float]
    relatedness: Relatedness
    value: float


def with_similar(problem: Problem, similar: Relations) -> Problem:
    """The problem with these similar pairs; none is no pairs."""
    if not len(similar.pairs):
        return replace(problem, similar=None, graphs=None)
    return replace(problem, similar=similar, graphs=similar.matrices(len(problem.where.pattern)))


def mean_square(view: View) -> float:
    """Mean square of a source's entries."""
    return view.energy / (len(view.codes) * view.columns)


def loadings_of(views: Sequence[View], points: Array) -> tuple[Array, ...]:
    """B_s by least squares, (r_s, d); of least norm where a source's codes do not span the d dimensions."""
    return tuple(
        np.asarray(linalg.lstsq(points[view.codes], view.scores)[0], dtype=np.float64).T for view in views
    )


def pairs_of_clusters(problem: Problem, responsibilities: sp.csr_array) -> ClusterPairs | None:
    """The similar pairs as expected counts of pairs of clusters."""
    return None if problem.graphs is None else relations.cluster_pairs(responsibilities, problem.graphs)


def objective(problem: Problem, state: State) -> float:
    """F."""
    residual = residuals(problem.views, state.points, state.loadings)
    value = -0.5 * sum(len(view.codes) * part for view, part in zip(problem.views, residual, strict=True))
    value += membership_value(problem, state)
    if problem.related is not None:
        value += problem.weights[2] * relations.relatedness_value(
            problem.related, state.points, state.relatedness
        )
    return float(value)


def membership_value(problem: Problem, state: State) -> float:
    """The terms of F in which r takes part."""
    mixture, similarity, _ = problem.weights
    n, dim = state.points.shape
    entry = state.responsibilities.tocoo()
    i, k = (np.asarray(axis, dtype=np.intp) for axis in entry.coords)
    along = problem.kappa * np.sum(np.asarray(state.responsibilities.T @ state.points) * state.centers)
    if problem.prior is None:
        log_prior = -n * np.log(len(state.centers))
    else:
        chance = np.asarray(problem.prior[i, k]).ravel()
        log_prior = float(np.sum(entry.data * np.log(chance)))
    total = along + log_prior - float(np.sum(xlogy(entry.data, entry.data)))
    total = mixture * (total + n * float(vmf.log_normalizer(dim, problem.kappa)))
    pairs = pairs_of_clusters(problem, state.responsibilities)
    if pairs is not None:
        fit = relations.similarity_value(pairs, state.centers, state.link)
        total += similarity * (fit - relations.link_penalty(state.link))
    return float(total)


def residuals(views: Sequence[View], points: Array, loadings: Sequence[Array]) -> list[float]:
    """Mean square residual of each source's entries, of mean square 1 themselves."""
    return [
        float(np.sum((view.scores - points[view.codes] @ loading.T) ** 2)) / (len(view.codes) * view.columns)
        for view, loading in zip(views, loadings, strict=True)
    ]
