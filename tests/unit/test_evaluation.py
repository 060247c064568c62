"""Scores against hand-made cases and simulation."""

import numpy as np
import pytest

from coordinator import evaluation


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
