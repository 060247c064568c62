"""Node-wise sparse regression: optimality at every code, laws, oracles, and what it can tell apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import ElasticNet, Lasso

from coordinator.model.selection import Rule, elastic_net, select_neighbours

Array = NDArray[np.float64]
RULE = Rule(screened=12, steps=12, least=0.03)


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def grouped(seed: int, n: int = 40, p: int = 12, groups: int = 8) -> Array:
    """Unit rows around a few directions."""
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(groups, p))[rng.integers(groups, size=n)] + 0.7 * rng.normal(size=(n, p)))


def halves_of(vectors: Array, seed: int, noise: float = 0.1) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return tuple(unit(vectors + noise * rng.normal(size=vectors.shape)) for _ in range(2))  # type: ignore[return-value]


def objective(
    vectors: Array, j: int, others: NDArray[np.intp], beta: Array, penalty: float, alpha: float
) -> float:
    gamma = beta / np.abs(vectors[others] @ vectors[j])
    residual = vectors[j] - beta @ vectors[others]
    size = alpha * np.abs(gamma).sum() + (1 - alpha) / 2 * gamma @ gamma
    return float(0.5 * residual @ residual + penalty * size)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    alpha=st.sampled_from([0.1, 0.25, 0.7]),
    screened=st.sampled_from([3, 12, 100]),
    split=st.booleans(),
    related=st.booleans(),
)
def test_weights_are_optimal_among_all_codes_outside_the_family(
    seed: int, alpha: float, screened: int, split: bool, related: bool
) -> None:
    vectors = grouped(seed)
    family = np.random.default_rng(seed).integers(-1, 12, size=len(vectors)) if related else None
    rule = Rule(alpha=alpha, screened=screened, steps=10, least=0.05)
    found = select_neighbours(
        vectors, halves=halves_of(vectors, seed) if split else None, family=family, rule=rule, threads=1
    )
    weights, cosine = found.weights.toarray(), vectors @ vectors.T
    barred = np.eye(len(vectors), dtype=bool)
    if family is not None:
        barred |= (family[:, None] == family[None]) & (family >= 0)[:, None]
    assert not weights[barred].any()
    residual = vectors - weights @ vectors
    assert np.allclose(found.loss, (residual**2).sum(axis=1), atol=1e-12)
    near, penalty = np.abs(cosine), found.penalty[:, None]
    pull = near * (residual @ vectors.T) - penalty * (1 - alpha) * weights / near
    zero = weights == 0
    assert (np.abs(pull) <= penalty * alpha + 2e-5)[zero & ~barred].all()
    assert np.abs(pull - penalty * alpha * np.sign(weights))[~zero].max(initial=0.0) < 2e-5


def test_the_same_minimum_and_support_as_scikit_learn() -> None:
    vectors = grouped(3, n=120, p=30, groups=20)
    rule = Rule(screened=40)
    found = select_neighbours(vectors, rule=rule, threads=1)
    common = ours = theirs = 0
    for j in range(len(vectors)):
        others = np.delete(np.arange(len(vectors)), j)
        design = (vectors[others] * np.abs(vectors[others] @ vectors[j])[:, None]).T
        p = vectors.shape[1]
        model = ElasticNet(
            alpha=found.penalty[j] / p, l1_ratio=rule.alpha, fit_intercept=False, tol=1e-12, max_iter=100_000
        )
        gamma = model.fit(design, vectors[j]).coef_
        oracle = gamma * np.abs(vectors[others] @ vectors[j])
        mine = found.weights[[j]].toarray()[0, others]
        gap = objective(vectors, j, others, mine, found.penalty[j], rule.alpha)
        gap -= objective(vectors, j, others, oracle, found.penalty[j], rule.alpha)
        assert abs(gap) < 1e-8
        common += int(((mine != 0) & (oracle != 0)).sum())
        ours, theirs = ours + int((mine != 0).sum()), theirs + int((oracle != 0).sum())
    assert theirs > 100
    assert 2 * common / (ours + theirs) >= 0.95


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 0.9))
def test_an_elastic_net_is_a_lasso_on_the_augmented_design(seed: int, share: float) -> None:
    vectors = grouped(seed, n=15)
    target = vectors[1:] @ vectors[0]
    rule, near = Rule(), np.abs(target)
    penalty = share * near.max() ** 2 / rule.alpha
    beta = elastic_net(vectors[1:] @ vectors[1:].T, target, penalty, rule=rule)
    design = np.vstack([(vectors[1:] * near[:, None]).T, np.sqrt(penalty * (1 - rule.alpha)) * np.eye(14)])
    wanted = np.r_[vectors[0], np.zeros(14)]
    lasso = Lasso(alpha=penalty * rule.alpha / len(wanted), fit_intercept=False, tol=1e-13, max_iter=100_000)
    assert np.allclose(beta, lasso.fit(design, wanted).coef_ * near, atol=1e-5)


def test_rotations_and_threads_change_nothing_and_relabelling_relabels() -> None:
    vectors, rng = grouped(5, n=300), np.random.default_rng(0)
    halves = halves_of(vectors, 1)
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    found = select_neighbours(vectors, halves=halves, rule=RULE, threads=1).weights.toarray()
    two = select_neighbours(vectors, halves=halves, rule=RULE, threads=3).weights.toarray()
    assert np.array_equal(found, two)
    turned = select_neighbours(vectors @ turn, halves=(halves[0] @ turn, halves[1]), rule=RULE).weights
    assert np.allclose(found, turned.toarray(), atol=2e-4)
    order = rng.permutation(300)
    moved = select_neighbours(vectors[order], halves=(halves[0][order], halves[1][order]), rule=RULE).weights
    assert np.allclose(found[np.ix_(order, order)], moved.toarray(), atol=2e-4)


def test_what_another_code_explains_is_not_selected() -> None:
    rng = np.random.default_rng(2)
    a, b, *rest = np.linalg.qr(rng.normal(size=(60, 40)))[0].T
    both = a + b
    # A code near to `a` is near to `both` through `a` alone.
    near = a + 0.3 * rest[0]
    vectors = unit(np.array([a, b, both, near, *rest[1:]]))
    weights = select_neighbours(vectors).weights.toarray()
    assert abs(vectors[2] @ vectors[3]) > 0.6
    assert weights[2, 0] > 0.2 and weights[2, 1] > 0.2
    assert weights[3, 0] > 0.2
    assert abs(weights[3, 2]) < 0.15 * weights[3, 0] and abs(weights[2, 3]) < 0.5 * weights[2, 0]


def test_noise_that_the_other_half_does_not_repeat_is_not_selected() -> None:
    rng = np.random.default_rng(4)
    noise = [unit(rng.normal(size=(150, 20))) for _ in range(3)]
    alone = select_neighbours(noise[0]).weights.nnz
    checked = select_neighbours(noise[0], halves=(noise[1], noise[2])).weights.nnz
    assert checked < 0.3 * alone
    vectors = grouped(1, n=150, p=20)
    kept = select_neighbours(vectors, halves=halves_of(vectors, 2)).weights
    assert (np.diff(kept.indptr) > 0).mean() > 0.8


def test_a_large_group_of_nearly_one_code_ends() -> None:
    rng = np.random.default_rng(0)
    one = unit(rng.normal(size=(1, 30)) + 1e-6 * rng.normal(size=(150, 30)))
    rule = Rule()
    beta = elastic_net(one[1:] @ one[1:].T, one[1:] @ one[0], 0.08, rule=rule)
    # All share alike: the optimality condition of 149 equal weights.
    assert np.allclose(beta, (1.0 - 0.08 * rule.alpha) / (149 + 0.08 * (1 - rule.alpha)), rtol=1e-3)


def test_the_callers_vectors_stay_as_they_are() -> None:
    vectors = grouped(0).astype(np.float32).astype(np.float64)
    before = vectors.copy()
    select_neighbours(vectors, halves=(vectors, vectors))
    assert np.array_equal(vectors, before)


def test_codes_without_a_vector_or_without_candidates_have_no_neighbours() -> None:
    vectors = grouped(0, n=30)
    vectors[4] = 0.0
    found = select_neighbours(vectors, family=np.where(np.arange(30) < 15, 0, -1))
    assert not found.weights[[4]].nnz and not found.weights[:, [4]].nnz
    assert found.penalty[4] == 0.0
    assert not select_neighbours(vectors, family=np.zeros(30)).weights.nnz
    assert select_neighbours(np.empty((0, 5))).weights.shape == (0, 0)


def test_progress_counts_every_code() -> None:
    done: list[int] = []
    select_neighbours(grouped(0, n=300), progress=done.append)
    assert sum(done) == 300 and len(done) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": 2.0 * grouped(0)}, "unit length"),
        ({"vectors": np.full((3, 2), np.nan)}, "unit length"),
        ({"vectors": np.ones(3)}, "dimensions"),
        ({"family": np.zeros(3)}, "family has 3 rows"),
        ({"halves": (grouped(0), grouped(0)[:5])}, r"halves\[1\] has 5 rows"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"vectors": grouped(0)} | change
    with pytest.raises(ValueError, match=message):
        select_neighbours(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"screened": 0},
        {"steps": 1},
        {"least": 1.0},
        {"degrees": -1.0},
        {"tolerance": 1e-15},
    ],
)
def test_a_rule_without_meaning_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Rule(**wrong)  # type: ignore[arg-type]
