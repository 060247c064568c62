"""Node-wise regression: seconds beside scikit-learn's search at equal support, and growth with the number of codes.

`SMILE_BENCH=full` grows to 20,000 codes at 300 columns, with two halves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import ElasticNetCV, enet_path

from coordinator.model.selection import Rule, select_neighbours
from tests.benchmarks.test_site_scale import peak_memory

FULL = os.environ.get("SMILE_BENCH") == "full"
Array = NDArray[np.float64]

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200 if FULL else 600)]


def embedding(n: int, p: int, seed: int = 0, noise: float = 0.5) -> tuple[Array, Array, Array]:
    """Unit rows around n / 20 directions of different sizes, and the same of two halves, which are noisier."""
    rng = np.random.default_rng(seed)
    group = np.minimum(rng.geometric(20.0 / n, size=n) - 1, n // 20)
    center = rng.normal(size=(n // 20 + 1, p))[group]
    truth = center + rng.normal(size=(n, p))
    shift = noise * rng.normal(size=(n, p))
    rows = (truth, truth + shift, truth - shift)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows)  # type: ignore[return-value]


def search(vectors: Array, j: int, rule: Rule) -> NDArray[np.intp]:
    """What scikit-learn selects for one code: its path over all other codes, and the same criterion."""
    others = np.delete(np.arange(len(vectors)), j)
    cosine = vectors[others] @ vectors[j]
    design, p = np.asfortranarray((vectors[others] * np.abs(cosine)[:, None]).T), vectors.shape[1]
    greatest = np.max(cosine**2) / rule.alpha
    lambdas = greatest * np.geomspace(1.0, rule.least, rule.steps)
    _, coefs, _ = enet_path(
        design, vectors[j], l1_ratio=rule.alpha, alphas=lambdas / p, tol=1e-6, max_iter=10_000
    )
    loss = ((vectors[j][:, None] - design @ coefs) ** 2).sum(axis=0)
    df = (coefs != 0).sum(axis=0)
    inside = np.cumsum(df > p / 2) == 0
    best = np.argmin(np.where(inside, np.log(loss) + 2.0 * rule.degrees * df / p, np.inf))
    return np.asarray(others[np.flatnonzero(coefs[:, best])])


def cross_validated(vectors: Array, j: int, rule: Rule) -> None:
    """ElasticNetCV as it comes, with as many penalties."""
    others = np.delete(np.arange(len(vectors)), j)
    design = (vectors[others] * np.abs(vectors[others] @ vectors[j])[:, None]).T
    ElasticNetCV(l1_ratio=rule.alpha, alphas=rule.steps, eps=rule.least, fit_intercept=False, cv=5).fit(
        design, vectors[j]
    )


def test_five_times_faster_than_scikit_learns_search_at_equal_support() -> None:
    n, p, asked = (5_000, 300, 60) if FULL else (800, 100, 15)
    rule, vectors = Rule(), embedding(n, p)[0]
    select_neighbours(vectors[:50], rule=rule, threads=1)  # compiles
    start = time.perf_counter()
    found = select_neighbours(vectors, rule=rule, threads=1)
    ours = (time.perf_counter() - start) / n
    rng = np.random.default_rng(1)
    nodes = rng.choice(n, asked, replace=False)
    common = sizes = 0
    start = time.perf_counter()
    supports = {int(j): search(vectors, int(j), rule) for j in nodes}
    theirs = (time.perf_counter() - start) / asked
    for j, support in supports.items():
        own = found.weights[[j]].indices
        common, sizes = common + len(np.intersect1d(own, support)), sizes + len(own) + len(support)
    start = time.perf_counter()
    for j in nodes[:5]:
        cross_validated(vectors, int(j), rule)
    crossed = (time.perf_counter() - start) / 5
    print(f"\n{n} codes, {p} columns, one thread, ms a code; neighbours a code {found.weights.nnz / n:.1f}")
    print(
        f"  ours {1e3 * ours:.2f}; enet_path and the same criterion {1e3 * theirs:.1f} (x {theirs / ours:.0f})"
    )
    print(
        f"  ElasticNetCV, 5 folds {1e3 * crossed:.1f} (x {crossed / ours:.0f}); F1 of supports {2 * common / sizes:.3f}"
    )
    assert 2 * common / sizes >= 0.95
    assert theirs > 5.0 * ours
    assert crossed > 5.0 * ours


def measure(options: dict[str, int]) -> dict[str, float]:
    """One run here: seconds, neighbours a code and peak memory in GiB."""
    vectors, *halves = embedding(options["n"], options["p"])
    select_neighbours(vectors[:50], halves=(halves[0][:50], halves[1][:50]), threads=1)
    start = time.perf_counter()
    found = select_neighbours(vectors, halves=(halves[0], halves[1]), threads=options["threads"])
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "degree": found.weights.nnz / options["n"],
        "extended": found.extended,
        "peak": peak_memory() / 2**30,
    }


def test_growth_with_the_number_of_codes() -> None:
    sizes = [1_000, 2_000, 5_000, 10_000, 20_000] if FULL else [500, 1_500]
    p, threads = (300, os.cpu_count() or 1) if FULL else (60, 1)
    seconds = []
    print(f"\n{p} columns, two halves, {threads} threads")
    for n in sizes:
        code = "import json, sys; from tests.benchmarks.test_selection import measure; "
        code += "print(json.dumps(measure(json.loads(sys.argv[1]))))"
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps({"n": n, "p": p, "threads": threads})],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        row = json.loads(done.stdout.splitlines()[-1])
        seconds.append(row["seconds"])
        print(f"  {n} codes: {row['seconds']:.1f} s, {row['degree']:.1f} neighbours a code, "
              f"{row['extended']:.0f} extended, peak {row['peak']:.2f} GiB", flush=True)  # fmt: skip
    slope = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    print(f"  grows as codes^{slope:.2f}")
    # Each code's regression is bounded by the screening; only cosines are quadratic.
    assert slope < 1.8
