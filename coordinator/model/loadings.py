"""The factor layer on a device: loadings, noise, and what the data say of each code.

x_i^s = B_s u_i + e,  e ~ N(0, sigma_s^2 I)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coordinator.model.factor import Presence, View

# A source that fits exactly would get an infinite weight; this keeps its share of the evidence finite.
_NOISE_FLOOR = 1e-8


@dataclass(frozen=True, eq=False)
class Data:
    """A source in its principal axes, on the device.

    Args:
        codes: (n_s,) rows of the union vocabulary.
        scores: (n_s, r).
        columns: p_s.
        energy: sum of squares of the source's matrix, of the axes that were left out too.
    """

    codes: Tensor
    scores: Tensor
    columns: int
    energy: float


@dataclass(frozen=True, eq=False)
class Where:
    """Which sources hold which code: (P, S) bool, and (n,) the pattern of each code. See `factor.Presence`."""

    held: Tensor
    pattern: Tensor


@dataclass(frozen=True, eq=False)
class Loadings:
    """B_s, one (r_s, d) matrix a source in its axes, and sigma_s^2."""

    matrices: tuple[Tensor, ...]
    noise: tuple[float, ...]


def to_device(
    views: Sequence[View], presence: Presence, device: torch.device
) -> tuple[tuple[Data, ...], Where]:
    """Copy sources and their pattern of presence to a device."""

    def tensor(array: object) -> Tensor:
        return torch.as_tensor(array).to(device)

    data = tuple(Data(tensor(v.codes), tensor(v.scores), v.columns, v.energy) for v in views)
    return data, Where(tensor(presence.held), tensor(presence.pattern))


def fit_loadings(data: Sequence[Data], where: Where, mean: Tensor, second: Tensor) -> Loadings:
    """Maximise the expected log-likelihood over B_s and sigma_s^2.

    B_s = (sum_i x_i E[u_i]') (sum_i E[u_i u_i'])^-1, and sigma_s^2 is the expected squared residual a column.
    Least squares on E[u_i] alone would be biased: these are u_i with errors.

    Args:
        data: the sources.
        where: their pattern of presence.
        mean: (n, d) E[u_i].
        second: (P, d, d) sums of E[u_i u_i'] over the codes of each pattern.
    """
    matrices, noise = [], []
    for s, source in enumerate(data):
        moment = second[where.held[:, s]].sum(dim=0)
        cross = source.scores.T @ mean[source.codes]
        loading = torch.cholesky_solve(cross.T, torch.linalg.cholesky(moment)).T
        residual = _expected_residual(source, loading, cross, moment)
        matrices.append(loading)
        noise.append(max(residual, _NOISE_FLOOR * source.energy) / (len(source.codes) * source.columns))
    return Loadings(tuple(matrices), tuple(noise))


def evidence(data: Sequence[Data], where: Where, loadings: Loadings) -> tuple[Tensor, Tensor]:
    """What the data say of u_i: log p(x_i | u) = b_i'u - u'A_i u / 2 + constant.

    Returns:
        (P, d, d) A by pattern, sum_s B_s'B_s / sigma_s^2; and (n, d) b, sum_s B_s'x_i^s / sigma_s^2.
    """
    grams = torch.stack([b.T @ b / s2 for b, s2 in zip(loadings.matrices, loadings.noise, strict=True)])
    linear = grams.new_zeros((len(where.pattern), grams.shape[1]))
    for source, loading, s2 in zip(data, loadings.matrices, loadings.noise, strict=True):
        linear[source.codes] += source.scores @ (loading / s2)
    return torch.einsum("ps,sde->pde", where.held.to(grams.dtype), grams), linear


def expected_log_likelihood(
    data: Sequence[Data], where: Where, loadings: Loadings, mean: Tensor, second: Tensor
) -> float:
    """E_q of sum_s log p(X_s | U), from the moments that `fit_loadings` takes."""
    total = 0.0
    for s, (source, loading, s2) in enumerate(zip(data, loadings.matrices, loadings.noise, strict=True)):
        moment = second[where.held[:, s]].sum(dim=0)
        residual = _expected_residual(source, loading, source.scores.T @ mean[source.codes], moment)
        cells = len(source.codes) * source.columns
        total -= 0.5 * (cells * math.log(2.0 * math.pi * s2) + residual / s2)
    return total


def _expected_residual(source: Data, loading: Tensor, cross: Tensor, moment: Tensor) -> float:
    """E_q of sum_i |x_i - B u_i|^2."""
    inner = torch.sum((loading @ moment) * loading) - 2.0 * torch.sum(cross * loading)
    return source.energy + float(inner)
