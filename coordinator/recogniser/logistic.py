"""The baseline: one logistic regression a source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from coordinator.recogniser.scores import Array
from coordinator.recogniser.sums import Sums


@dataclass(frozen=True, eq=False)
class LogisticRecogniser:
    """A fitted regression for each source."""

    models: tuple[Any, ...]

    def says(self, vectors: Array) -> NDArray[np.bool_]:
        """(n, S) which sources went into each of (n, d) sums."""
        return np.stack([np.asarray(model.predict(vectors), dtype=bool) for model in self.models], axis=1)


def fit_logistic(sums: Sums, *, iterations: int = 200) -> LogisticRecogniser:
    """One regression a source, on standardised columns.

    Raises:
        ValueError: a source is in all sums, or in none.
    """
    if not (sums.present.any(axis=0) & ~sums.present.all(axis=0)).all():
        raise ValueError("every source must be in some of the sums and not in all")
    return LogisticRecogniser(
        tuple(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=iterations)).fit(sums.vectors, column)
            for column in sums.present.T
        )
    )
