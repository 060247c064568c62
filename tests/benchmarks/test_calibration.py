"""Is .9 right nine times in ten? Probabilities of mappings against truth, on data that nothing was tuned on.

    python -m pytest tests/benchmarks/test_calibration.py -s                      short: what CI runs
    SMILE_BENCH=full python -m pytest tests/benchmarks/test_calibration.py -s     more than 5,000 mappings of each
    SMILE_FIGURES=folder                                                          where the figure goes

The form of the curve was chosen on seeds 0 to 9. Scored are all mappings that the fit found, also of codes whose standard code
no site released: such a mapping cannot be right. Intervals draw whole consortia, since the mappings of one share a curve.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.demo.inputs import generated
from coordinator.exports.predicates import Predicate, predicate
from coordinator.harmonize import fit_releases
from coordinator.scoring.curve import (
    Bin,
    calibration_curve,
    calibration_interval,
    debiased_calibration_error,
    wilson,
)
from coordinator.scoring.curve_figure import draw_calibration
from protocol.study import load_study
from tests.cms import make_cms
from tests.inprocess import site_release

pytestmark = pytest.mark.benchmark
FULL = os.environ.get("SMILE_BENCH") == "full"
BAR = 0.05
SHORT_BAR = (
    0.08  # a curve is learnt from 200 to 330 anchors: of one or two releases, chance alone reaches .05
)
CURVES: dict[str, tuple[Bin, ...]] = {}


@dataclass(frozen=True)
class Outcomes:
    """The found mappings of one consortium: what was stated, and whether it is right."""

    probability: NDArray[np.float64]
    right: NDArray[np.bool_]


def generated_consortium(folder: Path, seed: int) -> Outcomes:
    generated(folder, sites=3, patients=5000, seed=seed)
    return outcomes(folder, lambda s: folder / s / "events.parquet", lambda s: folder / s / "anchors.csv")


def claims(folder: Path, seed: int) -> Outcomes:
    make_cms(folder, seed=seed)
    return outcomes(folder, lambda s: folder / f"{s}.parquet", lambda s: folder / f"{s}.anchors.csv")


def outcomes(folder: Path, events: object, anchors: object) -> Outcomes:
    study = load_study(folder / "study.toml")
    releases = tuple(site_release(study, s, events(s), anchors(s)) for s in study.sites)  # type: ignore[operator]
    concept = concepts(folder / "truth.csv")
    found = [
        (row.probability, concept.get(row.standard_code) == concept[row.code])
        for row in fit_releases(releases, study).mappings.rows
        if row.standard_code and not row.given and row.code in concept
    ]
    probability, right = zip(*found, strict=True)
    return Outcomes(np.array(probability), np.array(right))


def concepts(truth: Path) -> dict[str, str]:
    """CURIE -> concept, standard codes that no site released too."""
    found = {}
    with truth.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            found[f"{row['system']}:{row['code']}"] = row["concept"]
            found.setdefault(row.get("standard_code") or f"ICD10CM:{row['concept']}", row["concept"])
    return found


def judge(name: str, runs: list[Outcomes]) -> float:
    """Print curve, error and predicates; the debiased error of all runs together."""
    p, right = np.concatenate([r.probability for r in runs]), np.concatenate([r.right for r in runs])
    run = np.repeat(np.arange(len(runs)), [len(r.right) for r in runs])
    curve = CURVES[name] = calibration_curve(p, right)
    few = len(runs) < 5  # too few consortia to draw from: the interval is then that of mappings
    low, high = calibration_interval(p, right, groups=None if few else run)
    error = debiased_calibration_error(curve)
    each = [debiased_calibration_error(calibration_curve(r.probability, r.right)) for r in runs]
    print(
        f"\n{name}: {len(p):,} mappings of {len(runs)} consortia, {right.mean():.3f} right, {p.mean():.3f} stated"
    )
    print(
        f"  debiased error {error:.3f} ({low:.3f} to {high:.3f}); of one consortium {np.mean(each):.3f}, at most {max(each):.3f}"
    )
    for b in curve:
        print(f"  {b.n:5d}  stated {b.stated:.3f}  right {b.right:.3f} ({b.low:.3f} to {b.high:.3f})")
    kinds = np.array([predicate(x, given=False) for x in p])
    for kind in (Predicate.EXACT, Predicate.CLOSE, Predicate.RELATED):
        of = right[kinds == kind]
        if len(of):
            low, high = wilson(int(of.sum()), len(of))
            print(
                f"  {kind}: {of.mean():.3f} right ({low:.3f} to {high:.3f}) of {len(of):,}, stated {p[kinds == kind].mean():.3f}"
            )
    return error


def share_of_sure(runs: list[Outcomes]) -> tuple[float, float]:
    """Wilson's interval of the share right among those that are stated as .9 or more."""
    right = np.concatenate([r.right[np.round(r.probability, 4) >= 0.9] for r in runs])
    return wilson(int(right.sum()), len(right))


def test_generated_consortium(tmp_path: Path) -> None:
    seeds = range(200, 206) if FULL else range(200, 201)
    runs = [generated_consortium(tmp_path / str(s), s) for s in seeds]
    error = judge("generated consortium", runs)
    assert sum(len(r.right) for r in runs) >= (5000 if FULL else 1000)
    assert error <= (BAR if FULL else SHORT_BAR)
    assert share_of_sure(runs)[1] >= 0.9


def test_claims(tmp_path: Path) -> None:
    seeds = range(200, 210) if FULL else range(200, 202)
    runs = [claims(tmp_path / str(s), s) for s in seeds]
    error = judge("CMS claims", runs)
    assert error <= (BAR if FULL else SHORT_BAR)
    assert share_of_sure(runs)[1] >= 0.9


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    """After the others: the figure of what they measured."""
    if not CURVES:
        pytest.skip("no curve was measured in this run")
    folder = Path(os.environ.get("SMILE_FIGURES", tmp_path))
    paths = draw_calibration(
        folder, CURVES, "Probability of found mappings against truth; bars are 95 % intervals"
    )
    assert all(p.stat().st_size > 5_000 for p in paths)
    print(f"\n{paths[0]}")
