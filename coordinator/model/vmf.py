"""The von Mises-Fisher distribution on the unit sphere of R^d, stable for d from 2 to thousands.

    f(u) = C_d(kappa) exp(kappa mu'u),   C_d(kappa) = kappa^v / ((2 pi)^(v+1) I_v(kappa)),   v = d/2 - 1,
    E[u] = A_d(kappa) mu,                A_d(kappa) = I_(v+1)(kappa) / I_v(kappa).

I_v under- and overflows long before C_d does, so only its logarithm is formed and kappa^v is cancelled
analytically. Sources: Mardia and Jupp 2000, chapters 9 and 10; DLMF 10.41 (uniform expansion); Amos 1974
(bounds of the Bessel ratio); Wood 1994 (sampler).
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import torch

    Real = TypeVar("Real", NDArray[np.float64], torch.Tensor)

Array = NDArray[np.float64]

_UNIFORM_FROM = 16.0  # the order v from which eight Debye terms leave 1e-12 at every argument
_DEBYE_TERMS = 8
_FRACTION_UP_TO = 40.0  # order at which the continued fraction of A_d is started at the latest
_FEWEST_FRACTION_TERMS = 8


def _debye_polynomials(terms: int) -> tuple[Array, ...]:
    """Coefficients of u_1 .. u_terms in p, lowest power first: DLMF 10.41.9.

    u_(k+1)(p) = p^2 (1 - p^2) u_k'(p) / 2 + (1/8) int_0^p (1 - 5 t^2) u_k(t) dt,  u_0 = 1.
    """
    polynomials = [np.polynomial.Polynomial([1.0])]
    outer = np.polynomial.Polynomial([0.0, 0.0, 0.5, 0.0, -0.5])
    inner = np.polynomial.Polynomial([0.125, 0.0, -0.625])
    for _ in range(terms):
        last = polynomials[-1]
        polynomials.append(outer * last.deriv() + (inner * last).integ())
    return tuple(np.asarray(polynomial.coef, dtype=np.float64) for polynomial in polynomials[1:])


_DEBYE = _debye_polynomials(_DEBYE_TERMS)


def _debye_series(v: float) -> list[float]:
    """Coefficients in p of 1 + sum_k u_k(p) / v^k, lowest power first."""
    series = np.zeros(3 * _DEBYE_TERMS + 1)
    series[0] = 1.0
    for k, u in enumerate(_DEBYE, start=1):
        series[: len(u)] += u / v**k
    return [float(c) for c in series]


def log_normalizer(dim: int, kappa: ArrayLike) -> Array:
    """Log of C_d(kappa), the density's normalising constant.

    Args:
        dim: d >= 2, the dimension of the space that holds the sphere.
        kappa: concentrations >= 0, any shape.

    Returns:
        An array of kappa's shape. At kappa = 0 it is minus the log of the sphere's area.

    Raises:
        ValueError: dim < 2 or a negative concentration.
    """
    return log_normalizer_of(dim, _checked(dim, kappa))


def mean_resultant(dim: int, kappa: ArrayLike) -> Array:
    """A_d(kappa) = I_(d/2)(kappa) / I_(d/2-1)(kappa), the length of E[u], in [0, 1).

    Args:
        dim: d >= 2.
        kappa: concentrations >= 0, any shape.

    Raises:
        ValueError: dim < 2 or a negative concentration.
    """
    return mean_resultant_of(dim, _checked(dim, kappa))


def log_normalizer_of(dim: int, k: Real) -> Real:
    """`log_normalizer` of a float64 numpy array or torch tensor, unchecked, on whatever device it lies.

    At low orders log(I_v(k) / k^v) comes from the order v + m by log I_(v+j) - log I_(v+j+1) = -log rho_(v+j),
    since the uniform expansion is exact enough only at high orders.
    """
    v = dim / 2.0 - 1.0
    order = v + max(0, math.ceil(_UNIFORM_FROM - v))
    root = (order * order + k * k) ** 0.5
    series = _horner(_debye_series(order), order / root)
    xp = _namespace(k)
    # log(I_order(k) / k^order), finite at k = 0
    value = root - order * xp.log(order + root) + xp.log(series / (2.0 * math.pi * root) ** 0.5)
    if order > v:
        reduced = _reduced_ratio(order, k)
        while order > v:
            order -= 1.0
            reduced = 1.0 / (2.0 * (order + 1.0) + k * k * reduced)
            value = value - xp.log(reduced)
    result: Real = -(v + 1.0) * math.log(2.0 * math.pi) - value
    return result


def mean_resultant_of(dim: int, k: Real) -> Real:
    """`mean_resultant` of a float64 numpy array or torch tensor, unchecked, on whatever device it lies."""
    result: Real = k * _reduced_ratio(dim / 2.0 - 1.0, k)
    return result


def _reduced_ratio(v: float, k: Real) -> Real:
    """I_(v+1)(k) / (k I_v(k)), finite at k = 0.

    The continued fraction rho_v = 1 / (2(v+1)/k + rho_(v+1)) is run backwards; each step shrinks the
    error of the tail, which starts from the expansion of the ratio's Riccati equation
    rho' = 1 - rho^2 - (2v+1) rho / k for large order or argument.
    """
    terms = max(_FEWEST_FRACTION_TERMS, math.ceil(_FRACTION_UP_TO - v))
    half = v + terms + 0.5
    k2 = k * k
    square = k2 + half * half
    root = square**0.5
    leading = 1.0 / (root + half)  # times k
    first = -0.5 * half / square
    second = -0.5 / root * (k2 * leading * first**2 - 0.5 * half * (half / root - 2.0 * k2 / square) / square)
    ratio = leading * (1.0 + first + second)
    for order in range(terms - 1, -1, -1):
        ratio = 1.0 / (k2 * ratio + 2.0 * (v + order + 1.0))
    return ratio


def concentration(dim: int, resultant: float) -> float:
    """The inverse of A_d: kappa with A_d(kappa) = resultant.

    Newton's method inside the bracket that Amos' bounds give in closed form.

    Args:
        dim: d >= 2.
        resultant: mean resultant length in [0, 1).

    Raises:
        ValueError: resultant outside [0, 1).
    """
    if not 0.0 <= resultant < 1.0:
        raise ValueError(f"a mean resultant length lies in [0, 1), not {resultant}")
    if resultant == 0.0:
        return 0.0
    half = dim / 2.0 - 0.5
    low, high = (_amos_inverse(resultant, half, beta) for beta in (half, half + 1.0))
    kappa = 0.5 * (low + high)
    for _ in range(50):
        a = float(mean_resultant(dim, kappa))
        low, high = (kappa, high) if a < resultant else (low, kappa)
        slope = 1.0 - a * a - (dim - 1.0) / kappa * a
        step = kappa - (a - resultant) / slope if slope > 0.0 else low
        new = step if low < step < high else 0.5 * (low + high)
        if abs(new - kappa) <= 1e-12 * kappa:
            return new
        kappa = new
    return kappa


def sample(mean: Array, kappa: float, rng: np.random.Generator) -> Array:
    """Draw one unit vector a row from vMF(mean_i, kappa) by Wood's rejection method.

    Args:
        mean: (n, d) unit rows, d >= 2.
        kappa: common concentration >= 0.
        rng: the generator.

    Returns:
        (n, d) unit rows.
    """
    n, dim = mean.shape
    _checked(dim, kappa)
    b = (dim - 1.0) / (2.0 * kappa + np.sqrt(4.0 * kappa * kappa + (dim - 1.0) ** 2))
    x0 = (1.0 - b) / (1.0 + b)
    c = kappa * x0 + (dim - 1.0) * np.log(1.0 - x0 * x0)
    along = np.empty(n)
    todo = np.arange(n)
    while todo.size:
        z = rng.beta((dim - 1.0) / 2.0, (dim - 1.0) / 2.0, todo.size)
        w = (1.0 - (1.0 + b) * z) / (1.0 - (1.0 - b) * z)
        accept = kappa * w + (dim - 1.0) * np.log(1.0 - x0 * w) - c >= np.log(rng.random(todo.size))
        along[todo[accept]] = w[accept]
        todo = todo[~accept]
    across = rng.standard_normal((n, dim))
    across -= np.sum(across * mean, axis=1, keepdims=True) * mean
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    return np.asarray(along[:, None] * mean + np.sqrt(1.0 - along[:, None] ** 2) * across)


def _checked(dim: int, kappa: ArrayLike) -> Array:
    k = np.asarray(kappa, dtype=np.float64)
    if dim < 2:
        raise ValueError(f"the sphere needs a dimension of at least 2, not {dim}")
    if np.any(k < 0.0) or np.any(np.isnan(k)):
        raise ValueError("a concentration is a number >= 0")
    return k


def _horner(coefficients: list[float], x: Real) -> Real:
    value = x * 0.0 + coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def _namespace(x: Any) -> Any:
    """Numpy or torch; torch is not imported here, since whoever passes a tensor has imported it."""
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]


def _amos_inverse(r: float, alpha: float, beta: float) -> float:
    """Solve k / (alpha + sqrt(beta^2 + k^2)) = r for k."""
    gap = (1.0 - r) * (1.0 + r)
    return float(r / gap * (alpha + np.sqrt(r * r * alpha * alpha + gap * beta * beta)))
