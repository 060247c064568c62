"""Synonyms recovered by SMILE and by what a user would take instead, on the same releases, over seeds.

    python -m pytest tests/benchmarks/test_harmonisation.py -s                 short: what CI runs
    SMILE_BENCH=full python -m pytest tests/benchmarks/test_harmonisation.py -s    more seeds, and the claims without floors

On the CMS claims a seed draws other anchors (20 % of codes); on the generated consortium it draws all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coordinator.demo.inputs import generated
from coordinator.evaluation import mean_and_error
from coordinator.harmonize import fit_releases
from coordinator.quality import compare, read_truth
from coordinator.report.data import Quality
from protocol.study import load_study
from tests.cms import make_cms
from tests.inprocess import site_release

pytestmark = pytest.mark.benchmark
FULL = os.environ.get("SMILE_BENCH") == "full"
SCORES = ("ami", "hits1", "hits5")


def score(folder: Path, events: Callable[[str], Path], anchors: Callable[[str], Path]) -> tuple[Quality, str]:
    """All methods on one data set, and what survived the floors."""
    study = load_study(folder / "study.toml")
    releases = tuple(site_release(study, s, events(s), anchors(s)) for s in study.sites)
    result = fit_releases(releases, study)
    quality = compare(result, releases, read_truth(folder / "truth.csv"), standard=study.standard)
    codes = "/".join(str(len(r.manifest.codes)) for r in releases)
    mass = "/".join(f"{r.manifest.statistics.mass_kept:.0%}" for r in releases)
    candidates = sum(c.startswith(f"{study.standard}:") for c in result.union.codes)
    found = f"{result.calibration.right:.2f} of {result.calibration.n} hidden anchors"
    return quality, f"codes {codes}, mass {mass}, {candidates} candidates, {found}"


def cms(folder: Path, seed: int, floors: tuple[int, int] | None) -> tuple[Quality, str]:
    make_cms(folder, seed=seed, floors=floors)
    return score(folder, lambda s: folder / f"{s}.parquet", lambda s: folder / f"{s}.anchors.csv")


def demo(folder: Path, seed: int) -> tuple[Quality, str]:
    generated(folder, sites=3, patients=5000, seed=seed)
    return score(folder, lambda s: folder / s / "events.parquet", lambda s: folder / s / "anchors.csv")


def table(name: str, runs: list[tuple[Quality, str]]) -> dict[str, np.ndarray]:
    """Print mean and standard error over the runs; returns (runs, scores) for each method."""
    values: dict[str, np.ndarray] = {}
    for i, row in enumerate(runs[0][0].rows):
        values[row.method] = np.array([[getattr(q.rows[i], s) for s in SCORES] for q, _ in runs], dtype=float)
    print(f"\n{name}: {len(runs)} seeds; first: {runs[0][1]}")
    for method, found in values.items():
        cells = [mean_and_error(found[:, k]) for k in range(len(SCORES))]
        print(
            f"  {method:22s}"
            + "  ".join(f"{s} {c.mean:.3f} ± {c.error:.3f}" for s, c in zip(SCORES, cells, strict=True))
        )
    return values


def better(values: dict[str, np.ndarray], rival: str, scores: tuple[int, ...]) -> None:
    """SMILE above the rival by two standard errors of the paired difference."""
    gain = values["SMILE"][:, scores] - values[rival][:, scores]
    error = gain.std(axis=0, ddof=1) / np.sqrt(len(gain))
    print(
        f"  gain over {rival}: "
        + ", ".join(f"{m:+.3f} ± {e:.3f}" for m, e in zip(gain.mean(axis=0), error, strict=True))
    )
    assert (gain.mean(axis=0) > 2 * error).all()


def test_generated_consortium(tmp_path: Path) -> None:
    values = table("generated consortium", [demo(tmp_path / str(s), s) for s in range(10 if FULL else 3)])
    for rival in ("SVD + k-means", "SVD + average linkage", "chance"):
        better(values, rival, (0, 1, 2))


def test_claims_under_the_default_floors(tmp_path: Path) -> None:
    values = table(
        "CMS claims, default floors", [cms(tmp_path / str(s), s, None) for s in range(20 if FULL else 5)]
    )
    for rival in ("SVD + k-means", "SVD + average linkage", "chance"):
        better(values, rival, (0, 1, 2))


@pytest.mark.skipif(not FULL, reason="ten minutes: set SMILE_BENCH=full")
def test_claims_without_floors(tmp_path: Path) -> None:
    """Public data: a code needs two patients, so that it can be in a pair at all, and a pair one."""
    values = table("CMS claims, no floors", [cms(tmp_path / str(s), s, (2, 1)) for s in range(3)])
    better(values, "chance", (0, 1, 2))
