"""Similar and related pairs."""

import numpy as np
import pytest
import scipy.sparse as sp

from coordinator.model import Relations, relations
from coordinator.model.relations import Relatedness
from protocol.errors import FitError


def _unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def _pairs(rng, n, m):
    i = rng.integers(n, size=m)
    j = (i + 1 + rng.integers(n - 1, size=m)) % n
    return np.c_[i, j]


@pytest.mark.parametrize(
    ("pairs", "labels"),
    [
        (np.array([[1, 1]]), np.array([True])),
        (np.array([[1, 2, 3]]), np.array([True])),
        (np.array([[1, 2]]), np.array([True, False])),
    ],
)
def test_unusable_pairs_are_refused(pairs, labels):
    with pytest.raises(FitError):
        Relations(pairs, labels)


def test_a_pair_outside_the_vocabulary_is_refused():
    with pytest.raises(FitError, match="5 codes"):
        Relations(np.array([[1, 5]]), np.array([True])).check(5)


@pytest.mark.parametrize("full", [True, False])
def test_the_similarity_value_and_message_are_the_expected_log_likelihood(rng, full):
    n, k, d = 12, 5, 3
    r = rng.dirichlet(np.full(k, 5.0), size=n) if full else np.eye(k)[rng.integers(k, size=n)]
    r, centers, link = sp.csr_array(r), _unit(rng.standard_normal((k, d))), (-1.0, 2.0)
    pairs = Relations(_pairs(rng, n, 30), rng.random(30) < 0.5)
    dense = r.toarray()
    logit = link[0] + link[1] * centers @ centers.T
    expected = sum(
        dense[i] @ -np.logaddexp(0, -logit if y else logit) @ dense[j]
        for (i, j), y in zip(pairs.pairs, pairs.labels, strict=True)
    )
    graphs = pairs.matrices(n)
    counts = relations.cluster_pairs(r, graphs)
    assert relations.similarity_value(counts, centers, link) == pytest.approx(expected)
    message = relations.similarity_message(r, graphs, centers, link)
    assert 0.5 * np.sum(dense * message) == pytest.approx(expected)


def test_the_similarity_gradient_is_the_slope_of_the_value(rng):
    counts = relations.ClusterPairs(*(m + m.T for m in rng.random((2, 4, 4))))
    centers, change, link = rng.standard_normal((4, 3)), rng.standard_normal((4, 3)), (-0.5, 1.5)
    step = 1e-5
    slope = (
        relations.similarity_value(counts, centers + step * change, link)
        - relations.similarity_value(counts, centers - step * change, link)
    ) / (2 * step)
    gradient = relations.similarity_gradient(counts, centers, link)
    assert np.sum(gradient * change) == pytest.approx(slope, rel=1e-6)


def test_the_link_is_found_again(rng):
    n, k = 400, 20
    centers = _unit(rng.standard_normal((k, 3)))
    z = rng.integers(k, size=n)
    pairs = _pairs(rng, n, 20_000)
    score = -1.0 + 3.0 * np.sum(centers[z[pairs[:, 0]]] * centers[z[pairs[:, 1]]], axis=1)
    labels = rng.random(len(score)) < 1 / (1 + np.exp(-score))
    counts = relations.cluster_pairs(sp.csr_array(np.eye(k)[z]), Relations(pairs, labels).matrices(n))
    a, b = relations.fit_link(counts, centers, (0.0, 0.0))
    assert (a, b) == (pytest.approx(-1.0, abs=0.15), pytest.approx(3.0, abs=0.15))


def test_separable_pairs_leave_the_link_finite():
    counts = relations.ClusterPairs(np.eye(2), 1.0 - np.eye(2))
    assert np.isfinite(relations.fit_link(counts, np.array([[1.0, 0.0], [-1.0, 0.0]]), (0.0, 0.0))).all()


def test_relatedness_is_found_again_and_is_symmetric(rng):
    n, d = 300, 4
    mean = _unit(rng.standard_normal((n, d)))
    truth = Relatedness(np.diag([6.0, -6.0, 3.0, 0.0]), -1.0)
    pairs = _pairs(rng, n, 40_000)
    score = truth.intercept + np.sum((mean[pairs[:, 0]] @ truth.matrix) * mean[pairs[:, 1]], axis=1)
    related = Relations(pairs, rng.random(len(score)) < 1 / (1 + np.exp(-score)))
    fitted = relations.fit_relatedness(related, mean, Relatedness(np.zeros((d, d)), 0.0))
    np.testing.assert_array_equal(fitted.matrix, fitted.matrix.T)
    np.testing.assert_allclose(fitted.matrix, truth.matrix, atol=0.5)
    assert relations.relatedness_value(related, mean, fitted) >= relations.relatedness_value(
        related, mean, truth
    )


def test_relatedness_evidence_is_gradient_and_curvature_of_the_value(rng):
    n, d = 10, 3
    mean = rng.standard_normal((n, d))
    matrix = rng.standard_normal((d, d))
    fitted = Relatedness(matrix + matrix.T, 0.3)
    related = Relations(_pairs(rng, n, 25), rng.random(25) < 0.5)
    slope, trace = relations.relatedness_evidence(related, mean, fitted)
    step = 1e-4
    for axis in range(d):
        moved = []
        for sign in (1, -1):
            shifted = mean.copy()
            shifted[4, axis] += sign * step
            moved.append(relations.relatedness_value(related, shifted, fitted))
        assert slope[4, axis] == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-4, abs=1e-6)
    assert (trace >= 0).all()
