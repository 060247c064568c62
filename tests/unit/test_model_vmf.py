"""The von Mises-Fisher functions against arbitrary-precision Bessel functions (mpmath, 50 digits)."""

import mpmath
import numpy as np
import pytest

from coordinator.model import vmf

DIMS = [2, 3, 10, 21, 22, 64, 200, 512]
KAPPAS = np.logspace(-3, 5, 17)


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
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    np.testing.assert_allclose([vmf.concentration(dim, float(r)) for r in found], KAPPAS, rtol=1e-6)


@pytest.mark.parametrize("dim", [3, 64])
def test_no_concentration_is_the_uniform_distribution(dim):
    area = float(2 * mpmath.pi ** (mpmath.mpf(dim) / 2) / mpmath.gamma(mpmath.mpf(dim) / 2))
    assert float(vmf.log_normalizer(dim, 0.0)) == pytest.approx(-np.log(area), rel=1e-9)
    assert float(vmf.mean_resultant(dim, 0.0)) == 0.0
    assert vmf.concentration(dim, 0.0) == 0.0


@pytest.mark.parametrize(("dim", "kappa"), [(2, 5.0), (10, 20.0), (64, 300.0)])
def test_sample_has_the_right_mean_and_spread(dim, kappa):
    n = 20_000
    mean = np.zeros((n, dim))
    mean[:, 0] = 1.0
    draw = vmf.sample(mean, kappa, np.random.default_rng(1))
    np.testing.assert_allclose(np.linalg.norm(draw, axis=1), 1.0)
    a = float(vmf.mean_resultant(dim, kappa))
    assert draw[:, 0].mean() == pytest.approx(a, abs=4 * draw[:, 0].std() / np.sqrt(n))
    # E[u u'] = (A/kappa) I + (1 - d A/kappa) mu mu'
    second = draw.T @ draw / n
    assert second[1, 1] == pytest.approx(a / kappa, rel=0.05)
    assert second[0, 0] == pytest.approx(a / kappa + 1 - dim * a / kappa, rel=0.02)


@pytest.mark.parametrize("call", [lambda: vmf.log_normalizer(1, 1.0), lambda: vmf.mean_resultant(3, -1.0)])
def test_arguments_outside_the_domain_are_refused(call):
    with pytest.raises(ValueError, match=r"dimension|concentration"):
        call()


@pytest.mark.parametrize("resultant", [-0.1, 1.0])
def test_no_concentration_has_such_a_resultant(resultant):
    with pytest.raises(ValueError, match="resultant"):
        vmf.concentration(3, resultant)
