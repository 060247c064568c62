"""Laws of the two-stage fit and of the noise model behind it."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.evaluation import ami, hits_at_k
from coordinator.model import Source
from coordinator.model.alignment import align, filled_svd, unit_rows
from coordinator.model.factor import compress
from coordinator.model.noise import fit_noise
from coordinator.model.rivals import svd_kmeans
from coordinator.model.twostage import fit_two_stage, membership
from coordinator.simulation.generate import simulate_sites
from tests.synthetic import unit_rows as random_rows

N, DIM, COLUMNS, K = 300, 6, 14, 60


def simulated(seed: int) -> tuple[list[Source], np.ndarray, np.ndarray]:
    """Two sites, each with noise of its own in some directions; a fifth of the concepts share a row."""
    rng = np.random.default_rng(seed)
    concept = rng.integers(0, K, N)
    centers = random_rows(rng, K, DIM)
    u = unit_rows(centers[concept] + 0.05 * rng.standard_normal((N, DIM)))
    own = rng.random(N)
    found = []
    for rows in (np.flatnonzero(own < 0.6), np.flatnonzero(own > 0.4)):
        loading = rng.standard_normal((COLUMNS, DIM))
        noise = rng.standard_normal((len(rows), COLUMNS)) * rng.choice([0.1, 1.0], COLUMNS)
        found.append(
            Source(f"s{len(found)}", rows, u[rows] @ loading.T + noise @ random_rows(rng, COLUMNS, COLUMNS))
        )
    return found, concept, own


def fit(sources: list[Source]):
    return fit_two_stage(sources, n_codes=N, n_clusters=K, dim=DIM)


def test_rotation_order_and_numbering_do_not_matter() -> None:
    sources, _, _ = simulated(0)
    rng = np.random.default_rng(1)
    base = fit(sources)
    gram = base.embedding @ base.embedding.T
    turned = [
        Source(s.name, s.codes, s.matrix @ np.linalg.qr(rng.standard_normal((COLUMNS, COLUMNS)))[0])
        for s in sources
    ]
    np.testing.assert_allclose(fit(turned).embedding @ fit(turned).embedding.T, gram, atol=1e-6)
    number = rng.permutation(N)
    renamed = fit([Source(s.name, number[s.codes], s.matrix) for s in sources])
    np.testing.assert_allclose(
        (renamed.embedding @ renamed.embedding.T)[np.ix_(number, number)], gram, atol=1e-6
    )
    assert ami(base.labels, renamed.labels[number]) == pytest.approx(1.0)


def test_deterministic_unit_rows_and_probabilities() -> None:
    sources, _, _ = simulated(0)
    one, two = fit(sources), fit(sources)
    np.testing.assert_array_equal(one.embedding, two.embedding)
    np.testing.assert_allclose(np.linalg.norm(one.embedding, axis=1), 1.0)
    assert ((one.posterior >= 0) & (one.posterior <= 1)).all()
    np.testing.assert_allclose(np.asarray(one.responsibilities.sum(axis=1)).ravel(), 1.0)


def test_the_noise_model_gains_with_every_sweep() -> None:
    sources, _, _ = simulated(2)
    views = [compress(s) for s in sources]
    start = unit_rows(filled_svd(views, align(views, N, DIM), DIM))
    bound = np.array(fit_noise(views, start).bound)
    assert len(bound) > 5
    assert (np.diff(bound) > -1e-6 * N).all()


def test_better_than_svd_and_k_means_where_noise_has_directions() -> None:
    gains = []
    for seed in range(20):
        sources, concept, own = simulated(seed)
        ours, rival = fit(sources), svd_kmeans(sources, N, K, COLUMNS)
        left, right = np.flatnonzero(own <= 0.4), np.flatnonzero(own >= 0.6)
        left = left[np.isin(concept[left], concept[right])]
        truth = [set(np.flatnonzero(concept[right] == c).tolist()) for c in concept[left]]
        hits = [hits_at_k(e[left], e[right], truth, (5,))[5] for e in (ours.embedding, rival.embedding)]
        gains.append((ami(concept, ours.labels) - ami(concept, rival.labels), hits[0] - hits[1]))
    mean, error = np.mean(gains, axis=0), np.std(gains, axis=0, ddof=1) / np.sqrt(len(gains))
    assert (mean > 2 * error).all()


def test_a_cluster_for_every_code() -> None:
    sources, _, _ = simulated(0)
    found = fit_two_stage(sources, n_codes=N, n_clusters=N, dim=DIM)
    assert len(set(found.labels.tolist())) == N
    assert np.isfinite(found.kappa)


def test_a_code_has_no_say_in_its_own_membership() -> None:
    """A code that was put beside one stranger is judged by the stranger, not by a mean that is half itself."""
    rng = np.random.default_rng(0)
    tight = unit_rows(random_rows(rng, 1, 8) + 0.02 * rng.standard_normal((10, 8)))
    stranger = np.eye(8)[:1]
    labels = np.array([0] * 9 + [1, 1])
    responsibilities, posterior = membership(np.vstack([tight, stranger]), labels, 2, kappa=100.0)
    assert (posterior[:9] > 0.9).all()
    assert posterior[9] < 0.1
    assert responsibilities.toarray()[9, 0] > 0.9


def test_chosen_clusters_do_not_mix_categories():
    simulation = simulate_sites(1, n_concepts=40, dim=8, columns=16, kappa=120.0, noise=0.3)
    categories = simulation.labels % 2
    fit = fit_two_stage(
        simulation.sources,
        n_codes=simulation.n_codes,
        n_clusters=None,
        dim=8,
        categories=categories,
        candidates={0: [10, 20], 1: [15, 20]},
    )
    for cluster in np.unique(fit.labels):
        assert len(np.unique(categories[fit.labels == cluster])) == 1
    assert len(fit.centers) == fit.labels.max() + 1
