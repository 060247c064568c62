"""What a fit of SMILE returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from coordinator.model import alignment
from coordinator.model.factor import Array, Index


@dataclass(frozen=True, eq=False)
class SmileFit:
    """A fitted SMILE model.

    Args:
        embedding: (n, d) unit rows, the directions of E[u_i].
        centers: (K, d) unit rows, mu_k.
        labels: (n,) the most probable cluster of each code.
        posterior: (n,) its probability, in (0, 1].
        kappa: concentration of codes around their cluster's center.
        relatedness: (d, d) symmetric W; zero when no related pairs were given.
        history: the bound at the chosen start and after each iteration from there. It never falls.
        noise: sigma_s^2 of each source, after the column scaling `exponent`.
        responsibilities: (n, K) csr, rows sum to 1, tiny entries dropped.
        exponent: the column scaling that was chosen, see `factor.View.rescaled`.
        warnings: what the reader of the result should know, in sentences.
    """

    embedding: Array
    centers: Array
    labels: Index
    posterior: Array
    kappa: float
    relatedness: Array
    history: tuple[float, ...]
    noise: tuple[float, ...]
    responsibilities: sp.csr_array
    exponent: float = 1.0
    warnings: tuple[str, ...] = ()

    def similarity(self, pairs: Index) -> Array:
        """cos(u_i, u_j) of (m, 2) pairs of codes."""
        return np.asarray(np.sum(self.embedding[pairs[:, 0]] * self.embedding[pairs[:, 1]], axis=1))

    def relatedness_score(self, pairs: Index) -> Array:
        """cos(u_i, W u_j) of (m, 2) pairs of codes; 0 where W u_j is zero."""
        turned = alignment.unit_rows(self.embedding[pairs[:, 1]] @ self.relatedness)
        return np.asarray(np.sum(self.embedding[pairs[:, 0]] * turned, axis=1))
