"""Rivals that take overlapping sources as they are: BONMI written out, and generalised Procrustes."""

from itertools import combinations

import numpy as np
import pytest
from scipy import linalg
from scipy.stats import ortho_group

from coordinator.model import Source, alignment
from coordinator.model.factor import Array
from coordinator.model.rivals import bonmi, bonmi_embedding, procrustes_embedding, spectral
from tests.rivals import DIM, N, cosines, noisy_sources


@pytest.fixture(scope="module")
def noisy():
    return noisy_sources()


@pytest.fixture(scope="module")
def found(noisy):
    return {"BONMI": bonmi_embedding(noisy.sources, N, DIM)}


def dense_bonmi(matrices: list[Array], codes: list[np.ndarray], n: int, dim: int) -> Array:
    """BONMI as it is published, with every block written out; each two sources share at least dim codes."""
    total, weight = np.zeros((n, n)), np.zeros((n, n))
    for matrix, own in zip(matrices, codes, strict=True):
        gram = matrix @ matrix.T
        value = np.linalg.eigvalsh(gram)[::-1]
        inverse_noise = len(own) ** 2 / np.sum(value[dim:] ** 2)
        total[np.ix_(own, own)] += inverse_noise * gram
        weight[np.ix_(own, own)] += inverse_noise
    whole = total / np.where(weight > 0.0, weight, 1.0)
    embedded = []
    for own in codes:
        value, vector = linalg.eigh(whole[np.ix_(own, own)])
        embedded.append(vector[:, -dim:] * np.sqrt(value[-dim:]))
    filled, count = np.zeros((n, n)), np.zeros((n, n))
    for s, t in combinations(range(len(codes)), 2):
        both, in_s, in_t = np.intersect1d(codes[s], codes[t], return_indices=True)
        left, _, right = linalg.svd(embedded[s][in_s].T @ embedded[t][in_t])
        block = embedded[s] @ left @ right @ embedded[t].T
        only_s, only_t = ~np.isin(codes[s], both), ~np.isin(codes[t], both)
        place = np.ix_(codes[s][only_s], codes[t][only_t])
        filled[place] += block[np.ix_(only_s, only_t)]
        count[place] += 1.0
    filled, count = filled + filled.T, count + count.T
    whole = np.where(weight > 0.0, whole, filled / np.maximum(count, 1.0))
    value, vector = linalg.eigh(whole)
    return np.asarray(vector[:, -dim:] * np.sqrt(value[-dim:]))


class TestBonmi:
    def test_is_the_published_algorithm(self):
        rng = np.random.default_rng(0)
        every = np.arange(N)
        codes = [rng.permutation(every[:90]), rng.permutation(every[40:120]), np.r_[every[:20], every[60:]]]
        truth = rng.standard_normal((N, 3))
        matrices = [
            truth[own] @ rng.standard_normal((3, 15)) + 0.2 * rng.standard_normal((len(own), 15))
            for own in codes
        ]
        spare = [np.zeros((len(own), 3)) for own in codes]
        found = bonmi.complete(matrices, codes, N, 3, spare)
        expected = dense_bonmi(matrices, codes, N, 3)
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-8)

    def test_scale_of_a_source_does_not_matter(self, noisy, found):
        scaled = [Source(s.name, s.codes, 7.0**i * s.matrix) for i, s in enumerate(noisy.sources)]
        np.testing.assert_allclose(
            cosines(bonmi_embedding(scaled, N, DIM)), cosines(found["BONMI"]), atol=1e-6
        )


class TestGeneralisedProcrustes:
    @staticmethod
    def complete_views(seed: int) -> list[Array]:
        rng = np.random.default_rng(seed)
        shape = rng.standard_normal((60, 3)) * np.array([3.0, 2.0, 1.0])
        views = [
            shape @ ortho_group.rvs(3, random_state=rng) + 0.5 * rng.standard_normal(shape.shape)
            for _ in range(4)
        ]
        return [view * np.sqrt(60.0) / np.linalg.norm(view) for view in views]

    def test_agrees_with_qc_procrustes(self):
        library = pytest.importorskip("procrustes", reason="pip install --no-deps qc-procrustes==1.1.3")
        views = self.complete_views(0)
        aligned, _ = library.generalized(views, tol=1e-14, n_iter=2000)
        expected = alignment.unit_rows(np.mean(aligned, axis=0))
        sources = [Source(f"view {s}", np.arange(60), view) for s, view in enumerate(views)]
        np.testing.assert_allclose(
            cosines(procrustes_embedding(sources, 60, 3)), cosines(expected), atol=1e-5
        )

    def test_is_the_fixed_point_of_rotating_to_the_mean_where_codes_are_missing(self):
        views = self.complete_views(1)
        held = [np.arange(60), np.arange(45), np.arange(15, 60), np.r_[:20, 30:60]]
        sources = []
        for s, codes in enumerate(held):
            rows = views[s][codes]
            sources.append(Source(f"view {s}", codes, rows * np.sqrt(len(codes)) / np.linalg.norm(rows)))
        consensus = views[0]
        for _ in range(3000):
            total, weight = np.zeros((60, 3)), np.zeros((60, 1))
            for source in sources:
                total[source.codes] += source.matrix @ spectral.rotation(
                    source.matrix, consensus[source.codes]
                )
                weight[source.codes] += 1.0
            consensus = total / weight
        found = procrustes_embedding(sources, 60, 3, tolerance=1e-14)
        np.testing.assert_allclose(cosines(found), cosines(alignment.unit_rows(consensus)), atol=1e-5)
