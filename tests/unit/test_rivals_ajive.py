"""AJIVE: its bounds against drawn ones, and the library that it must agree with."""

import sys
from types import ModuleType

import numpy as np
import pytest
from scipy import linalg

from coordinator.model.factor import Array
from coordinator.model.rivals import ajive, ajive_embedding, imputed_blocks
from tests.rivals import DIM, N, accuracy, noisy_sources


@pytest.fixture(scope="module")
def noisy():
    return noisy_sources()


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
