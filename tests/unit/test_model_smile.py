"""The whole fit on small simulations: what it finds, what it promises, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from coordinator.evaluation import ami
from coordinator.model import Source, fit_smile
from coordinator.model.plugin import fit_plug_in
from coordinator.model.rivals import svd_kmeans, svd_linkage
from coordinator.simulation.generate import simulate_paper, simulate_sites
from protocol.errors import FitError

# One start and one round of search, where a test does not need the best of all fits.
QUICK = {"starts": ("average",), "rounds": 1}


@pytest.fixture(scope="module")
def paper():
    return simulate_paper(0, n_codes=300, n_clusters=30, columns=40)


@pytest.fixture(scope="module")
def full_fit(paper):
    return fit_smile(
        paper.sources,
        n_codes=300,
        n_clusters=30,
        dim=10,
        similar=paper.similar,
        related=paper.related,
        prior=paper.prior,
    )


def _accuracy(found, truth):
    left, _, right = np.linalg.svd(found.T @ truth)
    return 1 - np.linalg.norm(found @ left @ right - truth) / np.linalg.norm(truth)


def test_clusters_and_embedding_come_closer_to_the_truth_than_the_rivals(paper, full_fit):
    rival = svd_kmeans(paper.sources, 300, 30, 10, 0)
    test = paper.scored
    assert ami(paper.labels[test], full_fit.labels[test]) > ami(paper.labels[test], rival.labels[test]) + 0.1
    assert _accuracy(full_fit.embedding, paper.embedding) > _accuracy(rival.embedding, paper.embedding)


def test_kappa_does_not_run_away(paper):
    """Fitted as a parameter, u collapses onto the means and kappa grows without bound; the truth is 20."""
    fit = fit_smile(paper.sources, n_codes=300, n_clusters=30, dim=10, prior=paper.prior, tol=0.0, **QUICK)
    assert 14 < fit.kappa < 28


def test_relatedness_tells_related_pairs_from_others(paper, full_fit):
    score = full_fit.relatedness_score(paper.related.pairs)
    yes, no = score[paper.related.labels], score[~paper.related.labels]
    assert np.mean(yes[:, None] > no) > 0.8
    np.testing.assert_array_equal(full_fit.relatedness, full_fit.relatedness.T)


def test_similarity_is_the_cosine(full_fit):
    pairs = np.array([[0, 1], [5, 5]])
    u = full_fit.embedding
    np.testing.assert_allclose(full_fit.similarity(pairs), [u[0] @ u[1], 1.0])


def test_without_related_pairs_relatedness_is_zero(paper):
    fit = fit_smile(paper.sources, n_codes=300, n_clusters=30, dim=10, iterations=1, **QUICK)
    assert not fit.relatedness.any()
    assert fit.relatedness_score(np.array([[0, 1]])).tolist() == [0.0]


def test_anchors_stay_in_their_cluster(paper, full_fit):
    anchors = ~paper.scored
    np.testing.assert_array_equal(full_fit.labels[anchors], paper.labels[anchors])
    np.testing.assert_array_equal(full_fit.posterior[anchors], 1.0)


def test_the_bound_never_falls(full_fit):
    assert len(full_fit.history) > 1
    assert np.diff(full_fit.history).min() >= -1e-12 * abs(full_fit.history[-1])


def test_progress_sees_every_iteration(paper):
    seen = []
    fit = fit_smile(
        paper.sources,
        n_codes=300,
        n_clusters=30,
        dim=10,
        iterations=3,
        **QUICK,
        progress=lambda number, bound: seen.append((number, bound)),
    )
    assert [number for number, _ in seen] == list(range(len(seen)))
    assert seen[-1][1] == fit.history[-1]


def test_sites_that_share_few_codes_find_each_others_codes():
    simulation = simulate_sites(0, n_concepts=120, dim=24, columns=48, kappa=96.0, spectral=True)
    size = {"n_codes": simulation.n_codes, "n_clusters": simulation.n_clusters, "dim": 24}
    fit = fit_smile(simulation.sources, **size, **QUICK)
    rival = svd_linkage(simulation.sources, **size)
    test = simulation.scored
    codes = [s.codes[test[s.codes]] for s in simulation.sources[:2]]

    def hits(u):
        nearest = codes[1][np.argmax(u[codes[0]] @ u[codes[1]].T, axis=1)]
        return np.mean(simulation.labels[nearest] == simulation.labels[codes[0]])

    assert hits(fit.embedding) > hits(rival.embedding) + 0.1


def test_one_source_is_enough():
    simulation = simulate_paper(0, n_codes=200, n_clusters=20, n_sources=1, columns=40)
    fit = fit_smile(simulation.sources, n_codes=200, n_clusters=20, dim=10, **QUICK)
    assert ami(simulation.labels, fit.labels) > 0.3


def test_few_shared_codes_are_reported_with_the_fit():
    simulation = simulate_sites(0, n_concepts=60, dim=16, columns=32, shared=0.05)
    fit = fit_smile(simulation.sources, n_codes=simulation.n_codes, n_clusters=60, dim=16, **QUICK)
    assert any("shared codes" in warning for warning in fit.warnings)


def test_sources_without_shared_codes_are_refused_by_name(paper):
    first, second = paper.sources[0], paper.sources[1]
    apart = replace(second, name="far away", codes=second.codes + 300)
    with pytest.raises(FitError, match="far away"):
        fit_smile([first, apart], n_codes=540, n_clusters=30, dim=10)


def test_more_dimensions_than_the_sources_span_are_refused():
    source = Source("a", np.arange(20), np.random.default_rng(0).standard_normal((20, 5)))
    with pytest.raises(FitError, match="set dim <= 5"):
        fit_smile([source], n_codes=20, n_clusters=4, dim=6)


def test_no_source_is_refused():
    with pytest.raises(FitError, match="no source"):
        fit_smile([], n_codes=1, n_clusters=1, dim=2)


def test_the_plug_in_fit_is_the_published_one():
    small = simulate_paper(0, n_codes=80, n_clusters=8, columns=15, dim=4)
    options = {
        "n_codes": 80,
        "n_clusters": 8,
        "dim": 4,
        "similar": small.similar,
        "related": small.related,
        "prior": small.prior,
        "seed": 3,
        "similarity_weight": 0.5,
        "relatedness_weight": 0.2,
    }
    fit = fit_smile(small.sources, **options, fit="plug-in")
    published = fit_plug_in(small.sources, **options)
    for field in ("embedding", "centers", "labels", "relatedness"):
        np.testing.assert_array_equal(getattr(fit, field), getattr(published, field))
    assert fit.kappa == published.kappa
    assert fit.history == published.history
    other = fit_smile(small.sources, **options, **QUICK)
    assert np.abs(other.embedding @ other.embedding.T - fit.embedding @ fit.embedding.T).max() > 1e-3


def test_an_unknown_fit_is_refused(paper):
    with pytest.raises(ValueError, match="'variational' or 'plug-in', not 'gradient'"):
        fit_smile(paper.sources, n_codes=300, n_clusters=30, dim=10, fit="gradient")


@pytest.mark.parametrize(
    "option",
    [{"dim": 1}, {"n_clusters": 0}, {"iterations": 0}, {"most": 1}, {"starts": ()}, {"starts": ("ward",)}],
)
def test_a_number_or_a_start_out_of_range_is_refused(paper, option):
    with pytest.raises(ValueError, match=r"at least|start"):
        fit_smile(paper.sources, **({"n_codes": 300, "n_clusters": 30, "dim": 10} | option))


def test_categories_of_the_prior_are_kept(paper):
    """Clusters of one category only are merged; a code of another could not join them."""
    category = np.arange(30) % 3
    allowed = category[paper.labels][:, None] == category
    prior = sp.csr_array(allowed / allowed.sum(axis=1, keepdims=True))
    fit = fit_smile(paper.sources, n_codes=300, n_clusters=30, dim=10, prior=prior, starts=("average",))
    np.testing.assert_array_equal(category[fit.labels], category[paper.labels])
    assert np.diff(fit.history).min() >= -1e-12 * abs(fit.history[-1])


def test_a_cluster_that_no_code_may_join_stays_empty(paper):
    prior = sp.csr_array(np.full((300, 31), 1 / 30) * (np.arange(31) < 30))
    fit = fit_smile(paper.sources, n_codes=300, n_clusters=31, dim=10, prior=prior, **QUICK)
    assert fit.labels.max() < 30
    assert np.linalg.norm(fit.centers[30]) == pytest.approx(1.0)
