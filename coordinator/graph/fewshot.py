"""A relation learnt from a few labelled pairs: which drug has which side effect, say.

The cosine says that two codes are related, not how. A bilinear head u_i'W u_j, W any (d, d) matrix, is added to it, as a ridge
logistic regression on the pairs' outer products u_i u_j'. Its solution is W = sum_t a_t u_it u_jt' over the labelled pairs, so
that it is found from their kernel (u_i'u_k)(u_j'u_l), in as many unknowns as there are labels and not d^2.

Source: Ben-Hur and Noble 2005 (pairwise kernel); ARCH, section 3 (fine-tuning on labelled pairs).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold

Array = NDArray[np.float64]

_STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # inverse penalties that are tried
_FOLDS = 5
_FREE = 10.0  # the cosine's column is scaled up, so that its own weight is hardly penalised
_NEGLIGIBLE = 1e-10


@dataclass(frozen=True, eq=False)
class Head:
    """Log odds of the relation: `intercept + slope * cosine + u_i'W u_j`.

    Attributes:
        form: W (d, d); rows are the first code's.
        slope: of the cosine.
        intercept: at a cosine of 0.
    """

    form: Array
    slope: float
    intercept: float

    def scores(self, left: ArrayLike, right: ArrayLike) -> Array:
        """(m,) log odds of pairs of unit vectors (m, d) and (m, d)."""
        one, other = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
        cosine = np.einsum("ij,ij->i", one, other)
        return np.asarray(
            self.intercept + self.slope * cosine + np.einsum("ij,ij->i", one @ self.form, other)
        )


def fit_head(left: ArrayLike, right: ArrayLike, label: ArrayLike, *, seed: int = 0) -> Head:
    """Learn a relation from labelled pairs.

    The penalty is chosen by cross-validated log loss where either class has ten pairs; below that it is 1.

    Args:
        left: (m, d) unit vectors of the first codes; the order within a pair matters.
        right: (m, d) unit vectors of the second codes.
        label: bool (m,) whether the relation holds.
        seed: of the folds.

    Memory and time grow with m^2 and m^3: a few thousand pairs at most.

    Raises:
        ValueError: sizes that differ, or labels of one class only.
    """
    one, other = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    truth = np.asarray(label, dtype=bool)
    if one.shape != other.shape or len(truth) != len(one):
        raise ValueError(f"{one.shape} and {other.shape} vectors do not go with {len(truth)} labels")
    if truth.all() or not truth.any():
        raise ValueError("labels of both classes are needed")
    values, basis = np.linalg.eigh((one @ one.T) * (other @ other.T))
    kept = values > _NEGLIGIBLE * values[-1]
    values, basis = values[kept], basis[:, kept]
    cosine = np.einsum("ij,ij->i", one, other)
    columns = np.column_stack([_FREE * cosine, basis * np.sqrt(values)])
    model = _fitted(columns, truth, seed)
    found = np.ravel(model.coef_)
    dual = basis @ (found[1:] / np.sqrt(values))
    return Head(
        (one * dual[:, None]).T @ other, float(_FREE * found[0]), float(np.ravel(model.intercept_)[0])
    )


def _fitted(columns: Array, truth: NDArray[np.bool_], seed: int) -> LogisticRegression:
    model = LogisticRegression(C=1.0, max_iter=1000)
    if min(truth.sum(), (~truth).sum()) < 2 * _FOLDS:
        return model.fit(columns, truth)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    search = GridSearchCV(model, {"C": _STRENGTHS}, cv=folds, scoring="neg_log_loss")
    return search.fit(columns, truth).best_estimator_
