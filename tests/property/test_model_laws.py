"""Laws of the SMILE fit: what must not change it, and what holds of every fit."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from coordinator.model import Source, fit_smile
from coordinator.simulation.generate import simulate_sites

SIMULATION = simulate_sites(3, n_concepts=40, dim=6, columns=12, kappa=150.0, noise=0.3, shared=0.4)
N, K = SIMULATION.n_codes, SIMULATION.n_clusters
RULES = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _fit(sources, prior=None):
    return fit_smile(sources, n_codes=N, n_clusters=K, dim=6, prior=prior, starts=("average",))


@pytest.fixture(scope="module")
def reference():
    return _fit(SIMULATION.sources)


def _same(fit, reference, order=None):
    order = np.arange(N) if order is None else order
    gram, wanted = fit.embedding @ fit.embedding.T, reference.embedding @ reference.embedding.T
    np.testing.assert_allclose(gram[np.ix_(order, order)], wanted, atol=1e-5)
    together = fit.labels[order][:, None] == fit.labels[order]
    np.testing.assert_array_equal(together, reference.labels[:, None] == reference.labels)
    assert fit.kappa == pytest.approx(reference.kappa, rel=1e-5)
    assert fit.history[-1] == pytest.approx(reference.history[-1], rel=1e-8)


@RULES
@given(seed=st.integers(0, 10_000))
def test_a_rotation_of_each_sources_columns_changes_nothing(reference, seed):
    rng = np.random.default_rng(seed)
    turned = [
        Source(s.name, s.codes, s.matrix @ np.linalg.qr(rng.standard_normal((12, 12)))[0])
        for s in SIMULATION.sources
    ]
    _same(_fit(turned), reference)


@RULES
@given(seed=st.integers(0, 10_000))
def test_the_order_of_codes_rows_and_sources_changes_nothing(reference, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(N)
    moved = []
    for s in rng.permutation(len(SIMULATION.sources)):
        source = SIMULATION.sources[s]
        rows = rng.permutation(len(source.codes))
        moved.append(Source(source.name, order[source.codes[rows]], source.matrix[rows]))
    _same(_fit(moved), reference, order)


@RULES
@given(seed=st.integers(0, 10_000))
def test_renaming_clusters_renames_the_answer(seed):
    rng = np.random.default_rng(seed)
    prior = np.full((N, K), 1.0 / K)
    anchors = rng.choice(N, size=N // 3, replace=False)
    prior[anchors] = np.eye(K)[SIMULATION.labels[anchors]]
    name = rng.permutation(K)
    plain = _fit(SIMULATION.sources, csr_array(prior))
    renamed = _fit(SIMULATION.sources, csr_array(prior[:, np.argsort(name)]))
    _same(renamed, plain)
    np.testing.assert_array_equal(renamed.labels[anchors], name[plain.labels[anchors]])


@RULES
@given(
    seed=st.integers(0, 10_000),
    clusters=st.integers(1, 60),
    noise=st.floats(0.05, 3.0),
    shared=st.floats(0.2, 0.9),
)
def test_every_fit_keeps_its_promises(seed, clusters, noise, shared):
    simulation = simulate_sites(seed, n_concepts=30, dim=5, columns=8, kappa=40.0, noise=noise, shared=shared)
    n = simulation.n_codes
    options = {"n_codes": n, "n_clusters": min(clusters, n), "dim": 5, "seed": seed}
    fit = fit_smile(simulation.sources, **options)
    np.testing.assert_allclose(np.linalg.norm(fit.embedding, axis=1), 1.0)
    np.testing.assert_allclose(np.linalg.norm(fit.centers, axis=1), 1.0)
    assert ((fit.posterior > 0.0) & (fit.posterior <= 1.0 + 1e-12)).all()
    np.testing.assert_allclose(fit.responsibilities.sum(axis=1), 1.0)
    assert np.diff(fit.history).min(initial=0.0) >= -1e-9 * abs(fit.history[-1])
    assert all(s2 > 0.0 for s2 in fit.noise)
    again = fit_smile(simulation.sources, **options)
    np.testing.assert_array_equal(again.embedding, fit.embedding)
    np.testing.assert_array_equal(again.labels, fit.labels)
