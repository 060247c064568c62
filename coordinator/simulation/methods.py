"""The methods that an experiment compares: SMILE, every rival embedding with every clustering, and the oracle."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from coordinator.evaluation import accuracy, ami, center_accuracy, rotation
from coordinator.model import fit_smile
from coordinator.model.factor import Array, Index
from coordinator.model.rivals import CLUSTERINGS, EMBEDDINGS
from coordinator.simulation.generate import Simulation

SMILE: Final = "SMILE"
ORACLE: Final = "true U"

_SUPPORTED: Final = ("variational",)
"""Values of `fit` that are run."""

_FITS: Final[Mapping[str, Mapping[str, Any]]] = {
    name: chosen
    for name, chosen in (
        (SMILE, {"fit": "variational", "pairs": True}),
        ("SMILE without pairs", {"fit": "variational", "pairs": False}),
        ("SMILE plug-in", {"fit": "plug-in", "pairs": True}),
    )
    if chosen["fit"] in _SUPPORTED
}

METHODS: Final[tuple[str, ...]] = (
    *_FITS,
    *(f"{embedding} + {clustering}" for embedding in (*EMBEDDINGS, ORACLE) for clustering in CLUSTERINGS),
)
"""Names of all methods, in the order of tables and legends."""


@dataclass(frozen=True)
class Measured:
    """What one method reached on one simulation.

    Attributes:
        method: its name.
        accuracy_u: accuracy of U, `evaluation.accuracy`.
        accuracy_centers: `evaluation.center_accuracy` over the clusters that hold a code.
        ami: over the codes of clusters that are not anchored.
        kappa: as the method found it; nan where a method has none.
        seconds: wall time. An embedding counts in full for each clustering of it.
        error: why there is no result; the figures are nan then.
    """

    method: str
    accuracy_u: float = float("nan")
    accuracy_centers: float = float("nan")
    ami: float = float("nan")
    kappa: float = float("nan")
    seconds: float = float("nan")
    error: str = ""


def measure(simulation: Simulation, methods: tuple[str, ...], seed: int) -> Iterator[Measured]:
    """Run methods on one simulation; one that fails gives a row with its error.

    Rivals are told which codes are anchors and how many clusters the others are in: they cluster the others
    alone, and take the anchors' clusters as they are.

    Args:
        simulation: data and truth.
        methods: of `METHODS`.
        seed: of the methods' own random choices.
    """
    embeddings: dict[str, tuple[Array, float] | Exception] = {}
    for method in methods:
        try:
            if method in _FITS:
                yield _fit(simulation, method, seed)
                continue
            name, clustering = method.split(" + ")
            if name not in embeddings:
                embeddings[name] = _embed(simulation, name)
            found = embeddings[name]
            if isinstance(found, Exception):
                raise found  # noqa: TRY301
            yield _cluster(simulation, method, clustering, found, seed)
        except Exception as error:
            yield Measured(method, error=f"{type(error).__name__}: {error}")


def _fit(simulation: Simulation, method: str, seed: int) -> Measured:
    chosen = _FITS[method]
    start = time.perf_counter()
    fit = fit_smile(
        simulation.sources,
        n_codes=simulation.n_codes,
        n_clusters=simulation.n_clusters,
        dim=simulation.embedding.shape[1],
        similar=simulation.similar if chosen["pairs"] else None,
        related=simulation.related if chosen["pairs"] else None,
        prior=simulation.prior,
        fit=chosen["fit"],
        seed=seed,
    )
    seconds = time.perf_counter() - start
    return _judged(simulation, method, fit.embedding, fit.labels, fit.centers, float(fit.kappa), seconds)


def _embed(simulation: Simulation, name: str) -> tuple[Array, float] | Exception:
    if name == ORACLE:
        return simulation.embedding, 0.0
    start = time.perf_counter()
    try:
        points = EMBEDDINGS[name](
            simulation.sources, n_codes=simulation.n_codes, dim=simulation.embedding.shape[1]
        )
    except Exception as error:
        return error
    return points, time.perf_counter() - start


def _cluster(
    simulation: Simulation, method: str, clustering: str, embedded: tuple[Array, float], seed: int
) -> Measured:
    points, before = embedded
    free = simulation.scored
    start = time.perf_counter()
    count = len(np.unique(simulation.labels[free]))
    labels = simulation.labels.copy()
    if count:
        labels[free] = simulation.n_clusters + CLUSTERINGS[clustering](points[free], count, seed)
    seconds = before + time.perf_counter() - start
    centers = cluster_means(points, labels)
    return _judged(simulation, method, points, labels, centers, float("nan"), seconds)


def cluster_means(points: Array, labels: Index) -> Array:
    """Unit mean of the rows of each label, in the order of the labels; a mean of zero length stays zero."""
    _, place = np.unique(labels, return_inverse=True)
    sums = np.zeros((place.max() + 1, points.shape[1]))
    np.add.at(sums, place, points)
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.asarray(sums / np.where(length > 0.0, length, 1.0))


def _judged(
    simulation: Simulation,
    method: str,
    embedding: Array,
    labels: Index,
    centers: Array,
    kappa: float,
    seconds: float,
) -> Measured:
    turn = rotation(embedding, simulation.embedding)
    test = simulation.scored
    return Measured(
        method=method,
        accuracy_u=accuracy(embedding, simulation.embedding, turn),
        accuracy_centers=center_accuracy(centers, simulation.centers[np.unique(simulation.labels)], turn),
        ami=ami(simulation.labels[test], labels[test]) if test.any() else float("nan"),
        kappa=kappa,
        seconds=seconds,
    )
