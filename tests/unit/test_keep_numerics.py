"""Exact walks, regularised GloVe and its measures, against direct computation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from protocol.keep import fit_glove, make_is_a, walk_embedding, walk_ppmi
from protocol.keep import walks as walks_module
from protocol.keep.evaluation import association, information_content, neighbour_correlation, power, resnik
from protocol.keep.view import keep_vectors
from tests.keep_study import drawn_walks

TREE = tuple((f"{'abc'[i]}", "") for i in range(3)) + tuple(
    (f"{'abc'[i]}{j}", "abc"[i]) for i in range(3) for j in range(4)
)


def expected(edges: np.ndarray, length: int, window: int) -> np.ndarray:
    """C by its definition: matrix powers, a walk from each node."""
    step = edges / edges.sum(axis=1, keepdims=True)
    at, total = np.ones(len(edges)), np.zeros(edges.shape)
    for t in range(length):
        for r in range(1, min(window, length - 1 - t) + 1):
            one = (1 - (r - 1) / window) * at[:, None] * np.linalg.matrix_power(step, r)
            total += one + one.T
        at = at @ step
    return total


@pytest.mark.parametrize("block", [1 << 26, 500])
def test_the_ppmi_of_walks_is_that_of_its_definition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks_module, "_BLOCK_BYTES", block)
    edges = make_is_a(TREE).edges
    counts = expected(edges.toarray(), 7, 3)
    margin = counts.sum(axis=1)
    with np.errstate(divide="ignore"):
        pmi = np.log(counts * counts.sum() / np.outer(margin, margin))
    np.testing.assert_allclose(
        walk_ppmi(edges, length=7, window=3, floor=0).toarray(), np.maximum(pmi, 0), atol=1e-9
    )


def test_drawn_walks_agree_with_the_expected_counts() -> None:
    edges, walks, length, window = make_is_a(TREE).edges, 4_000, 7, 3
    n = edges.shape[0]
    drawn = np.zeros((n, n))
    for part in np.array_split(drawn_walks(edges, walks, length, seed=3), 4):
        for r in range(1, window + 1):
            pair = np.zeros((n, n))
            np.add.at(pair, (part[:, :-r].ravel(), part[:, r:].ravel()), 1 - (r - 1) / window)
            drawn += pair + pair.T
    mean = expected(edges.toarray(), length, window) * walks
    # Windows of one walk overlap: three times the variance of independent ones is enough.
    assert (np.abs(drawn - mean) < 5 * np.sqrt(3 * mean) + 5).all()


def test_walks_are_refused_that_have_no_way_to_go() -> None:
    with pytest.raises(ValueError, match="node 1 has no edge"):
        walk_ppmi(sp.csr_array(np.diag([1.0, 0.0])))
    with pytest.raises(ValueError, match="window is 30"):
        walk_ppmi(sp.csr_array(np.ones((2, 2))), window=30)


def test_siblings_lie_nearer_than_cousins() -> None:
    graph = make_is_a(TREE)
    vectors = walk_embedding(graph, 6)
    cosine = vectors @ vectors.T
    assert cosine[graph.row["a0"], graph.row["a1"]] > cosine[graph.row["a0"], graph.row["b1"]] + 0.3


def some_counts(n: int = 12, seed: int = 0) -> sp.csr_array:
    rng = np.random.default_rng(seed)
    dense = np.triu(rng.poisson(3.0, (n, n)))
    dense[:, n - 1] = 0  # a code without pairs
    return sp.csr_array(dense)


@pytest.mark.parametrize("per", ["code", "pair"])
def test_glove_reaches_a_point_where_its_gradient_is_zero(per: str) -> None:
    counts, start = some_counts(), np.random.default_rng(1).normal(size=(12, 3))
    fit = fit_glove(counts, start, penalty=0.5, per=per, sweeps=3000, tol=1e-13)  # type: ignore[arg-type]
    full = counts.toarray() + counts.toarray().T
    np.fill_diagonal(full, 0)
    f = np.where(full > 0, np.minimum(1, (full / np.quantile(full[full > 0], 0.75)) ** 0.75), 0.0)
    held = 0.5 * (f.sum(axis=1) if per == "pair" else np.ones(12))
    residual = f * (
        fit.words @ fit.contexts.T + fit.word_bias[:, None] + fit.context_bias - np.log(np.maximum(full, 1))
    )
    gradient = [
        residual @ fit.contexts + held[:, None] * (fit.words - start),
        residual.T @ fit.words + held[:, None] * (fit.contexts - start),
        residual.sum(axis=1),
        residual.sum(axis=0),
    ]
    assert max(np.abs(g).max() for g in gradient) < 1e-3
    value = (f * (residual / np.maximum(f, 1e-300)) ** 2).sum()
    value += held @ ((fit.words - start) ** 2 + (fit.contexts - start) ** 2).sum(axis=1)
    assert fit.history[-1] == pytest.approx(value, rel=1e-4)
    np.testing.assert_array_equal(fit.vectors, (fit.words + fit.contexts) / 2)
    np.testing.assert_allclose(fit.vectors[11], start[11])


def test_a_firm_penalty_keeps_the_start_and_a_code_of_few_pairs_keeps_it_longest() -> None:
    rng = np.random.default_rng(4)
    dense = np.triu(rng.poisson(20.0, (30, 30)), 1)
    dense[0, 1:] = 0
    dense[0, 1] = 2
    start = rng.normal(size=(30, 4))
    firm = fit_glove(sp.csr_array(dense), start, penalty=1e9).vectors
    np.testing.assert_allclose(firm, start, atol=1e-5)
    moved = np.linalg.norm(fit_glove(sp.csr_array(dense), start, penalty=5.0).vectors - start, axis=1)
    assert moved[0] < moved[1:].min()


@pytest.mark.parametrize(
    ("counts", "start", "penalty", "message"),
    [
        (some_counts(), np.ones((5, 2)), 1.0, "does not go with 12 codes"),
        (some_counts(), np.ones((12, 2)), 0.0, "penalty is 0.0"),
        (sp.csr_array(np.array([[0.0, -1.0], [0.0, 0.0]])), np.ones((2, 2)), 1.0, "a count is negative"),
    ],
)
def test_glove_refuses_what_it_cannot_fit(
    counts: sp.csr_array, start: np.ndarray, penalty: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_glove(counts, start, penalty=penalty)


def test_without_pairs_nothing_moves() -> None:
    start = np.ones((3, 2))
    assert (fit_glove(sp.csr_array((3, 3)), start, penalty=1.0).vectors == start).all()


def test_the_view_is_the_same_bits_again_and_unit_rows() -> None:
    graph = make_is_a(TREE)
    codes = ["unknown", "a0", "a1", "b0", "c", "c3"]
    counts = sp.csr_array(np.triu(np.random.default_rng(0).poisson(9.0, (6, 6))))
    positions, one = keep_vectors(graph, codes, counts, dim=5, penalty=2.0)
    _, again = keep_vectors(graph, codes, counts, dim=5, penalty=2.0)
    assert positions.tolist() == [1, 2, 3, 4, 5]
    assert one.dtype == np.float32
    assert one.tobytes() == again.tobytes()
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, rtol=1e-6)
    _, alone = keep_vectors(graph, codes, None, dim=5)
    assert not np.allclose(alone, one)


def test_resnik_is_the_content_of_the_lowest_common_ancestor() -> None:
    graph = make_is_a([*TREE, ("ab", "a0"), ("ab", "b0")])
    content = information_content(graph, np.arange(len(graph.codes)))
    assert content[0] == 0
    rows = np.arange(len(graph.codes))
    row, near = graph.row, resnik(graph, content, rows)
    assert near(row["a1"])[row["a2"]] == pytest.approx(content[row["a"]])
    assert near(row["a1"])[row["b2"]] == 0
    # Two parents: the more informative common ancestor counts.
    assert near(row["ab"])[row["b0"]] == pytest.approx(content[row["b0"]])
    assert near(row["ab"])[row["a1"]] == pytest.approx(content[row["a"]])


def test_measures_tell_agreement_from_chance() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(300, 5))
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    near = lambda i: truth @ truth[i]  # noqa: E731
    noise = rng.normal(size=(300, 5))
    assert neighbour_correlation(truth, near) == pytest.approx(1.0)
    assert neighbour_correlation(-truth, lambda i: -near(i)) == pytest.approx(-1.0)
    assert abs(neighbour_correlation(noise, near)) < 0.15
    assert np.isnan(neighbour_correlation(truth, lambda i: np.zeros(300)))
    with pytest.raises(ValueError, match="too few"):
        neighbour_correlation(truth[:100], near)
    assert power([3.0, 4.0, 0.0, 5.0], np.linspace(0, 1, 101)) == 0.75
    assert power(np.exp([3.0, 4.0, 0.0, 5.0]), np.exp(np.linspace(0, 1, 101))) == 0.75
    with pytest.raises(ValueError, match="no power"):
        power([], [1.0])


def test_association_compares_with_what_margins_let_expect() -> None:
    counts = np.array([[0.0, 6.0, 2.0], [6.0, 0.0, 4.0], [2.0, 4.0, 0.0]])
    lift = association(sp.csr_array(counts))
    assert lift(0)[1] == pytest.approx(6 * 24 / (8 * 10))
