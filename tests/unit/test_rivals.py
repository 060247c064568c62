"""The rivals of SMILE: what every one must satisfy, and their clusterings."""

import numpy as np
import pytest
from scipy import linalg
from scipy.stats import ortho_group

from coordinator.evaluation import ami
from coordinator.model import Source, alignment
from coordinator.model.factor import compress
from coordinator.model.rivals import (
    CLUSTERINGS,
    EMBEDDINGS,
    fit_rival,
    imputed_blocks,
    oracle,
    spectral,
    svd_embedding,
    svd_kmeans,
    svd_linkage,
)
from protocol.errors import FitError
from tests.rivals import DIM, N, accuracy, cosines, noisy_sources, rotated_copies, unit


@pytest.fixture(scope="module")
def noisy():
    return noisy_sources()


@pytest.fixture(scope="module")
def found(noisy):
    return {name: embed(noisy.sources, N, DIM) for name, embed in EMBEDDINGS.items()}


@pytest.mark.parametrize("name", EMBEDDINGS)
class TestEveryEmbedding:
    def test_recovers_noise_free_data(self, name):
        truth = unit(np.random.default_rng(1), N, DIM)
        every = np.arange(N)
        sources = rotated_copies(truth, [every[:130], every[30:], every[::2]])
        assert accuracy(EMBEDDINGS[name](sources, N, DIM), truth) > 1.0 - 1e-6

    def test_gives_unit_rows_close_to_the_truth(self, name, noisy, found):
        points = found[name]
        assert points.shape == (N, DIM)
        np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1.0)
        shuffled = noisy.embedding[np.random.default_rng(0).permutation(N)]
        assert accuracy(points, noisy.embedding) > 0.6 > accuracy(points, shuffled) + 0.3

    def test_is_the_same_when_columns_are_rotated(self, name, noisy, found):
        turned = [
            Source(s.name, s.codes, s.matrix @ ortho_group.rvs(s.matrix.shape[1], random_state=7))
            for s in noisy.sources
        ]
        again = EMBEDDINGS[name](turned, N, DIM)
        np.testing.assert_allclose(cosines(again), cosines(found[name]), atol=1e-6)

    def test_is_the_same_in_any_order_of_codes(self, name, noisy, found):
        rng = np.random.default_rng(2)
        new = rng.permutation(N)
        moved = []
        for s in noisy.sources:
            rows = rng.permutation(len(s.codes))
            moved.append(Source(s.name, new[s.codes[rows]], s.matrix[rows]))
        again = EMBEDDINGS[name](moved, N, DIM)[new]
        np.testing.assert_allclose(cosines(again), cosines(found[name]), atol=1e-6)

    def test_is_the_same_in_any_order_of_sources(self, name, noisy, found):
        again = EMBEDDINGS[name](noisy.sources[::-1], N, DIM)
        np.testing.assert_allclose(cosines(again), cosines(found[name]), atol=1e-6)

    def test_takes_sources_joined_in_a_chain(self, name):
        truth = unit(np.random.default_rng(4), N, DIM)
        every = np.arange(N)
        sources = rotated_copies(truth, [every[:70], every[50:110], every[90:]])
        assert accuracy(EMBEDDINGS[name](sources, N, DIM), truth) > 1.0 - 1e-6

    def test_refuses_what_smile_refuses(self, name):
        embed = EMBEDDINGS[name]
        matrix = np.random.default_rng(0).standard_normal((20, 3))
        everything = Source("A", np.arange(20), matrix)
        with pytest.raises(FitError, match="no source"):
            embed([], 20, 3)
        with pytest.raises(FitError, match="in no source"):
            embed([everything], 21, 3)
        with pytest.raises(FitError, match="zero"):
            embed([Source("A", np.arange(20), 0.0 * matrix)], 20, 3)
        with pytest.raises(FitError, match="cannot be aligned"):
            embed([everything, Source("B", np.arange(20, 40), matrix)], 40, 3)
        with pytest.raises(FitError, match="the sources span"):
            embed([everything, everything], 20, 8)


class TestImputation:
    def test_keeps_rows_that_a_source_holds_and_fills_the_others(self, noisy):
        truth = unit(np.random.default_rng(1), N, DIM)
        sources = rotated_copies(truth, [np.arange(130), np.arange(30, N)])
        for source, block in zip(sources, imputed_blocks(sources, N, DIM), strict=True):
            assert block.shape == (N, source.matrix.shape[1])
            np.testing.assert_array_equal(block[source.codes], source.matrix)
            loading = np.linalg.lstsq(truth[source.codes], source.matrix)[0]
            np.testing.assert_allclose(block, truth @ loading, atol=1e-8)

    def test_svd_is_that_of_the_alignment_that_smile_starts_from(self, noisy, found):
        views = [compress(source) for source in noisy.sources]
        start = alignment.unit_rows(alignment.filled_svd(views, alignment.align(views, N, DIM), DIM))
        np.testing.assert_allclose(cosines(found["SVD"]), cosines(start), atol=1e-6)


class TestSpectral:
    @pytest.mark.parametrize("shape", [(60, 25), (25, 60)])
    @pytest.mark.parametrize("largest_gram", [4000, 5], ids=["exact", "randomised"])
    def test_truncated_svd_is_that_of_lapack(self, shape, largest_gram, monkeypatch):
        monkeypatch.setattr(spectral, "_LARGEST_GRAM", largest_gram)
        rng = np.random.default_rng(0)
        matrix = rng.standard_normal((shape[0], 5)) @ rng.standard_normal((5, shape[1]))
        matrix += 0.01 * rng.standard_normal(shape)
        svd = spectral.truncated_svd(matrix, 5)
        left, singular, right = linalg.svd(matrix)
        np.testing.assert_allclose(svd.singular, singular[:5])
        np.testing.assert_allclose(
            svd.scores @ svd.right.T, left[:, :5] * singular[:5] @ right[:5], atol=1e-8
        )

    def test_truncated_svd_leaves_out_what_is_only_rounding(self):
        rng = np.random.default_rng(0)
        matrix = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 10))
        svd = spectral.truncated_svd(matrix, 7)
        assert len(svd.singular) == 3
        np.testing.assert_allclose(svd.scores @ svd.right.T, matrix)

    @pytest.mark.parametrize("size", [12, 90], ids=["dense", "Lanczos"])
    def test_leading_eigenvectors_are_those_of_lapack(self, size):
        half = np.random.default_rng(0).standard_normal((size, size))
        matrix = half + half.T
        found = spectral.leading_eigenvectors(lambda v: matrix @ v, size, 4)
        value, vector = linalg.eigh(matrix)
        expected = vector[:, -4:] * value[-4:] @ vector[:, -4:].T
        np.testing.assert_allclose(found @ found.T, expected, atol=1e-8)


class TestClusterings:
    def test_oracle_knows_well_separated_clusters(self):
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(5), 20)
        points = alignment.unit_rows(np.eye(6)[labels] + 0.02 * rng.standard_normal((100, 6)))
        for method in CLUSTERINGS:
            fit = oracle(points, 5, method, seed=1)
            assert ami(labels, fit.labels) == pytest.approx(1.0)
            np.testing.assert_allclose(fit.embedding, points)

    @pytest.mark.parametrize("method", CLUSTERINGS)
    def test_as_many_clusters_as_codes_is_each_its_own(self, method):
        points = unit(np.random.default_rng(0), 7, 3)
        assert len(set(CLUSTERINGS[method](points, 9, 0).tolist())) == 7

    def test_named_fits_are_their_two_halves(self, noisy):
        points = svd_embedding(noisy.sources, N, DIM)
        for fit, method in [
            (svd_kmeans(noisy.sources, N, 12, DIM, 3), "k-means"),
            (svd_linkage(noisy.sources, N, 12, DIM), "average linkage"),
            (
                fit_rival(noisy.sources, N, 12, DIM, clustering="spherical k-means", seed=3),
                "spherical k-means",
            ),
        ]:
            np.testing.assert_array_equal(fit.embedding, points)
            np.testing.assert_array_equal(fit.labels, CLUSTERINGS[method](points, 12, 3))
