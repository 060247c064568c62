"""Scores against hand-made cases and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ortho_group, spearmanr
from sklearn.metrics import roc_auc_score

from coordinator import evaluation
from tests.synthetic import unit_rows

SEEDS = st.integers(0, 2**32 - 1)
# Few distinct values, so that ties are common.
SCORES = arrays(np.float64, st.integers(1, 25), elements=st.integers(-4, 4).map(float))


def test_ami_does_not_see_names():
    truth = [0, 0, 1, 1, 2, 2]
    assert evaluation.ami(truth, [5, 5, 3, 3, 9, 9]) == pytest.approx(1.0)
    assert evaluation.ami(truth, [0, 1, 0, 1, 0, 1]) < 0.1


def test_ranks_hits_and_mrr_of_a_hand_made_case():
    candidates = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]])
    queries = np.array([[2.0, 0.1], [0.1, 3.0], [-1.0, 0.1]])
    truth = [0, {0, 1}, [2]]
    assert evaluation.ranks(queries, candidates, truth).tolist() == [1, 2, 2]
    assert evaluation.hits_at_k(queries, candidates, truth, ks=(1, 2)) == {1: pytest.approx(1 / 3), 2: 1.0}
    assert evaluation.mrr(queries, candidates, truth) == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_a_method_that_cannot_tell_candidates_apart_scores_nothing():
    assert evaluation.ranks(np.ones((1, 2)), np.ones((7, 2)), [3]).tolist() == [7]


@pytest.mark.parametrize("truth", [[0], [0, set()]])
def test_queries_without_truth_are_refused(truth):
    with pytest.raises(ValueError, match=r"truths|right candidate"):
        evaluation.ranks(np.ones((2, 2)), np.ones((3, 2)), truth)


def test_chance_is_what_random_vectors_reach():
    rng = np.random.default_rng(0)
    n, right = 40, [{0}, {1, 2, 3}]
    expected = evaluation.chance_hits(n, [len(r) for r in right], ks=(1, 5, 40))
    assert expected[1] == pytest.approx((1 / 40 + 3 / 40) / 2)
    assert expected[40] == pytest.approx(1.0)
    found = [
        evaluation.hits_at_k(rng.standard_normal((2, 6)), rng.standard_normal((n, 6)), right, ks=(5,))[5]
        for _ in range(1500)
    ]
    assert np.mean(found) == pytest.approx(expected[5], abs=4 * np.std(found) / np.sqrt(1500))


def test_chance_is_certain_when_fewer_than_k_are_wrong():
    assert evaluation.chance_hits(5, [3], ks=(3,))[3] == pytest.approx(1.0)


def test_bootstrap_interval_covers_the_mean_at_its_rate():
    rng = np.random.default_rng(0)
    covered = 0
    for draw in range(200):
        low, high = evaluation.bootstrap_interval(rng.random(60) < 0.3, draws=300, seed=draw)
        covered += low <= 0.3 <= high
    assert covered / 200 == pytest.approx(0.95, abs=0.05)


def test_mean_and_error():
    estimate = evaluation.mean_and_error([1.0, 2.0, 3.0])
    assert (estimate.mean, estimate.error) == (2.0, pytest.approx(1 / np.sqrt(3)))
    assert str(estimate) == "2.000 ± 0.577"
    assert np.isnan(evaluation.mean_and_error([1.0]).error)


@given(SEEDS, st.integers(2, 6), st.integers(7, 40))
@settings(max_examples=40, deadline=None)
def test_accuracy_does_not_see_a_rotation_of_what_was_found(seed: int, dim: int, n: int):
    rng = np.random.default_rng(seed)
    truth = unit_rows(rng, n, dim)
    found = truth + 0.3 * rng.standard_normal(truth.shape)
    turned = found @ ortho_group.rvs(dim, random_state=seed % 1000)
    assert evaluation.accuracy(turned, truth) == pytest.approx(evaluation.accuracy(found, truth), abs=1e-9)
    assert evaluation.accuracy(truth @ ortho_group.rvs(dim, random_state=1), truth) == pytest.approx(1.0)


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_no_rotation_beats_the_one_that_is_chosen(seed: int):
    rng = np.random.default_rng(seed)
    found, truth = unit_rows(rng, 20, 4), unit_rows(rng, 20, 4)
    best = evaluation.accuracy(found, truth)
    turn = evaluation.rotation(found, truth)
    assert turn @ turn.T == pytest.approx(np.eye(4), abs=1e-9)
    assert best == pytest.approx(evaluation.accuracy(found, truth, turn))
    assert best >= evaluation.accuracy(found, truth, ortho_group.rvs(4, random_state=seed % 1000)) - 1e-12
    assert best >= evaluation.accuracy(found, truth, np.eye(4)) - 1e-12


@given(SEEDS, st.integers(1, 12), st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_accuracy_of_centers_does_not_see_their_order(seed: int, n: int, more: int):
    rng = np.random.default_rng(seed)
    truth, turn = unit_rows(rng, n, 5), ortho_group.rvs(5, random_state=seed % 1000)
    found = (truth + 0.2 * rng.standard_normal(truth.shape)) @ turn.T
    first = evaluation.center_accuracy(found, truth, turn)
    order = rng.permutation(n)
    assert evaluation.center_accuracy(found[order], truth, turn) == pytest.approx(first)
    assert evaluation.center_accuracy(found, truth[order], turn) == pytest.approx(first)
    exact = np.vstack([truth @ turn.T, unit_rows(rng, more, 5)])
    assert evaluation.center_accuracy(exact[rng.permutation(n + more)], truth, turn) == pytest.approx(1.0)


def test_a_center_that_was_not_found_counts_as_zero():
    truth = np.eye(4)
    found = truth[:3]
    assert evaluation.center_accuracy(found, truth, np.eye(4)) == pytest.approx(1.0 - np.sqrt(1 / 4))


@given(SCORES, SCORES)
@settings(max_examples=80, deadline=None)
def test_auc_and_its_laws(positive: np.ndarray, negative: np.ndarray):
    value = evaluation.auc(positive, negative)
    labels = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    assert value == pytest.approx(roc_auc_score(labels, np.r_[positive, negative]))
    assert evaluation.auc(np.exp(positive), np.exp(negative)) == pytest.approx(value)
    assert evaluation.auc(negative, positive) == pytest.approx(1.0 - value)
    assert [side.mean() for side in evaluation.placements(positive, negative)] == pytest.approx([value] * 2)


@pytest.mark.parametrize(("positive", "negative"), [([], [1.0]), ([1.0], [])])
def test_auc_needs_both_sides(positive: list[float], negative: list[float]):
    with pytest.raises(ValueError, match="no AUC"):
        evaluation.auc(positive, negative)


@given(SCORES, SEEDS)
@settings(max_examples=40, deadline=None)
def test_rank_correlation(x: np.ndarray, seed: int):
    y = np.random.default_rng(seed).standard_normal(len(x))
    value = evaluation.rank_correlation(x, y)
    if len(np.unique(x)) == 1 or len(x) == 1:
        assert np.isnan(value)
    else:
        assert value == pytest.approx(spearmanr(x, y).statistic)
        assert evaluation.rank_correlation(np.exp(x), 3 * y - 1) == pytest.approx(value)


@pytest.mark.parametrize(("n", "right"), [(1, [1]), (7, [1, 1]), (12, [3, 1]), (5, [5])])
def test_chance_mrr_is_the_mean_over_random_rankings(n: int, right: list[int]):
    rng = np.random.default_rng(0)
    found = [
        np.mean([1 / (1 + np.flatnonzero(rng.permutation(n) < t)[0]) for t in right]) for _ in range(4000)
    ]
    expected = evaluation.chance_mrr(n, right)
    assert expected == pytest.approx(np.mean(found), abs=4 * np.std(found) / np.sqrt(4000) + 1e-12)


def test_intervals_cover_at_their_rate():
    rng = np.random.default_rng(0)
    truth = {"auc": 0.7602, "mean": 0.5, "correlation": 0.0}  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    covered = dict.fromkeys(truth, 0)
    for draw in range(100):
        x, y = rng.random(60), rng.random(60)
        intervals = {
            "auc": evaluation.auc_interval(
                1 + rng.standard_normal(40), rng.standard_normal(60), draws=200, seed=draw
            ),
            "mean": evaluation.mean_interval(x, seed=draw),
            "correlation": evaluation.bootstrap(
                lambda units, x=x, y=y: evaluation.rank_correlation(x[units], y[units]),
                60,
                draws=200,
                seed=draw,
            ),
        }
        for name, interval in intervals.items():
            covered[name] += interval.low <= truth[name] <= interval.high
            assert interval.low <= interval.value <= interval.high
    assert {name: count / 100 for name, count in covered.items()} == pytest.approx(
        dict.fromkeys(truth, 0.95), abs=0.07
    )


def test_random_halves_give_a_means_standard_error():
    x = np.random.default_rng(0).standard_normal(400)
    halves = evaluation.random_halves(lambda units: float(x[units].mean()), 400, draws=2000)
    assert halves.value == pytest.approx(x.mean())
    assert halves.error == pytest.approx(x.std() / np.sqrt(400), rel=0.1)
    assert halves.low < halves.value < halves.high
