"""PMI, PPMI and the embedding: worked examples, small and degenerate sizes, both solvers, refusals."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from math import log

import numpy as np
import pytest
from scipy import linalg, sparse

from protocol import eigen, statistics
from protocol.eigen import BLOCK, TOLERANCE, leading_eigenpairs
from protocol.statistics import embed, margins, nonempty, pmi, ppmi, symmetric

UPPER = sparse.csr_array(np.array([[2, 3, 0], [0, 0, 1], [0, 0, 4]]))
FULL = np.array([[2, 3, 0], [3, 0, 1], [0, 1, 4]])


def random_weights(n: int, density: float, seed: int) -> sparse.csr_array:
    """A symmetric non-negative matrix without an empty row."""
    rng = np.random.default_rng(seed)
    upper = sparse.random_array((n, n), density=density, rng=rng)
    return sparse.csr_array(upper + upper.T + sparse.diags_array(rng.uniform(0.1, 0.5, n)))


def leading_cosines(weights: sparse.csr_array, dim: int) -> np.ndarray:
    """Cosines between rows of U sqrt(L) from a full decomposition."""
    values, vectors = linalg.eigh(weights.toarray())
    scores = vectors[:, -dim:] * np.sqrt(np.maximum(values[-dim:], 0))
    scores /= np.linalg.norm(scores, axis=1, keepdims=True)
    return scores @ scores.T


def test_symmetric_and_margins_of_a_small_table() -> None:
    np.testing.assert_array_equal(symmetric(UPPER).toarray(), FULL)
    assert symmetric(UPPER).dtype == UPPER.dtype
    row_sums, total = margins(UPPER)
    assert row_sums.tolist() == [5, 4, 5]
    assert total == 14


def test_pmi_is_unclipped_and_keeps_observed_cells_only() -> None:
    result = pmi(UPPER)
    cells = {(int(j), int(k)): v for j, k, v in zip(*result.tocoo().coords, result.data, strict=True)}
    assert set(cells) == {(0, 0), (0, 1), (1, 0), (1, 2), (2, 1), (2, 2)}
    assert cells[0, 1] == pytest.approx(log(3 * 14 / (5 * 4)), rel=1e-14)
    assert cells[1, 2] == pytest.approx(log(1 * 14 / (4 * 5)), rel=1e-14)  # below zero
    assert cells[2, 1] == cells[1, 2]


def test_pmi_stores_pairs_as_frequent_as_chance() -> None:
    even = pmi(sparse.csr_array(np.array([[1, 1], [0, 1]])))
    assert even.nnz == 4
    np.testing.assert_array_equal(even.data, 0.0)
    assert ppmi(sparse.csr_array(np.array([[1, 1], [0, 1]]))).nnz == 0


def test_ppmi_clips_and_shifts() -> None:
    expected = np.zeros((3, 3))
    expected[0, 1] = expected[1, 0] = log(3 * 14 / 20)
    expected[0, 0], expected[2, 2] = log(2 * 14 / 25), log(4 * 14 / 25)
    np.testing.assert_allclose(ppmi(UPPER).toarray(), expected, atol=1e-14)
    shifted = np.maximum(expected - log(2), 0)
    np.testing.assert_allclose(ppmi(UPPER, shift=2).toarray(), shifted, atol=1e-14)
    assert (ppmi(UPPER, shift=2).data > 0).all()


def test_counts_suppressed_to_zero_count_as_absent() -> None:
    suppressed = UPPER.copy()
    suppressed.data[0] = 0
    absent = suppressed.copy()
    absent.eliminate_zeros()
    np.testing.assert_array_equal(ppmi(suppressed).toarray(), ppmi(absent).toarray())
    assert (suppressed.nnz, absent.nnz) == (4, 3)  # the argument keeps its stored zero


def test_repeated_cells_are_summed_without_touching_the_argument() -> None:
    twice = sparse.csr_array((np.array([1, 2]), np.array([1, 1]), np.array([0, 2, 2])), shape=(2, 2))
    np.testing.assert_array_equal(symmetric(twice).toarray(), [[0, 3], [3, 0]])
    assert twice.nnz == 2


def test_nonempty_of_sparse_and_dense() -> None:
    stored_zero = sparse.csr_array((np.array([0.0, 2.0]), (np.array([0, 2]), np.array([0, 1]))), shape=(3, 3))
    assert nonempty(stored_zero).tolist() == [False, False, True]
    assert nonempty(stored_zero.toarray()).tolist() == [False, False, True]
    assert nonempty(sparse.csr_array((0, 0))).tolist() == []


@pytest.mark.parametrize(
    ("matrix", "dim", "expected"),
    [
        ([[2.0]], 1, [[1.0]]),
        ([[2.0]], 5, [[1.0]]),
        ([[0.0, 1.0], [1.0, 0.0]], 2, [[1.0], [1.0]]),  # eigenvalues 1 and -1: one column
        ([[2.0, 0.0], [0.0, 1.0]], 9, [[1.0, 0.0], [0.0, 1.0]]),
    ],
)
def test_embed_of_one_and_two_codes(matrix: list[list[float]], dim: int, expected: list[list[float]]) -> None:
    result = embed(sparse.csr_array(np.array(matrix)), dim)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-7)


def test_embed_of_nothing() -> None:
    assert embed(sparse.csr_array((0, 0)), 3).shape == (0, 0)


@pytest.mark.parametrize("dim", [5, 60])
def test_both_solvers_give_the_leading_positive_eigenpairs(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(300, 0.05, seed=1)
    for dense in (True, False):
        monkeypatch.setattr(statistics, "_dense_is_faster", lambda n, dim, dense=dense: dense)
        result = embed(weights, dim).astype(float)
        assert result.shape == (300, dim)
        np.testing.assert_allclose(result @ result.T, leading_cosines(weights, dim), atol=1e-5)


def test_negative_eigenvalues_take_no_column() -> None:
    # A bipartite graph has a spectrum symmetric about zero: half of it is positive.
    block = np.random.default_rng(0).uniform(0.5, 1.5, (6, 6))
    weights = sparse.csr_array(np.block([[np.zeros((6, 6)), block], [block.T, np.zeros((6, 6))]]))
    result = embed(weights, 12)
    assert result.shape == (12, 6)
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, rtol=1e-6)


def test_signs_make_the_largest_entry_positive() -> None:
    weights = random_weights(80, 0.1, seed=2)
    _, vectors = linalg.eigh(weights.toarray())
    result = embed(weights, 10)
    for column in range(10):
        peak = np.abs(vectors[:, -1 - column]).argmax()
        assert result[peak, column] > 0


LOW_RANK = """
import hashlib, numpy as np
from scipy import sparse
from protocol.statistics import _dense_is_faster, embed
group = np.arange(1500) % 5
block = np.array([[3, 1, 0, 0, 0], [1, 2, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 2, 1], [0, 0, 0, 1, 2.5]])
weights = sparse.csr_array(block[group][:, group])
results = [embed(weights, 50, seed=4) for _ in range(2)]
assert not _dense_is_faster(1500, 50) and results[0].shape == (1500, 5)
print([hashlib.sha256(result.tobytes()).hexdigest() for result in results])
"""


def test_lanczos_restarts_are_the_same_bits_in_and_across_processes() -> None:
    # A matrix of rank 5 exhausts the Krylov space, after which ARPACK draws new random vectors.
    command = [sys.executable, "-c", LOW_RANK]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert outputs[0] == outputs[1]
    first, second = outputs[0].strip("[]\n").split(", ")
    assert first == second


def identical(copies: int) -> sparse.csr_array:
    """Components apart with the same spectrum: every eigenvalue `copies` times."""
    return sparse.csr_array(sparse.block_diag([random_weights(30, 0.2, seed=5)] * copies))


def components() -> sparse.csr_array:
    return sparse.csr_array(sparse.block_diag([random_weights(40, 0.2, seed=s) for s in range(15)]))


def bipartite() -> sparse.csr_array:
    """A spectrum symmetric about zero."""
    block = sparse.random_array((300, 300), density=0.1, rng=np.random.default_rng(3))
    return sparse.csr_array(sparse.block_array([[None, block], [block.T, None]]))


def falling(ratio: float) -> sparse.csr_array:
    """Eigenvalues ratio^i of a dense matrix."""
    basis = np.linalg.qr(np.random.default_rng(4).standard_normal((600, 600)))[0]
    full = (basis * ratio ** np.arange(600)) @ basis.T
    return sparse.csr_array((full + full.T) / 2)


SPECTRA = {
    "random": (lambda: random_weights(600, 0.05, seed=1), 40),
    "one pair": (lambda: random_weights(600, 0.05, seed=1), 1),
    "each eigenvalue twice as often as a block is wide": (lambda: identical(2 * BLOCK), 3 * BLOCK),
    "components apart": (components, 30),
    "as many negative": (bipartite, 40),
    "clustered at the end": (lambda: falling(0.99), 40),
    "falling below single precision": (lambda: falling(0.5), 40),
    "low rank": (
        lambda: sparse.csr_array(np.kron(np.arange(9).reshape(3, 3) % 4 + 1.0, np.ones((200, 200)))),
        5,
    ),
    "three eigenvalues": (lambda: sparse.csr_array(sparse.diags_array(np.repeat([3.0, 2.0, 1.0], 200))), 30),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("basis", [7, 0])  # the second restarts all the time
def test_eigenpairs_of_many_spectra(name: str, basis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eigen, "_BASIS", basis)
    matrix, k = SPECTRA[name][0](), SPECTRA[name][1]
    matrix = sparse.csr_array(matrix + matrix.T)
    values, vectors = leading_eigenpairs(matrix, k)
    expected = linalg.eigvalsh(matrix.toarray())[::-1][:k]
    np.testing.assert_allclose(values, expected, atol=TOLERANCE * expected[0])
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), atol=1e-5)
    residuals = np.linalg.norm(matrix @ vectors.astype(float) - vectors * values, axis=0)
    assert residuals.max() <= TOLERANCE * values[0]


def test_single_precision_gives_up_where_it_cannot_tell_the_sign() -> None:
    assert leading_eigenpairs(falling(0.5), 40)[1].dtype == np.float64
    assert leading_eigenpairs(falling(0.99), 40)[1].dtype == np.float32


def test_pairs_that_fail_their_check_are_left_to_arpack(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(600, 0.05, seed=1)
    monkeypatch.setattr(eigen, "_residual", lambda product, values, vectors: 1.0)
    assert leading_eigenpairs(weights, 20)[1].dtype == np.float64
    monkeypatch.undo()
    monkeypatch.setattr(eigen, "_PATIENCE", 0)
    assert leading_eigenpairs(weights, 20)[1].dtype == np.float64


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(3000, 0.01, seed=6)
    monkeypatch.setattr(eigen, "_CHUNK", 1000)
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(eigen, "_threads", lambda threads=threads: threads)
        results.append(leading_eigenpairs(weights, 30)[1].tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("asked", "most"), [("1", 1), ("100000", 100_000), ("many", 100_000), ("0", 100_000)]
)
def test_threads_that_are_asked_for(asked: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert 1 <= eigen._threads() <= most


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_the_unit_of_the_weights_says_nothing(unit: float) -> None:
    weights = random_weights(1200, 0.02, seed=7)
    np.testing.assert_allclose(embed(weights * unit, 20), embed(weights, 20), atol=1e-4)


def test_a_large_matrix_is_never_dense() -> None:
    weights = random_weights(6000, 0.002, seed=8)
    tracemalloc.start()
    embed(weights, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6000**2  # bytes: a quarter of a matrix in single precision


def test_one_entry_without_its_mirror_is_found() -> None:
    weights = random_weights(500, 0.05, seed=9)
    weights.data[weights.nnz // 2] += 1e-5
    with pytest.raises(ValueError, match="not symmetric"):
        embed(weights, 5)


def test_arguments_keep_their_bits() -> None:
    counts = UPPER.astype(float)
    before = counts.data.tobytes(), counts.indices.tobytes()
    weights = ppmi(counts)
    assert (counts.data.tobytes(), counts.indices.tobytes()) == before
    rows = nonempty(weights)
    weights = sparse.csr_array(weights[rows][:, rows])
    kept = weights.data.tobytes()
    embed(weights, 2)
    assert weights.data.tobytes() == kept


def test_statistics_do_not_depend_on_the_stretches_they_work_in(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    upper = sparse.csr_array(np.triu(rng.integers(0, 3, (40, 40))))
    whole = pmi(upper), ppmi(upper), symmetric(upper)
    monkeypatch.setattr(statistics, "_CHUNK", 7)
    for one, other in zip(whole, (pmi(upper), ppmi(upper), symmetric(upper)), strict=True):
        assert one.indices.tolist() == other.indices.tolist()
        np.testing.assert_array_equal(one.toarray(), other.toarray())


def test_a_code_outside_the_leading_eigenvectors_is_a_zero_row() -> None:
    strong = np.full((4, 4), 5.0)
    weights = sparse.csr_array(linalg.block_diag(strong, [[0.0, 0.2], [0.2, 0.0]]))
    assert nonempty(embed(weights, 1)).tolist() == [True] * 4 + [False] * 2
    assert nonempty(embed(weights, 2)).all()


@pytest.mark.parametrize("function", [margins, pmi, ppmi])
@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_counts_that_are_no_counts_are_refused(function: object, bad: float) -> None:
    counts = UPPER.astype(float)
    counts.data[1] = bad
    with pytest.raises(ValueError, match=r"the count at \(0, 1\)"):
        function(counts)  # type: ignore[operator]


@pytest.mark.parametrize("function", [symmetric, margins, pmi, ppmi])
def test_what_is_no_upper_triangle_is_refused(function: object) -> None:
    with pytest.raises(ValueError, match="below the diagonal"):
        function(sparse.csr_array(FULL))  # type: ignore[operator]
    with pytest.raises(ValueError, match="square"):
        function(sparse.csr_array(np.ones((2, 3))))  # type: ignore[operator]


@pytest.mark.parametrize("shift", [0.0, -1.0, np.nan, np.inf])
def test_a_shift_must_be_positive(shift: float) -> None:
    with pytest.raises(ValueError, match="shift is"):
        ppmi(UPPER, shift=shift)


@pytest.mark.parametrize(
    ("matrix", "dim", "message"),
    [
        (np.diag([1.0, 0.0, 2.0, 0.0]), 2, r"row 1 is empty \(2 in all\)"),
        (np.array([[1.0, 1.0], [0.0, 1.0]]), 2, "not symmetric"),
        (np.array([[1.0, -1.0], [-1.0, 1.0]]), 2, "negative or not finite"),
        (np.array([[np.nan]]), 1, "negative or not finite"),
        (np.ones((2, 3)), 1, "square"),
        (np.ones((2, 2)), 0, "dim is 0"),
    ],
)
def test_what_cannot_be_embedded_is_refused(matrix: np.ndarray, dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed(sparse.csr_array(matrix), dim)
