"""Weak pairs, ranking and self-training on small made-up sites whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.linking import gather, self_train
from coordinator.model import Source
from coordinator.model.alignment import unit_rows
from coordinator.ranking import (
    DEFAULT_WEIGHTS,
    LEAST,
    Fusion,
    csls,
    default_fusion,
    learn_fusion,
    profile,
    profile_likeness,
    support_ratio,
)
from coordinator.weak_pairs import (
    graph_matching,
    join,
    latent,
    lexical_matches,
    mutual_matches,
    same_meaning,
    soft_matching,
)

N, DIM = 120, 5


def sites(
    anchors: int, noise: float = 0.3, seed: int = 0
) -> tuple[list[Source], np.ndarray, list[np.ndarray]]:
    """Two sites that hold the same N meanings, the second under other names but for its first `anchors` codes.

    Returns:
        the sources, the row of each meaning at the second site, and each site's shares of patients.
    """
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((N, DIM)) * np.linspace(2.0, 0.7, DIM)
    other = np.concatenate([np.arange(anchors), N + np.arange(N - anchors)])
    found = [
        Source(name, codes, truth @ rng.standard_normal((DIM, 12)) + noise * rng.standard_normal((N, 12)))
        for name, codes in (("a", np.arange(N)), ("b", other))
    ]
    share = np.exp(rng.normal(-4.0, 1.0, N))
    return found, other, [share, share * np.exp(rng.normal(0.0, 0.1, N))]


def linked(anchors: int, rounds: int, seed: int = 0, noise: float = 0.3) -> float:
    """Share of unanchored codes of the second site whose first target is right."""
    data, other, share = sites(anchors, noise, seed)
    n_rows = 2 * N - anchors
    clues = gather(data, n_rows, np.arange(N), share)
    result = self_train(
        data, n_rows, clues, DIM, default_fusion(("latent", "support", "profile")), rounds=rounds
    )
    order = clues.local[:, None] == other[None, anchors:]
    right = order.argmax(axis=1) + anchors
    return float(np.mean(clues.standard[result.score.argmax(axis=1)] == right))


def test_self_training_beats_the_anchors_alone() -> None:
    gains = [linked(8, 6, seed, 1.0) - linked(8, 1, seed, 1.0) for seed in range(4)]
    assert np.mean(gains) > 0.05


def test_without_any_anchor_most_codes_are_found_by_support_profile_and_graph() -> None:
    assert np.mean([linked(0, 6, seed) for seed in range(3)]) > 0.5


def test_a_wrong_weak_pair_does_not_merge_its_codes() -> None:
    data, other, _ = sites(40)
    joined = join(2 * N - 40, np.array([[other[50], 60]]))
    found = latent(data, joined, DIM)
    points = found.vectors()
    assert joined[other[50]] == joined[60]
    assert points[other[50]] @ points[50] > points[other[50]] @ points[60]


def test_evidence_of_a_row_that_does_not_speak_is_not_heard() -> None:
    data, _, _ = sites(40)
    heard = [np.ones(N, dtype=bool), np.ones(N, dtype=bool)]
    heard[1][:40] = False
    whole, part = (latent(data, np.arange(2 * N - 40), DIM, s) for s in (None, heard))
    assert not np.allclose(whole.evidence[:40], part.evidence[:40])
    assert np.allclose(whole.evidence[40:], part.evidence[40:])


def test_same_meaning_is_the_log_likelihood_ratio_of_the_model() -> None:
    """Against the Gaussian densities themselves: x_i and x_j of one u against two."""
    from scipy.stats import multivariate_normal

    from coordinator.weak_pairs import Latent

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 2)), rng.standard_normal((3, 2))
    x, y = rng.standard_normal(4), rng.standard_normal(3)
    found = Latent(
        np.stack([a.T @ x, b.T @ y]), np.stack([a.T @ a, b.T @ b]), np.array([0, 1]), (), (), (), ()
    )
    both = np.vstack([a, b])
    one = multivariate_normal(np.zeros(7), both @ both.T + np.eye(7)).logpdf(np.r_[x, y])
    two = multivariate_normal(np.zeros(4), a @ a.T + np.eye(4)).logpdf(x)
    two += multivariate_normal(np.zeros(3), b @ b.T + np.eye(3)).logpdf(y)
    assert same_meaning(found, np.array([0]), np.array([1]))[0, 0] == pytest.approx(one - two)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
def test_a_soft_matching_uses_no_row_and_no_column_more_than_once(n: int, m: int, seed: int) -> None:
    score = np.random.default_rng(seed).normal(0.0, 10.0, (n, m))
    found = soft_matching(score)
    assert (found >= 0).all()
    # The last sweep scales columns; rows follow up to what is left of convergence.
    assert found.sum(axis=0).max() <= 1 + 1e-9
    assert np.allclose(soft_matching(score[::-1]), found[::-1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**31))
def test_mutual_matches_are_one_to_one_and_symmetric(n: int, m: int, seed: int) -> None:
    score = np.random.default_rng(seed).random((n, m))
    found = mutual_matches(score, 0.2)
    assert len(set(found[:, 0])) == len(set(found[:, 1])) == len(found)
    turned = mutual_matches(score.T, 0.2)[:, ::-1]
    assert {tuple(p) for p in found} == {tuple(p) for p in turned}


def test_lexical_matches_leave_out_codes_without_a_description() -> None:
    one = np.array([[1.0, 0.0], [0.0, 0.0], [0.6, 0.8]])
    other = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 0.1]])
    assert lexical_matches(one, other).tolist() == [[0, 2], [2, 0]]
    assert lexical_matches(one, other, 0.9).tolist() == [[0, 2]]


def test_csls_lowers_a_hub() -> None:
    cosine = np.array([[0.8, 0.81, 0.1], [0.1, 0.8, 0.2], [0.2, 0.8, 0.1]])
    assert cosine[0].argmax() == 1
    assert csls(cosine, 2)[0].argmax() == 0


def test_a_profile_does_not_see_rotation_or_order() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((30, 6))
    turn, order = np.linalg.qr(rng.standard_normal((6, 6)))[0], rng.permutation(30)
    assert np.allclose(profile(matrix @ turn)[order], profile(matrix[order]), atol=1e-6)
    likeness = profile_likeness(profile(matrix), profile(matrix @ turn))
    assert (likeness.argmax(axis=1) == np.arange(30)).all()


def test_support_says_less_where_known_codes_differ_more() -> None:
    one, other = np.log([0.1, 0.01, 0.001]), np.log([0.1, 0.011, 0.002])
    nothing = np.zeros((3, 3))
    sure = support_ratio(one, other, np.array([0.01, -0.02]), nothing)
    vague = support_ratio(one, other, np.array([2.0, -3.0]), nothing)
    assert np.ptp(sure[0]) > 3 * np.ptp(vague[0])


def test_graph_matching_finds_a_renumbered_graph_from_a_weak_start() -> None:
    rng = np.random.default_rng(0)
    matrix = unit_rows(rng.standard_normal((40, 8)))
    order = rng.permutation(40)
    right = np.argsort(order)
    start = rng.normal(0.0, 1.0, (40, 40))
    start[np.arange(40), right] += 2.0
    found = graph_matching(matrix, matrix[order], start)
    before, after = (float(np.mean(score.argmax(axis=1) == right)) for score in (start, found))
    assert before < 0.7
    assert after > before + 0.2


def test_learnt_weights_follow_the_feature_that_is_right() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(0, 20, 200)
    good, bad = rng.normal(size=(200, 20)), rng.normal(size=(200, 20))
    good[np.arange(200), right] += 3.0
    features = {"latent": good, "support": bad}
    found = learn_fusion([(features, right)], names=("latent", "support"))
    start = default_fusion(("latent", "support"))
    assert found.n == 200
    assert found.weights[0] > 3 * start.weights[0]
    assert found.weights[1] < 0.5 * start.weights[1]
    few = LEAST - 1
    kept = learn_fusion(
        [({n: f[:few] for n, f in features.items()}, right[:few])], names=("latent", "support")
    )
    assert kept.n == 0
    assert kept.weights.tolist() == [DEFAULT_WEIGHTS["latent"], DEFAULT_WEIGHTS["support"]]
    assert Fusion(("latent",), np.array([2.0])).score({"latent": good})[0, 0] == 2 * good[0, 0]
