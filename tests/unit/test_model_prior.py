"""The sparse prior: its laws, and what pairs add to it."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.model.prior import Membership, anchored_prior, propagate, spectral_prior
from protocol.errors import FitError

BUILDERS = {
    "anchored": lambda known, _graph, **more: anchored_prior(known, **more),
    "propagated": propagate,
    "spectral": spectral_prior,
}


def _graph(n, pairs, weight=1.0):
    i, j = np.array(pairs).reshape(-1, 2).T
    half = sp.csr_array((np.full(len(i), weight), (i, j)), shape=(n, n))
    return sp.csr_array(half + half.T)


@st.composite
def _cases(draw):
    """Codes and clusters of two categories, some anchors, and random weighted pairs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, k = draw(st.integers(6, 25)), draw(st.integers(4, 10))
    clusters = np.r_[0, 0, 1, 1, rng.integers(2, size=k - 4)]
    codes = rng.integers(2, size=n)
    anchors = np.full(n, -1)
    for i in np.flatnonzero(rng.random(n) < draw(st.floats(0.0, 0.6))):
        # Never all clusters of a category, so that exclusive anchors leave one open.
        anchors[i] = rng.choice(np.flatnonzero(clusters == codes[i])[1:])
    known = Membership(anchors, codes, clusters, exclusive=draw(st.booleans()))
    half = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 0.25), 1)
    return known, sp.csr_array(half + half.T), rng


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@settings(max_examples=60, deadline=None)
@given(_cases(), st.booleans())
def test_rows_are_distributions_over_the_category_and_anchors_are_one_hot(build, case, narrow):
    known, graph, rng = case
    shape = (len(known.codes), len(known.clusters))
    candidates = sp.csr_array((rng.random(shape) < 0.3).astype(float)) if narrow else None
    prior = build(known, graph, candidates=candidates)
    assert isinstance(prior, sp.csr_array)
    assert prior.shape == shape
    dense = prior.toarray()
    np.testing.assert_allclose(dense.sum(axis=1), 1.0, atol=1e-12)
    assert dense.min() >= 0.0
    assert not dense[known.codes[:, None] != known.clusters].any()
    fixed = np.flatnonzero(known.anchors >= 0)
    np.testing.assert_array_equal(dense[fixed], np.eye(shape[1])[known.anchors[fixed]])
    if known.exclusive:
        assert not dense[np.ix_(known.anchors < 0, known.anchors[fixed])].any()
    if candidates is None:
        return
    rows = np.flatnonzero((known.anchors < 0) & (candidates.toarray() * (dense > 0)).any(axis=1))
    assert all((dense[i] > 0).sum() < shape[1] for i in rows)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@settings(max_examples=30, deadline=None)
@given(_cases())
def test_without_pairs_a_code_is_uniform_over_its_category(build, case):
    known, graph, _ = case
    prior = build(known, sp.csr_array(graph.shape)).toarray()
    for i in np.flatnonzero(known.anchors < 0):
        may = (known.clusters == known.codes[i]) & known.open
        np.testing.assert_allclose(prior[i], may / may.sum(), atol=1e-12)


@pytest.mark.parametrize("keep", [1, 3, 16])
@settings(max_examples=60, deadline=None)
@given(_cases())
def test_renaming_clusters_and_reordering_codes_commute_with_propagation(keep, case):
    known, graph, rng = case
    code, cluster = rng.permutation(len(known.codes)), rng.permutation(len(known.clusters))
    new_name = np.argsort(cluster)
    moved = Membership(
        np.where(known.anchors < 0, -1, new_name[known.anchors])[code],
        known.codes[code],
        known.clusters[cluster],
        exclusive=known.exclusive,
    )
    before = propagate(known, graph, keep=keep).toarray()
    after = propagate(moved, sp.csr_array(graph[code][:, code]), keep=keep).toarray()
    np.testing.assert_allclose(after, before[code][:, cluster], atol=1e-9)


def test_belief_fades_along_a_chain():
    """anchor 0 - 1 - 2 - 3: the walk's harmonic function with absorption, solved by hand as a linear system."""
    known = Membership(np.array([2, -1, -1, -1]), np.zeros(4, dtype=int), np.zeros(5, dtype=int))
    prior = propagate(
        known, _graph(4, [(0, 1), (1, 2), (2, 3)]), alpha=0.8, smoothing=0.0, iterations=500, tol=0.0
    )
    walk = np.array([[0.0, 0.4, 0.0], [0.4, 0.0, 0.4], [0.0, 0.8, 0.0]])
    belief = np.linalg.solve(np.eye(3) - walk, [0.4, 0.0, 0.0])
    np.testing.assert_allclose(prior[1:, [2]].toarray().ravel(), belief + (1 - belief) / 5, atol=1e-9)
    np.testing.assert_allclose(prior[1:, [0]].toarray().ravel(), (1 - belief) / 5, atol=1e-9)


def test_an_unsure_pair_says_less():
    known = Membership(np.array([1, -1]), np.zeros(2, dtype=int), np.zeros(4, dtype=int))
    sure, unsure = (propagate(known, _graph(2, [(0, 1)], w), smoothing=0.0)[1, 1] for w in (1.0, 0.2))
    assert sure == pytest.approx(0.9 + 0.1 / 4)
    assert unsure == pytest.approx(0.18 + 0.82 / 4)


def test_smoothing_leaves_every_cluster_of_the_category_a_share():
    known = Membership(np.array([1, -1]), np.zeros(2, dtype=int), np.array([0, 0, 0, 0, 3]))
    prior = propagate(known, _graph(2, [(0, 1)]), smoothing=0.2, alpha=0.5)
    assert prior[1, 0] == pytest.approx((1 - 0.8 * 0.5) / 4)
    assert prior[1, 4] == 0.0


def test_equal_beliefs_at_the_cut_are_not_told_apart():
    anchors = np.array([0, 1, 2, -1])
    known = Membership(anchors, np.zeros(4, dtype=int), np.zeros(3, dtype=int))
    prior = propagate(known, _graph(4, [(0, 3), (1, 3), (2, 3)]), keep=2)
    np.testing.assert_allclose(prior[3].toarray().ravel(), 1 / 3)


def test_candidates_keep_the_prior_sparse():
    n, k = 200, 500
    known = Membership(np.full(n, -1), np.zeros(n, dtype=int), np.zeros(k, dtype=int))
    near = sp.csr_array((np.ones(2 * n), (np.repeat(np.arange(n), 2), np.arange(2 * n))), shape=(n, k))
    assert anchored_prior(known, candidates=near).nnz == 2 * n
    assert anchored_prior(known).nnz == n * k


def test_spectral_groups_are_found_without_anchors():
    """Six cliques with a few wrong pairs between them."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(6), 12)
    same = label[:, None] == label
    half = np.triu((rng.random(same.shape) < np.where(same, 0.7, 0.03)).astype(float), 1)
    known = Membership(np.full(72, -1), np.zeros(72, dtype=int), np.zeros(6, dtype=int))
    prior = spectral_prior(known, sp.csr_array(half + half.T))
    found = np.asarray(prior.argmax(axis=1)).ravel()
    assert all(len(set(found[label == g])) == 1 for g in range(6))
    assert len(set(found)) == 6


def test_spectral_groups_take_the_name_of_their_anchors():
    label = np.repeat([3, 1], 5)
    pairs = [(i, j) for i in range(10) for j in range(i) if label[i] == label[j]]
    anchors = np.full(10, -1)
    anchors[[0, 9]] = [3, 1]
    known = Membership(anchors, np.zeros(10, dtype=int), np.zeros(4, dtype=int))
    found = np.asarray(spectral_prior(known, _graph(10, pairs)).argmax(axis=1)).ravel()
    np.testing.assert_array_equal(found, label)


def test_the_spectral_prior_repeats_itself():
    half = np.triu(np.random.default_rng(1).random((60, 60)) < 0.1, 1).astype(float)
    known = Membership(np.full(60, -1), np.zeros(60, dtype=int), np.zeros(8, dtype=int))
    first, second = (spectral_prior(known, sp.csr_array(half + half.T), seed=4) for _ in range(2))
    assert (first != second).nnz == 0


def test_an_anchor_of_another_category_is_refused():
    with pytest.raises(FitError, match="code 1 is anchored in cluster 0"):
        Membership(np.array([-1, 0]), np.array([0, 1]), np.array([0, 1]))


def test_a_code_without_a_cluster_is_refused():
    with pytest.raises(FitError, match="code 1 of category 5"):
        Membership(np.array([-1, -1]), np.array([0, 5]), np.array([0, 1]))
    with pytest.raises(FitError, match="code 1 of category 0"):
        Membership(np.array([0, -1]), np.array([0, 0]), np.array([0]), exclusive=True)


@pytest.mark.parametrize(
    ("anchors", "codes", "clusters"),
    [([-1], [0, 0], [0]), ([2], [0], [0]), ([-2], [0], [0]), ([0.5], [0], [0]), ([-1], [0], [])],
)
def test_shapes_and_ranges_are_checked(anchors, codes, clusters):
    with pytest.raises(FitError):
        Membership(np.array(anchors), np.array(codes), np.array(clusters, dtype=int))


@pytest.mark.parametrize("build", [propagate, spectral_prior])
def test_graphs_that_cannot_be_used_are_refused(build):
    known = Membership(np.full(3, -1), np.zeros(3, dtype=int), np.zeros(2, dtype=int))
    with pytest.raises(FitError, match="shape"):
        build(known, _graph(4, [(0, 1)]))
    with pytest.raises(FitError, match="negative"):
        build(known, _graph(3, [(0, 1)], -1.0))
    with pytest.raises(FitError, match="symmetric"):
        build(known, sp.csr_array(np.triu(np.ones((3, 3)), 1)))
    with pytest.raises(FitError, match="candidates"):
        build(known, _graph(3, [(0, 1)]), candidates=sp.csr_array((3, 3)))
    with pytest.raises(ValueError, match="smoothing"):
        build(known, _graph(3, [(0, 1)]), smoothing=2.0)
    with pytest.raises(ValueError, match="keep"):
        build(known, _graph(3, [(0, 1)]), keep=0)
