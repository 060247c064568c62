"""Pairs of codes that are known to be related, or known not to be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from coordinator.model.factor import Index
from protocol.errors import FitError


@dataclass(frozen=True, eq=False)
class Relations:
    """Pairs of codes that are known to be related, or known not to be.

    Args:
        pairs: (m, 2) rows of the union vocabulary, two different ones each.
        labels: (m,) True for a positive pair.

    Raises:
        FitError: wrong shapes, or a pair of a code with itself.
    """

    pairs: Index
    labels: NDArray[np.bool_]

    def __post_init__(self) -> None:
        pairs, labels = np.asarray(self.pairs), np.asarray(self.labels)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or labels.shape != pairs.shape[:1]:
            raise FitError(f"pairs of shape {pairs.shape} do not go with labels of shape {labels.shape}")
        if not np.issubdtype(pairs.dtype, np.integer) or np.any(pairs[:, 0] == pairs[:, 1]):
            raise FitError("a pair must name two different codes by whole numbers")
        object.__setattr__(self, "pairs", pairs.astype(np.intp))
        object.__setattr__(self, "labels", labels.astype(bool))

    def check(self, n_codes: int) -> None:
        """Raise FitError for a code outside the vocabulary."""
        if self.pairs.size and (self.pairs.min() < 0 or self.pairs.max() >= n_codes):
            raise FitError(f"a pair names a code outside the vocabulary of {n_codes} codes")

    def matrices(self, n_codes: int) -> tuple[sp.csr_array, sp.csr_array]:
        """Symmetric (n, n) matrices Y+ and Y-: how often a pair is listed as positive and as negative."""
        positive, negative = (self._matrix(chosen, n_codes) for chosen in (self.labels, ~self.labels))
        return positive, negative

    def _matrix(self, chosen: NDArray[np.bool_], n_codes: int) -> sp.csr_array:
        i, j = self.pairs[chosen].T
        half = sp.csr_array((np.ones(len(i)), (i, j)), shape=(n_codes, n_codes))
        return sp.csr_array(half + half.T)
