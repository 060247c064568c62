"""Candidates of each row of a fit, ranked by all that speaks for them (`rank_linked`) or by their vectors (`rank_nearest`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.special import logsumexp

from coordinator.decided import NO_CELLS, Cells, places
from coordinator.linking import NEVER, Linked
from coordinator.mapping import N_ALTERNATIVES

_MOST_ODDS = 50.0
_OWN = 3.0  # above any cosine with a known pair's weight
_BLOCK = 2_000  # rows whose cosines are formed at once


class Ranking(NamedTuple):
    """The candidates of each row of the fit.

    Attributes:
        rows: int (n_rows, 1 + N_ALTERNATIVES) rows with a standard code, the first best; -1 where there are no more.
        strength: (n_rows,) how much more speaks for the first candidate than for the others: log odds of it against all
            others (`rank_linked`), or its cosine and known weight (`rank_nearest`).
    """

    rows: npt.NDArray[np.int64]
    strength: npt.NDArray[np.float64]


def rank_linked(
    linked: Linked,
    embedding: npt.NDArray[np.float64],
    standard: npt.NDArray[np.intp],
    categories: npt.NDArray[np.intp],
) -> Ranking:
    """Candidates by the fused score, what people settled first; rows with a standard code as in `rank_nearest`.

    strength_i = log p - log(1 - p), p the softmax of row i's scores at its first candidate: the score knows nothing of what
    people settled to be the same, so neither does the strength.

    Args:
        linked: of the sources.
        embedding: (n_rows, d) its latent means as unit rows.
        standard: increasing rows with a standard code.
        categories: (n_rows,) category of each row.
    """
    clues, score = linked.clues, linked.score
    rows = np.full((len(embedding), 1 + N_ALTERNATIVES), -1, dtype=np.int64)
    strength = np.zeros(len(embedding))
    among = rank_nearest(embedding[standard], np.arange(len(standard)), categories[standard])
    rows[standard] = np.where(among.rows >= 0, standard[among.rows], -1)
    strength[standard] = among.strength
    n, m = score.shape
    if not n or not m:
        return Ranking(rows, strength)
    k = min(1 + N_ALTERNATIVES, m)
    rest = score.copy()
    rest[clues.same[:, 0], clues.same[:, 1]] = np.inf
    order = _first(rest, k)
    best = np.take_along_axis(score, order, axis=1)
    rows[clues.local, :k] = np.where(best > NEVER / 2, clues.standard[order], -1)
    rest[np.arange(n), order[:, 0]] = -np.inf
    with np.errstate(divide="ignore"):
        others = logsumexp(rest, axis=1) if m > 1 else np.full(n, -np.inf)
    strength[clues.local] = np.clip(best[:, 0] - others, -_MOST_ODDS, _MOST_ODDS)
    return Ranking(rows, strength)


def rank_nearest(
    embedding: npt.NDArray[np.float64],
    standard: npt.NDArray[np.intp],
    categories: npt.NDArray[np.intp],
    known: sp.csr_array | None = None,
    decided: Cells = NO_CELLS,
) -> Ranking:
    """Candidates by cosine among the standard codes of a row's category; a row with a standard code is its own.

    The weight of a known pair is added to its cosine, so that a sure one comes first. What people settled to be the same
    comes before all, and adds nothing to the strength; what they settled to differ is no candidate.

    Args:
        embedding: (n_rows, d) unit rows.
        standard: increasing rows with a standard code.
        categories: (n_rows,) category of each row.
        known: (n_rows, n_rows) weights of known pairs, below zero for pairs known to differ; None without any.
        decided: what people settled.
    """
    n_rows = len(embedding)
    rows = np.full((n_rows, 1 + N_ALTERNATIVES), -1, dtype=np.int64)
    strength = np.zeros(n_rows)
    for category in np.unique(categories):
        targets = standard[categories[standard] == category]
        members = np.flatnonzero(categories == category)
        if not len(targets):
            continue
        for low in range(0, len(members), _BLOCK):
            some = members[low : low + _BLOCK]
            cosine = embedding[some] @ embedding[targets].T
            if known is not None:
                cosine += known[some][:, targets].toarray()
            # A standard code comes first among its own candidates, however near another may be.
            cosine[some[:, None] == targets[None]] = _OWN
            cosine[decided.barred(some, targets)] = -np.inf
            shown = cosine.copy()
            same = places(decided.same, some, targets)
            shown[same[:, 0], same[:, 1]] = np.inf
            order = _first(shown, min(1 + N_ALTERNATIVES, len(targets)))
            best = np.take_along_axis(cosine, order, axis=1)
            rows[some, : order.shape[1]] = np.where(np.isfinite(best), targets[order], -1)
            strength[some] = np.where(
                best[:, 0] == _OWN, 1.0, np.where(np.isfinite(best[:, 0]), best[:, 0], 0.0)
            )
    return Ranking(rows, strength)


def _first(score: npt.NDArray[np.floating], k: int) -> npt.NDArray[np.intp]:
    """(n, k) columns of each row's greatest values, greatest first; of equal ones the earlier column."""
    return np.asarray(np.argsort(-score, axis=1, kind="stable")[:, :k])
