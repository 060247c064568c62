"""SMILE against its research prototype and every rival, paired on the same simulations, with standard errors.

`SMILE_BENCH=full` runs 20 replications of every cell (about twenty minutes on one idle core); the short form two of
two cells. The seeds are none that the fit was tuned on (those were 0 to 11). Rivals get the same sources; they are
told which codes are anchors and how many clusters the others have, and cluster the others alone.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from coordinator import evaluation
from coordinator.model import fit_smile
from coordinator.model.rivals import CLUSTERINGS, EMBEDDINGS, svd_kmeans, svd_linkage
from coordinator.simulation.generate import Simulation, simulate_paper, simulate_sites
from coordinator.simulation.methods import measure

FULL = os.environ.get("SMILE_BENCH") == "full"
SEEDS = int(os.environ.get("SMILE_BENCH_SEEDS", "20" if FULL else "2"))
FIRST_SEED = 1000
DENSE = {"positive": 0.025, "negative": 0.035}
SPARSE = {"positive": 0.002, "negative": 0.003}
CELLS = {
    "kappa 20, K 100, 6 % pairs": {"kappa": 20.0, "n_clusters": 100, **DENSE},
    "kappa 20, K 50, .5 % pairs": {"kappa": 20.0, "n_clusters": 50, **SPARSE},
    "kappa 20, K 50, 6 % pairs": {"kappa": 20.0, "n_clusters": 50, **DENSE},
    "kappa 50, K 100, 6 % pairs": {"kappa": 50.0, "n_clusters": 100, **DENSE},
    "kappa 50, K 50, 6 % pairs": {"kappa": 50.0, "n_clusters": 50, **DENSE},
    "kappa 20, K 100, .5 % pairs": {"kappa": 20.0, "n_clusters": 100, **SPARSE},
}
RIVALS = tuple(f"{embedding} + {clustering}" for embedding in EMBEDDINGS for clustering in CLUSTERINGS)
PROTOTYPE = "prototype"
EXAMPLES = Path(__file__).parents[2].parent / "shared" / "examples" / "smile"
Scores = dict[str, list[list[float]]]


def _prototype() -> ModuleType:
    if not (EXAMPLES / "variational.py").exists():
        pytest.skip(f"the research prototype is not at {EXAMPLES}")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import variational  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(EXAMPLES))
    return variational


def _run_prototype(module: ModuleType, simulation: Simulation) -> list[float]:
    """AMI, accuracy of U, kappa and seconds of the prototype on the same data."""
    known = np.zeros(simulation.n_clusters, dtype=bool)
    known[simulation.labels[~simulation.scored]] = True
    data = {
        "X": [s.matrix for s in simulation.sources],
        "I": [s.codes for s in simulation.sources],
        "U": simulation.embedding,
        "M": simulation.centers,
        "z": simulation.labels,
        "sim": (simulation.similar.pairs, simulation.similar.labels.astype(float)),
        "rel": (simulation.related.pairs, simulation.related.labels.astype(float)),
        "anchor": known,
        "n": simulation.n_codes,
        "K": simulation.n_clusters,
        "d": simulation.embedding.shape[1],
    }
    start = time.perf_counter()
    points, _, labels, kappa = module.fit(data)
    seconds = time.perf_counter() - start
    test = simulation.scored
    found = evaluation.ami(simulation.labels[test], labels[test])
    return [found, evaluation.accuracy(points, simulation.embedding), float(kappa), seconds]


def _show(title: str, columns: list[str], scores: Scores, reference: str = "SMILE") -> None:
    """Means with standard errors, and the paired gain of the reference in the first column."""
    print(f"\n{title}\n{'':36s}" + "".join(f"{c:>17s}" for c in columns) + f"{'paired gain':>17s}")
    for method, rows in scores.items():
        cells = [
            "" if np.isnan(column).any() else str(evaluation.mean_and_error(column))
            for column in zip(*rows, strict=True)
        ]
        gain = "" if method == reference else str(_advantage(scores, method, reference=reference))
        print(f"{method:36s}" + "".join(f"{c:>17s}" for c in cells) + f"{gain:>17s}")


def _advantage(scores: Scores, rival: str, column: int = 0, reference: str = "SMILE") -> evaluation.Estimate:
    """Paired difference between SMILE and a rival."""
    pairs = zip(scores[reference], scores[rival], strict=True)
    return evaluation.mean_and_error([ours[column] - theirs[column] for ours, theirs in pairs])


def _collect(simulation: Simulation, methods: tuple[str, ...], seed: int, scores: Scores) -> None:
    for row in measure(simulation, methods, seed):
        assert not row.error, row.error
        scores[row.method].append([row.ami, row.accuracy_u, row.kappa, row.seconds])


@pytest.mark.benchmark
@pytest.mark.timeout(3600 if FULL else 900)
@pytest.mark.parametrize("cell", list(CELLS)[: None if FULL else 2])
def test_on_the_papers_simulation(cell: str) -> None:
    module = _prototype()
    scores: Scores = defaultdict(list)
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
        simulation = simulate_paper(seed, **CELLS[cell])
        methods = ("SMILE", "pairs alone", *RIVALS) if FULL else ("SMILE", *RIVALS)
        _collect(simulation, methods, seed, scores)
        scores[PROTOTYPE].append(_run_prototype(module, simulation))
    _show(f"{cell}, {SEEDS} replications", ["AMI", "accuracy of U", "kappa", "seconds"], scores)
    kappa = evaluation.mean_and_error([row[2] for row in scores["SMILE"]]).mean
    assert abs(kappa / CELLS[cell]["kappa"] - 1.0) < 0.1
    prototype = _advantage(scores, PROTOTYPE)
    assert prototype.mean > -prototype.error
    for rival in RIVALS:
        gain, accuracy = _advantage(scores, rival), _advantage(scores, rival, column=1)
        # Two replications give no error worth the name.
        assert gain.mean > (3.0 * gain.error if FULL else 0.0)
        assert accuracy.mean > (3.0 * accuracy.error if FULL else 0.0)


@pytest.mark.benchmark
@pytest.mark.parametrize(
    "cell", ["kappa 20, K 50, 6 % pairs", "kappa 20, K 100, 6 % pairs"][: 2 if FULL else 1]
)
def test_without_pairs_and_anchors(cell: str) -> None:
    """Nothing but the sources: then the rivals lack nothing that SMILE has."""
    ours = "SMILE without pairs"
    scores: Scores = defaultdict(list)
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
        simulation = simulate_paper(seed, **CELLS[cell])
        bare = replace(
            simulation, similar=None, related=None, prior=None, scored=np.ones(simulation.n_codes, dtype=bool)
        )
        _collect(bare, (ours, *RIVALS), seed, scores)
    title = f"{cell.rsplit(',', 1)[0]}, no pairs, no anchors, {SEEDS} replications"
    _show(title, ["AMI", "accuracy of U", "kappa", "seconds"], scores, reference=ours)
    for rival in RIVALS:
        gain = _advantage(scores, rival, reference=ours)
        assert gain.mean > -gain.error


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
