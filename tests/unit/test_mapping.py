"""Ranking candidates: by vectors, and by everything that speaks for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from coordinator.candidates import rank_linked, rank_nearest
from coordinator.linking import NEVER, Clues, Linked
from coordinator.mapping import N_ALTERNATIVES
from coordinator.model.alignment import unit_rows
from coordinator.ranking import default_fusion
from coordinator.weak_pairs import Latent

NONE = np.empty(0, dtype=np.intp)


def linked(score: np.ndarray, n_standard: int) -> Linked:
    """Rows 0 .. n_standard - 1 are standard, the others local, with these scores."""
    n, m = score.shape
    assert m == n_standard
    clues = Clues(np.arange(m, m + n), np.arange(m), np.zeros(n, np.intp), NONE, (), (NONE, NONE), {})
    latent = Latent(np.zeros((m + n, 2)), np.zeros((1, 2, 2)), np.zeros(m + n, np.intp), (), (), (), ())
    return Linked(
        latent, {}, score, default_fusion(("profile",)), clues, np.arange(m + n), np.empty((0, 2), np.intp)
    )


def points(n: int, dim: int = 4, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((n, dim)))


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000))
def test_strength_is_the_log_odds_of_the_first_candidate(n: int, m: int, seed: int) -> None:
    score = np.random.default_rng(seed).normal(0, 3, (n, m))
    found = rank_linked(linked(score, m), points(n + m), np.arange(m), np.zeros(n + m, np.intp))
    np.testing.assert_array_equal(found.rows[m:, 0], score.argmax(axis=1))
    p = softmax(score, axis=1).max(axis=1)
    if m > 1:
        np.testing.assert_allclose(1 / (1 + np.exp(-found.strength[m:])), p, atol=1e-9)
    ranked = np.sort(score, axis=1)[:, ::-1][:, : N_ALTERNATIVES + 1]
    for i in range(n):
        kept = found.rows[m + i][found.rows[m + i] >= 0]
        np.testing.assert_array_equal(score[i, kept], ranked[i])


def test_a_candidate_of_another_category_is_never_named() -> None:
    score = np.array([[2.0, NEVER, NEVER], [NEVER, NEVER, NEVER]])
    found = rank_linked(linked(score, 3), points(5), np.arange(3), np.array([0, 1, 1, 0, 2]))
    assert found.rows[3].tolist() == [0, -1, -1, -1, -1, -1]
    assert (found.rows[4] == -1).all()


def test_a_standard_code_is_its_own_even_beside_its_twin() -> None:
    vectors = points(30)
    vectors[7] = vectors[3]
    found = rank_nearest(vectors, np.arange(10), np.zeros(30, np.intp))
    np.testing.assert_array_equal(found.rows[:10, 0], np.arange(10))
    assert found.strength[:10] == pytest.approx(1.0)
    assert found.rows[3, 1] == 7


@given(st.integers(0, 1000))
def test_the_nearest_of_the_same_category_comes_first(seed: int) -> None:
    rng, vectors = np.random.default_rng(seed), points(25, seed=seed)
    standard, kinds = np.arange(0, 25, 3), rng.integers(0, 3, 25)
    found = rank_nearest(vectors, standard, kinds)
    for row in np.setdiff1d(np.arange(25), standard):
        targets = standard[kinds[standard] == kinds[row]]
        if not len(targets):
            assert (found.rows[row] == -1).all()
            continue
        cosine = vectors[targets] @ vectors[row]
        assert found.rows[row, 0] == targets[cosine.argmax()]
        assert found.strength[row] == pytest.approx(cosine.max())
