"""A small network: one trunk that all sources share, and a head for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coordinator.recogniser.scores import Array
from coordinator.recogniser.sums import draw_sums, replace_by_noise

_WARM_UP = 0.1
"""Share of the steps in which rates rise; then they fall along a cosine."""
_RATE_OF_OTHERS = 5e-3
"""Highest rate of biases and heads."""


_MEASURED = 20_000
"""Sums by which the input is whitened."""


@dataclass(frozen=True)
class Training:
    """How a network is trained; each step draws sums anew.

    Attributes:
        isolation: steps on single vectors, first; of no use for sums of three sites' vectors (.01 of MCC less on the claims).
        composite: steps on sums.
        terms: vectors in a composite.
        fewest: of them at least, where composites differ in how many they have; 0 for always `terms`.
        noise: share of the entries that are noise, in composites.
        width: of each layer of the trunk.
        depth: layers of the trunk.
        batch: sums a step.
        rate: highest learning rate of the trunk's matrices.
        decay: weight decay of these.
        seed: of the weights and the draws.
    """

    isolation: int = 0
    composite: int = 4000
    terms: int = 3
    fewest: int = 0
    noise: float = 0.0
    width: int = 384
    depth: int = 4
    batch: int = 512
    rate: float = 2e-2
    decay: float = 0.1
    seed: int = 0


class Network(torch.nn.Module):
    """(n, d) sums -> (n, S) log odds that each source went in."""

    def __init__(self, dim: int, sources: int, width: int, depth: int) -> None:
        super().__init__()
        self.trunk = torch.nn.Sequential()
        for before in (dim, *[width] * (depth - 1)):
            self.trunk.extend([torch.nn.Linear(before, width), torch.nn.GELU()])
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, 1) for _ in range(sources))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Log odds."""
        common = self.trunk(x)
        return torch.cat([head(common) for head in self.heads], dim=1)


@dataclass(frozen=True, eq=False)
class NetworkRecogniser:
    """A trained network and what its input is whitened by.

    Attributes:
        network: of whitened sums.
        mean: (d,) of the sums that it was trained on.
        whitening: (d, d) after which their columns are uncorrelated and of deviation one.
        losses: mean loss of each step.
    """

    network: Network
    mean: Array
    whitening: Array
    losses: tuple[float, ...]

    def says(self, vectors: Array) -> NDArray[np.bool_]:
        """(n, S) which sources went into each of (n, d) sums."""
        with torch.no_grad():
            odds = self.network(_input(vectors, self.mean, self.whitening))
        return np.asarray(odds.numpy() > 0.0)


def fit_network(tables: Sequence[Array], training: Training = Training()) -> NetworkRecogniser:
    """Train on sums, and on single vectors before them if that is wanted.

    The trunk's matrices go by Muon, whose steps are orthogonal: on sums of three of the claims' vectors it needs a fraction
    of the steps that AdamW does; biases and heads go by AdamW.

    Args:
        tables: S sources, (m_s, d) each.
        training: how.

    Law: equal tables, training and threads give equal weights.
    Source: Jordan et al. 2024 (Muon).
    """
    rng = np.random.default_rng(training.seed)
    mean, whitening = _whitening(draw_sums(tables, _MEASURED, training.terms, rng).vectors)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = Network(tables[0].shape[1], len(tables), training.width, training.depth)
    optimisers = _optimisers(network, training)
    losses = []
    for step in range(training.isolation + training.composite):
        alone = step < training.isolation
        sums = draw_sums(
            tables,
            training.batch,
            1 if alone else training.terms,
            rng,
            fewest=0 if alone else training.fewest,
        )
        if not alone and training.noise:
            sums = replace_by_noise(sums, training.noise, rng)
        odds = network(_input(sums.vectors, mean, whitening))
        wanted = torch.as_tensor(sums.present, dtype=torch.float32)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, wanted)
        network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimiser, schedule in optimisers:
            optimiser.step()
            schedule.step()
        losses.append(float(loss.detach()))
    return NetworkRecogniser(network.eval(), mean, whitening, tuple(losses))


def _whitening(vectors: Array) -> tuple[Array, Array]:
    """Mean, and what brings the columns to no correlation and deviation one."""
    values, axes = np.linalg.eigh(np.cov(vectors.T))
    return vectors.mean(axis=0), axes / np.sqrt(np.maximum(values, 1e-9 * values.max()))


def _input(vectors: Array, mean: Array, whitening: Array) -> torch.Tensor:
    return torch.as_tensor((vectors - mean) @ whitening, dtype=torch.float32)


def _optimisers(
    network: Network, training: Training
) -> list[tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]]:
    steps = training.isolation + training.composite
    matrices = [p for p in network.trunk.parameters() if p.ndim == 2]
    others = [p for p in network.trunk.parameters() if p.ndim == 1] + list(network.heads.parameters())
    pairs: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.Muon(matrices, lr=training.rate, weight_decay=training.decay), training.rate),
        (torch.optim.AdamW(others, lr=_RATE_OF_OTHERS, weight_decay=0.0), _RATE_OF_OTHERS),
    ]
    return [
        (
            optimiser,
            torch.optim.lr_scheduler.OneCycleLR(
                optimiser, rate, total_steps=steps, pct_start=_WARM_UP, cycle_momentum=False
            ),
        )
        for optimiser, rate in pairs
    ]
