"""The variational posterior of each code's vector u_i and cluster z_i, and its exact moments.

q(z_i = k) = r_ik on a few clusters a code, its support; q(u_i | k) = vMF with natural parameter
eta_ik = h_i + c_k: h_i is the evidence of code i's own data, c_k (kappa mu_k when fitted) the pull of the
cluster. All moments are sums over the components, so the mixture's second moments are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coordinator.model import vmf
from coordinator.model.loadings import Where
from coordinator.model.sparse import Pattern


@dataclass(frozen=True, eq=False)
class Support:
    """The clusters that each code may belong to, and log pi_ik there."""

    pattern: Pattern
    log_prior: Tensor


@dataclass(frozen=True, eq=False)
class Posterior:
    """The posterior q.

    Args:
        evidence: (n, d) h.
        pull: (K, d) c.
        support: where r may differ from 0.
        responsibilities: (nnz,) r, each row sums to 1.
    """

    evidence: Tensor
    pull: Tensor
    support: Support
    responsibilities: Tensor

    def towards(self, other: Posterior, step: float) -> Posterior:
        """Natural parameters and responsibilities a step of the way to another posterior on the same support."""
        rest = 1.0 - step
        return Posterior(
            rest * self.evidence + step * other.evidence,
            rest * self.pull + step * other.pull,
            self.support,
            rest * self.responsibilities + step * other.responsibilities,
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """What the fit needs of a posterior.

    Args:
        mean: (n, d) E[u_i].
        second: (P, d, d) sums of E[u_i u_i'] over the codes of each presence pattern.
        cluster: (K, d) sum_i r_ik E[u_i | k].
        size: (K,) sum_i r_ik.
        overlap: (K,) sum_i r_ik^2 / sum_i r_ik, from 0 for a cluster of shared codes to 1 for one of its own.
        sharp: sum_ik r_ik |E[u_i | k]|^2, which is n where every u_i is known.
        entropy: of q(u, z).
        log_prior: sum_ik r_ik log pi_ik.
    """

    mean: Tensor
    second: Tensor
    cluster: Tensor
    size: Tensor
    overlap: Tensor
    sharp: float
    entropy: float
    log_prior: float


def respond(evidence: Tensor, pull: Tensor, support: Support, message: Tensor | None) -> Tensor:
    """Responsibilities with u_i integrated out.

    log r_ik = log pi_ik - log C_d(|h_i + c_k|) + message_ik + constant.

    Args:
        evidence: (n, d) h.
        pull: (K, d) c.
        support: the clusters of each code.
        message: (nnz,) what similar and dissimilar pairs add, or None.
    """
    score = support.log_prior - vmf.log_normalizer_of(pull.shape[1], _length(evidence, pull, support.pattern))
    return support.pattern.softmax(score if message is None else score + message)


def moments(q: Posterior, where: Where) -> Moments:
    """Exact moments and entropy of q.

    E[u | eta] = A_d(|eta|) eta/|eta|, and with s = A_d(|eta|)/|eta|,
    E[u u' | eta] = s I + (1 - d s) eta eta' / |eta|^2 (Mardia and Jupp 2000, 9.6).
    """
    pattern, h, c, r = q.support.pattern, q.evidence, q.pull, q.responsibilities
    dim = h.shape[1]
    length = _length(h, c, pattern)
    along = vmf.mean_resultant_of(dim, length)
    ratio = along / length
    entropy = -torch.sum(r * (vmf.log_normalizer_of(dim, length) + length * along)) - torch.sum(
        torch.xlogy(r, r)
    )
    spread, inner = r * ratio, r * (1.0 - dim * ratio) / length**2
    own, total = pattern.row_sums(spread), pattern.column_sums(spread)
    mean = own[:, None] * h + pattern.matrix(spread) @ c
    cluster = pattern.transposed(spread) @ h + total[:, None] * c
    cross = pattern.matrix(inner) @ c + 0.5 * pattern.row_sums(inner)[:, None] * h
    second = []
    entry_pattern = where.pattern[pattern.row]
    for p in range(len(where.held)):
        here = where.pattern == p
        mixed = h[here].T @ cross[here]
        weight = pattern.column_sums(torch.where(entry_pattern == p, inner, 0.0))
        isotropic = own[here].sum() * torch.eye(dim, dtype=h.dtype, device=h.device)
        second.append(mixed + mixed.T + c.T @ (weight[:, None] * c) + isotropic)
    size = pattern.column_sums(r)
    shared = pattern.column_sums(r * r)
    overlap = torch.where(size > 0.0, shared / size.clamp_min(1e-300), 0.0)
    # Where pi is zero, so is r; 0 log 0 = 0.
    log_prior = torch.sum(torch.where(r > 0.0, r * q.support.log_prior, 0.0))
    return Moments(
        mean=mean,
        second=torch.stack(second),
        cluster=cluster,
        size=size,
        overlap=overlap,
        sharp=float(torch.sum(r * along**2)),
        entropy=float(entropy),
        log_prior=float(log_prior),
    )


def _length(evidence: Tensor, pull: Tensor, pattern: Pattern) -> Tensor:
    """|h_i + c_k| at each entry."""
    square = (evidence**2).sum(dim=1)[pattern.row] + (pull**2).sum(dim=1)[pattern.column]
    return (square + 2.0 * pattern.products(evidence, pull)).clamp_min(1e-24) ** 0.5
