"""Split-and-merge search: leave a local maximum of the bound by giving a superfluous cluster to codes that need one.

Expectation-maximisation never moves a cluster across the sphere, so it ends with some true clusters merged and
others cut in two. A move merges two clusters and splits a third (Ueda, Nakano, Ghahramani and Hinton 2000,
"SMEM algorithm for mixture models"). Moves are tried in a small problem, the codes and clusters nearby with all
else held fixed, and what looks best there is kept only if the bound of the whole model rises.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from scipy.special import expit, log_expit, logsumexp

from coordinator.model import variational, vmf
from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Index
from coordinator.model.posterior import Posterior
from coordinator.model.variational import Problem, State

_NEIGHBOURS = 4  # clusters that a cluster may be merged with
_AROUND = 2  # clusters around each of a move's three that are refitted with it
_MOST_LOSS = 30.0  # a merge may cost this much more than the split gains, in nats, before the refit decides
_WORTHWHILE = 0.5  # nats
_PROPOSALS = 4  # moves that a merge or a split takes part in
_SETTLING = 6  # iterations of the whole model after which a round's moves are judged
_NEGLIGIBLE = 1e-7


class Refit(NamedTuple):
    """A small problem's objective, its (m, c) responsibilities and its (c, d) centers."""

    value: float
    responsibilities: Array
    centers: Array


class Move(NamedTuple):
    """Clusters and codes nearby with their refit, and what it gains."""

    gain: float
    columns: list[int]
    rows: Index
    refit: Refit


@dataclass(frozen=True, eq=False)
class Surroundings:
    """The whole model on the host, held fixed around a small problem.

    Args:
        evidence: (n, d) h.
        responsibilities: (n, K) csr.
        centers: (K, d).
        kappa: concentration.
        link: (a, b).
        weight: of the similar pairs.
        prior: (n, K) or None.
        graphs: symmetric positive and all pairs, or None.
        near: (n, K) positive and all pairs by the cluster of the other code, csr, or None.
        members: the codes of each cluster.
    """

    evidence: Array
    responsibilities: sp.csr_array
    centers: Array
    kappa: float
    link: tuple[float, float]
    weight: float
    prior: sp.csr_array | None
    graphs: tuple[sp.csr_array, sp.csr_array] | None
    near: tuple[sp.csr_array, sp.csr_array] | None
    members: list[Index]

    def log_prior(self, rows: Index, columns: list[int]) -> Array:
        """(m, c) log pi."""
        if self.prior is None:
            return np.full((len(rows), len(columns)), -np.log(len(self.centers)))
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.prior[rows][:, columns].toarray()))


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Similar pairs of a small problem: among its codes (m, m), and of these with all other codes (m, K)."""

    positive: Array
    every: Array
    outside_positive: Array
    outside_every: Array


def improve(
    problem: Problem,
    state: State,
    graphs: tuple[sp.csr_array, sp.csr_array] | None,
    *,
    rounds: int,
    tries: int,
) -> Iterator[State]:
    """Better and better states; the bound of each is above the one before.

    Args:
        problem: what is fitted.
        state: where to start, near a local maximum.
        graphs: symmetric matrices of the positive and of all similar pairs, or None.
        rounds: at most this many.
        tries: moves that are refitted a round.
    """
    for _ in range(rounds):
        around = surroundings(problem, state, graphs)
        moves = _disjoint(_moves(around, tries))
        while moves:
            moved = _applied(problem, state, around, moves)
            for _ in range(_SETTLING):
                moved = variational.iterate(problem, moved, settled=True)
            if moved.bound > state.bound:
                break
            # Together they disturb each other: the better half of them may not.
            moves = moves[: len(moves) // 2]
        if not moves:
            return
        state = moved
        yield state


def surroundings(
    problem: Problem, state: State, graphs: tuple[sp.csr_array, sp.csr_array] | None
) -> Surroundings:
    """Copy what a small problem needs to the host."""
    q, parameters, counts = state.belief.q, state.parameters, state.belief.counts
    responsibilities = q.support.pattern.to_scipy(q.responsibilities)
    near = None
    if counts is not None and graphs is not None:
        near = (sp.csr_array(graphs[0] @ responsibilities), sp.csr_array(graphs[1] @ responsibilities))
    label = np.asarray(responsibilities.argmax(axis=1)).reshape(-1)
    order = np.argsort(label, kind="stable")
    bounds = np.searchsorted(label[order], np.arange(problem.n_clusters + 1))
    return Surroundings(
        evidence=q.evidence.cpu().numpy(),
        responsibilities=responsibilities,
        centers=parameters.centers.cpu().numpy(),
        kappa=parameters.kappa,
        link=parameters.link,
        weight=problem.similarity_weight,
        prior=problem.prior,
        graphs=graphs if near is not None else None,
        near=near,
        members=[order[low:high] for low, high in itertools.pairwise(bounds)],
    )


def refit(around: Surroundings, rows: Index, columns: list[int], centers: Array, steps: int) -> Refit:
    """Fit a few clusters to a few codes, all else held fixed.

    The objective is the part of the bound that changes, with u_i integrated out at fixed evidence:
    sum_ik r_ik (log pi_ik - log C_d(|h_i + kappa mu_k|) - log r_ik) + the similar pairs' expected log-likelihood.

    Args:
        around: the whole model.
        rows: (m,) codes.
        columns: c clusters, for their prior; one may come twice.
        centers: (c, d) to start from.
        steps: iterations; with 0 the centers stay.
    """
    dim = around.evidence.shape[1]
    h = around.evidence[rows]
    squares = np.sum(h**2, axis=1)[:, None] + around.kappa**2
    log_prior = around.log_prior(rows, columns)
    known = _pairs(around, rows)
    # No memberships yet, so that the first scores go without the pairs among these codes.
    r = np.zeros((len(rows), len(columns)))
    best = Refit(-np.inf, r, centers)
    for step in range(steps + 1):
        length = np.sqrt(np.maximum(squares + 2.0 * around.kappa * (h @ centers.T), 1e-24))
        own = log_prior - vmf.log_normalizer(dim, length)
        outside, like, unlike = _messages(around, known, centers)
        for _ in range(2):
            score = own + outside
            if known is not None:
                score = score + known.positive @ (r @ like) + known.every @ (r @ unlike)
            r = np.exp(score - logsumexp(score, axis=1, keepdims=True))
        value = float(np.sum(r * np.where(r > 0.0, own + outside - np.log(np.maximum(r, 1e-300)), 0.0)))
        if known is not None:
            value += 0.5 * float(np.sum(r * (known.positive @ (r @ like) + known.every @ (r @ unlike))))
        if value > best.value:
            best = Refit(value, r, centers)
        if step < steps:
            pull = r * vmf.mean_resultant(dim, length) / length
            sums = around.kappa * (pull.T @ h + around.kappa * pull.sum(axis=0)[:, None] * centers)
            centers = _moved_centers(around, known, r, sums, centers)
    return best


def _pairs(around: Surroundings, rows: Index) -> _Pairs | None:
    if around.graphs is None or around.near is None:
        return None
    own = around.responsibilities[rows]
    inside = [graph[rows][:, rows] for graph in around.graphs]
    outside = [(near[rows] - graph @ own).toarray() for near, graph in zip(around.near, inside, strict=True)]
    return _Pairs(inside[0].toarray(), inside[1].toarray(), outside[0], outside[1])


def _messages(around: Surroundings, known: _Pairs | None, centers: Array) -> tuple[Array, Array, Array]:
    """What pairs with other codes add to the score, and the two (c, c) terms of pairs among the problem's codes."""
    a, b = around.link
    inner = a + b * (centers @ centers.T)
    like, unlike = around.weight * inner, around.weight * log_expit(-inner)
    if known is None:
        return np.zeros((1, len(centers))), like, unlike
    logit = a + b * (around.centers @ centers.T)
    outside = around.weight * (known.outside_positive @ logit + known.outside_every @ log_expit(-logit))
    return outside, like, unlike


def _moved_centers(
    around: Surroundings, known: _Pairs | None, r: Array, sums: Array, centers: Array
) -> Array:
    """The M-step of the centers; with pairs, a step that lowers its objective is halved."""
    if known is None:
        return unit_rows(sums)
    a, b = around.link
    counts = [r.T @ known.outside_positive, r.T @ known.outside_every]
    inner = [0.5 * (r.T @ known.positive @ r), 0.5 * (r.T @ known.every @ r)]

    def value(at: Array) -> float:
        total = float(np.sum(at * sums))
        for (positive, every), other in ((counts, around.centers), (inner, at)):
            logit = a + b * (at @ other.T)
            total += around.weight * float(np.sum(positive * logit) + np.sum(every * log_expit(-logit)))
        return total

    slope = sums.copy()
    for (positive, every), other, times in ((counts, around.centers, 1.0), (inner, centers, 2.0)):
        chance = expit(a + b * (centers @ other.T))
        slope += times * around.weight * b * ((positive - every * chance) @ other)
    target, base, step = unit_rows(slope), value(centers), 1.0
    for _ in range(4):
        moved = unit_rows((1.0 - step) * centers + step * target)
        if value(moved) >= base:
            return moved
        step *= 0.5
    return centers


def _moves(around: Surroundings, tries: int) -> list[Move]:
    """The most promising exchanges, refitted with the clusters nearby, best first."""
    free = _free_clusters(around)
    if len(free) < 3:
        return []
    cosine = around.centers[free] @ around.centers[free].T
    np.fill_diagonal(cosine, -2.0)
    order = free[np.argsort(-cosine, axis=1, kind="stable")[:, : min(_NEIGHBOURS, len(free) - 1)]]
    nearest = {int(k): [int(j) for j in others] for k, others in zip(free, order, strict=True)}
    merges = sorted(_merges(around, nearest), key=lambda m: -m[0])[:tries]
    splits = sorted(_splits(around, free), key=lambda s: -s[0])[:tries]
    pairs = sorted(
        (
            (gain + loss, merge, split)
            for split, (gain, k, _) in enumerate(splits)
            for merge, (loss, a, b) in enumerate(merges)
            if k not in (a, b) and gain + loss > -_MOST_LOSS
        ),
        key=lambda pair: -pair[0],
    )
    uses: dict[tuple[str, int], int] = {}
    chosen: list[Move] = []
    for _, merge, split in pairs:
        keys = (("merge", merge), ("split", split))
        if len(chosen) == tries or any(uses.get(key, 0) >= _PROPOSALS for key in keys):
            continue
        uses.update({key: uses.get(key, 0) + 1 for key in keys})
        _, a, b = merges[merge]
        _, k, halves = splits[split]
        chosen.append(_exchange(around, nearest, a, b, k, halves))
    return sorted(chosen, key=lambda move: -move.gain)


def _free_clusters(around: Surroundings) -> Index:
    """Clusters of which no member is bound to them by its prior."""
    if around.prior is None:
        return np.arange(len(around.centers))
    bound = np.diff(around.prior.indptr) == 1
    held = np.array([bool(bound[rows].any()) for rows in around.members])
    return np.flatnonzero(~held)


def _merges(around: Surroundings, nearest: dict[int, list[int]]) -> Iterator[tuple[float, int, int]]:
    """(change of the objective, cluster that stays, cluster that is set free)."""
    for k, others in nearest.items():
        if not len(around.members[k]):
            yield 0.0, others[0], k
            continue
        for j in others:
            if not len(around.members[j]) or (j < k and k in nearest[j]):
                continue
            rows = np.concatenate([around.members[k], around.members[j]])
            # Where priors overlap in part, all of the codes may be allowed in one of the two.
            barred = np.asarray(np.isneginf(around.log_prior(rows, [k, j])).any(axis=0))
            if barred.all():
                continue
            stays, leaves = (j, k) if barred[0] else (k, j)
            apart = refit(around, rows, [k, j], around.centers[[k, j]], 0)
            joined = refit(around, rows, [stays], _joined(around, k, j), 2)
            yield joined.value - apart.value, stays, leaves


def _splits(around: Surroundings, free: Index) -> Iterator[tuple[float, int, Array]]:
    """(change of the objective, cluster, its two new centers)."""
    for k in free:
        rows = around.members[k]
        if len(rows) < 3:
            continue
        tried = [refit(around, rows, [k, k], halves, 6) for halves in _halves(around, rows)]
        if tried:
            best = max(tried, key=lambda one: one.value)
            whole = refit(around, rows, [k], around.centers[[k]], 0)
            yield best.value - whole.value, int(k), best.centers


def _halves(around: Surroundings, rows: Index) -> Iterator[Array]:
    """Centers of two halves of some codes, cut along principal axes of their vectors and of their pairs."""
    points = unit_rows(around.evidence[rows])
    tables = [(points, 2)]
    if around.near is not None:
        positive, every = (near[rows] @ around.centers for near in around.near)
        tables += [(2.0 * positive - every, 1), (positive, 1)]
    for table, axes in tables:
        spread = table - table.mean(axis=0)
        for axis in np.linalg.svd(spread, full_matrices=False)[2][:axes]:
            side = spread @ axis > 0.0
            if side.any() and not side.all():
                yield unit_rows(np.stack([points[side].sum(axis=0), points[~side].sum(axis=0)]))


def _exchange(
    around: Surroundings, nearest: dict[int, list[int]], a: int, b: int, k: int, halves: Array
) -> Move:
    """Join b to a, give b's place to a half of k, and refit these three and the clusters nearby."""
    columns = list(dict.fromkeys([a, b, k, *(j for c in (a, b, k) for j in nearest[c][:_AROUND])]))
    rows = np.concatenate([around.members[c] for c in columns])
    before = refit(around, rows, columns, around.centers[columns], 3)
    centers = around.centers[columns].copy()
    centers[0], centers[1], centers[2] = _joined(around, a, b)[0], halves[1], halves[0]
    after = refit(around, rows, columns, centers, 8)
    return Move(after.value - before.value, columns, rows, after)


def _joined(around: Surroundings, a: int, b: int) -> Array:
    return unit_rows(
        len(around.members[a]) * around.centers[[a]] + len(around.members[b]) * around.centers[[b]]
    )


def _disjoint(moves: list[Move]) -> list[Move]:
    """The best moves of which no two touch the same cluster."""
    used: set[int] = set()
    chosen: list[Move] = []
    for move in moves:
        if move.gain > _WORTHWHILE and not used & set(move.columns):
            chosen.append(move)
            used |= set(move.columns)
    return chosen


def _applied(problem: Problem, state: State, around: Surroundings, moves: list[Move]) -> State:
    """The state after the moves; codes keep only the clusters that their refit gave them."""
    centers = around.centers.copy()
    row, column, value = [], [], []
    for move in moves:
        centers[move.columns] = move.refit.centers
        m, c = np.nonzero(move.refit.responsibilities > _NEGLIGIBLE)
        row.append(move.rows[m])
        column.append(np.asarray(move.columns)[c])
        value.append(move.refit.responsibilities[m, c])
    q = state.belief.q
    device, pattern = problem.device, q.support.pattern
    touched = torch.zeros(pattern.shape[0], dtype=torch.bool, device=device)
    touched[torch.from_numpy(np.concatenate([move.rows for move in moves])).to(device)] = True
    r = torch.where(touched[pattern.row], 0.0, q.responsibilities)
    key = torch.from_numpy(np.concatenate(row) * pattern.shape[1] + np.concatenate(column)).to(device)
    here = pattern.row * pattern.shape[1] + pattern.column
    place = torch.searchsorted(here, key).clamp_max(len(here) - 1)
    # A cluster outside a code's support stays outside until the support is chosen anew.
    found = here[place] == key
    r[place[found]] = torch.from_numpy(np.concatenate(value)).to(device)[found]
    lost = torch.zeros_like(touched)
    lost[pattern.row[pattern.row_sums(r)[pattern.row] <= 0.0]] = True
    r = torch.where(lost[pattern.row], q.responsibilities, r)
    r = r / pattern.row_sums(r)[pattern.row]
    parameters = replace(state.parameters, centers=torch.from_numpy(centers).to(device))
    pull = parameters.kappa * parameters.centers
    return variational.state_of(problem, parameters, Posterior(q.evidence, pull, q.support, r))
