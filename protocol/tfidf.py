"""Patient vectors: sums of code vectors, weighted by how much a code says (TF-IDF)."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def inverse_frequency(margins: ArrayLike, total: float) -> Array:
    """Inverse document frequency of codes: log((1 + N) / (1 + r_j)) + 1, at least 1.

    Args:
        margins: (n,) r_j: patients who have the code, or its co-occurrences.
        total: N: all patients, or the sum of all margins; no less than any margin.

    Law: a commoner code weighs less.
    Source: Sparck Jones 1972; ARCH, section 3.2.4; smoothed as in scikit-learn's TfidfTransformer.

    Raises:
        ValueError: a margin that is negative, or above the total.
    """
    r = np.asarray(margins, dtype=np.float64)
    if not ((r >= 0.0) & (r <= total)).all():
        raise ValueError("margins must be between 0 and their total")
    return np.asarray(np.log((1.0 + total) / (1.0 + r)) + 1.0)


def patient_vectors(
    counts: sp.csr_array[Any, tuple[int, int]], weights: ArrayLike, vectors: ArrayLike
) -> Array:
    """Unit vectors of patients: sums of their codes' vectors, times log(1 + times had) and the codes' weights.

    Args:
        counts: (patients, n) how often each patient has each code.
        weights: (n,) of `inverse_frequency`.
        vectors: (n, d) of the codes.

    Returns:
        (patients, d); a zero row for a patient without any of the codes.
    """
    often = sp.csr_array(counts.astype(np.float64))
    often.data = np.log1p(often.data)
    summed = np.asarray(often @ (np.asarray(weights)[:, None] * np.asarray(vectors, dtype=np.float64)))
    norm = np.linalg.norm(summed, axis=1, keepdims=True)
    return np.asarray(summed / np.where(norm == 0.0, 1.0, norm))
