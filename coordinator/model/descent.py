"""The elastic net in Gram form, compiled: coordinate descent with a certificate of how near the minimum is.

All functions minimise F(gamma) = 1/2 gamma'Q gamma - b'gamma + lambda (alpha |gamma|_1 + (1 - alpha)/2 |gamma|^2) and work
without Python's lock, so that threads share no waiting.

Source: Friedman, Hastie and Tibshirani 2010 (covariance updates); Lee, Battle, Raina and Ng 2006 (feature-sign search).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float64]
F = TypeVar("F", bound=Callable[..., object])


def _compiled(function: F) -> F:
    """Numba's compiler, which has no types."""
    return cast(F, njit(cache=True, nogil=True)(function))


@_compiled
def _excess(slope: float, gamma: float, l1: float) -> float:
    """The subgradient of least size of one weight."""
    if gamma > 0.0:
        return slope - l1
    if gamma < 0.0:
        return slope + l1
    return max(abs(slope) - l1, 0.0)


@_compiled
def descend(
    gram: Array, penalty: float, alpha: float, tolerance: float, gamma: Array, gradient: Array
) -> None:
    """Minimise from `gamma`, in place; `gradient` is target - gram gamma all along.

    Coordinate descent, and after ten sweeps that did not end it one step to the minimum among weights of the same signs: a group
    of codes that are nearly one code takes descent thousands of sweeps.
    """
    l1, l2 = penalty * alpha, penalty * (1.0 - alpha)
    m = gamma.size
    active = np.empty(m, np.int64)
    while True:
        distance, size = 0.0, 0
        for k in range(m):
            excess = _excess(gradient[k] - l2 * gamma[k], gamma[k], l1)
            distance += excess * excess
            if gamma[k] != 0.0 or excess != 0.0:
                active[size] = k
                size += 1
        if distance <= 2.0 * l2 * tolerance:
            return
        gain = 0.0
        for _ in range(10):
            gain = 0.0
            for k in active[:size]:
                old = gamma[k]
                free = gradient[k] + gram[k, k] * old
                new = max(abs(free) - l1, 0.0) / (gram[k, k] + l2)
                if free < 0.0:
                    new = -new
                step = new - old
                if step != 0.0:
                    gamma[k] = new
                    for i in range(m):
                        gradient[i] -= step * gram[k, i]
                    gain = max(gain, step * step * (gram[k, k] + l2))
            if gain <= 0.1 * tolerance:
                break
        if gain > 0.1 * tolerance:
            _jump(gram, l1, l2, gamma, gradient)


@_compiled
def _jump(gram: Array, l1: float, l2: float, gamma: Array, gradient: Array) -> None:
    """Towards the minimum among weights of the present signs, as far as the first weight that reaches 0 on the way.

    The objective is quadratic there, so that no part of the way raises it.

    Source: Lee, Battle, Raina and Ng 2006 (feature-sign search).
    """
    held = np.flatnonzero(gamma)
    size = held.size
    if size == 0:
        return
    curvature, slope = np.empty((size, size)), np.empty(size)
    for a in range(size):
        for b in range(size):
            curvature[a, b] = gram[held[a], held[b]]
        curvature[a, a] += l2
        slope[a] = gradient[held[a]] - l2 * gamma[held[a]] - l1 * np.sign(gamma[held[a]])
    way = np.linalg.solve(curvature, slope)
    share, first = 1.0, -1
    for a in range(size):
        old = gamma[held[a]]
        if old * (old + way[a]) < 0.0 and -old / way[a] < share:
            share, first = -old / way[a], a
    for a in range(size):
        step = share * way[a]
        if a == first:
            step = -gamma[held[a]]
            gamma[held[a]] = 0.0
        else:
            gamma[held[a]] += step
        for i in range(gradient.size):
            gradient[i] -= step * gram[held[a], i]


@_compiled
def path(
    gram: Array,
    cosine: Array,
    held: Array,
    held_target: Array,
    lambdas: Array,
    alpha: float,
    tolerance: float,
    most: float,
) -> tuple[Array, Array, Array]:
    """Training loss, loss on the held-out embedding, and non-zero weights at each lambda, greatest first.

    From the first lambda with more than `most` non-zero weights on, all are infinite.
    """
    m = cosine.size
    near = np.abs(cosine)
    target = near * cosine
    gamma, gradient = np.zeros(m), target.copy()
    loss, validation, df = np.full((3, lambdas.size), np.inf)
    for step in range(lambdas.size):
        descend(gram, lambdas[step], alpha, tolerance, gamma, gradient)
        explained = 0.0
        residual = held_target.copy()
        count = 0
        for k in range(m):
            if gamma[k] != 0.0:
                explained += gamma[k] * (target[k] + gradient[k])
                count += 1
                weight = gamma[k] * near[k]
                for d in range(residual.size):
                    residual[d] -= weight * held[k, d]
        if count > most:
            break
        loss[step] = 1.0 - explained
        validation[step] = np.sum(residual * residual)
        df[step] = count
    return loss, validation, df
