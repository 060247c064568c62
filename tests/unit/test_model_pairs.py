"""Similar and related pairs on a device, against loops over pairs and finite differences."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from coordinator.model import Relations, pairs, support
from coordinator.model.pairs import Relatedness, SimilarCounts

CPU = torch.device("cpu")


def _unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def _pairs(rng, n, m):
    """Pairs in both orders, some of them listed more than once."""
    i = rng.integers(n, size=m)
    j = (i + 1 + rng.integers(n - 1, size=m)) % n
    return np.c_[i, j]


def _responsibilities(rng, n, k, kind):
    """(n, k) rows that sum to 1, and the pattern of the non-zero ones."""
    if kind == "hard":
        r = np.eye(k)[rng.integers(k, size=n)]
    else:
        r = rng.random((n, k)) + 0.1
        if kind == "sparse":
            r *= rng.random((n, k)) < 0.5
            r[np.arange(n), rng.integers(k, size=n)] += 0.1
        r /= r.sum(axis=1, keepdims=True)
    on = support.whole(sp.csr_array(r), CPU).pattern
    return r, on, torch.from_numpy(r)[on.row, on.column]


def _similar(rng, kind="sparse", n=14, k=5, d=3):
    r, on, values = _responsibilities(rng, n, k, kind)
    relations = Relations(_pairs(rng, n, 40), rng.random(40) < 0.5)
    counts = pairs.count(pairs.similar_on(relations, n, CPU), on, values)
    return relations, r, on, counts, _unit(rng.standard_normal((k, d)))


def _expected_value(relations, r, centers, link):
    logit = link[0] + link[1] * centers @ centers.T
    return sum(
        r[i] @ _log_sigmoid(logit if y else -logit) @ r[j]
        for (i, j), y in zip(relations.pairs, relations.labels, strict=True)
    )


@pytest.fixture(params=["dense", "sparse"])
def path(request, monkeypatch):
    """The same functions on small matrices, and as they run where (n, K) is too large to be dense."""
    if request.param == "sparse":
        monkeypatch.setattr(pairs, "_DENSE_CELLS", 0)


@pytest.mark.parametrize("kind", ["full", "sparse", "hard"])
def test_the_similar_value_is_the_expected_log_likelihood(rng, path, kind):
    relations, r, _, counts, centers = _similar(rng, kind)
    link = (-1.0, 2.0)
    found = pairs.similar_value(counts, torch.from_numpy(centers), link)
    assert found == pytest.approx(_expected_value(relations, r, centers, link), rel=1e-12)


@pytest.mark.parametrize("kind", ["full", "sparse", "hard"])
def test_the_similar_message_is_the_slope_of_the_value_in_a_codes_responsibilities(rng, path, kind):
    """Up to a constant a code, which leaves its responsibilities alone."""
    relations, r, on, counts, centers = _similar(rng, kind)
    link = (-1.0, 2.0)
    logit = link[0] + link[1] * centers @ centers.T
    slope = np.zeros_like(r)
    for (i, j), y in zip(relations.pairs, relations.labels, strict=True):
        term = _log_sigmoid(logit if y else -logit)
        slope[i] += term @ r[j]
        slope[j] += term @ r[i]
    found = on.to_scipy(pairs.similar_message(counts, on, torch.from_numpy(centers), link)).toarray()
    for i in range(len(r)):
        here = r[i] > 0
        difference = (found - slope)[i, here]
        np.testing.assert_allclose(difference, difference[0], atol=1e-10)


def test_blocks_of_rows_do_not_change_the_message(rng, path, monkeypatch):
    _, _, on, counts, centers = _similar(rng)
    whole = pairs.similar_message(counts, on, torch.from_numpy(centers), (-1.0, 2.0))
    monkeypatch.setattr(
        pairs, "row_blocks", lambda n, _: [slice(low, min(low + 4, n)) for low in range(0, n, 4)]
    )
    parts = pairs.similar_message(counts, on, torch.from_numpy(centers), (-1.0, 2.0))
    np.testing.assert_allclose(parts.numpy(), whole.numpy(), atol=1e-12)


def test_the_sparse_path_counts_like_the_dense_one(monkeypatch):
    _, r, _, dense, _ = _similar(np.random.default_rng(8))
    monkeypatch.setattr(pairs, "_DENSE_CELLS", 0)
    relations, _, _, sparse, _ = _similar(np.random.default_rng(8))
    assert dense.near_positive.layout == torch.strided
    assert sparse.near_positive.layout == torch.sparse_csr
    positive, negative = (graph.toarray() for graph in relations.matrices(len(r)))
    for counts in (dense, sparse):
        for found, expected in (
            (counts.near_positive, positive @ r),
            (counts.near_every, (positive + negative) @ r),
            (counts.positive, 0.5 * r.T @ positive @ r),
            (counts.every, 0.5 * r.T @ (positive + negative) @ r),
        ):
            np.testing.assert_allclose(found.to_dense().numpy(), expected, atol=1e-12)


def test_the_similar_gradient_is_the_slope_of_the_value_in_the_centers(rng):
    _, _, _, counts, centers = _similar(rng)
    change, link, step = rng.standard_normal(centers.shape), (-0.5, 1.5), 1e-5
    up, down = (
        pairs.similar_value(counts, torch.from_numpy(centers + sign * step * change), link)
        for sign in (1, -1)
    )
    gradient = pairs.similar_gradient(counts, torch.from_numpy(centers), link).numpy()
    assert np.sum(gradient * change) == pytest.approx((up - down) / (2 * step), rel=1e-6)


def test_the_similar_information_is_slope_along_and_curvature_across_each_center(rng):
    """Slopes and second differences of the pairs' log-likelihood as one center moves on its tangent plane.

    The curvature is the part that the logistic weights give, so labels are replaced by their expectation.
    """
    d, k = 4, 5
    _, _, _, counts, centers = _similar(rng, d=d, k=k)
    link = (-0.5, 1.5)
    at = torch.from_numpy(centers)
    slope, curvature = (part.numpy() for part in pairs.similar_information(counts, at, link))
    gradient = pairs.similar_gradient(counts, at, link).numpy()
    chance = 1.0 / (1.0 + np.exp(-(link[0] + link[1] * centers @ centers.T)))
    # Pairs within one cluster do not hold its center: its cosine with itself is 1 wherever it lies.
    own = np.diag((counts.positive - counts.every * torch.from_numpy(chance)).numpy())
    np.testing.assert_allclose(slope, np.sum(gradient * centers, axis=1) - 2.0 * link[1] * own)
    expected = SimilarCounts(
        counts.near_positive, counts.near_every, counts.every * torch.from_numpy(chance), counts.every
    )
    step = 1e-3
    for c in range(k):
        tangents = np.linalg.svd(centers[[c]])[2][1:]
        total = 0.0
        for tangent in tangents:
            moved = []
            for sign in (1.0, 0.0, -1.0):
                # The pairs within the cluster do not feel a turn of their common center.
                shifted = centers.copy()
                shifted[c] += sign * step * tangent
                within = expected.every[c, c], expected.positive[c, c]
                logits = link[0] + link[1] * np.array([shifted[c] @ shifted[c], 1.0])
                own = [float(within[1] * x + within[0] * _log_sigmoid(-x)) for x in logits]
                moved.append(pairs.similar_value(expected, torch.from_numpy(shifted), link) - own[0] + own[1])
            total -= (moved[0] - 2.0 * moved[1] + moved[2]) / step**2
        assert curvature[c] == pytest.approx(total / (d - 1), rel=1e-4)


def test_the_link_maximises_the_value_less_its_ridge(rng, path):
    _, _, _, counts, centers = _similar(rng)
    at = torch.from_numpy(centers)
    best = pairs.fit_link(counts, at, (0.0, 0.0))

    def value(link):
        return pairs.similar_value(counts, at, link) - pairs.link_penalty(link)

    for change in ((0.02, 0.0), (0.0, 0.02), (0.02, -0.02)):
        for sign in (1, -1):
            assert value((best[0] + sign * change[0], best[1] + sign * change[1])) < value(best)


def test_the_link_is_found_again(rng):
    n, k = 400, 20
    centers = _unit(rng.standard_normal((k, 3)))
    z = rng.integers(k, size=n)
    listed = _pairs(rng, n, 20_000)
    score = -1.0 + 3.0 * np.sum(centers[z[listed[:, 0]]] * centers[z[listed[:, 1]]], axis=1)
    labels = rng.random(len(score)) < 1 / (1 + np.exp(-score))
    on = support.whole(sp.csr_array(np.eye(k)[z]), CPU).pattern
    graph = pairs.similar_on(Relations(listed, labels), n, CPU)
    counts = pairs.count(graph, on, torch.ones(n, dtype=torch.float64))
    a, b = pairs.fit_link(counts, torch.from_numpy(centers), (0.0, 0.0))
    assert (a, b) == (pytest.approx(-1.0, abs=0.15), pytest.approx(3.0, abs=0.15))


def test_separable_pairs_leave_the_link_finite():
    positive, every = torch.eye(2, dtype=torch.float64), torch.ones((2, 2), dtype=torch.float64)
    centers = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    found = pairs.fit_link(SimilarCounts(positive, every, positive, every), centers, (0.0, 0.0))
    assert np.isfinite(found).all()


def _related(rng, n=12, d=3, m=30):
    relations = Relations(_pairs(rng, n, m), rng.random(m) < 0.5)
    matrix = rng.standard_normal((d, d))
    fitted = Relatedness(torch.from_numpy(matrix + matrix.T), 0.3)
    mean = rng.standard_normal((n, d))
    return relations, pairs.related_on(relations, n, CPU), mean, fitted


def test_pairs_listed_twice_count_twice():
    relations = Relations(np.array([[0, 1], [1, 0], [2, 1]]), np.array([True, False, True]))
    on = pairs.related_on(relations, 3, CPU)
    assert on.pattern.row.tolist() == [0, 1]
    assert on.pattern.column.tolist() == [1, 2]
    assert on.listed.tolist() == [2.0, 1.0]
    assert on.positive.tolist() == [1.0, 1.0]


def test_the_related_value_is_the_log_likelihood_less_the_ridges(rng):
    relations, on, mean, fitted = _related(rng)
    w = fitted.matrix.numpy()
    expected = -0.5 * np.sum(w**2) - 0.5e-6 * fitted.intercept**2
    for (i, j), y in zip(relations.pairs, relations.labels, strict=True):
        logit = fitted.intercept + mean[i] @ w @ mean[j]
        expected += _log_sigmoid(logit if y else -logit)
    assert pairs.related_value(on, torch.from_numpy(mean), fitted) == pytest.approx(expected, rel=1e-12)


def test_the_related_evidence_is_gradient_and_curvature_of_the_value(rng):
    _, on, mean, fitted = _related(rng)
    slope, trace = (part.numpy() for part in pairs.related_evidence(on, torch.from_numpy(mean), fitted))

    def value(at):
        return pairs.related_value(on, torch.from_numpy(at), fitted)

    for code in range(len(mean)):
        curvature = 0.0
        for axis in range(mean.shape[1]):
            shift = np.zeros_like(mean)
            shift[code, axis] = 1e-4
            up, base, down = value(mean + shift), value(mean), value(mean - shift)
            assert slope[code, axis] == pytest.approx((up - down) / 2e-4, rel=1e-5, abs=1e-7)
            curvature -= (value(mean + 10 * shift) - 2.0 * base + value(mean - 10 * shift)) / 1e-6
        assert trace[code] == pytest.approx(curvature, rel=1e-3, abs=1e-3)


def test_relatedness_maximises_the_value(rng):
    n, d = 60, 3
    _, on, mean, _ = _related(rng, n=n, d=d, m=400)
    at = torch.from_numpy(_unit(mean))
    fitted = Relatedness(torch.zeros((d, d), dtype=torch.float64), 0.0)
    values = [pairs.related_value(on, at, fitted)]
    for _ in range(5):  # a few Newton steps at a time, as the fit takes them
        fitted = pairs.fit_relatedness(on, at, fitted)
        values.append(pairs.related_value(on, at, fitted))
    # The ridge on the intercept is not reported, and tiny.
    assert np.diff(values).min() >= -1e-6
    np.testing.assert_array_equal(fitted.matrix.numpy(), fitted.matrix.T.numpy())
    for _ in range(10):
        change = rng.standard_normal((d, d))
        turn = torch.from_numpy(0.05 * (change + change.T))
        for other in (
            Relatedness(fitted.matrix + turn, fitted.intercept),
            Relatedness(fitted.matrix, fitted.intercept + 0.05),
            Relatedness(fitted.matrix, fitted.intercept - 0.05),
        ):
            assert pairs.related_value(on, at, other) < values[-1]


def test_relatedness_is_found_again_and_is_symmetric(rng):
    n, d = 300, 4
    mean = _unit(rng.standard_normal((n, d)))
    truth = np.diag([6.0, -6.0, 3.0, 0.0])
    listed = _pairs(rng, n, 40_000)
    score = -1.0 + np.sum((mean[listed[:, 0]] @ truth) * mean[listed[:, 1]], axis=1)
    related = Relations(listed, rng.random(len(score)) < 1 / (1 + np.exp(-score)))
    on, at = pairs.related_on(related, n, CPU), torch.from_numpy(mean)
    fitted = Relatedness(torch.zeros((d, d), dtype=torch.float64), 0.0)
    for _ in range(4):
        fitted = pairs.fit_relatedness(on, at, fitted)
    np.testing.assert_array_equal(fitted.matrix.numpy(), fitted.matrix.T.numpy())
    np.testing.assert_allclose(fitted.matrix.numpy(), truth, atol=0.5)
    assert fitted.intercept == pytest.approx(-1.0, abs=0.1)
    assert pairs.related_value(on, at, fitted) >= pairs.related_value(
        on, at, Relatedness(torch.from_numpy(truth), -1.0)
    )
