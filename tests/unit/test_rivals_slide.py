"""SLIDE: the structure that made the data, and fits that keep to a structure."""

import numpy as np
import pytest
from scipy import linalg

from coordinator.model import alignment
from coordinator.model.factor import Array
from coordinator.model.rivals import imputed_blocks, slide, slide_embedding, spectral
from tests.rivals import DIM, N, cosines, noisy_sources


@pytest.fixture(scope="module")
def noisy():
    return noisy_sources()


class TestSlide:
    @pytest.fixture
    def blocks(self) -> list[Array]:
        """One component of all three views, one of the first two, one of the last alone, and noise."""
        rng = np.random.default_rng(0)
        scores = np.linalg.qr(rng.standard_normal((120, 3)))[0]
        blocks = []
        for s, columns in enumerate((20, 25, 30)):
            mask = np.array([1.0, s < 2, s == 2])
            loading = np.linalg.qr(rng.standard_normal((columns, 3)))[0] * mask * np.array([3.0, 2.0, 1.5])
            blocks.append(scores @ loading.T + 0.01 * rng.standard_normal((120, columns)))
        return slide.standardised(blocks)

    def test_finds_the_structure_that_made_the_data(self, blocks):
        candidates = slide.candidate_structures(blocks, 9)
        found = slide.choose_structure(blocks, candidates)
        columns = sorted(tuple(column) for column in found.T.tolist())
        assert columns == sorted([(True, True, True), (True, True, False), (False, False, True)])

    def test_path_goes_from_sparse_to_full(self, blocks):
        candidates = slide.candidate_structures(blocks, 9)
        assert len(candidates) > 1
        assert candidates[0].sum() < candidates[-1].sum()
        assert all(c.any(axis=0).all() for c in candidates)

    def test_fit_keeps_to_the_structure_and_beats_a_masked_svd(self, blocks):
        structure = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1]], dtype=bool)
        fitted = slide.fit(blocks, structure)
        np.testing.assert_allclose(fitted.scores.T @ fitted.scores, np.eye(3), atol=1e-8)
        matrix = np.hstack(blocks)
        mask = np.repeat(structure, [block.shape[1] for block in blocks], axis=0)
        assert not fitted.loadings[~mask].any()
        start = linalg.svd(matrix)[0][:, :3]
        masked = np.linalg.norm(matrix - start @ np.where(mask, matrix.T @ start, 0.0).T)
        residual = np.linalg.norm(matrix - fitted.scores @ fitted.loadings.T)
        assert residual < masked
        noise = np.sqrt(
            sum(np.linalg.norm(b - b @ _top(b, k)) ** 2 for b, k in zip(blocks, (2, 2, 2), strict=True))
        )
        assert residual < 1.1 * noise

    def test_structure_can_be_given(self, noisy):
        everything = np.ones((3, DIM), dtype=bool)
        blocks = slide.standardised(imputed_blocks(noisy.sources, N, DIM))
        expected = alignment.unit_rows(spectral.truncated_svd(np.hstack(blocks), DIM).scores)
        points = slide_embedding(noisy.sources, N, DIM, structure=everything)
        np.testing.assert_allclose(cosines(points), cosines(expected), atol=1e-6)

    def test_fewer_components_than_dimensions_are_completed(self, noisy):
        points = slide_embedding(noisy.sources, N, DIM, structure=np.ones((3, 2), dtype=bool))
        assert np.linalg.matrix_rank(points) == DIM


def _top(block: Array, rank: int) -> Array:
    right = linalg.svd(block)[2][:rank]
    return right.T @ right
