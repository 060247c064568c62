"""The methods that an experiment compares: SMILE, pairs alone, every rival embedding with every clustering, the oracle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse as sp

from coordinator.evaluation import accuracy, ami, center_accuracy, rotation
from coordinator.model import SmileFit, fit_smile
from coordinator.model.factor import Array, Index
from coordinator.model.plugin import fit_plug_in
from coordinator.model.prior import Membership, spectral_prior
from coordinator.model.rivals import CLUSTERINGS, EMBEDDINGS
from coordinator.simulation.generate import Simulation

SMILE: Final = "SMILE"
PAIRS: Final = "pairs alone"
ORACLE: Final = "true U"

_FITS: Final[Mapping[str, tuple[Callable[..., SmileFit], bool]]] = {
    SMILE: (fit_smile, True),
    "SMILE without pairs": (fit_smile, False),
    "SMILE plug-in": (fit_plug_in, True),
}
"""SMILE's fits, each with whether it is given the pairs."""

METHODS: Final[tuple[str, ...]] = (
    *_FITS,
    PAIRS,
    *(f"{embedding} + {clustering}" for embedding in (*EMBEDDINGS, ORACLE) for clustering in CLUSTERINGS),
)
"""Names of all methods, in the order of tables and legends."""


@dataclass(frozen=True)
class Measured:
    """What one method reached on one simulation.

    Attributes:
        method: its name.
        accuracy_u: accuracy of U, `evaluation.accuracy`; nan where a method has no embedding.
        accuracy_centers: `evaluation.center_accuracy` over the clusters that hold a code; nan likewise.
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
    alone, and take the anchors' clusters as they are. "pairs alone" groups codes by their similar pairs and sees no
    source: what a method that has both makes of the sources is what it has beyond that.

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
            if method == PAIRS:
                yield _pairs_alone(simulation, seed)
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
    fit_by, with_pairs = _FITS[method]
    start = time.perf_counter()
    fit = fit_by(
        simulation.sources,
        n_codes=simulation.n_codes,
        n_clusters=simulation.n_clusters,
        dim=simulation.embedding.shape[1],
        similar=simulation.similar if with_pairs else None,
        related=simulation.related if with_pairs else None,
        prior=simulation.prior,
        seed=seed,
    )
    seconds = time.perf_counter() - start
    return _judged(simulation, method, fit.embedding, fit.labels, fit.centers, float(fit.kappa), seconds)


def _pairs_alone(simulation: Simulation, seed: int) -> Measured:
    """The likeliest cluster under the spectral prior of the positive similar pairs."""
    start = time.perf_counter()
    n, n_clusters = simulation.n_codes, simulation.n_clusters
    same = np.zeros(n, dtype=np.intp)
    anchors = np.where(simulation.scored, -1, simulation.labels)
    known = Membership(anchors, same, np.zeros(n_clusters, dtype=np.intp), exclusive=True)
    pairs = (
        simulation.similar.pairs[simulation.similar.labels]
        if simulation.similar
        else np.zeros((0, 2), np.intp)
    )
    half = sp.csr_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    prior = spectral_prior(known, sp.csr_array(half + half.T), seed=seed)
    labels = np.asarray(prior.argmax(axis=1), dtype=np.intp).reshape(-1)
    seconds = time.perf_counter() - start
    test = simulation.scored
    reached = ami(simulation.labels[test], labels[test]) if test.any() else float("nan")
    return Measured(PAIRS, ami=reached, seconds=seconds)


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
