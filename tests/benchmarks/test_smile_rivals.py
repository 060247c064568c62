"""SMILE against SVD + k-means and SVD + average linkage, on the paper's simulation and on sites of few shared codes.

Every method gets the same sources and shared rows. On the paper's simulation the rivals are also told which codes
are anchors and how many clusters the others have: they cluster the others alone. SMILE_BENCH_SEEDS sets the number
of replications (5; the paper's protocol wants 20).
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from coordinator import evaluation
from coordinator.model import clusters, fit_smile
from coordinator.model.rivals import svd_embedding, svd_kmeans, svd_linkage
from coordinator.simulation.generate import Simulation, simulate_paper, simulate_sites

SEEDS = int(os.environ.get("SMILE_BENCH_SEEDS", "3"))
DENSE = {"positive": 0.025, "negative": 0.035}
SPARSE = {"positive": 0.002, "negative": 0.003}
Scores = dict[str, list[list[float]]]


def _accuracy(found: np.ndarray, truth: np.ndarray) -> float:
    """1 - |U^ O - U| / |U| under the best orthogonal O."""
    left, _, right = np.linalg.svd(found.T @ truth)
    return float(1 - np.linalg.norm(found @ left @ right - truth) / np.linalg.norm(truth))


def _show(title: str, columns: list[str], scores: Scores) -> None:
    print(f"\n{title}\n{'':24s}" + "".join(f"{c:>17s}" for c in columns))
    for method, rows in scores.items():
        cells = [str(evaluation.mean_and_error(column)) for column in zip(*rows, strict=True)]
        print(f"{method:24s}" + "".join(f"{c:>17s}" for c in cells))


def _advantage(scores: Scores, rival: str, column: int = 0) -> evaluation.Estimate:
    """Paired difference between SMILE and a rival."""
    pairs = zip(scores["SMILE"], scores[rival], strict=True)
    return evaluation.mean_and_error([ours[column] - theirs[column] for ours, theirs in pairs])


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("kappa", "n_clusters", "pairs"),
    [
        (20.0, 100, DENSE),
        (20.0, 50, DENSE),
        (50.0, 100, DENSE),
        (50.0, 50, DENSE),
        (20.0, 100, SPARSE),
        (20.0, 50, SPARSE),
    ],
)
def test_on_the_papers_simulation(kappa: float, n_clusters: int, pairs: dict[str, float]) -> None:
    scores: Scores = {
        "SMILE": [],
        "SMILE without pairs": [],
        "SVD + k-means": [],
        "SVD + average linkage": [],
    }
    for seed in range(100, 100 + SEEDS):
        simulation = simulate_paper(seed, n_clusters=n_clusters, kappa=kappa, **pairs)
        size = {"n_codes": simulation.n_codes, "n_clusters": n_clusters, "dim": 10, "prior": simulation.prior}
        test = simulation.scored
        truth = simulation.labels[test]
        free = len(np.unique(truth))
        full = fit_smile(
            simulation.sources, **size, similar=simulation.similar, related=simulation.related, seed=seed
        )
        alone = fit_smile(simulation.sources, **size, seed=seed)
        points = svd_embedding(simulation.sources, simulation.n_codes, 10)
        accuracy = _accuracy(points, simulation.embedding)
        for name, fit in (("SMILE", full), ("SMILE without pairs", alone)):
            found = _accuracy(fit.embedding, simulation.embedding)
            scores[name].append([evaluation.ami(truth, fit.labels[test]), found, fit.kappa])
        for name, method in (("SVD + k-means", "k-means"), ("SVD + average linkage", "average")):
            labels = clusters.group(points[test], free, method, seed)
            scores[name].append([evaluation.ami(truth, labels), accuracy, np.nan])
    share = round(100 * (pairs["positive"] + pairs["negative"]), 1)
    _show(
        f"kappa {kappa:.0f}, {n_clusters} clusters, {share} % of pairs, {SEEDS} replications",
        ["AMI", "accuracy of U", "kappa"],
        scores,
    )
    for rival in ("SVD + k-means", "SVD + average linkage"):
        assert _advantage(scores, rival).mean > 0
        assert _advantage(scores, rival, column=1).mean > 0


def _between_sites(simulation: Simulation) -> list[tuple[np.ndarray, np.ndarray, list[set[int]]]]:
    """For every two sites: codes of the one, all codes only the other holds, and which of these are right."""
    own = [s.codes[simulation.scored[s.codes]] for s in simulation.sources]
    tasks = []
    for one in own:
        for other in own:
            if one is not other:
                right = [set(np.flatnonzero(simulation.labels[other] == simulation.labels[i])) for i in one]
                kept = [q for q, r in enumerate(right) if r]
                tasks.append((one[kept], other, [right[q] for q in kept]))
    return tasks


def _hits(points: np.ndarray, simulation: Simulation) -> list[float]:
    found = np.concatenate(
        [
            evaluation.ranks(points[one], points[other], right)
            for one, other, right in _between_sites(simulation)
        ]
    )
    return [float(np.mean(found <= k)) for k in (1, 5)]


def _chance(simulation: Simulation) -> list[float]:
    tasks = _between_sites(simulation)
    expected = [
        evaluation.chance_hits(len(other), [len(r) for r in right], (1, 5)) for _, other, right in tasks
    ]
    weight = [len(one) for one, _, _ in tasks]
    return [float(np.average([e[k] for e in expected], weights=weight)) for k in (1, 5)]


@pytest.mark.benchmark
@pytest.mark.parametrize(
    ("title", "setting"),
    [
        ("white noise, half the signal", {"noise": 0.5}),
        ("white noise, as much as signal", {"noise": 1.0}),
        ("spectral embeddings, noise 1.5", {"noise": 1.5, "spectral": True}),
        ("spectral embeddings, noise 2", {"noise": 2.0, "spectral": True}),
    ],
)
def test_between_sites_that_share_few_codes(title: str, setting: dict[str, float]) -> None:
    scores: Scores = {"SMILE": [], "SVD + k-means": [], "SVD + average linkage": [], "chance": []}
    for seed in range(100, 100 + SEEDS):
        simulation = simulate_sites(seed, **setting)
        n, k, dim = simulation.n_codes, simulation.n_clusters, simulation.embedding.shape[1]
        truth = simulation.labels[simulation.scored]
        fit = fit_smile(simulation.sources, n_codes=n, n_clusters=k, dim=dim, seed=seed)
        means = svd_kmeans(simulation.sources, n, k, dim, seed)
        linkage = svd_linkage(simulation.sources, n, k, dim)
        for name, answer in (("SMILE", fit), ("SVD + k-means", means), ("SVD + average linkage", linkage)):
            found = evaluation.ami(truth, answer.labels[simulation.scored])
            scores[name].append([found, *_hits(answer.embedding, simulation)])
        scores["chance"].append([0.0, *_chance(simulation)])
    _show(
        f"three sites, 15 % of a site's codes shared, {title}, {SEEDS} replications",
        ["AMI", "hits@1", "hits@5"],
        scores,
    )
    assert _advantage(scores, "SVD + k-means", column=1).mean > 0
    assert _advantage(scores, "SVD + k-means", column=2).mean > 0
