"""Variational expectation-maximisation of SMILE: one iteration, and the bound that it raises.

The M-step maximises the bound over the parameters for the current posterior, the E-step moves the posterior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import scipy.sparse as sp
import torch
from torch import Tensor

from coordinator.model import clusters, loadings, pairs, posterior, support, vmf
from coordinator.model.factor import Array
from coordinator.model.loadings import Data, Loadings, Where
from coordinator.model.pairs import Related, Relatedness, Similar, SimilarCounts
from coordinator.model.posterior import Moments, Posterior, Support
from coordinator.model.terms import Term, refitted

_HALVINGS = 5
_EMPTY = 1e-9  # expected codes in a cluster below which it keeps its center
_NEGLIGIBLE = 1e-7  # responsibilities below this are set to zero, and the rest normalised again


@dataclass(frozen=True, eq=False)
class Problem:
    """What stays fixed during a fit.

    Args:
        data: the sources in their principal axes.
        where: which source holds which code.
        prior: (n, K) pi, or None for a uniform one.
        whole: the clusters of every code if these are few, or None: then the likely ones are chosen anew.
        n_clusters: K.
        most: clusters that a code may belong to at once, where they are chosen.
        similar: synonym pairs.
        similarity_weight: of the similar pairs in the bound.
        related: related pairs.
        relatedness_weight: of the related pairs in the bound.
        terms: what else enters the bound, as it is before the fit.
    """

    data: tuple[Data, ...]
    where: Where
    prior: sp.csr_array | None
    whole: Support | None
    n_clusters: int
    most: int
    similar: Similar | None
    similarity_weight: float
    related: Related | None
    relatedness_weight: float
    terms: tuple[Term, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.where.pattern.device


@dataclass(frozen=True, eq=False)
class Parameters:
    """Point estimates.

    Args:
        loadings: B_s and sigma_s^2.
        centers: (K, d) mu.
        kappa: concentration.
        freedom: f, the effective number of means, see `clusters.fit_concentration`.
        link: (a, b) of the similar pairs.
        relatedness: W and a_R of the related pairs.
        terms: the problem's, with their own parameters.
    """

    loadings: Loadings
    centers: Tensor
    kappa: float
    freedom: float
    link: tuple[float, float]
    relatedness: Relatedness
    terms: tuple[Term, ...] = ()


@dataclass(frozen=True, eq=False)
class Belief:
    """A posterior with what is computed from it once."""

    q: Posterior
    moments: Moments
    counts: SimilarCounts | None


@dataclass(frozen=True, eq=False)
class State:
    """Parameters and posterior after an iteration, and the bound at both."""

    parameters: Parameters
    belief: Belief
    bound: float


def start(problem: Problem, points: Array, n_clusters: int, method: str, seed: int) -> State:
    """Parameters from the start embedding taken as exact, and a first posterior."""
    n, dim = points.shape
    centers, along = clusters.start_clusters(points, n_clusters, problem.prior, method=method, seed=seed)
    freedom = min(n_clusters, clusters.MOST_MEANS * n)
    mean = torch.from_numpy(points).to(problem.device)
    pattern = problem.where.pattern
    second = torch.stack([mean[pattern == p].T @ mean[pattern == p] for p in range(len(problem.where.held))])
    # A source can hold fewer codes than there are dimensions.
    second += 1e-6 * n * torch.eye(dim, dtype=mean.dtype, device=mean.device) / dim
    relatedness = Relatedness(mean.new_zeros((dim, dim)), 0.0)
    if problem.related is not None:
        relatedness = pairs.fit_relatedness(problem.related, mean, relatedness, steps=3)
    parameters = Parameters(
        loadings=loadings.fit_loadings(problem.data, problem.where, mean, second),
        centers=torch.from_numpy(centers).to(problem.device),
        kappa=clusters.fit_concentration(n * along, n, dim, freedom),
        freedom=freedom,
        link=(-2.0, 4.0),
        relatedness=relatedness,
        terms=refitted(problem.terms, mean),
    )
    evidence, _ = _evidence(problem, parameters, mean)
    pull = parameters.kappa * parameters.centers
    allowed = problem.whole or support.nearest(problem.prior, problem.most, evidence, pull, None, None)
    q = Posterior(evidence, pull, allowed, _responsibilities(evidence, pull, allowed, None))
    return state_of(problem, parameters, q)


def state_of(problem: Problem, parameters: Parameters, q: Posterior) -> State:
    """The state of parameters and a posterior."""
    belief = _believe(problem, q)
    return State(parameters, belief, _bound(problem, parameters, belief))


def iterate(problem: Problem, state: State, *, settled: bool, choose: bool = False) -> State:
    """One M-step and one E-step.

    Args:
        problem: what is fitted.
        state: where it stands.
        settled: keep the effective number of means; only then can the bounds of iterations be compared.
        choose: choose the clusters that each code may belong to anew, unless all of them are kept anyway.

    Law: if settled, the bound does not fall.
    """
    parameters = _maximise(problem, state.parameters, state.belief, settled=settled)
    belief = state.belief
    if choose and problem.whole is None:
        belief = _chosen_anew(problem, parameters, belief)
    belief, bound = _improve(problem, parameters, belief)
    return State(parameters, belief, bound)


def free_means(problem: Problem, parameters: Parameters, belief: Belief) -> float:
    """The effective number of means that were fitted to the codes.

    m = sum_k o_k c_k / (c_k + p_k): a mean counts by how little its codes are shared (o_k = sum_i r_ik^2 / sum_i r_ik)
    and by the part of what is known of it, c_k = kappa mu_k'S_k, that its codes and not the pairs contribute. Of the
    codes' mean squared distance from their means, E|u_i - mu_k|^2, fitting m means has shortened only the share w that
    lies between mu_k and E[u_i | k]; the posterior's own spread is as wide as ever. So 1 - rbar is too short by the
    factor 1 + w m / (n - m), which n / (n - f) equals for the f that is returned (derived).
    """
    m, kappa, n = belief.moments, parameters.kappa, len(belief.moments.mean)
    along = torch.sum(parameters.centers * m.cluster, dim=1)
    known = (kappa * along).clamp_min(0.0)
    more = torch.zeros_like(known)
    if belief.counts is not None:
        slope, curvature = pairs.similar_information(belief.counts, parameters.centers, parameters.link)
        more = (problem.similarity_weight * (slope + curvature)).clamp_min(0.0)
    share = known / (known + more).clamp_min(1e-12)
    means = min(float(torch.sum(m.overlap * share)), clusters.MOST_MEANS * n)
    distance = max(2.0 * (n - float(along.sum())), 1e-12)
    between = min(max(1.0 - (n - m.sharp) / distance, 0.0), 1.0)
    stretch = between * means / (n - means)
    return n * stretch / (1.0 + stretch)


def _believe(problem: Problem, q: Posterior) -> Belief:
    counts = None
    if problem.similar is not None:
        counts = pairs.count(problem.similar, q.support.pattern, q.responsibilities)
    return Belief(q, posterior.moments(q, problem.where), counts)


def _maximise(problem: Problem, old: Parameters, belief: Belief, *, settled: bool) -> Parameters:
    """The M-step: each parameter maximises the bound for the current posterior."""
    m = belief.moments
    n, dim = m.mean.shape
    new = replace(old, centers=_move_centers(problem, old, belief))
    if belief.counts is not None:
        new = replace(new, link=pairs.fit_link(belief.counts, new.centers, old.link))
    if problem.related is not None:
        new = replace(new, relatedness=pairs.fit_relatedness(problem.related, m.mean, old.relatedness))
    new = replace(new, terms=refitted(old.terms, m.mean))
    freedom = old.freedom if settled else free_means(problem, new, belief)
    along = float(torch.sum(new.centers * m.cluster))
    return replace(
        new,
        loadings=loadings.fit_loadings(problem.data, problem.where, m.mean, m.second),
        kappa=clusters.fit_concentration(along, n, dim, freedom),
        freedom=freedom,
    )


def _move_centers(problem: Problem, old: Parameters, belief: Belief) -> Tensor:
    """mu_k along sum_i r_ik E[u_i | k]; a cluster without codes keeps its center.

    The similar pairs depend on the centers too and add their gradient; then a step that lowers the sum of
    both terms is halved.
    """
    sums = belief.moments.cluster
    if belief.counts is None:
        filled = belief.moments.size > _EMPTY
        return torch.where(filled[:, None], _unit(sums), old.centers)
    counts, weight = belief.counts, problem.similarity_weight

    def value(centers: Tensor) -> float:
        likeness = weight * pairs.similar_value(counts, centers, old.link)
        return old.kappa * float(torch.sum(centers * sums)) + likeness

    slope = old.kappa * sums + weight * pairs.similar_gradient(counts, old.centers, old.link)
    target = torch.where(torch.any(slope != 0.0, dim=1)[:, None], _unit(slope), old.centers)
    base, step = value(old.centers), 1.0
    for _ in range(_HALVINGS + 1):
        moved = _unit((1.0 - step) * old.centers + step * target)
        if value(moved) >= base:
            return moved
        step *= 0.5
    return old.centers


def _evidence(problem: Problem, parameters: Parameters, mean: Tensor) -> tuple[Tensor, Tensor]:
    """h_i at E[u_i], and the part of the way to it that is safe.

    On the sphere u'A u / 2 is replaced by its tangent at E[u_i] with A_i - t_i I in place of A_i, which turns
    the evidence into h_i = b_i - A_i E[u_i] + t_i E[u_i]. With t_i the mean eigenvalue the fixed point is
    stationary for the bound (up to 1/|eta|), because the spread of a vMF is the same in all directions. The
    largest eigenvalue is the step length that does not overshoot, so h moves the fraction mean / largest of
    the way. Related pairs and terms add their gradient to h, and their curvature to A_i only through its trace.
    """
    precision, slope = loadings.evidence(problem.data, problem.where, parameters.loadings)
    pattern, dim = problem.where.pattern, mean.shape[1]
    for p in range(len(precision)):
        here = pattern == p
        slope[here] -= mean[here] @ precision[p]
    typical = (precision.diagonal(dim1=1, dim2=2).sum(dim=1) / dim)[pattern]
    largest = _largest_eigenvalue(precision)[pattern]
    if problem.related is not None:
        extra, trace = pairs.related_evidence(problem.related, mean, parameters.relatedness)
        slope += problem.relatedness_weight * extra
        typical = typical + problem.relatedness_weight * trace / dim
        largest = largest + problem.relatedness_weight * trace
    for term in parameters.terms:
        extra, trace = term.evidence(mean)
        slope += extra
        typical = typical + trace / dim
        largest = largest + trace
    return slope + typical[:, None] * mean, (typical / largest)[:, None]


def _largest_eigenvalue(matrices: Tensor) -> Tensor:
    """A bound from above, tight within d^(1/64), for positive semidefinite matrices (P, d, d): |A^32|_F^(1/32).

    Products alone: an eigensolver's small steps are at the mercy of whatever else the machine's cores do.
    """
    scale = matrices.diagonal(dim1=1, dim2=2).sum(dim=1).clamp_min(1e-300)
    power = matrices / scale[:, None, None]
    for _ in range(5):
        power = power @ power
    size: Tensor = torch.linalg.matrix_norm(power)
    return scale * size ** (1.0 / 32.0)


def _responsibilities(evidence: Tensor, pull: Tensor, allowed: Support, message: Tensor | None) -> Tensor:
    r = posterior.respond(evidence, pull, allowed, message)
    r = torch.where(r < _NEGLIGIBLE, 0.0, r)
    return r / allowed.pattern.row_sums(r)[allowed.pattern.row]


def _propose(problem: Problem, parameters: Parameters, belief: Belief) -> Posterior:
    """The E-step: evidence, then responsibilities with u integrated out."""
    old = belief.q
    target, fraction = _evidence(problem, parameters, belief.moments.mean)
    evidence = old.evidence + fraction * (target - old.evidence)
    pull = parameters.kappa * parameters.centers
    message = None
    if belief.counts is not None:
        message = problem.similarity_weight * pairs.similar_message(
            belief.counts, old.support.pattern, parameters.centers, parameters.link
        )
    r = _responsibilities(evidence, pull, old.support, message)
    return Posterior(evidence, pull, old.support, r)


def _chosen_anew(problem: Problem, parameters: Parameters, belief: Belief) -> Belief:
    """The same posterior on a support that also holds the clusters which are likely now."""
    q, pull = belief.q, parameters.kappa * parameters.centers
    allowed = support.nearest(problem.prior, problem.most, q.evidence, pull, belief.counts, q)
    return replace(belief, q=Posterior(q.evidence, q.pull, allowed, support.carried(q, allowed)))


def _improve(problem: Problem, parameters: Parameters, belief: Belief) -> tuple[Belief, float]:
    """Move the posterior; halve a move that lowers the bound, and keep the old posterior if none helps."""
    base = _bound(problem, parameters, belief)
    proposal = _propose(problem, parameters, belief)
    step = 1.0
    for _ in range(_HALVINGS + 1):
        q = proposal if step == 1.0 else belief.q.towards(proposal, step)
        moved = _believe(problem, q)
        bound = _bound(problem, parameters, moved)
        if bound >= base:
            return moved, bound
        step *= 0.5
    return belief, base


def _bound(problem: Problem, parameters: Parameters, belief: Belief) -> float:
    m = belief.moments
    bound = loadings.expected_log_likelihood(
        problem.data, problem.where, parameters.loadings, m.mean, m.second
    ) + _mixture_bound(m, parameters)
    if belief.counts is not None:
        bound += problem.similarity_weight * (
            pairs.similar_value(belief.counts, parameters.centers, parameters.link)
            - pairs.link_penalty(parameters.link)
        )
    if problem.related is not None:
        bound += problem.relatedness_weight * pairs.related_value(
            problem.related, m.mean, parameters.relatedness
        )
    return bound + sum(term.value(m.mean) for term in parameters.terms)


def _mixture_bound(m: Moments, parameters: Parameters) -> float:
    """E_q[log p(u, z)] plus the entropy of q, restricted as in `clusters.fit_concentration`."""
    n, dim = m.mean.shape
    constant = float(vmf.log_normalizer(dim, parameters.kappa))
    along = float(torch.sum(parameters.centers * m.cluster))
    return (
        n * constant
        + parameters.kappa * along
        + m.log_prior
        + m.entropy
        - parameters.freedom * (constant + parameters.kappa)
    )


def _unit(rows: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(length > 0.0, length, 1.0)
