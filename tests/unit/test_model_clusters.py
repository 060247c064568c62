"""The mixture layer: moments and responsibilities against simulation and brute force."""

import numpy as np
import pytest
import scipy.sparse as sp

from coordinator.model import clusters, vmf
from coordinator.model.clusters import Posterior
from coordinator.model.factor import Presence
from protocol.errors import FitError


def _unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def _mixture(rng, n, k, d):
    q = Posterior(
        10.0 * rng.standard_normal((n, d)),
        5.0 * rng.standard_normal((k, d)),
        sp.csr_array(rng.dirichlet(np.full(k, 2.0), size=n)),
    )
    return q, Presence(np.array([[True, False], [True, True]]), np.arange(n) % 2)


def test_moments_are_those_of_the_mixture(rng):
    n, k, d, draws = 3, 3, 4, 200_000
    q, where = _mixture(rng, n, k, d)
    found = clusters.moments(q, where, None)
    second = np.zeros_like(found.second)
    sums = np.zeros((k, d))
    entropy = 0.0
    for i in range(n):
        weight = q.responsibilities[[i]].toarray().ravel()
        z = rng.choice(k, size=draws, p=weight)
        eta = q.evidence[i] + q.pull[z]
        length = np.linalg.norm(eta, axis=1)
        u = np.empty((draws, d))
        for c in range(k):
            here = z == c
            u[here] = vmf.sample(_unit(eta[here]), float(length[here][0]) if here.any() else 1.0, rng)
            sums[c] += u[here].sum(axis=0) / draws
        log_q = np.log(weight[z]) + vmf.log_normalizer(d, length) + np.sum(eta * u, axis=1)
        entropy -= log_q.mean()
        np.testing.assert_allclose(found.mean[i], u.mean(axis=0), atol=0.01)
        second[where.pattern[i]] += u.T @ u / draws
    np.testing.assert_allclose(found.second, second, atol=0.02)
    np.testing.assert_allclose(found.cluster, sums, atol=0.02)
    assert found.entropy == pytest.approx(entropy, abs=0.05)
    assert found.log_prior == pytest.approx(-n * np.log(k))


def test_moments_do_not_depend_on_the_block_size(rng, monkeypatch):
    q, where = _mixture(rng, 40, 6, 3)
    whole = clusters.moments(q, where, None)
    monkeypatch.setattr(clusters, "_BLOCK", 30)
    parts = clusters.moments(q, where, None)
    np.testing.assert_allclose(parts.second, whole.second)
    np.testing.assert_allclose(parts.cluster, whole.cluster)
    assert parts.entropy == pytest.approx(whole.entropy)


def test_responsibilities_are_bayes_rule_with_the_vector_integrated_out(rng):
    n, k, d = 4, 3, 5
    evidence, pull = rng.standard_normal((n, d)), rng.standard_normal((k, d))
    prior = rng.dirichlet(np.ones(k), size=n)
    message = rng.standard_normal((n, k))
    uniform = _unit(rng.standard_normal((400_000, d)))
    score = np.empty((n, k))
    for i in range(n):
        for c in range(k):
            score[i, c] = (
                prior[i, c] * np.exp(message[i, c]) * np.exp(uniform @ (evidence[i] + pull[c])).mean()
            )
    expected = score / score.sum(axis=1, keepdims=True)
    found = clusters.respond(evidence, pull, sp.csr_array(prior), message).toarray()
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_a_code_never_joins_a_cluster_that_its_prior_excludes(rng):
    prior = sp.csr_array(np.array([[1.0, 0.0], [0.5, 0.5]]))
    pull = np.array([[-50.0, 0.0], [50.0, 0.0]])
    found = clusters.respond(np.array([[50.0, 0.0], [50.0, 0.0]]), pull, prior, None).toarray()
    assert found[0].tolist() == [1.0, 0.0]
    assert found[1, 1] == pytest.approx(1.0)


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


def test_the_concentration_maximises_the_mixture_bound(rng):
    q, where = _mixture(rng, 60, 4, 3)
    m = clusters.moments(q, where, None)
    centers = _unit(m.cluster)
    best = clusters.fit_concentration(float(np.sum(centers * m.cluster)), 60, 3, 4.0)
    value = clusters.mixture_bound(m, centers, best, 4.0)
    for other in (0.99 * best, 1.01 * best):
        assert clusters.mixture_bound(m, centers, other, 4.0) < value


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
