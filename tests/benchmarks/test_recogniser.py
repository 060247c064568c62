"""Which sites went into a sum, and whether harmonisation removes a site's trace from its vectors.

    python -m pytest tests/benchmarks/test_recogniser.py -s                    short: what CI runs
    SMILE_BENCH=full python -m pytest tests/benchmarks/test_recogniser.py -s   more seeds, noise, and the claims without floors

Three sites each: the CMS claims in three code systems (a seed draws samples and anchors), and the generated consortium.
A sum has three terms, each a vector of a site drawn at random; "new codes" are sums of codes that were not learnt from,
"known codes" new sums of codes that were.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from coordinator.background import NOTHING
from coordinator.demo.inputs import generated
from coordinator.estimate import estimate
from coordinator.evaluation import mean_and_error
from coordinator.harmonize import fit_dim
from coordinator.model import SmileFit, Source
from coordinator.recogniser.audit import audit_alignment
from coordinator.recogniser.logistic import fit_logistic
from coordinator.recogniser.network import Training, fit_network
from coordinator.recogniser.scores import presence_scores
from coordinator.recogniser.sums import draw_sums, replace_by_noise, unit_tables
from coordinator.union import build_union, sources
from protocol.release import VerifiedRelease
from protocol.study import StudySpec, load_study
from tests.benchmarks.real import data
from tests.inprocess import site_release

FULL = os.environ.get("SMILE_BENCH") == "full"
pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200 if FULL else 900)]
NETWORK_SEEDS = range(3 if FULL else 1)
STEPS = 3000 if FULL else 1000
SETS = ("claims, default floors", "generated consortium")


def fitted(releases: Sequence[VerifiedRelease], study: StudySpec) -> tuple[list[Source], SmileFit]:
    union = build_union(releases, standard=study.standard, require_links=False)
    supplement = NOTHING.supplement(releases, study)
    fit = estimate(releases, union, study, fit_dim(releases, study), supplement).fit
    return sources(releases, union), fit


@lru_cache(maxsize=12)
def consortium(name: str, seed: int) -> tuple[list[Source], SmileFit]:
    """The sites' own vectors and the fit."""
    if name.startswith("claims"):
        found = data.hospitals(data.split(seed), floors="default" in name, seed=seed)
        return fitted(data.with_anchors(found, 0.2, seed), found.study)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        generated(folder, sites=3, patients=5000, seed=seed)
        study = load_study(folder / "study.toml")
        return fitted(
            [
                site_release(study, s, folder / s / "events.parquet", folder / s / "anchors.csv")
                for s in study.sites
            ],
            study,
        )


def said(values: Sequence[float]) -> str:
    found = mean_and_error(np.array(values))
    return f"{found.mean:+.3f} ± {found.error:.3f}" if len(values) > 1 else f"{found.mean:+.3f}"


@pytest.mark.parametrize("name", SETS if FULL else SETS[:1])
def test_what_went_into_a_sum_of_three(name: str) -> None:
    rows: dict[str, list[list[float]]] = {}
    for seed in NETWORK_SEEDS:
        rng = np.random.default_rng(seed)
        tables = unit_tables([source.matrix for source in consortium(name, seed)[0]])
        order = [rng.permutation(len(t)) for t in tables]
        learn = [t[o[: int(0.7 * len(t))]] for t, o in zip(tables, order, strict=True)]
        new = [t[o[int(0.7 * len(t)) :]] for t, o in zip(tables, order, strict=True)]
        training = Training(composite=STEPS, seed=seed)
        for codes, taught, asked in (
            ("known codes", tables, tables),
            *([("new codes", learn, new)] if FULL else []),
        ):
            sums = draw_sums(asked, 4000, 3, rng)
            line = fit_logistic(draw_sums(taught, 20_000, 3, rng))
            _note(rows, f"logistic, {codes}", sums.present, line.says(sums.vectors))
            _note(rows, f"network, {codes}", sums.present, fit_network(taught, training).says(sums.vectors))
        for share in (0.1, 0.3, 0.5) if FULL else ():
            sums = replace_by_noise(draw_sums(tables, 4000, 3, rng), share, rng)
            noisy = fit_network(tables, Training(composite=STEPS, noise=share, seed=seed))
            _note(rows, f"network, known codes, {share:.0%} noise", sums.present, noisy.says(sums.vectors))
    print(f"\n{name}, {len(NETWORK_SEEDS)} seeds: MCC, balanced accuracy, F1 where in, F1 where not in")
    for method, found in rows.items():
        print(f"  {method:38} " + "   ".join(said(column) for column in zip(*found, strict=True)), flush=True)
    known, logistic = (np.mean([f[0] for f in rows[f"{m}, known codes"]]) for m in ("network", "logistic"))
    # Neighbouring hospitals' axes nearly agree: no plane tells their vectors apart.
    assert known > logistic + 0.2


def _note(rows: dict[str, list[list[float]]], method: str, present: np.ndarray, answer: np.ndarray) -> None:
    scores = presence_scores(present, answer)
    rows.setdefault(method, []).append(
        [
            float(np.mean([getattr(s, part) for s in scores]))
            for part in ("mcc", "balanced_accuracy", "f1_present", "f1_absent")
        ]
    )


@pytest.mark.parametrize("name", [*SETS, *(["claims, no floors"] if FULL else [])])
def test_the_site_of_a_vector_before_and_after(name: str) -> None:
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for seed in range(5 if FULL and name in SETS else 2):
        own, fit = consortium(name, seed)
        for line in audit_alignment(own, fit.embedding, fit.labels, seed=seed).lines:
            rows.setdefault((line.kind, line.recogniser), []).append((line.mcc, line.limit))
    print(f"\n{name}: MCC of the site; 95 % of chance; runs beyond it")
    for (kind, recogniser), found in rows.items():
        mcc, limit = zip(*found, strict=True)
        beyond = sum(m > c for m, c in found)
        print(
            f"  {kind:10} {recogniser:7} {said(mcc)}   {said(limit)}   {beyond} of {len(found)}", flush=True
        )
    before, after = (np.array(rows[kind, "kernel"])[:, 0] for kind in ("released", "aligned"))
    assert (np.array(rows["released", "kernel"])[:, 0] > np.array(rows["released", "kernel"])[:, 1]).all()
    if name in SETS:
        gain = before - after
        assert gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(len(gain))
