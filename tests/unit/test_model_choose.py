"""The number of clusters: both criteria against hand-made and simulated groups, and the curve's laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import gammaln
from sklearn.metrics import silhouette_score

from coordinator.model import vmf
from coordinator.model.choose import CRITERIA, choose_clusters, integrated_likelihood, silhouette
from protocol.errors import FitError


def _mixture(seed, *, clusters, kappa, smallest, largest, dim=10):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(clusters), rng.integers(smallest, largest + 1, clusters))
    centers = rng.standard_normal((clusters, dim))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    return vmf.sample(centers[labels], kappa, rng), labels


def _one(points, **options):
    return choose_clusters(points, np.zeros(len(points), dtype=int), **options)[0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8))
def test_the_silhouette_is_that_of_scikit_learn(seed, groups):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((30, 4))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    label = np.r_[np.arange(groups), rng.integers(groups, size=30 - groups)]
    expected = silhouette_score(points, label, metric="cosine")
    assert silhouette(points, label) == pytest.approx(expected, abs=1e-10)


def test_the_means_are_integrated_out():
    """On the circle the integral over the mean's angle is one that can be done numerically."""
    angle = np.array([0.1, 0.4, -0.2, 2.0, 2.3])
    points, label = np.c_[np.cos(angle), np.sin(angle)], np.array([0, 0, 0, 1, 1])
    normal = 2.0 * np.pi

    def value(kappa):
        total = 0.0
        for group in (0, 1):
            members = angle[label == group]

            def density(mean, members=members):
                constant = len(members) * float(vmf.log_normalizer(2, kappa))
                return np.exp(constant + kappa * np.sum(np.cos(members - mean))) / normal

            total += np.log(quad(density, -np.pi, np.pi, epsabs=0, epsrel=1e-10)[0])
        return total

    theta = np.geomspace(1e-2, 1e5, 20_000)
    partition = np.max(2 * np.log(theta) + gammaln(theta) - gammaln(theta + 5)) + gammaln(3) + gammaln(2)
    expected = max(value(kappa) for kappa in np.geomspace(5, 100, 300)) + 0.5 * partition
    assert integrated_likelihood(points, label) == pytest.approx(expected, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_criteria_do_not_depend_on_order_names_or_rotation(seed):
    rng = np.random.default_rng(seed)
    points, label = _mixture(seed, clusters=5, kappa=30.0, smallest=2, largest=6)
    order, name = rng.permutation(len(points)), rng.permutation(5) * 3
    turn = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    for criterion in (integrated_likelihood, silhouette):
        moved = criterion(points[order] @ turn, name[label[order]])
        assert moved == pytest.approx(criterion(points, label), abs=1e-6)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("clusters", "smallest", "largest"), [(10, 2, 20), (40, 2, 20), (40, 2, 3)])
def test_separated_clusters_are_counted(criterion, clusters, smallest, largest):
    points, _ = _mixture(3, clusters=clusters, kappa=200.0, smallest=smallest, largest=largest)
    assert _one(points, criterion=criterion).n_clusters == pytest.approx(clusters, rel=0.06)


def test_the_likelihood_can_choose_one_cluster():
    points, _ = _mixture(0, clusters=1, kappa=50.0, smallest=40, largest=40)
    assert _one(points, criterion="likelihood").n_clusters == 1


def test_overlapping_clusters_are_counted_better_by_the_likelihood():
    error = dict.fromkeys(CRITERIA, 0.0)
    for seed in range(4):
        points, _ = _mixture(seed, clusters=30, kappa=20.0, smallest=2, largest=20, dim=30)
        for criterion in CRITERIA:
            error[criterion] += abs(np.log(_one(points, criterion=criterion).n_clusters / 30))
    assert error["likelihood"] < error["silhouette"]


def test_each_category_is_chosen_alone():
    few, _ = _mixture(0, clusters=4, kappa=300.0, smallest=5, largest=9)
    many, _ = _mixture(1, clusters=15, kappa=300.0, smallest=5, largest=9)
    points, category = np.vstack([many, few]), np.r_[np.full(len(many), 7), np.full(len(few), 2)]
    order = np.random.default_rng(0).permutation(len(points))
    first, second = choose_clusters(points[order], category[order])
    assert (first.category, second.category) == (2, 7)
    assert (first.n_codes, second.n_codes) == (len(few), len(many))
    assert (first.n_clusters, second.n_clusters) == (4, 15)


def test_the_curve_is_returned():
    points, _ = _mixture(0, clusters=6, kappa=100.0, smallest=3, largest=8)
    choice = _one(points, candidates=[6, 2, 1, 2, 900])
    assert choice.candidates.tolist() == [1, 2, 6, len(points)]
    assert choice.n_clusters == choice.candidates[np.argmax(choice.likelihood)] == 6
    assert np.isnan(choice.silhouette[0])
    assert choice.silhouette[-1] == 0.0


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_tiny_category_gets_a_number(count, criterion):
    choice = _one(np.eye(3)[:count], criterion=criterion)
    assert 1 <= choice.n_clusters <= count


@pytest.mark.parametrize("method", ["k-means", "spherical"])
def test_other_ways_to_group(method):
    points, _ = _mixture(5, clusters=8, kappa=200.0, smallest=6, largest=9)
    assert _one(points, method=method).n_clusters == pytest.approx(8, abs=1)


def test_the_length_of_a_row_does_not_matter():
    points, _ = _mixture(0, clusters=6, kappa=100.0, smallest=3, largest=8)
    scaled = points * np.linspace(1, 9, len(points))[:, None]
    np.testing.assert_allclose(_one(scaled).likelihood, _one(points).likelihood, atol=1e-6)


def test_what_cannot_be_used_is_refused():
    points, category = np.eye(3), np.zeros(3, dtype=int)
    with pytest.raises(FitError, match="row 1"):
        choose_clusters(points * [[1], [0], [1]], category)
    with pytest.raises(ValueError, match="criterion"):
        choose_clusters(points, category, criterion="gap")
    with pytest.raises(ValueError, match="candidates"):
        choose_clusters(points, category, candidates=[0])
    with pytest.raises(ValueError, match="shape"):
        choose_clusters(points, category[:2])
    with pytest.raises(ValueError, match="start"):
        choose_clusters(points, category, method="ward")


def test_candidates_can_differ_by_category():
    points, _ = _mixture(5, clusters=12, kappa=200.0, smallest=3, largest=8)
    category = np.arange(len(points)) % 2
    first, second = choose_clusters(points, category, candidates={0: [3, 5]})
    assert first.candidates.tolist() == [3, 5]
    assert len(second.candidates) > 2
