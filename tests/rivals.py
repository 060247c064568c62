"""What the tests of the rivals share: small sources with known truth, and how near a rival comes to it."""

import numpy as np
from scipy.stats import ortho_group

from coordinator.model import Source, alignment
from coordinator.model.factor import Array
from coordinator.model.rivals import spectral
from coordinator.simulation.generate import Simulation, simulate_paper

N, DIM = 160, 4


def accuracy(found: Array, truth: Array) -> float:
    turned = found @ spectral.rotation(found, truth)
    return float(1.0 - np.linalg.norm(turned - truth) / np.linalg.norm(truth))


def cosines(points: Array) -> Array:
    return points @ points.T


def unit(rng: np.random.Generator, *shape: int) -> Array:
    return alignment.unit_rows(rng.standard_normal(shape))


def rotated_copies(truth: Array, held: list[np.ndarray], columns: int = 12) -> list[Source]:
    """Noise-free sources, each a rotation of the true rows that it holds into its own columns."""
    rng = np.random.default_rng(5)
    return [
        Source(
            f"source {s}", codes, truth[codes] @ ortho_group.rvs(columns, random_state=rng)[: truth.shape[1]]
        )
        for s, codes in enumerate(held)
    ]


def noisy_sources() -> Simulation:
    """Three noisy sources of N codes in DIM dimensions."""
    return simulate_paper(3, n_codes=N, dim=DIM, n_clusters=12, columns=20)
