"""How many clusters a category has: cut its codes into 1, 2, ... groups and compare the cuts by a criterion.

For groups of n_k unit rows with sums s_k, n rows in all:

- silhouette: mean of (b_i - a_i) / max(a_i, b_i), with a_i and b_i the mean cosine distances of a row to its own and
  to the nearest other group (Rousseeuw 1987). Exact in O(n K d), from the sums.
- likelihood (derived): von Mises-Fisher groups with their means integrated out, uniform on the sphere, and half of
  the log probability of the partition under a Chinese restaurant process,

    max_kappa sum_k [n_k log C_d(kappa) - log C_d(kappa |s_k|) + log C_d(0)]
    + max_theta [K log theta + log Gamma(theta) - log Gamma(theta + n) + sum_k log Gamma(n_k)] / 2.

  No term is asymptotic in n_k, which matters because groups of synonyms have few members. The half is empirical
  (mean error .16, against .19 without the term and .45 with all of it, on the seeds that it was chosen on).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import pdist
from scipy.special import gammaln

from coordinator.model import clusters, vmf
from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Index
from protocol.errors import FitError

CRITERIA = ("likelihood", "silhouette")
_MOST_FOR_LINKAGE = 8000  # rows; linkage keeps all pairwise distances
_MOST_SCORED = 4000  # rows whose silhouette is taken in a large category
_COARSE, _FINE, _REFINEMENTS = 20, 8, 2
_LOG_KAPPA = (-2.0, 14.0)
_LOG_THETA = (-5.0, 15.0)


@dataclass(frozen=True, eq=False)
class CategoryChoice:
    """The number of clusters of one category, and the curves that it comes from.

    Args:
        category: its number.
        n_codes: how many codes it has.
        n_clusters: the chosen K.
        candidates: (m,) increasing, the K that were tried.
        likelihood: (m,) the criterion of that name, in nats.
        silhouette: (m,) mean silhouette; nan for a single group, which has none.
    """

    category: int
    n_codes: int
    n_clusters: int
    candidates: Index
    likelihood: Array
    silhouette: Array


def choose_clusters(
    points: Array,
    categories: Index,
    *,
    candidates: Sequence[int] | Mapping[int, Sequence[int]] | None = None,
    method: str = "average",
    criterion: str = "silhouette",
    seed: int = 0,
) -> tuple[CategoryChoice, ...]:
    """The number of clusters of each category.

    Measured on von Mises-Fisher mixtures (kappa 20, 50, 200; K 10, 30, 100; groups by average linkage), as the mean
    of |log(chosen K / true K)| over all of them. The first two rows are this function on four seeds that no choice
    was made on, the others three seeds on a grid of 30 numbers from K/5 to 5K, that holds K:

                                        d 10               d 30
        cluster sizes             2-20      2-3      2-20      2-3     mean
        likelihood                 .20      .11       .36      .10      .19
        silhouette                 .22      .07       .52      .07      .22
        gap statistic              .18      .74       .30      .60      .46
        held-out likelihood        .29      .76       .71      .83      .65
        BIC                        .62     1.57      1.01     1.96     1.29

    At kappa 200 the first two find K within 1 %, at 50 within 11 %. At kappa 20 and sizes 2-20 clusters overlap, and
    both find too many: with d 10 and 30 the mean absolute log ratio is .52 and 1.00 for the likelihood, .59 and 1.53
    for the silhouette. Clusters of two or three: the silhouette is the better one in a clean embedding (kappa 20:
    .14 and .17 against .23 and .28), with little bias in either. On noisy embeddings of three sites with 250 concepts
    of three to six codes, the likelihood chose 253 to 310 and the silhouette 278 to 484. On real data the silhouette is
    safer: of about 1,450 rows of three sites of claims it chose 432 and 515 clusters, and the likelihood 1,107 and
    1,110, as if nearly every code stood alone. Look at both curves: a flat one says that the data do not tell K.

    Args:
        points: (n, d) rows with a direction, d >= 2.
        categories: (n,) category of each row.
        candidates: the K to try, for all categories or by category, cut at its number of codes. Without them 20
            numbers between 1 and that number, evenly on the log scale, and then finer ones around the best.
        method: how rows are grouped, see `clusters.group`; above 8,000 codes average linkage gives way to
            spherical k-means.
        criterion: "silhouette" or "likelihood".
        seed: of k-means, and of the codes whose silhouette is taken where a category has more than 4,000.

    Returns:
        One choice a category, by category number.

    Raises:
        FitError: a row is zero or not finite.
        ValueError: shapes that do not fit, an unknown criterion or method, or a candidate below 1.
    """
    points, categories = np.asarray(points, dtype=np.float64), np.asarray(categories)
    if points.ndim != 2 or points.shape[1] < 2 or categories.shape != points.shape[:1]:
        raise ValueError(f"points of shape {points.shape} do not go with categories of {categories.shape}")
    if criterion not in CRITERIA:
        raise ValueError(f"a criterion is {' or '.join(CRITERIA)}, not {criterion!r}")
    tried = candidates.values() if isinstance(candidates, Mapping) else [candidates]
    if any(numbers is not None and (not len(numbers) or min(numbers) < 1) for numbers in tried):
        raise ValueError("candidates must name at least one number of clusters, none below 1")
    usable = np.isfinite(points).all(axis=1) & np.any(points != 0.0, axis=1)
    if not usable.all():
        raise FitError(f"row {np.flatnonzero(~usable)[0]} of the points is zero or not finite")
    unit = unit_rows(points)
    return tuple(
        _choose(
            int(c),
            unit[categories == c],
            candidates.get(int(c)) if isinstance(candidates, Mapping) else candidates,
            method,
            criterion,
            seed,
        )
        for c in np.unique(categories)
    )


def silhouette(points: Array, label: Index, rows: Index | None = None) -> float:
    """Mean silhouette of unit rows by cosine distance; a group of one counts 0, a single group gives nan.

    Args:
        points: (n, d) unit rows.
        label: (n,) group of each.
        rows: those that the mean is taken over; all if None.
    """
    label = np.unique(label, return_inverse=True)[1].reshape(-1)
    sums, count = _sums(points, label)
    if len(count) < 2:
        return float("nan")
    rows = np.arange(len(points)) if rows is None else rows
    own, place = label[rows], np.arange(len(rows))
    along = points[rows] @ sums.T
    # A row's distance to itself is 0, so that only the divisor leaves it out.
    inside = (count[own] - along[place, own]) / np.maximum(count[own] - 1.0, 1.0)
    apart = 1.0 - along / count
    apart[place, own] = np.inf
    nearest = apart.min(axis=1)
    width = (nearest - inside) / np.maximum(np.maximum(nearest, inside), 1e-12)
    return float(np.mean(np.where(count[own] > 1.0, width, 0.0)))


def integrated_likelihood(points: Array, label: Index) -> float:
    """The criterion "likelihood" of unit rows in groups, see the head of this file; in nats.

    Args:
        points: (n, d) unit rows.
        label: (n,) group of each.
    """
    n, dim = points.shape
    sums, count = _sums(points, np.unique(label, return_inverse=True)[1].reshape(-1))
    length = np.linalg.norm(sums, axis=1)

    def directions(log_kappa: float) -> float:
        kappa = float(np.exp(log_kappa))
        value: float = n * vmf.log_normalizer(dim, kappa) - np.sum(vmf.log_normalizer(dim, kappa * length))
        return float(value)

    def partition(log_theta: float) -> float:
        theta = float(np.exp(log_theta))
        sizes = float(np.sum(gammaln(count)))
        total: float = len(count) * log_theta + gammaln(theta) - gammaln(theta + n) + sizes
        return total

    uniform = len(count) * float(vmf.log_normalizer(dim, 0.0))
    return uniform + _greatest(directions, _LOG_KAPPA) + 0.5 * _greatest(partition, _LOG_THETA)


def _choose(
    category: int, points: Array, candidates: Sequence[int] | None, method: str, criterion: str, seed: int
) -> CategoryChoice:
    n = len(points)
    cut = _cutter(points, method, seed)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(n, _MOST_SCORED, replace=False)) if n > _MOST_SCORED else np.arange(n)
    curve: dict[int, tuple[float, float]] = {}
    column = CRITERIA.index(criterion)

    def best() -> int:
        return max(sorted(curve), key=lambda k: -np.inf if np.isnan(curve[k][column]) else curve[k][column])

    def look(numbers: Array) -> None:
        for k in sorted({int(min(max(round(x), 1), n)) for x in numbers}):
            if k not in curve:
                label = cut(k)
                curve[k] = (integrated_likelihood(points, label), silhouette(points, label, rows))

    if candidates is not None:
        look(np.asarray(candidates, dtype=np.float64))
    else:
        look(np.geomspace(1.0, n, _COARSE))
        for _ in range(_REFINEMENTS):
            tried = sorted(curve)
            here = tried.index(best())
            look(np.linspace(tried[max(here - 1, 0)], tried[min(here + 1, len(tried) - 1)], _FINE + 2))
    tried = sorted(curve)
    values = np.array([curve[k] for k in tried])
    return CategoryChoice(category, n, best(), np.array(tried, dtype=np.intp), values[:, 0], values[:, 1])


def _cutter(points: Array, method: str, seed: int) -> Callable[[int], Index]:
    """A function from K to labels; average linkage builds its tree once for all K."""
    if method != "average" or len(points) > _MOST_FOR_LINKAGE:
        return lambda k: clusters.group(points, k, method, seed)
    if len(points) == 1:
        return lambda k: np.zeros(1, dtype=np.intp)
    # Rounding can make the distance of two equal rows negative.
    tree = linkage(np.maximum(pdist(points, "cosine"), 0.0), "average")
    return lambda k: np.asarray(fcluster(tree, k, "maxclust"), dtype=np.intp) - 1


def _sums(points: Array, label: Index) -> tuple[Array, Array]:
    """Sum of the rows of each group, and their number."""
    sums = np.zeros((int(label.max()) + 1, points.shape[1]))
    np.add.at(sums, label, points)
    return sums, np.bincount(label).astype(np.float64)


def _greatest(value: Callable[[float], float], bounds: tuple[float, float]) -> float:
    found = minimize_scalar(lambda x: -value(x), bounds=bounds, method="bounded", options={"xatol": 1e-3})
    return -float(found.fun)
