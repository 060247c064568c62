"""The objective F of the plug-in fit (see the package), its parameters, and what stays fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import scipy.sparse as sp
import torch
from torch import Tensor

from coordinator.model import pairs, vmf
from coordinator.model.factor import View
from coordinator.model.loadings import Data, Loadings, Where
from coordinator.model.pairs import Related, Relatedness, Similar, SimilarCounts
from coordinator.model.posterior import Support
from coordinator.model.relations import Relations

CPU = torch.device("cpu")


class Weights(NamedTuple):
    """Of the last three terms of F: w, w w_s, w w_r."""

    mixture: float
    similarity: float
    relatedness: float


@dataclass(frozen=True, eq=False)
class Problem:
    """What stays fixed at one kappa."""

    views: tuple[View, ...]
    data: tuple[Data, ...]
    where: Where
    prior: sp.csr_array | None
    support: Support
    similar: Relations | None
    graphs: Similar | None
    related: Related | None
    weights: Weights
    messages: bool
    kappa: float


@dataclass(frozen=True, eq=False)
class State:
    """All parameters: U, B_s, mu, r at the support's entries, (a, b), and (W, a_R); with what follows from r."""

    points: Tensor
    loadings: Loadings
    centers: Tensor
    responsibilities: Tensor
    counts: SimilarCounts | None
    link: tuple[float, float]
    relatedness: Relatedness
    value: float


def with_similar(problem: Problem, similar: Relations) -> Problem:
    """The problem with these similar pairs; none is no pairs."""
    if not len(similar.pairs):
        return replace(problem, similar=None, graphs=None)
    graphs = pairs.similar_on(similar, len(problem.where.pattern), CPU)
    return replace(problem, similar=similar, graphs=graphs)


def count(problem: Problem, responsibilities: Tensor) -> SimilarCounts | None:
    """The similar pairs as expected counts of pairs of clusters."""
    if problem.graphs is None:
        return None
    return pairs.count(problem.graphs, problem.support.pattern, responsibilities)


def memberships(problem: Problem, state: State) -> sp.csr_array:
    """The responsibilities as an (n, K) matrix without stored zeros."""
    r = problem.support.pattern.to_scipy(state.responsibilities)
    r.eliminate_zeros()
    return r


def mean_square(view: View) -> float:
    """Mean square of a source's entries."""
    return view.energy / (len(view.codes) * view.columns)


def loadings_of(data: Sequence[Data], points: Tensor) -> Loadings:
    """B_s by least squares, of least norm where a source's codes do not span the d dimensions.

    F weighs a source's squared residuals by 1/(2 p_s), as noise of variance p_s does.
    """
    matrices = (torch.linalg.lstsq(points[s.codes], s.scores, driver="gelsd").solution.T for s in data)
    return Loadings(tuple(matrices), tuple(float(s.columns) for s in data))


def objective(problem: Problem, state: State) -> float:
    """F."""
    residual = residuals(problem.data, state.points, state.loadings)
    value = -0.5 * sum(len(source.codes) * part for source, part in zip(problem.data, residual, strict=True))
    value += membership_value(problem, state)
    if problem.related is not None:
        related = pairs.related_value(problem.related, state.points, state.relatedness)
        value += problem.weights.relatedness * related
    return value


def membership_value(problem: Problem, state: State) -> float:
    """The terms of F in which r takes part."""
    mixture, similarity, _ = problem.weights
    r, (n, dim) = state.responsibilities, state.points.shape
    pull = problem.support.pattern.matrix(r) @ state.centers
    total = problem.kappa * torch.sum(pull * state.points)
    total += torch.sum(r * problem.support.log_prior) - torch.sum(torch.xlogy(r, r))
    value = mixture * (float(total) + n * float(vmf.log_normalizer(dim, problem.kappa)))
    if state.counts is not None:
        fit = pairs.similar_value(state.counts, state.centers, state.link)
        value += similarity * (fit - pairs.link_penalty(state.link))
    return value


def residuals(data: Sequence[Data], points: Tensor, loadings: Loadings) -> list[float]:
    """Mean square residual of each source's entries, of mean square 1 themselves."""
    return [
        float(torch.sum((source.scores - points[source.codes] @ loading.T) ** 2))
        / (len(source.codes) * source.columns)
        for source, loading in zip(data, loadings.matrices, strict=True)
    ]
