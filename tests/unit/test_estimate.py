"""What speaks for a mapping beside the vectors, from releases to ranked candidates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from coordinator import estimate as estimating
from coordinator.background import Background, read_background
from coordinator.config import CoordinatorConfig
from coordinator.harmonize import Harmonized, fit_releases, load_fit, save_fit
from coordinator.knowledge.build import Build
from coordinator.knowledge.merge import PAIRS
from protocol.canonical import digest
from protocol.errors import FitError, UsageError
from protocol.release import CODE_PATIENTS, VerifiedRelease
from protocol.study import StudySpec
from protocol.text import LexicalEncoder
from tests.synthetic import release, study, verified

N, DIM = 90, 4
LOCAL = {f"SOUTH:{i}": f"ICD10CM:{i}" for i in range(N)}
OTHER = {f"ICD9CM:{i}": f"ICD10CM:{i}" for i in range(N)}
WORDS = (
    "heart",
    "kidney",
    "lung",
    "acute",
    "chronic",
    "pain",
    "fracture",
    "tumour",
    "left",
    "right",
    "benign",
    "late",
)


def spec(**changes: Any) -> StudySpec:
    return study(minimum_sites=3, fit={"dim": DIM}, **changes)


def consortium(anchors: int, noise: float = 0.8, seed: int = 0) -> list[VerifiedRelease]:
    """One meaning under three names; the first `anchors` codes of two sites name their standard code."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((N, DIM)) * np.linspace(2.0, 0.7, DIM)
    patients = np.exp(rng.normal(5.0, 1.2, N))
    found = []
    for site, system in (("north", "ICD10CM"), ("lake", "ICD9CM"), ("south", "SOUTH")):
        matrix = truth @ rng.standard_normal((DIM, 10)) + noise * rng.standard_normal((N, 10))
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        given = {f"{system}:{i}": f"ICD10CM:{i}" for i in range(anchors)} if site != "north" else None
        made = verified(
            release(site, [f"{system}:{i}" for i in range(N)], matrix, spec=spec(), anchors=given)
        )
        counts = np.rint(patients * np.exp(rng.normal(0.0, 0.1, N))).astype(np.int64)
        found.append(replace(made, arrays=MappingProxyType({**made.arrays, CODE_PATIENTS: counts})))
    return found


def right(found: Harmonized) -> float:
    """Share of the mappings that were found, not given, that are right."""
    truth = LOCAL | OTHER
    rows = [r for r in found.mappings.rows if not r.given]
    return float(np.mean([r.standard_code == truth[r.code] for r in rows]))


def pairs(*said: tuple[str, str, bool, float]) -> Build:
    """Knowledge of synonyms, or of codes that are none."""
    rows = [
        {
            "code_1": min(a, b),
            "code_2": max(a, b),
            "kind": "similar",
            "label": label,
            "weight": w,
            "sources": ["test"],
        }
        for a, b, label, w in said
    ]
    return Build(pa.Table.from_pylist(rows, schema=PAIRS), {})


def test_all_that_speaks_for_a_mapping_beats_the_vectors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = []
    for seed in range(3):
        releases = consortium(15, seed=seed)
        whole = right(fit_releases(releases, spec()))
        with monkeypatch.context() as patch:
            patch.setattr(estimating, "MOST_CELLS", 0)
            gains.append(whole - right(fit_releases(releases, spec())))
    assert np.mean(gains) > 0.1


def test_sites_that_nothing_links_are_mapped_with_a_warning() -> None:
    releases = consortium(0, noise=0.3)
    found = fit_releases(releases, spec())
    assert right(found) > 20 / N
    assert any("No code and no anchor links" in warning for warning in found.warnings)


def test_the_variational_fit_needs_links() -> None:
    changed = spec().model_copy(update={"fit": spec().fit.model_copy(update={"method": "variational"})})
    with pytest.raises(FitError, match="No code and no anchor links"):
        fit_releases(consortium(0), changed)


def test_weak_pairs_can_be_left_out() -> None:
    fit = spec().fit.model_copy(update={"weak_pairs": False})
    plain = spec().model_copy(update={"fit": fit})
    gains = []
    for seed in range(3):
        releases = consortium(15, seed=seed)
        gains.append(right(fit_releases(releases, spec())) - right(fit_releases(releases, plain)))
    assert np.mean(gains) > 0.0
    with pytest.raises(FitError, match="No code and no anchor links"):
        fit_releases(consortium(0), plain)


def test_known_pairs_are_believed_and_their_opposites_too() -> None:
    releases, plain = consortium(15), Background()
    wrong = [r for r in fit_releases(releases, spec(), background=plain).mappings.rows if not r.given]
    truth = LOCAL | OTHER
    missed = [r for r in wrong if r.standard_code != truth[r.code]]
    told = pairs(*((r.code, truth[r.code], True, 1.0) for r in missed))
    better = fit_releases(releases, spec(), background=Background(told, "ab" * 32))
    now = {r.code: r.standard_code for r in better.mappings.rows}
    assert np.mean([now[r.code] == truth[r.code] for r in missed]) > 0.6
    denied = pairs(*((r.code, r.standard_code, False, 1.0) for r in missed))
    other = {
        r.code: r.standard_code
        for r in fit_releases(releases, spec(), background=Background(denied, "ab" * 32)).mappings.rows
    }
    assert np.mean([other[r.code] != r.standard_code for r in missed]) > 0.6


def test_known_pairs_reach_the_variational_fit() -> None:
    fit = spec().fit.model_copy(update={"method": "variational", "iterations": 5})
    told = pairs(*((f"SOUTH:{i}", f"ICD10CM:{i}", True, 1.0) for i in range(24, N)))
    found = fit_releases(
        consortium(24), spec().model_copy(update={"fit": fit}), background=Background(told, "ab" * 32)
    )
    right_ = [
        r.standard_code == LOCAL[r.code] for r in found.mappings.rows if not r.given and r.code in LOCAL
    ]
    assert len(right_) == N - 24
    assert np.mean(right_) > 0.95


def test_titles_find_what_vectors_do_not() -> None:
    releases = consortium(15)
    rng = np.random.default_rng(5)
    titles = {}
    for i in range(N):
        name = " ".join(rng.choice(WORDS, 4, replace=False))
        titles |= {f"ICD10CM:{i}": name, f"ICD9CM:{i}": f"{name} nos", f"SOUTH:{i}": name.upper()}
    named = Background(encoder=LexicalEncoder(128), titles=titles)
    found = fit_releases(releases, spec(), background=named)
    assert right(found) > right(fit_releases(releases, spec())) + 0.1
    used = {source.kind: source for source in found.background}
    assert used["encoder"].detail == f"Names of {3 * N} codes, read by {LexicalEncoder(128).name}"
    assert used["titles"].content == digest(titles)


def test_a_drug_is_never_mapped_to_a_condition() -> None:
    systems = [
        {"prefix": "ICD10CM"},
        {"prefix": "ICD9CM", "category": "drug"},
        {"prefix": "SOUTH", "local_to": "south"},
    ]
    found = fit_releases(consortium(15), spec(code_systems=systems))
    rows = [r for r in found.mappings.rows if r.code.startswith("ICD9CM:") and not r.given]
    assert rows
    assert all(r.standard_code == "" and r.probability == 0.0 for r in rows)


def test_a_fit_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    releases = consortium(40)
    found = fit_releases(
        releases, spec(), background=Background(pairs(("SOUTH:50", "ICD10CM:50", True, 1.0)), "ab" * 32)
    )
    save_fit(tmp_path / "fit.safetensors", found, releases)
    again = load_fit(tmp_path / "fit.safetensors", releases, spec())
    assert again.mappings.rows == found.mappings.rows
    assert again.background == found.background
    assert [(b.kind, b.content) for b in again.background] == [("knowledge", "ab" * 32)]


def test_titles_without_an_encoder_are_names_only(tmp_path: Path) -> None:
    (tmp_path / "titles.csv").write_text("system,code,title\nICD10CM,C00,Diabetes\n")
    config = CoordinatorConfig(address="hub:1", titles="titles.csv")
    found = read_background(tmp_path, config, spec())
    assert (found.encoder, dict(found.titles)) == (None, {"ICD10CM:C00": "Diabetes"})
    assert found.supplement(consortium(10), spec()).names is None
    with pytest.raises(UsageError, match="is no folder of knowledge"):
        read_background(tmp_path, CoordinatorConfig(address="hub:1", knowledge="known"), spec())
    assert read_background(tmp_path, CoordinatorConfig(address="hub:1"), spec()).knowledge is None
