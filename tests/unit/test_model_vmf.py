"""The von Mises-Fisher functions against arbitrary-precision Bessel functions (mpmath, 50 digits)."""

import mpmath
import numpy as np
import pytest
import torch

from coordinator.model import vmf

# From 2 to 1024, and on either side of the order from which the uniform expansion is used at once.
DIMS = [2, 3, 4, 10, 21, 33, 34, 64, 200, 512, 1024]
KAPPAS = np.logspace(-3, 6, 19)


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(50):
        yield


def _bessel(v, kappa):
    return mpmath.besseli(v, mpmath.mpf(float(kappa)))


@pytest.mark.parametrize("dim", DIMS)
def test_log_normalizer(dim):
    v = mpmath.mpf(dim) / 2 - 1
    exact = [
        float(
            v * mpmath.log(mpmath.mpf(float(k)))
            - (v + 1) * mpmath.log(2 * mpmath.pi)
            - mpmath.log(_bessel(v, k))
        )
        for k in KAPPAS
    ]
    np.testing.assert_allclose(vmf.log_normalizer(dim, KAPPAS), exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dim", DIMS)
def test_mean_resultant_and_its_inverse(dim):
    v = mpmath.mpf(dim) / 2 - 1
    exact = np.array([float(_bessel(v + 1, k) / _bessel(v, k)) for k in KAPPAS])
    found = vmf.mean_resultant(dim, KAPPAS)
    np.testing.assert_allclose(found, exact, rtol=1e-8)
    assert (found < 1.0).all()
    np.testing.assert_allclose([vmf.concentration(dim, float(r)) for r in found], KAPPAS, rtol=1e-6)


@pytest.mark.parametrize("dim", [3, 64])
def test_no_concentration_is_the_uniform_distribution(dim):
    area = float(2 * mpmath.pi ** (mpmath.mpf(dim) / 2) / mpmath.gamma(mpmath.mpf(dim) / 2))
    assert float(vmf.log_normalizer(dim, 0.0)) == pytest.approx(-np.log(area), rel=1e-9)
    assert float(vmf.mean_resultant(dim, 0.0)) == 0.0
    assert vmf.concentration(dim, 0.0) == 0.0


@pytest.mark.parametrize("dim", DIMS)
def test_a_tensor_gives_what_an_array_gives(dim):
    k = np.concatenate([[0.0], KAPPAS])
    for of in (vmf.log_normalizer_of, vmf.mean_resultant_of):
        found = of(dim, torch.from_numpy(k))
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), of(dim, k), rtol=1e-12)


@pytest.mark.parametrize("dim", [2, 10, 64, 1024])
def test_the_mean_resultant_is_minus_the_slope_of_the_log_normalizer(dim):
    k = torch.from_numpy(KAPPAS).requires_grad_()
    vmf.log_normalizer_of(dim, k).sum().backward()
    np.testing.assert_allclose(-k.grad.numpy(), vmf.mean_resultant(dim, KAPPAS), rtol=1e-6)


@pytest.mark.parametrize("dim", [2, 3, 10, 64])
@pytest.mark.parametrize("kappa", [0.0, 1e-3, 20.0, 300.0, 1e6])
def test_sample_has_the_right_mean_and_spread(dim, kappa):
    n = 20_000
    mean = np.zeros((n, dim))
    mean[:, 0] = 1.0
    _check_sample(vmf.sample(mean, kappa, np.random.default_rng(1)), kappa)


@pytest.mark.parametrize("kappa", [1e-3, 1e3, 1e6])
def test_sample_in_many_dimensions(kappa):
    mean = np.zeros((2_000, 1024))
    mean[:, 0] = 1.0
    _check_sample(vmf.sample(mean, kappa, np.random.default_rng(1)), kappa)


def _check_sample(draw, kappa):
    """First and second moments within five standard errors: E[u u'] = (A/kappa) I + (1 - d A/kappa) mu mu'."""
    n, dim = draw.shape
    np.testing.assert_allclose(np.linalg.norm(draw, axis=1), 1.0)
    a = float(vmf.mean_resultant(dim, kappa))
    across = a / kappa if kappa else 1.0 / dim
    # 1 - u_1 and not u_1: at a great concentration all of the spread is in the last digits of u_1.
    gap = 1.0 - draw[:, 0]
    assert gap.mean() == pytest.approx(1.0 - a, abs=5.0 * gap.std() / np.sqrt(n) + 1e-12)
    for axis in range(1, min(dim, 4)):
        assert draw[:, axis].mean() == pytest.approx(0.0, abs=5.0 * draw[:, axis].std() / np.sqrt(n))
        square = draw[:, axis] ** 2
        assert square.mean() == pytest.approx(across, abs=5.0 * square.std() / np.sqrt(n))
    square = draw[:, 0] ** 2
    along = across + 1.0 - dim * across
    assert square.mean() == pytest.approx(along, abs=5.0 * square.std() / np.sqrt(n) + 1e-12)


def test_rows_are_drawn_around_their_own_means():
    rng = np.random.default_rng(2)
    mean = rng.standard_normal((50, 6))
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    draw = vmf.sample(mean, 1e5, rng)
    assert np.sum(draw * mean, axis=1).min() > 0.999


@pytest.mark.parametrize("call", [lambda: vmf.log_normalizer(1, 1.0), lambda: vmf.mean_resultant(3, -1.0)])
def test_arguments_outside_the_domain_are_refused(call):
    with pytest.raises(ValueError, match=r"dimension|concentration"):
        call()


@pytest.mark.parametrize("resultant", [-0.1, 1.0])
def test_no_concentration_has_such_a_resultant(resultant):
    with pytest.raises(ValueError, match="resultant"):
        vmf.concentration(3, resultant)
