"""The mixture layer: its prior, its concentration, and the clusters that a fit starts from."""

import numpy as np
import pytest
import scipy.sparse as sp

from coordinator.model import clusters, vmf
from protocol.errors import FitError


def _unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_many_small_clusters_do_not_raise_the_concentration(rng):
    """Means fitted to four codes each fit them too well; the plain estimate is far above the truth."""
    n_clusters, size, d, kappa = 250, 4, 10, 20.0
    n = n_clusters * size
    z = np.repeat(np.arange(n_clusters), size)
    u = vmf.sample(_unit(rng.standard_normal((n_clusters, d)))[z], kappa, rng)
    sums = np.zeros((n_clusters, d))
    np.add.at(sums, z, u)
    along = float(np.linalg.norm(sums, axis=1).sum())
    plain = clusters.fit_concentration(along, n, d, 0.0)
    corrected = clusters.fit_concentration(along, n, d, n_clusters)
    assert plain > 1.2 * kappa
    assert corrected == pytest.approx(kappa, rel=0.08)


def test_the_concentration_maximises_the_likelihood_less_the_fitted_means():
    n, d, along, freedom = 60, 3, 51.0, 4.0
    best = clusters.fit_concentration(along, n, d, freedom)

    def value(kappa):
        constant = float(vmf.log_normalizer(d, kappa))
        return n * constant + kappa * along - freedom * (constant + kappa)

    for other in (0.99 * best, 1.01 * best):
        assert value(other) < value(best)


def test_the_concentration_stays_finite_where_codes_sit_on_their_means():
    assert np.isfinite(clusters.fit_concentration(60.0, 60, 5, 10.0))
    assert 0.0 < clusters.fit_concentration(0.0, 60, 5, 10.0) < 1.0


@pytest.mark.parametrize("method", ["average", "k-means", "spherical"])
def test_every_start_finds_separate_clusters(rng, method):
    centers = _unit(rng.standard_normal((12, 8)))
    z = np.repeat(np.arange(12), 15)
    points = vmf.sample(centers[z], 400.0, rng)
    found, cosine = clusters.start_clusters(points, 12, None, method=method)
    assert np.sort((found @ centers.T).max(axis=0))[2:].min() > 0.97
    assert cosine > 0.9


def test_anchors_start_their_own_clusters_and_others_may_join(rng):
    centers = np.eye(6)
    z = np.repeat(np.arange(6), 10)
    points = vmf.sample(centers[z], 500.0, rng)
    prior = np.full((60, 6), 1 / 6)
    prior[::10] = 0.0
    column = np.array([4, 2, 0])
    for anchor, k in zip((0, 10, 20), column, strict=True):
        prior[anchor] = np.eye(6)[k]
    for row in (30, 40, 50):
        prior[row] = 1 / 6
    found, _ = clusters.start_clusters(points, 6, sp.csr_array(prior))
    # Anchored clusters sit at their anchors; the other concepts, not copies of the anchored, fill the rest.
    assert np.argmax(found[column] @ centers.T, axis=1).tolist() == [0, 1, 2]
    assert sorted(np.argmax(found[[1, 3, 5]] @ centers.T, axis=1).tolist()) == [3, 4, 5]


def test_groups_go_to_the_columns_that_the_prior_names(rng):
    z = np.repeat(np.arange(3), 10)
    points = vmf.sample(np.eye(3)[z], 500.0, rng)
    wanted = np.array([2, 0, 1])
    prior = np.full((30, 3), 0.3)
    prior[np.arange(30), wanted[z]] = 0.4
    found, _ = clusters.start_clusters(points, 3, sp.csr_array(prior))
    assert np.argmax(found, axis=1).tolist() == np.argsort(wanted).tolist()


def test_log_prior_rows_are_uniform_without_a_prior_and_minus_infinity_where_it_is_zero():
    np.testing.assert_allclose(clusters.log_prior_rows(None, slice(0, 2), 4), np.full((1, 4), -np.log(4)))
    prior = sp.csr_array(np.array([[1.0, 0.0], [0.25, 0.75], [0.5, 0.5]]))
    found = clusters.log_prior_rows(prior, slice(0, 2), 2)
    np.testing.assert_array_equal(found, [[0.0, -np.inf], np.log([0.25, 0.75])])


@pytest.mark.parametrize("rows", [[[0.5, 0.4]], [[1.5, -0.5]], [[np.nan, 1.0]], [[0.0, 0.0]]])
def test_a_prior_row_that_is_no_distribution_is_named(rows):
    with pytest.raises(FitError, match="row 0"):
        clusters.checked_prior(sp.csr_array(np.array(rows)), 1, 2)


def test_a_prior_of_another_shape_is_refused():
    with pytest.raises(FitError, match="shape"):
        clusters.checked_prior(sp.csr_array(np.eye(2)), 3, 2)


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="average"):
        clusters.group(np.eye(3), 2, "hdbscan", 0)
