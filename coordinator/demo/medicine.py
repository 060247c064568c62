"""What hospitals have in common and where they differ: diseases, and how one site sees them.

Every diagnosis is a point in a latent space that follows the hierarchy of ICD in part. A topic is a disease
process: a region of that space, or two or three that clinical life joins (diabetes, kidney and eye). Beside
its topics, each diagnosis has a few companions, its own complications, causes and treatments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coordinator.demo.codesystems import Concepts

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

LATENT_DIM = 14
LEVEL_VARIANCE = (0.20, 0.25, 0.25)
OWN_VARIANCE = 0.30
"""Variance of a diagnosis's position that its chapter, block, category and itself give; the sum is 1."""
N_TOPICS = 90
TOPIC_WIDTH = 0.25
COMPANION_WIDTH = 0.35
"""Reach of a topic and of a diagnosis, in units of the root mean square length of a position."""
MEDICINE_NOISE = 0.7
"""Standard deviation of the log loadings that no geometry explains; equal at all sites."""
SITE_NOISE = 0.3
"""Standard deviation of a site's log deviations: case mix, rates of recording, single loadings, companions."""
N_COMPANIONS = 3
COMPANION_CHANCE = 0.7
"""Chance that a diagnosis brings one of its companions with it."""
ZIPF_SHIFT = 10.0

_PEAK_AGE = {
    "infections": 48, "neoplasms": 66, "blood": 60, "endocrine and metabolic": 60, "mental": 42,
    "nervous system": 55, "eye": 67, "ear": 48, "circulatory": 70, "respiratory": 55, "digestive": 55,
    "skin": 45, "musculoskeletal": 58, "genitourinary": 56, "congenital": 30, "symptoms": 55,
    "injury and poisoning": 45, "health status": 62,
}  # fmt: skip


@dataclass(frozen=True)
class Medicine:
    """What all hospitals share: n diagnoses, T topics, k companions, r directions of comorbidity.

    Attributes:
        prevalence: (n,), share of each diagnosis among all, sums to 1.
        loading: (T, n), share of each diagnosis in a topic, rows sum to 1.
        topic_share: (T,), sums to 1.
        peak_age: (T,), years.
        sex_lean: (T,), added to the log weight of a topic for women, taken from it for men.
        direction: (T, r), unit rows; topics with close directions go together in a patient.
        companions: int64 (n, k), other diagnoses that one brings with it.
        companion_chance: (n, k), how often it does.
        chronic: bool (n,), whether a diagnosis stays.
        sexes: bool (n, 2), whether women (0) and men (1) can have it.
    """

    prevalence: Floats
    loading: Floats
    topic_share: Floats
    peak_age: Floats
    sex_lean: Floats
    direction: Floats
    companions: Ints
    companion_chance: Floats
    chronic: Flags
    sexes: Flags


@dataclass(frozen=True)
class Hospital:
    """One site's version of the shared medicine: case mix, coding practice, and how much it writes down.

    Attributes:
        topic_share: (T,), the case mix, sums to 1.
        suits: (2, T), share of a topic's diagnoses that women (row 0) and men (row 1) can have.
        cumulative: (2 (T + 1), n), cumulative loadings of every topic and then of the background, women before men.
        companion_chance: (n, k).
        mean_age: years.
        episodes: mean number of episodes of care a patient.
        items: mean number of further diagnoses an episode, beside the first.
        carry: chance that a visit repeats a known chronic diagnosis that has nothing to do with the visit.
    """

    topic_share: Floats
    suits: Floats
    cumulative: Floats
    companion_chance: Floats
    mean_age: float
    episodes: float
    items: float
    carry: float


def make_medicine(concepts: Concepts, rng: np.random.Generator) -> Medicine:
    """Draw the diseases of a consortium.

    Diagnosis c lies at z_c, the sum of a Gaussian vector for each of its chapter, block, category and itself.
    Topic t has one to three centres m at diagnoses, and draws c with weight
    max over m of exp(-|z_c - m|^2 / (2 w^2 d)) times a lognormal factor: medicine does not follow the
    hierarchy everywhere. The weights are balanced so that topics keep their shares and diagnoses their
    prevalence, which falls as 1 / (rank + 10) (Zipf and Mandelbrot).
    """
    n = len(concepts)
    where = np.sqrt(OWN_VARIANCE) * rng.standard_normal((n, LATENT_DIM))
    for level, variance in zip(concepts.levels.T, LEVEL_VARIANCE, strict=True):
        where += np.sqrt(variance) * rng.standard_normal((level.max() + 1, LATENT_DIM))[level]
    prevalence: Floats = 1 / (np.arange(n) + ZIPF_SHIFT)
    prevalence /= prevalence.sum()

    n_centres = rng.choice([1, 2, 3], size=N_TOPICS, p=[0.45, 0.35, 0.2])
    # Centres lie at diagnoses, so that no topic is empty; the square root keeps rare diseases in play.
    root = np.sqrt(prevalence)
    at = rng.choice(n, size=(N_TOPICS, 3), p=root / root.sum())
    at = np.where(np.arange(3) < n_centres[:, None], at, at[:, :1])
    gap = np.stack([_squared(where[at[:, k]], where) for k in range(3)]).min(axis=0)
    log_weight = -gap / (2 * TOPIC_WIDTH**2) + MEDICINE_NOISE * rng.standard_normal(gap.shape)
    topic_share = rng.dirichlet(np.full(N_TOPICS, 3.0))
    peak = np.array([_PEAK_AGE[c] for c in concepts.chapter], dtype=float)
    direction = where[at].mean(axis=1) @ rng.standard_normal((LATENT_DIM, 4))
    companions, companion_chance = _companions(where, prevalence, rng)
    return Medicine(
        prevalence=prevalence,
        loading=_balance(np.exp(log_weight), topic_share, prevalence),
        topic_share=topic_share,
        peak_age=peak[at].mean(axis=1) + rng.normal(0, 5, N_TOPICS),
        sex_lean=rng.normal(0, 0.25, N_TOPICS),
        direction=direction / np.linalg.norm(direction, axis=1, keepdims=True),
        companions=companions,
        companion_chance=companion_chance,
        chronic=concepts.chronic,
        sexes=concepts.sexes,
    )


def make_hospital(
    medicine: Medicine, present: Flags, rng: np.random.Generator, *, mean_age: float, intensity: float
) -> Hospital:
    """Vary the shared medicine for one site.

    Args:
        medicine: what all sites share.
        present: bool (n,), the diagnoses that this site sees.
        rng: the site's stream.
        mean_age: mean age of its patients, years.
        intensity: how much the site writes down, 1 for an average one.
    """

    def deviation(*shape: int) -> Floats:
        return np.exp(SITE_NOISE * rng.standard_normal(shape))

    topic_share = medicine.topic_share * deviation(N_TOPICS)
    rate = deviation(len(present)) * present
    loading = medicine.loading * rate * deviation(*medicine.loading.shape)
    loading = np.vstack([loading / loading.sum(axis=1, keepdims=True), medicine.prevalence * rate])
    cumulative = np.cumsum(np.concatenate([loading * medicine.sexes[:, s] for s in range(2)]), axis=1)
    chance = medicine.companion_chance * deviation(*medicine.companions.shape)
    return Hospital(
        topic_share=topic_share / topic_share.sum(),
        suits=(loading[:-1] @ medicine.sexes).T,
        cumulative=cumulative / cumulative[:, -1:],
        companion_chance=chance * present[medicine.companions],
        mean_age=mean_age,
        episodes=9.0 * np.sqrt(intensity),
        items=3.2 * np.sqrt(intensity),
        carry=0.12 * intensity,
    )


def _companions(where: Floats, prevalence: Floats, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Companions (n, k) of each diagnosis, near it and rather common, and their chances (n, k)."""
    pull = 0.5 * np.log(prevalence) - _squared(where, where) / (2 * COMPANION_WIDTH**2)
    np.fill_diagonal(pull, -np.inf)
    # The largest of Gumbel-perturbed log weights are a weighted draw without replacement.
    companions = np.argsort(-(pull + rng.gumbel(size=pull.shape)), axis=1)[:, :N_COMPANIONS]
    chance = COMPANION_CHANCE * rng.dirichlet(np.ones(N_COMPANIONS), len(where))
    # Few of the many patients with a common disease have its rare complication.
    return companions, chance * np.minimum(1, 2 * prevalence[companions] / prevalence[:, None])


def _squared(a: Floats, b: Floats) -> Floats:
    """Squared distances of the rows of a and b, divided by the dimension."""
    squared: Floats = ((a[:, None, :] - b) ** 2).mean(axis=2)
    return squared


def _balance(kernel: Floats, row_share: Floats, column_share: Floats) -> Floats:
    """Scale a positive kernel to given margins (Sinkhorn), then its rows to sum 1."""
    joint = kernel.copy()
    for _ in range(30):
        joint *= (row_share / joint.sum(axis=1))[:, None]
        joint *= column_share / joint.sum(axis=0)
    balanced: Floats = joint / joint.sum(axis=1, keepdims=True)
    return balanced
