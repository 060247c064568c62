"""Which clusters a code may belong to: those that its prior allows, and of many only the likely ones."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from coordinator.model import vmf
from coordinator.model.clusters import log_prior_rows
from coordinator.model.pairs import SimilarCounts
from coordinator.model.posterior import Posterior, Support
from coordinator.model.sparse import Pattern, dense_rows, row_blocks

_BY_PAIRS = 4  # one in so many candidates is chosen by the code's pairs


def allowed(prior: sp.csr_array | None, n_codes: int, n_clusters: int, most: int) -> sp.csr_array | None:
    """The prior where it lists at most `most` clusters for every code, so that no choice is needed; else None."""
    if prior is None:
        if n_clusters > most:
            return None
        prior = sp.csr_array(np.full((n_codes, n_clusters), 1.0 / n_clusters))
    return prior if int(np.diff(prior.indptr).max()) <= most else None


def whole(prior: sp.csr_array, device: torch.device) -> Support:
    """Every cluster that the prior allows."""
    prior.sort_indices()
    row = torch.from_numpy(np.repeat(np.arange(prior.shape[0]), np.diff(prior.indptr))).to(device)
    column = torch.from_numpy(prior.indices.astype(np.int64)).to(device)
    log_prior = torch.from_numpy(np.log(prior.data)).to(device)
    return Support(Pattern.at(row, column, prior.shape), log_prior)


def nearest(
    prior: sp.csr_array | None,
    most: int,
    evidence: Tensor,
    pull: Tensor,
    near: SimilarCounts | None,
    old: Posterior | None,
) -> Support:
    """For each code its `most` likeliest clusters by data and prior, those of most of its pairs, and those it is in.

    Args:
        prior: (n, K) or None for a uniform one.
        most: clusters a code.
        evidence: (n, d) h.
        pull: (K, d) c.
        near: the pairs by code and cluster, if there are similar pairs.
        old: the posterior so far.
    """
    (n, dim), n_clusters = evidence.shape, len(pull)
    keys, logs = [], []
    squares = (pull**2).sum(dim=1)
    by_pairs = most // _BY_PAIRS if near is not None else 0
    for rows in row_blocks(n, n_clusters):
        h = evidence[rows]
        length = ((h**2).sum(dim=1)[:, None] + squares + 2.0 * (h @ pull.T)).clamp_min(1e-24) ** 0.5
        log_prior = torch.from_numpy(log_prior_rows(prior, rows, n_clusters)).to(h.device).expand(len(h), -1)
        score = log_prior - vmf.log_normalizer_of(dim, length)
        if near is not None and by_pairs:
            pairs = torch.where(log_prior > -torch.inf, dense_rows(near.near_positive, rows), 0.0)
            count, column = torch.topk(pairs, by_pairs, dim=1)
            # A code with few pairs leaves its other places to the likeliest clusters.
            score.scatter_(1, column, torch.where(count > 0.0, torch.inf, score.gather(1, column)))
        chosen = torch.zeros_like(score, dtype=torch.bool)
        chosen.scatter_(1, torch.topk(score, most, dim=1).indices, True)
        if old is not None:
            pattern = old.support.pattern
            part = slice(int(pattern.start[rows.start]), int(pattern.start[rows.stop]))
            kept = part.start + torch.nonzero(old.responsibilities[part] > 0.0)[:, 0]
            chosen[pattern.row[kept] - rows.start, pattern.column[kept]] = True
        chosen &= log_prior > -torch.inf
        row, column = torch.nonzero(chosen, as_tuple=True)
        keys.append(torch.stack([row + rows.start, column]))
        logs.append(log_prior[row, column])
    row, column = torch.cat(keys, dim=1)
    return Support(Pattern.at(row, column, (n, n_clusters)), torch.cat(logs))


def carried(old: Posterior, support: Support) -> Tensor:
    """The responsibilities of a posterior on another support that holds all clusters where they are positive."""
    values = torch.zeros_like(support.log_prior)
    n_clusters = support.pattern.shape[1]
    kept = torch.nonzero(old.responsibilities > 0.0)[:, 0]
    before = old.support.pattern
    here = support.pattern.row * n_clusters + support.pattern.column
    place = torch.searchsorted(here, before.row[kept] * n_clusters + before.column[kept])
    values[place] = old.responsibilities[kept]
    return values
