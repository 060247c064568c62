"""The posterior: moments against sampling, responsibilities against Bayes' rule, and the support they live on."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from coordinator.model import Relations, pairs, posterior, support, vmf
from coordinator.model.loadings import Where
from coordinator.model.posterior import Posterior, Support
from coordinator.model.sparse import Pattern

CPU = torch.device("cpu")


def _unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def _posterior(rng, n, k, d, *, zeros=0.0):
    """A posterior on the full support or, with zeros, on a random one; and two patterns of presence."""
    allowed = rng.random((n, k)) >= zeros
    allowed[np.arange(n), rng.integers(k, size=n)] = True
    prior = np.where(allowed, rng.random((n, k)) + 0.1, 0.0)
    prior /= prior.sum(axis=1, keepdims=True)
    on = support.whole(sp.csr_array(prior), CPU)
    r = np.where(allowed, rng.random((n, k)) + 0.1, 0.0)
    r /= r.sum(axis=1, keepdims=True)
    q = Posterior(
        torch.from_numpy(10.0 * rng.standard_normal((n, d))),
        torch.from_numpy(5.0 * rng.standard_normal((k, d))),
        on,
        torch.from_numpy(r[allowed]),
    )
    where = Where(torch.tensor([[True, False], [True, True]]), torch.arange(n) % 2)
    return q, where, r, prior


@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_moments_are_those_of_the_mixture(rng, zeros):
    n, k, d, draws = 3, 4, 4, 200_000
    q, where, r, prior = _posterior(rng, n, k, d, zeros=zeros)
    h, c = q.evidence.numpy(), q.pull.numpy()
    found = posterior.moments(q, where)
    second, sums, entropy = np.zeros((2, d, d)), np.zeros((k, d)), 0.0
    for i in range(n):
        z = rng.choice(k, size=draws, p=r[i])
        eta = h[i] + c[z]
        length = np.linalg.norm(eta, axis=1)
        u = np.empty((draws, d))
        for cluster in np.unique(z):
            here = z == cluster
            u[here] = vmf.sample(_unit(eta[here]), float(length[here][0]), rng)
            sums[cluster] += u[here].sum(axis=0) / draws
        log_q = np.log(r[i, z]) + vmf.log_normalizer(d, length) + np.sum(eta * u, axis=1)
        entropy -= log_q.mean()
        np.testing.assert_allclose(found.mean[i].numpy(), u.mean(axis=0), atol=0.01)
        second[int(where.pattern[i])] += u.T @ u / draws
    np.testing.assert_allclose(found.second.numpy(), second, atol=0.02)
    np.testing.assert_allclose(found.cluster.numpy(), sums, atol=0.02)
    assert found.entropy == pytest.approx(entropy, abs=0.05)
    assert found.log_prior == pytest.approx(np.sum(r[r > 0] * np.log(prior[r > 0])))


def test_moments_are_sums_over_the_components(rng):
    """The same by loops with the closed moments of one von Mises-Fisher component, to rounding."""
    n, k, d = 12, 5, 3
    q, where, r, _ = _posterior(rng, n, k, d, zeros=0.4)
    found = posterior.moments(q, where)
    mean, second, sums, entropy = np.zeros((n, d)), np.zeros((2, d, d)), np.zeros((k, d)), 0.0
    for i in range(n):
        for c in np.flatnonzero(r[i]):
            eta = q.evidence.numpy()[i] + q.pull.numpy()[c]
            length = np.linalg.norm(eta)
            a = float(vmf.mean_resultant(d, length))
            one = a * eta / length
            spread = a / length * np.eye(d) + (1.0 - d * a / length) * np.outer(eta, eta) / length**2
            mean[i] += r[i, c] * one
            sums[c] += r[i, c] * one
            second[i % 2] += r[i, c] * spread
            entropy -= r[i, c] * (np.log(r[i, c]) + float(vmf.log_normalizer(d, length)) + eta @ one)
    np.testing.assert_allclose(found.mean.numpy(), mean, atol=1e-12)
    np.testing.assert_allclose(found.second.numpy(), second, atol=1e-12)
    np.testing.assert_allclose(found.cluster.numpy(), sums, atol=1e-12)
    assert found.entropy == pytest.approx(entropy, rel=1e-12)
    np.testing.assert_allclose(found.size.numpy(), r.sum(axis=0))
    np.testing.assert_allclose(found.overlap.numpy(), (r**2).sum(axis=0) / r.sum(axis=0))
    # |u| = 1, so the second moments' traces count the codes.
    traces = np.trace(found.second.numpy(), axis1=1, axis2=2)
    np.testing.assert_allclose(traces, np.bincount(where.pattern.numpy()))


def test_a_cluster_without_codes_and_responsibilities_of_zero_leave_the_moments_finite(rng):
    q, where, _, _ = _posterior(rng, 6, 3, 4)
    hard = torch.zeros((6, 3), dtype=torch.float64)
    hard[:, 0] = 1.0
    found = posterior.moments(Posterior(q.evidence, q.pull, q.support, hard.reshape(-1)), where)
    assert np.isfinite([found.entropy, found.log_prior]).all()
    np.testing.assert_array_equal(found.cluster[1:].numpy(), 0.0)
    np.testing.assert_array_equal(found.overlap.numpy(), [1.0, 0.0, 0.0])


def test_responsibilities_are_bayes_rule_with_the_vector_integrated_out(rng):
    n, k, d = 4, 3, 5
    evidence, pull = rng.standard_normal((n, d)), rng.standard_normal((k, d))
    prior = rng.dirichlet(np.ones(k), size=n)
    message = rng.standard_normal((n, k))
    uniform = _unit(rng.standard_normal((400_000, d)))
    score = np.empty((n, k))
    for i in range(n):
        for c in range(k):
            likelihood = np.exp(uniform @ (evidence[i] + pull[c])).mean()
            score[i, c] = prior[i, c] * np.exp(message[i, c]) * likelihood
    expected = score / score.sum(axis=1, keepdims=True)
    found = posterior.respond(
        torch.from_numpy(evidence),
        torch.from_numpy(pull),
        support.whole(sp.csr_array(prior), CPU),
        torch.from_numpy(message.reshape(-1)),
    )
    np.testing.assert_allclose(found.numpy().reshape(n, k), expected, atol=0.01)


def test_responsibilities_maximise_the_bound_of_their_code(rng):
    """No other responsibilities give a greater E[log p(z)] + log p(evidence | z) + entropy of z."""
    n, k, d = 6, 4, 3
    q, _, _, prior = _posterior(rng, n, k, d, zeros=0.3)
    found = q.support.pattern.to_scipy(posterior.respond(q.evidence, q.pull, q.support, None)).toarray()
    length = np.linalg.norm(q.evidence.numpy()[:, None] + q.pull.numpy(), axis=2)
    score = np.log(np.maximum(prior, 1e-300)) - vmf.log_normalizer(d, length)

    def value(r):
        return np.sum(r * score) - np.sum(r * np.log(np.maximum(r, 1e-300)))

    for _ in range(20):
        other = np.where(prior > 0, found * np.exp(0.3 * rng.standard_normal((n, k))), 0.0)
        other /= other.sum(axis=1, keepdims=True)
        assert value(other) <= value(found) + 1e-12


def test_a_code_never_joins_a_cluster_that_its_prior_excludes():
    on = support.whole(sp.csr_array(np.array([[1.0, 0.0], [0.5, 0.5]])), CPU)
    pull = torch.tensor([[-50.0, 0.0], [50.0, 0.0]], dtype=torch.float64)
    evidence = torch.tensor([[50.0, 0.0], [50.0, 0.0]], dtype=torch.float64)
    found = on.pattern.to_scipy(posterior.respond(evidence, pull, on, None)).toarray()
    assert found[0].tolist() == [1.0, 0.0]
    assert found[1, 1] == pytest.approx(1.0)


def test_a_step_towards_a_posterior_keeps_rows_that_sum_to_one(rng):
    q, _, _, _ = _posterior(rng, 8, 4, 3)
    other = Posterior(-q.evidence, 2.0 * q.pull, q.support, q.responsibilities.flip(0))
    other = Posterior(
        other.evidence, other.pull, q.support, posterior.respond(other.evidence, other.pull, q.support, None)
    )
    part = q.towards(other, 0.25)
    np.testing.assert_allclose(q.support.pattern.row_sums(part.responsibilities).numpy(), 1.0)
    np.testing.assert_allclose(part.evidence.numpy(), 0.5 * q.evidence.numpy())
    np.testing.assert_array_equal(q.towards(other, 1.0).responsibilities, other.responsibilities)


@pytest.mark.parametrize("categories", [False, True])
def test_the_nearest_support_is_every_allowed_cluster_where_there_are_few(rng, categories):
    n, k, d = 30, 6, 3
    allowed = rng.random((n, k)) < 0.6 if categories else np.ones((n, k), dtype=bool)
    allowed[:, 0] |= ~allowed.any(axis=1)
    prior = sp.csr_array(allowed / allowed.sum(axis=1, keepdims=True)) if categories else None
    evidence, pull = (
        torch.from_numpy(rng.standard_normal((n, d))),
        torch.from_numpy(rng.standard_normal((k, d))),
    )
    found = support.nearest(prior, k, evidence, pull, None, None)
    dense = found.pattern.to_scipy(torch.ones_like(found.log_prior)).toarray()
    np.testing.assert_array_equal(dense > 0, allowed)
    expected = np.log(prior.data) if categories else np.full(n * k, -np.log(k))
    np.testing.assert_allclose(found.log_prior.numpy(), expected)


def test_the_nearest_support_holds_the_likeliest_clusters_and_never_a_forbidden_one(rng):
    n, k, d, most = 25, 12, 3, 4
    prior = rng.random((n, k)) * (rng.random((n, k)) < 0.7)
    prior[:, 0] += 0.01
    prior /= prior.sum(axis=1, keepdims=True)
    h, c = 5.0 * rng.standard_normal((n, d)), 5.0 * rng.standard_normal((k, d))
    found = support.nearest(sp.csr_array(prior), most, torch.from_numpy(h), torch.from_numpy(c), None, None)
    dense = found.pattern.to_scipy(torch.ones_like(found.log_prior)).toarray() > 0
    with np.errstate(divide="ignore"):
        score = np.log(prior) - vmf.log_normalizer(d, np.linalg.norm(h[:, None] + c, axis=2))
    for i in range(n):
        best = [j for j in np.argsort(-score[i])[:most] if prior[i, j] > 0]
        assert np.flatnonzero(dense[i]).tolist() == sorted(best)


def test_the_nearest_support_holds_clusters_of_pairs_and_those_a_code_is_in(rng):
    n, k, d, most = 10, 16, 3, 4
    h, c = torch.from_numpy(rng.standard_normal((n, d))), torch.from_numpy(20.0 * rng.standard_normal((k, d)))
    first = support.nearest(None, most, h, c, None, None)
    # Code 0 is paired with code 1, all of which is in the cluster that code 0 likes least.
    length = np.linalg.norm(h.numpy()[0] + c.numpy(), axis=1)
    far = int(np.argmin(length))
    hard = sp.csr_array((np.ones(n), (np.arange(n), np.full(n, far))), shape=(n, k))
    own = support.whole(hard, CPU)
    old = Posterior(h, c, own, torch.ones(n, dtype=torch.float64))
    graph = pairs.similar_on(Relations(np.array([[0, 1]]), np.array([True])), n, CPU)
    near = pairs.count(graph, own.pattern, old.responsibilities)

    def clusters_of(on, code):
        return set(on.pattern.column[on.pattern.row == code].tolist())

    assert far not in clusters_of(first, 0)
    by_pairs = support.nearest(None, most, h, c, near, None)
    assert far in clusters_of(by_pairs, 0)
    assert len(clusters_of(by_pairs, 0)) <= most
    kept = support.nearest(None, most, h, c, None, old)
    assert all(far in clusters_of(kept, code) for code in range(n))


def test_blocks_of_rows_do_not_change_the_nearest_support(rng, monkeypatch):
    n, k, d, most = 23, 9, 3, 3
    h, c = torch.from_numpy(rng.standard_normal((n, d))), torch.from_numpy(5.0 * rng.standard_normal((k, d)))
    q, _, _, _ = _posterior(rng, n, k, d, zeros=0.8)
    graph = pairs.similar_on(Relations(np.c_[np.arange(20), np.arange(1, 21)], np.arange(20) < 12), n, CPU)
    near = pairs.count(graph, q.support.pattern, q.responsibilities)
    whole = support.nearest(None, most, h, c, near, q)
    monkeypatch.setattr(
        support, "row_blocks", lambda n, _: [slice(low, min(low + 5, n)) for low in range(0, n, 5)]
    )
    parts = support.nearest(None, most, h, c, near, q)
    for one, other in ((whole.pattern.row, parts.pattern.row), (whole.pattern.column, parts.pattern.column)):
        assert torch.equal(one, other)


def test_a_posterior_is_carried_to_a_new_support_unchanged(rng):
    n, k, d = 20, 10, 3
    q, where, r, _ = _posterior(rng, n, k, d, zeros=0.7)
    # Each code's smallest responsibility becomes zero: that cluster may be dropped.
    several = (r > 0).sum(axis=1) > 1
    smallest = np.where(r > 0, r, 2.0).argmin(axis=1)
    r[several, smallest[several]] = 0.0
    r /= r.sum(axis=1, keepdims=True)
    values = torch.from_numpy(r)[q.support.pattern.row, q.support.pattern.column]
    old = Posterior(q.evidence, q.pull, q.support, values)
    new = support.nearest(None, 3, q.evidence, q.pull, None, old)
    moved = Posterior(q.evidence, q.pull, new, support.carried(old, new))
    before = q.support.pattern.to_scipy(values).toarray()
    after = new.pattern.to_scipy(moved.responsibilities).toarray()
    np.testing.assert_array_equal(after, before)
    assert (values == 0.0).any()
    one, other = posterior.moments(old, where), posterior.moments(moved, where)
    np.testing.assert_allclose(other.mean.numpy(), one.mean.numpy(), atol=1e-12)
    assert other.entropy == pytest.approx(one.entropy)


def test_a_prior_that_lists_few_clusters_needs_no_choice():
    sparse = sp.csr_array(np.eye(5))
    assert support.allowed(sparse, 5, 5, 2) is sparse
    assert support.allowed(None, 5, 6, 5) is None
    assert support.allowed(sp.csr_array(np.full((3, 4), 0.25)), 3, 4, 3) is None
    uniform = support.allowed(None, 5, 4, 4)
    np.testing.assert_array_equal(uniform.toarray(), np.full((5, 4), 0.25))


def test_a_support_is_in_order_whatever_the_order_of_the_prior():
    prior = sp.csr_array((np.array([0.3, 0.7, 1.0]), np.array([2, 0, 1]), np.array([0, 2, 3])), shape=(2, 3))
    on = support.whole(prior, CPU)
    assert on.pattern.column.tolist() == [0, 2, 1]
    np.testing.assert_allclose(np.exp(on.log_prior.numpy()), [0.7, 0.3, 1.0])


def test_a_pattern_sums_and_multiplies_like_the_dense_matrix(rng):
    dense = rng.standard_normal((5, 7)) * (rng.random((5, 7)) < 0.4)
    dense[2] = 0.0
    row, column = (torch.from_numpy(part) for part in np.nonzero(dense))
    values = torch.from_numpy(dense[np.nonzero(dense)])
    pattern = Pattern.at(row, column, (5, 7))
    np.testing.assert_array_equal(pattern.to_scipy(values).toarray(), dense)
    np.testing.assert_array_equal(pattern.transposed(values).to_dense().numpy(), dense.T)
    np.testing.assert_allclose(pattern.row_sums(values).numpy(), dense.sum(axis=1), atol=1e-15)
    np.testing.assert_allclose(pattern.column_sums(values).numpy(), dense.sum(axis=0), atol=1e-15)
    left, right = torch.from_numpy(rng.standard_normal((5, 3))), torch.from_numpy(rng.standard_normal((7, 3)))
    np.testing.assert_allclose(pattern.products(left, right).numpy(), (left @ right.T)[row, column].numpy())
    assert isinstance(Support(pattern, values), Support)
