"""The published fit: its objective never falls, its blocks are maximisers, and kappa comes from held-out data."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.evaluation import ami
from coordinator.model import Relations, Source
from coordinator.model.plugin import fit_plug_in
from coordinator.model.plugin.ascent import on_sphere
from coordinator.simulation.generate import simulate_paper
from protocol.errors import FitError


@pytest.fixture(scope="module")
def paper():
    return simulate_paper(0, n_codes=200, n_clusters=20, columns=40)


def _fit(simulation, **options):
    given_options = {
        "n_codes": simulation.n_codes,
        "n_clusters": simulation.n_clusters,
        "dim": 10,
        "similar": simulation.similar,
        "related": simulation.related,
        "prior": simulation.prior,
        "kappas": (20.0,),
        "iterations": 25,
    }
    return fit_plug_in(simulation.sources, **(given_options | options))


def _accuracy(found, truth):
    left, _, right = np.linalg.svd(found.T @ truth)
    return 1 - np.linalg.norm(found @ left @ right - truth) / np.linalg.norm(truth)


@pytest.fixture(scope="module")
def full_fit(paper):
    return _fit(paper)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    kappa=st.floats(0.5, 500.0),
    similarity=st.sampled_from([0.0, 0.5, 3.0]),
    relatedness=st.sampled_from([0.0, 0.3, 3.0]),
    mixture=st.sampled_from([None, 0.001, 1.0]),
    messages=st.booleans(),
    known=st.booleans(),
)
def test_the_objective_never_falls(seed, kappa, similarity, relatedness, mixture, messages, known):
    simulation = simulate_paper(seed, n_codes=80, n_clusters=8, columns=15, dim=4)
    fit = _fit(
        simulation,
        dim=4,
        kappas=(kappa,),
        similarity_weight=similarity,
        relatedness_weight=relatedness,
        mixture_weight=mixture,
        messages=messages,
        prior=simulation.prior if known else None,
        iterations=15,
        tol=0.0,
    )
    assert np.diff(fit.history).min() >= 0.0
    assert fit.history[-1] > fit.history[0]
    for unit in (fit.embedding, fit.centers):
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1.0)
    np.testing.assert_allclose(np.asarray(fit.responsibilities.sum(axis=1)).ravel(), 1.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.floats(0.01, 100.0))
def test_the_step_on_the_sphere_is_the_maximiser(seed, dim, scale):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((dim, dim))
    precision, linear = root @ root.T, scale * rng.standard_normal((3, dim))
    best = on_sphere(torch.from_numpy(precision), torch.from_numpy(linear)).numpy()

    def value(u):
        return np.sum(linear * u, axis=-1) - 0.5 * np.einsum("...d,de,...e->...", u, precision, u)

    other = rng.standard_normal((2000, 3, dim))
    other = np.vstack([other, best + 1e-3 * other])
    other /= np.linalg.norm(other, axis=2, keepdims=True)
    assert np.all(value(best) >= value(other).max(axis=0) - 1e-9 * scale)


def test_the_fit_finds_more_of_the_clusters_than_chance(paper, full_fit):
    test = paper.scored
    assert ami(paper.labels[test], full_fit.labels[test]) > 0.5
    assert _accuracy(full_fit.embedding, paper.embedding) > 0.4


def test_messages_of_the_pairs_help_membership(paper, full_fit):
    """What the published E-step leaves out."""
    test = paper.scored
    helped = _fit(paper, messages=True)
    assert ami(paper.labels[test], helped.labels[test]) > ami(paper.labels[test], full_fit.labels[test])


def test_a_free_kappa_would_run_away(paper):
    """The objective grows with kappa past the truth (20), while the embedding gets worse: hence kappa is held."""
    heavy = [_fit(paper, kappas=(kappa,), mixture_weight=1.0) for kappa in (20.0, 200.0, 2e4, 1e6)]
    objective = [fit.history[-1] for fit in heavy]
    assert objective == sorted(objective)
    light = [_fit(paper, kappas=(kappa,)) for kappa in (20.0, 1e6)]
    held, run_away = (_accuracy(fit.embedding, paper.embedding) for fit in light)
    assert run_away < held - 0.05


def test_kappa_is_chosen_by_held_out_pairs():
    simulation = simulate_paper(0, n_codes=300, n_clusters=30, columns=40)
    fit = _fit(simulation, kappas=(0.1, 20.0, 200.0), iterations=3)
    assert fit.kappa == 20.0
    # The trials leave no trace.
    assert fit.history == _fit(simulation, iterations=3).history


def test_kappa_is_chosen_by_hidden_rows_without_pairs(paper):
    fit = _fit(paper, similar=None, related=None, kappas=(20.0, 1e6), mixture_weight=0.1)
    assert fit.kappa == 20.0


def test_kappa_is_chosen_by_the_start_without_pairs_or_shared_codes():
    simulation = simulate_paper(0, n_codes=300, n_clusters=10, n_sources=1, columns=40, kappa=50.0)
    fit = _fit(simulation, similar=None, related=None, prior=None, kappas=(1.0, 40.0, 10_000.0))
    assert fit.kappa == 40.0


def test_anchors_stay_in_their_cluster(paper, full_fit):
    np.testing.assert_array_equal(full_fit.labels[~paper.scored], paper.labels[~paper.scored])


def test_relatedness_tells_related_pairs_from_others(paper, full_fit):
    score = full_fit.relatedness_score(paper.related.pairs)
    yes, no = score[paper.related.labels], score[~paper.related.labels]
    assert np.mean(yes[:, None] > no) > 0.7
    np.testing.assert_array_equal(full_fit.relatedness, full_fit.relatedness.T)


def test_the_unit_and_the_rotation_of_a_source_do_not_matter(paper, full_fit):
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0]
    first, *others = paper.sources
    moved = replace(paper, sources=(Source(first.name, first.codes, 7.0 * first.matrix @ turn), *others))
    fit = _fit(moved)
    np.testing.assert_allclose(fit.history[:5], full_fit.history[:5], rtol=1e-6)
    assert ami(fit.labels, full_fit.labels) > 0.99
    assert fit.noise[0] == pytest.approx(49.0 * full_fit.noise[0], rel=1e-2)


def test_the_fit_repeats_itself(paper, full_fit):
    again = _fit(paper)
    np.testing.assert_array_equal(again.embedding, full_fit.embedding)
    assert again.history == full_fit.history


def test_progress_sees_every_sweep(paper):
    seen = []
    fit = _fit(paper, iterations=4, tol=0.0, progress=lambda number, value: seen.append((number, value)))
    assert [number for number, _ in seen] == [0, 1, 2, 3]
    assert tuple(value for _, value in seen) == fit.history[1:]


def test_a_source_of_few_codes_is_no_obstacle(paper):
    few = Source("few", np.arange(5), paper.sources[0].matrix[:5])
    fit = _fit(replace(paper, sources=(*paper.sources, few)), iterations=5)
    assert np.diff(fit.history).min() >= 0.0


def test_empty_pairs_are_no_pairs(paper):
    none = Relations(np.empty((0, 2), dtype=int), np.empty(0, dtype=bool))
    one, other = (_fit(paper, similar=pairs, related=pairs, iterations=3) for pairs in (none, None))
    assert one.history == other.history


def test_what_cannot_be_used_is_refused(paper):
    with pytest.raises(ValueError, match="kappas"):
        _fit(paper, kappas=())
    with pytest.raises(ValueError, match="kappas"):
        _fit(paper, kappas=(0.0,))
    with pytest.raises(ValueError, match="dim"):
        _fit(paper, dim=1)
    with pytest.raises(ValueError, match="mixture_weight"):
        _fit(paper, mixture_weight=0.0)
    with pytest.raises(FitError, match="no source"):
        fit_plug_in([], n_codes=1, n_clusters=1, dim=2)
    with pytest.raises(FitError, match="prior"):
        _fit(paper, prior=sp.csr_array((200, 20)))
    with pytest.raises(FitError, match="vocabulary"):
        _fit(paper, n_codes=199)
