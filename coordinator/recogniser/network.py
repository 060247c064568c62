"""A small network: one trunk that all sources share, and a head for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from coordinator.recogniser.scores import Array
from coordinator.recogniser.sums import draw_sums, replace_by_noise


@dataclass(frozen=True)
class Training:
    """How a network is trained; each step draws sums anew.

    Attributes:
        isolation: steps on single vectors, first.
        composite: steps on sums of `terms`.
        terms: vectors in a composite.
        noise: share of the entries that are noise, in composites.
        width: of both layers of the trunk.
        batch: sums a step.
        rate: highest learning rate.
        seed: of the weights and the draws.
    """

    isolation: int = 300
    composite: int = 2700
    terms: int = 3
    noise: float = 0.0
    width: int = 256
    batch: int = 512
    rate: float = 2e-3
    seed: int = 0


class Network(torch.nn.Module):
    """(n, d) sums -> (n, S) log odds that each source went in."""

    def __init__(self, dim: int, sources: int, width: int) -> None:
        super().__init__()
        self.trunk = torch.nn.Sequential(
            torch.nn.Linear(dim, width), torch.nn.GELU(), torch.nn.Linear(width, width), torch.nn.GELU()
        )
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, 1) for _ in range(sources))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Log odds."""
        common = self.trunk(x)
        return torch.cat([head(common) for head in self.heads], dim=1)


@dataclass(frozen=True, eq=False)
class NetworkRecogniser:
    """A trained network and the scale of what it was trained on.

    Attributes:
        scale: (d,) deviation of each column.
        losses: mean loss of each step.
    """

    network: Network
    scale: Array
    losses: tuple[float, ...]

    def says(self, vectors: Array) -> NDArray[np.bool_]:
        """(n, S) which sources went into each of (n, d) sums."""
        with torch.no_grad():
            odds = self.network(torch.as_tensor(vectors / self.scale, dtype=torch.float32))
        return np.asarray(odds.numpy() > 0.0)


def fit_network(tables: Sequence[Array], training: Training = Training()) -> NetworkRecogniser:
    """Train on single vectors, then on sums of several.

    Args:
        tables: S sources, (m_s, d) each.
        training: how.

    Law: equal tables, training and threads give equal weights.
    """
    rng = np.random.default_rng(training.seed)
    scale = np.concatenate(tables).std(axis=0) + 1e-9
    steps = training.isolation + training.composite
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        network = Network(tables[0].shape[1], len(tables), training.width)
    optimiser = torch.optim.AdamW(network.parameters(), lr=training.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, training.rate, total_steps=steps)
    losses = []
    for step in range(steps):
        alone = step < training.isolation
        sums = draw_sums(tables, training.batch, 1 if alone else training.terms, rng)
        if not alone and training.noise:
            sums = replace_by_noise(sums, training.noise, rng)
        odds = network(torch.as_tensor(sums.vectors / scale, dtype=torch.float32))
        wanted = torch.as_tensor(sums.present, dtype=torch.float32)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, wanted)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return NetworkRecogniser(network.eval(), scale, tuple(losses))
