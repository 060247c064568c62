"""Which codes are related directly: node-wise adaptive elastic net on the Gram matrix of an embedding.

Code j is regressed on the others, minimising over beta

    1/2 |v_j - sum_k beta_k v_k|^2 + lambda sum_k ( alpha |beta_k| / |c_jk| + (1 - alpha)/2 (beta_k / c_jk)^2 ),

with c_jk = v_j'v_k the cosine: a nearer code pays less. In gamma_k = beta_k / |c_jk| this is a plain elastic net on columns
|c_jk| v_k. The vectors enter by inner products alone, so that any factor V of G = V V' gives the same weights.

Three facts make it fast:

- **Greatest lambda.** All weights are 0 from lambda_max = max_k c_jk^2 / alpha on (the optimality condition at 0).
- **Screening.** A residual r is no longer than v_j, so code k stays out if |c_jk| |r| <= lambda alpha. The codes with the
  largest |c_jk| are solved for; what was left out is checked by that bound, then by |c_jk v_k'r| <= lambda alpha itself, and
  what fails is taken in and solved for again: the weights are those of all codes.
- **Certificate.** The objective is lambda (1 - alpha)-strongly convex, so its distance from the minimum is at most
  |subgradient|^2 / (2 lambda (1 - alpha)); coordinate descent ends when that is below `tolerance`.

Source: ARCH, section 2.4 (sparse embedding regression); Zou and Zhang 2009 (adaptive elastic net); Friedman, Hastie and
Tibshirani 2010 (covariance updates); El Ghaoui et al. 2012 and Tibshirani et al. 2012 (safe and strong screening).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from coordinator.model.descent import descend, path

Array = NDArray[np.float64]
Index = NDArray[np.intp]

_BLOCK = 128  # codes whose cosines are held at once, by each thread
_NO_LOSS = 1e-6  # smaller losses count as this
_KNOWN = 0.5  # of a code's candidates, by squared cosine, that both halves must know to choose its lambda
_LEAST_TOLERANCE = 1e-12  # nearer to rounding descent would not end


@dataclass(frozen=True)
class Rule:
    """How neighbours are selected.

    Attributes:
        alpha: part of the penalty that is absolute values, in (0, 1).
        screened: codes that a regression starts with: those of largest |cosine|.
        steps: values of lambda, equally spaced in logarithms from lambda_max down.
        least: the last of them, as a part of lambda_max.
        degrees: what the criterion takes for each degree of freedom, over the columns of the embedding.
        tolerance: how far the objective may be from its minimum; at zero weights it is 1/2.
    """

    alpha: float = 0.25
    screened: int = 256
    steps: int = 25
    least: float = 0.02
    degrees: float = 1.0
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0.0 < self.alpha < 1.0:
            raise ValueError(f"alpha is {self.alpha}; it must be above 0 and below 1")
        if self.screened < 1 or self.steps < 2:
            raise ValueError("at least one screened code and two values of lambda are needed")
        if not 0.0 < self.least < 1.0 or self.degrees < 0.0:
            raise ValueError("the least lambda is a part of the greatest, and degrees cost at least nothing")
        if self.tolerance < _LEAST_TOLERANCE:
            raise ValueError(f"tolerance is {self.tolerance}; below {_LEAST_TOLERANCE} rounding decides")


@dataclass(frozen=True, eq=False)
class Selection:
    """The regressions of all codes.

    Attributes:
        weights: (n, n); row j holds the weights of code j's regression on the others.
        penalty: (n,) the chosen lambda; 0 for a code without candidates.
        loss: (n,) |v_j - sum_k beta_k v_k|^2 at it.
        extended: codes to whose screened set others had to be added.
    """

    weights: sp.csr_array
    penalty: Array
    loss: Array
    extended: int


def select_neighbours(
    vectors: ArrayLike,
    *,
    halves: tuple[ArrayLike, ArrayLike] | None = None,
    family: ArrayLike | None = None,
    rule: Rule = Rule(),
    threads: int | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> Selection:
    """Regress every code on all others but its own family's.

    lambda is chosen for each code. With `halves`, embeddings of two disjoint halves of the patients, it minimises

        log(validation loss) + degrees * df / p,

    averaged over fitting on either half and validating on the other, df the number of non-zero weights and p the columns
    of the training embedding; the weights at that lambda are then fitted on `vectors`. The training loss has no part in it:
    on real counts it kept two to three times as many pairs, of which fewer came back in other patients. Without halves, and
    for a code that a half does not know, or of whose candidates the halves know less than half (by squared cosine), there is
    nothing else, and log(loss) + 2 degrees * df / p is minimised on `vectors` (AIC for degrees = 1), where df <= p / 2.

    Args:
        vectors: (n, p) unit rows; a zero row has no neighbours.
        halves: (n, p1) and (n, p2), unit rows of the same codes; zero rows of codes that a half does not know.
        family: (n,) integer labels: a code's cluster or ontology parent. Codes of one label are not regressed on each other;
            a negative label is no family.
        rule: of selection.
        threads: that work at the same time; the machine's cores if None.
        progress: called with the number of codes that were done since the last call, from this thread.

    Laws: rotating the columns of any embedding changes nothing beyond rounding, and the number of threads not a bit;
    relabelling codes relabels the weights.

    Raises:
        ValueError: rows that are not unit or zero, or numbers of rows that differ.
    """
    work = _Work.checked(vectors, halves, family, rule)
    n = len(work.vectors)
    starts = range(0, n, _BLOCK)
    parts = [sp.csr_array((0, n), dtype=np.float64)]
    penalty, loss, extended = np.zeros(n), np.zeros(n), 0
    workers = max(1, threads or os.cpu_count() or 1)
    # BLAS inside a worker would compete with the other workers.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        for start, done in zip(starts, pool.map(work.block, starts), strict=True):
            parts.append(done.weights)
            stop = start + len(done.penalty)
            penalty[start:stop], loss[start:stop] = done.penalty, done.loss
            extended += done.extended
            progress(len(done.penalty))
    return Selection(sp.csr_array(sp.vstack(parts, format="csr")), penalty, loss, extended)


def elastic_net(gram: ArrayLike, target: ArrayLike, penalty: float, *, rule: Rule = Rule()) -> Array:
    """The adaptive elastic net of one code on m others, from inner products alone.

    Args:
        gram: (m, m) inner products of the others.
        target: (m,) their inner products with the code, which are cosines.
        penalty: lambda.
        rule: alpha and tolerance.

    Returns:
        beta (m,).
    """
    cosine = np.asarray(target, dtype=np.float64)
    near = np.abs(cosine)
    scaled = np.ascontiguousarray(np.asarray(gram, dtype=np.float64) * near * near[:, None])
    return _minimum(scaled, cosine, penalty, rule)


@dataclass(frozen=True, eq=False)
class _Done:
    """What a block of codes gave."""

    weights: sp.csr_array
    penalty: Array
    loss: Array
    extended: int


@dataclass(frozen=True, eq=False)
class _Work:
    """The checked input; `shared` (n,) says which codes both halves know."""

    vectors: Array
    halves: tuple[Array, Array] | None
    shared: NDArray[np.bool_]
    family: NDArray[np.int64]
    rule: Rule

    @classmethod
    def checked(
        cls,
        vectors: ArrayLike,
        halves: tuple[ArrayLike, ArrayLike] | None,
        family: ArrayLike | None,
        rule: Rule,
    ) -> _Work:
        whole = _unit(vectors, "vectors")
        n = len(whole)
        labels = np.full(n, -1) if family is None else np.asarray(family)
        two = None if halves is None else (_unit(halves[0], "halves[0]"), _unit(halves[1], "halves[1]"))
        for name, rows in (("family", labels), *zip(("halves[0]", "halves[1]"), two or (), strict=False)):
            if len(rows) != n:
                raise ValueError(f"{name} has {len(rows)} rows and the vectors have {n}")
        shared = np.zeros(n, dtype=np.bool_)
        if two is not None:
            shared[:] = two[0].any(axis=1) & two[1].any(axis=1)
        return cls(whole, two, shared, labels.astype(np.int64), rule)

    def block(self, start: int) -> _Done:
        """Codes from `start` on, as many as a block has."""
        rows = np.arange(start, min(start + _BLOCK, len(self.vectors)))
        cosine = self._cosines(rows)
        sets = [self._screen(near) for near in np.abs(cosine)]
        penalty = np.array(
            [self._penalty(start + i, inside) if len(inside) else 0.0 for i, inside in enumerate(sets)]
        )
        weights = [np.empty(0)] * len(rows)
        residual, extended = self.vectors[rows].copy(), np.zeros(len(rows), dtype=bool)
        unsettled = np.flatnonzero(penalty)
        while len(unsettled):
            for i in unsettled:
                weights[i] = self._fit(rows[i], sets[i], penalty[i])
            fitted = self._sparse([sets[i] for i in unsettled], [weights[i] for i in unsettled])
            residual[unsettled] = self.vectors[rows[unsettled]] - fitted @ self.vectors
            unsettled = np.array(
                list(self._unsettled(unsettled, cosine, sets, residual, penalty)), dtype=np.intp
            )
            extended[unsettled] = True
        return _Done(
            self._sparse(sets, weights), penalty, np.sum(residual * residual, axis=1), int(extended.sum())
        )

    def _sparse(self, columns: list[Index], values: list[Array]) -> sp.csr_array:
        """(rows, n) of each row's columns and values, without zeros."""
        ends = np.cumsum([0, *(len(v) for v in values)])
        flat = [
            np.concatenate([*parts, np.empty(0, kind)])
            for parts, kind in ((values, float), (columns, np.intp))
        ]
        found = sp.csr_array((flat[0], flat[1], ends), shape=(len(values), len(self.vectors)))
        found.eliminate_zeros()
        return found

    def _cosines(self, rows: Index) -> Array:
        """(rows, n) cosines with every code, 0 with those that are not asked."""
        cosine = np.asarray(self.vectors[rows] @ self.vectors.T)
        own = self.family[rows]
        cosine[(own[:, None] == self.family[None]) & (own >= 0)[:, None]] = 0.0
        cosine[np.arange(len(rows)), rows] = 0.0
        return cosine

    def _screen(self, near: Array) -> Index:
        """The candidates of largest |cosine| that any lambda of the path can select, ascending."""
        bound = self.rule.least * near.max() ** 2
        inside = np.flatnonzero(near > max(bound, np.finfo(np.float64).eps))
        if len(inside) > self.rule.screened:
            best = np.argpartition(-near[inside], self.rule.screened - 1)[: self.rule.screened]
            inside = np.sort(inside[best])
        return inside

    def _penalty(self, j: int, inside: Index) -> float:
        """The lambda of the least criterion."""
        rule = self.rule
        greatest = float(np.max(_gram(self.vectors, j, inside)[1] ** 2)) / rule.alpha
        lambdas = greatest * np.geomspace(1.0, rule.least, rule.steps)
        total = np.zeros(rule.steps)
        if self.halves is None or not self._known(j, inside):
            most = self.vectors.shape[1] / 2.0
            loss, _, df = self._path(self.vectors, self.vectors, j, inside, lambdas, most)
            # Past `most` the loss is infinite too; 0 degrees of an infinite df would be no number.
            cost = 2.0 * rule.degrees / self.vectors.shape[1]
            total = np.log(np.maximum(loss, _NO_LOSS)) + cost * np.where(np.isinf(loss), 0.0, df)
        else:
            for own, other in (self.halves, self.halves[::-1]):
                _, loss, df = self._path(own, other, j, inside, lambdas, np.inf)
                total += np.log(np.maximum(loss, _NO_LOSS)) + rule.degrees * df / own.shape[1]
        return float(lambdas[np.argmin(total)])

    def _known(self, j: int, inside: Index) -> bool:
        """Whether both halves know the code and most of what is near it: if not, no lambda helps there and the largest wins."""
        near = (self.vectors[inside] @ self.vectors[j]) ** 2
        return bool(self.shared[j] and near @ self.shared[inside] >= _KNOWN * near.sum())

    def _path(
        self, own: Array, other: Array, j: int, inside: Index, lambdas: Array, most: float
    ) -> tuple[Array, Array, Array]:
        scaled, cosine = _gram(own, j, inside)
        return path(
            scaled, cosine, other[inside], other[j], lambdas, self.rule.alpha, self.rule.tolerance, most
        )

    def _fit(self, j: int, inside: Index, penalty: float) -> Array:
        scaled, cosine = _gram(self.vectors, j, inside)
        return _minimum(scaled, cosine, penalty, self.rule)

    def _unsettled(
        self, solved: Index, cosine: Array, sets: list[Index], residual: Array, penalty: Array
    ) -> Iterator[int]:
        """The codes for whom a code that was left out breaks its optimality condition; their sets are extended."""
        near = np.abs(cosine[solved])
        for row, i in enumerate(solved):
            near[row, sets[i]] = 0.0
        least = penalty[solved] * self.rule.alpha
        doubt = near.max(axis=1) * np.linalg.norm(residual[solved], axis=1) > least
        if not doubt.any():
            return
        solved, near, least = solved[doubt], near[doubt], least[doubt]
        pull = near * np.abs(residual[solved] @ self.vectors.T)
        # What rounding and the tolerance of descent explain is no violation.
        for row, i in enumerate(solved):
            more = np.flatnonzero(pull[row] > least[row] * (1.0 + 1e-9))
            if len(more):
                sets[i] = np.sort(np.concatenate([sets[i], more]))
                yield int(i)


def _unit(rows: ArrayLike, name: str) -> Array:
    found = np.ascontiguousarray(rows, dtype=np.float64)
    if found.ndim != 2:
        raise ValueError(f"{name} has {found.ndim} dimensions instead of 2")
    norm = np.linalg.norm(found, axis=1)
    # A NaN is neither.
    if not np.all((norm == 0.0) | (np.abs(norm - 1.0) < 1e-3)):
        raise ValueError(f"{name}: every row must be of unit length or zero")
    return np.asarray(found / np.where(norm == 0.0, 1.0, norm)[:, None])


def _gram(vectors: Array, j: int, inside: Index) -> tuple[Array, Array]:
    """Q = |c_k| v_k'v_l |c_l| (m, m) and c (m,)."""
    rows = vectors[np.append(inside, j)]
    gram = rows @ rows.T
    cosine = gram[:-1, -1].copy()
    near = np.abs(cosine)
    return np.ascontiguousarray(gram[:-1, :-1] * near * near[:, None]), cosine


def _minimum(scaled: Array, cosine: Array, penalty: float, rule: Rule) -> Array:
    near = np.abs(cosine)
    gamma, gradient = np.zeros_like(near), near * cosine
    descend(scaled, penalty, rule.alpha, rule.tolerance, gamma, gradient)
    return np.asarray(gamma * near)
