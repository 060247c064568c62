"""The rivals of SMILE: what they must satisfy, and the libraries that they must agree with."""

import sys
from itertools import combinations
from types import ModuleType

import numpy as np
import pytest
from scipy import linalg
from scipy.stats import ortho_group

from coordinator.evaluation import ami
from coordinator.model import Source, alignment
from coordinator.model.factor import Array, compress
from coordinator.model.rivals import (
    CLUSTERINGS,
    EMBEDDINGS,
    ajive,
    ajive_embedding,
    bonmi,
    bonmi_embedding,
    fit_rival,
    imputed_blocks,
    oracle,
    procrustes_embedding,
    slide,
    slide_embedding,
    spectral,
    svd_embedding,
    svd_kmeans,
    svd_linkage,
)
from coordinator.simulation.generate import simulate_paper
from protocol.errors import FitError

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


@pytest.fixture(scope="module")
def noisy():
    return simulate_paper(3, n_codes=N, dim=DIM, n_clusters=12, columns=20)


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


def views_with_joint_part(seed: int, n: int = 200) -> list[Array]:
    """Three views: 3 joint directions, 2 of each view's own, and noise."""
    rng = np.random.default_rng(seed)
    joint = rng.standard_normal((n, 3))
    blocks = []
    for columns in (40, 30, 50):
        signal = joint @ rng.standard_normal((3, columns)) + rng.standard_normal(
            (n, 2)
        ) @ rng.standard_normal((2, columns))
        block = signal + 0.5 * rng.standard_normal((n, columns))
        blocks.append(block - block.mean(axis=0))
    return blocks


class TestAjive:
    @pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # its np.bmat
    def test_agrees_with_mvlearn(self, monkeypatch):
        if "seaborn" not in sys.modules:
            # mvlearn imports it for its plots, which nothing here draws.
            monkeypatch.setitem(sys.modules, "seaborn", ModuleType("seaborn"))
        library = pytest.importorskip("mvlearn.decomposition", reason="pip install --no-deps mvlearn==0.5.0")
        blocks = views_with_joint_part(0)
        theirs = library.AJIVE(
            init_signal_ranks=[5, 5, 5], n_wedin_samples=300, n_randdir_samples=300, random_state=0
        ).fit(blocks)
        ours = ajive.decompose(blocks, [5, 5, 5], resamples=4000)
        assert ours.joint.shape[1] == theirs.joint_rank_ == 3
        np.testing.assert_allclose(
            ours.joint @ ours.joint.T, theirs.joint_scores_ @ theirs.joint_scores_.T, atol=1e-8
        )
        np.testing.assert_allclose(ours.squares[:10], theirs.all_joint_svals_[:10] ** 2, rtol=1e-6)
        # Percentiles of 300 draws of theirs, against the 4,000 of ours.
        assert ours.wedin == pytest.approx(theirs.wedin_cutoff_, abs=2e-3)
        assert ours.random == pytest.approx(theirs.rand_cutoff_, abs=0.03)

    @pytest.mark.parametrize(("n", "ranks"), [(50, [3, 5]), (12, [6, 9])], ids=["wide space", "narrow space"])
    def test_random_directions_are_those_of_drawn_bases(self, n, ranks):
        rng = np.random.default_rng(0)
        drawn = []
        for _ in range(2000):
            bases = [np.linalg.qr(rng.standard_normal((n, r)))[0] for r in ranks]
            drawn.append(np.linalg.norm(np.hstack(bases), ord=2) ** 2)
        ours = ajive.random_directions(n, ranks, 2000, rng)
        np.testing.assert_allclose(
            np.quantile(ours, [0.1, 0.5, 0.9]), np.quantile(drawn, [0.1, 0.5, 0.9]), rtol=0.03
        )

    @pytest.mark.parametrize("shape", [(60, 20), (20, 60), (25, 25)])
    def test_wedin_bounds_are_those_of_drawn_noise_directions(self, shape):
        rng = np.random.default_rng(1)
        rank = 3
        block = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
        block += 0.4 * rng.standard_normal(shape)
        left, singular, right = linalg.svd(block, full_matrices=False)

        def beside(basis: Array, matrix: Array) -> float:
            vectors = rng.standard_normal(basis.shape)
            vectors -= basis @ (basis.T @ vectors)
            return float(np.linalg.norm(matrix @ np.linalg.qr(vectors)[0], ord=2))

        drawn = [
            1.0
            - min(
                1.0, max(beside(left[:, :rank], block.T), beside(right[:rank].T, block)) / singular[rank - 1]
            )
            ** 2
            for _ in range(2000)
        ]
        ours = ajive.wedin_bounds([block], [rank], 2000, rng)
        np.testing.assert_allclose(
            np.quantile(ours, [0.1, 0.5, 0.9]), np.quantile(drawn, [0.1, 0.5, 0.9]), atol=0.02
        )

    def test_initial_ranks_can_be_chosen(self):
        assert [ajive.chosen_rank(block) for block in views_with_joint_part(2)] == [5, 5, 5]

    def test_fewer_joint_directions_than_dimensions_are_completed(self, noisy):
        assert ajive.decompose(
            imputed_blocks(noisy.sources, N, DIM), [DIM] * 3, joint_rank=2
        ).joint.shape == (N, 2)
        points = ajive_embedding(noisy.sources, N, DIM, joint_rank=2)
        assert np.linalg.matrix_rank(points) == DIM
        assert accuracy(points, noisy.embedding) > 0.6

    def test_sources_with_nothing_in_common_have_no_joint_direction(self):
        rng = np.random.default_rng(3)
        blocks = [rng.standard_normal((100, 2)) @ rng.standard_normal((2, 20)) for _ in range(3)]
        blocks = [block + 0.3 * rng.standard_normal(block.shape) for block in blocks]
        assert ajive.decompose(blocks, [2, 2, 2], resamples=200).joint.shape == (100, 0)


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
