"""Loadings, noise and evidence of the factor layer, against loops over codes and sources."""

import numpy as np
import pytest
import torch

from coordinator.model import Source, factor, loadings
from coordinator.model.loadings import Loadings

CPU = torch.device("cpu")
N, DIM, P = 40, 3, 9
HELD = (range(30), range(10, 40))


def _sources(rng):
    return [Source(f"s{s}", np.array(codes), rng.standard_normal((30, P))) for s, codes in enumerate(HELD)]


def _moments(rng, where):
    """Means, and a spread of each code's own around them."""
    mean = rng.standard_normal((N, DIM))
    mean *= 0.9 / np.linalg.norm(mean, axis=1, keepdims=True)
    root = 0.2 * rng.standard_normal((N, DIM, DIM))
    each = mean[:, :, None] * mean[:, None, :] + root @ root.transpose(0, 2, 1)
    second = np.stack([each[where.pattern == p].sum(axis=0) for p in range(len(where.held))])
    return mean, each, second


@pytest.fixture(params=[None, 5], ids=["all axes", "five axes"])
def layer(request):
    """Sources, their data on the device, and moments; once with axes left out."""
    rng = np.random.default_rng(0)
    sources = _sources(rng)
    views = [factor.compress(s, request.param) for s in sources]
    presence = factor.patterns(views, N)
    mean, each, second = _moments(rng, presence)
    data, where = loadings.to_device(views, presence, CPU)
    return sources, views, data, where, mean, each, second


def test_expected_log_likelihood_is_a_sum_over_rows_and_all_columns(layer):
    sources, views, data, where, mean, each, second = layer
    rng = np.random.default_rng(1)
    fitted = Loadings(
        tuple(torch.from_numpy(rng.standard_normal((v.scores.shape[1], DIM))) for v in views), (0.5, 2.0)
    )
    expected = 0.0
    for source, view, matrix, s2 in zip(sources, views, fitted.matrices, fitted.noise, strict=True):
        b = matrix.numpy()
        for row, score, code in zip(source.matrix, view.scores, view.codes, strict=True):
            # Axes that were left out have no loading: their squares are noise.
            square = row @ row - 2.0 * score @ b @ mean[code] + np.trace(b.T @ b @ each[code])
            expected -= 0.5 * (P * np.log(2.0 * np.pi * s2) + square / s2)
    found = loadings.expected_log_likelihood(
        data, where, fitted, torch.from_numpy(mean), torch.from_numpy(second)
    )
    assert found == pytest.approx(expected, rel=1e-12)


def test_loadings_maximise_the_expected_log_likelihood(layer):
    _, _, data, where, mean, _, second = layer
    m, s = torch.from_numpy(mean), torch.from_numpy(second)
    best = loadings.fit_loadings(data, where, m, s)
    top = loadings.expected_log_likelihood(data, where, best, m, s)
    generator = torch.Generator().manual_seed(0)
    for change in (1e-3, -1e-3):
        for which in range(2):
            matrices = list(best.matrices)
            noise = list(best.noise)
            turn = torch.randn(matrices[which].shape, generator=generator, dtype=torch.float64)
            matrices[which] = matrices[which] + change * turn
            moved = Loadings(tuple(matrices), best.noise)
            assert loadings.expected_log_likelihood(data, where, moved, m, s) < top
            noise[which] *= 1.0 + 10.0 * change
            moved = Loadings(best.matrices, tuple(noise))
            assert loadings.expected_log_likelihood(data, where, moved, m, s) < top


def test_noise_is_the_expected_squared_residual_of_all_columns(layer):
    sources, views, data, where, mean, each, second = layer
    found = loadings.fit_loadings(data, where, torch.from_numpy(mean), torch.from_numpy(second))
    for source, view, matrix, s2 in zip(sources, views, found.matrices, found.noise, strict=True):
        b = matrix.numpy()
        square = sum(
            row @ row - 2.0 * score @ b @ mean[code] + np.trace(b.T @ b @ each[code])
            for row, score, code in zip(source.matrix, view.scores, view.codes, strict=True)
        )
        assert s2 == pytest.approx(square / source.matrix.size)


def test_the_truth_is_a_fixed_point_with_second_moments_and_not_with_means_alone():
    rng = np.random.default_rng(2)
    n, s2 = 40_000, 4.0
    truth = rng.standard_normal((6, 2))
    x = rng.standard_normal((n, 2)) @ truth.T + np.sqrt(s2) * rng.standard_normal((n, 6))
    view = factor.compress(Source("a", np.arange(n), x))
    data, where = loadings.to_device([view], factor.patterns([view], n), CPU)
    spread = np.linalg.inv(np.eye(2) + truth.T @ truth / s2)
    mean = x @ truth @ spread / s2
    gram = mean.T @ mean

    def found(second):
        fitted = loadings.fit_loadings(data, where, torch.from_numpy(mean), torch.from_numpy(second[None]))
        # B'B does not depend on how the axes of the source are turned.
        return fitted.matrices[0].numpy().T @ fitted.matrices[0].numpy(), fitted.noise[0]

    loading, noise = found(gram + n * spread)
    np.testing.assert_allclose(loading, truth.T @ truth, atol=0.2)
    assert noise == pytest.approx(s2, rel=0.02)
    loading, noise = found(gram)
    assert np.trace(loading) > 1.3 * np.trace(truth.T @ truth)
    assert noise < 0.95 * s2


def test_an_exact_fit_keeps_a_finite_weight():
    rng = np.random.default_rng(3)
    u = rng.standard_normal((20, 2))
    view = factor.compress(Source("a", np.arange(20), u @ rng.standard_normal((2, 5))))
    data, where = loadings.to_device([view], factor.patterns([view], 20), CPU)
    found = loadings.fit_loadings(data, where, torch.from_numpy(u), torch.from_numpy((u.T @ u)[None]))
    assert 0.0 < found.noise[0] < 1e-6


def test_evidence_is_what_depends_on_u_in_the_log_likelihood(layer):
    _, views, data, where, *_ = layer
    rng = np.random.default_rng(4)
    fitted = Loadings(
        tuple(torch.from_numpy(rng.standard_normal((v.scores.shape[1], DIM))) for v in views), (0.5, 2.0)
    )
    precision, linear = (part.numpy() for part in loadings.evidence(data, where, fitted))
    for code in (0, 15, 35):
        u = rng.standard_normal(DIM)
        expected = 0.0
        for view, matrix, s2 in zip(views, fitted.matrices, fitted.noise, strict=True):
            for row in view.scores[view.codes == code]:
                expected += (row @ row - np.sum((row - matrix.numpy() @ u) ** 2)) / (2.0 * s2)
        quadratic = linear[code] @ u - 0.5 * u @ precision[int(where.pattern[code])] @ u
        assert quadratic == pytest.approx(expected)
