"""Laws of the shared statistics: scale, symmetry, relabelling, reconstruction, reproducibility."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import linalg, sparse

from protocol.eigen import TOLERANCE, leading_eigenpairs
from protocol.statistics import embed, margins, nonempty, pmi, ppmi, symmetric

sizes = st.integers(1, 8)
tables = sizes.flatmap(
    lambda n: arrays(np.int64, (n, n), elements=st.one_of(st.just(0), st.integers(0, 10**6)))
)
upper_counts = tables.map(lambda table: sparse.csr_array(np.triu(table)))
reals = st.floats(0.01, 10.0)
weights = sizes.flatmap(lambda n: arrays(np.float64, (n, n), elements=st.one_of(st.just(0.0), reals))).map(
    lambda table: sparse.csr_array(np.triu(table) + np.triu(table, 1).T)
)


def relabelled(upper: sparse.csr_array, order: np.ndarray) -> sparse.csr_array:
    """The upper triangle after code order[i] has become code i."""
    return sparse.csr_array(np.triu(symmetric(upper).toarray()[np.ix_(order, order)]))


@given(upper_counts)
def test_symmetric_agrees_with_its_definition(upper: sparse.csr_array) -> None:
    dense = upper.toarray()
    full = symmetric(upper)
    np.testing.assert_array_equal(full.toarray(), dense + dense.T - np.diag(np.diag(dense)))
    row_sums, total = margins(upper)
    np.testing.assert_array_equal(row_sums, full.toarray().sum(axis=1))
    assert total == full.toarray().sum()


@given(upper_counts)
def test_pmi_agrees_with_its_definition_on_observed_cells(upper: sparse.csr_array) -> None:
    full = symmetric(upper).toarray().astype(float)
    row_sums = full.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.log(full * full.sum() / np.outer(row_sums, row_sums))
    result = pmi(upper)
    np.testing.assert_allclose(result.toarray()[full > 0], expected[full > 0], atol=1e-12)
    assert result.nnz == np.count_nonzero(full)
    clipped = np.where(full > 0, np.maximum(expected, 0), 0)
    np.testing.assert_allclose(ppmi(upper).toarray(), clipped, atol=1e-12)


@given(upper_counts, st.floats(1e-6, 1e6), st.floats(0.1, 20))
def test_scale_of_the_counts_says_nothing(upper: sparse.csr_array, scale: float, shift: float) -> None:
    scaled = upper.astype(np.float64) * scale
    np.testing.assert_allclose(pmi(scaled).toarray(), pmi(upper).toarray(), atol=1e-9)
    np.testing.assert_allclose(
        ppmi(scaled, shift=shift).toarray(), ppmi(upper, shift=shift).toarray(), atol=1e-9
    )


@given(upper_counts)
def test_pmi_is_symmetric_to_the_bit(upper: sparse.csr_array) -> None:
    for result in (pmi(upper), ppmi(upper)):
        np.testing.assert_array_equal(result.toarray(), result.toarray().T)
        assert result.has_canonical_format


@given(upper_counts, st.randoms(use_true_random=False))
def test_relabelling_codes_relabels_pmi_to_the_bit(upper: sparse.csr_array, random: object) -> None:
    order = np.random.default_rng(random.getrandbits(32)).permutation(upper.shape[0])  # type: ignore[attr-defined]
    for function in (pmi, ppmi):
        expected = function(upper).toarray()[np.ix_(order, order)]
        np.testing.assert_array_equal(function(relabelled(upper, order)).toarray(), expected)


@given(upper_counts, st.floats(1.0, 5.0))
def test_a_larger_shift_keeps_less(upper: sparse.csr_array, shift: float) -> None:
    plain, shifted = ppmi(upper), ppmi(upper, shift=shift)
    assert (shifted.toarray() <= plain.toarray()).all()
    assert shifted.nnz <= plain.nnz


@settings(deadline=None)
@given(weights)
def test_all_dimensions_rebuild_the_positive_part(matrix: sparse.csr_array) -> None:
    assume(nonempty(matrix).all())
    n = matrix.shape[0]
    values, vectors = linalg.eigh(matrix.toarray())
    positive = (vectors * np.maximum(values, 0)) @ vectors.T
    norms = np.sqrt(np.diag(positive))
    assume((norms > 1e-3 * norms.max()).all())  # else single precision cannot tell the direction
    result = embed(matrix, n).astype(float)
    assert result.shape[1] <= n
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(result @ result.T, positive / np.outer(norms, norms), atol=1e-5)


@settings(deadline=None)
@given(weights, st.randoms(use_true_random=False))
def test_relabelling_codes_relabels_the_geometry(matrix: sparse.csr_array, random: object) -> None:
    assume(nonempty(matrix).all())
    n = matrix.shape[0]
    order = np.random.default_rng(random.getrandbits(32)).permutation(n)  # type: ignore[attr-defined]
    result, moved = embed(matrix, n), embed(sparse.csr_array(matrix.toarray()[np.ix_(order, order)]), n)
    assume(nonempty(result).all())
    np.testing.assert_allclose(moved @ moved.T, (result @ result.T)[np.ix_(order, order)], atol=1e-4)


@settings(deadline=None)
@given(weights, st.integers(1, 10), st.integers(0, 2**32))
def test_the_same_input_and_seed_give_the_same_bits(matrix: sparse.csr_array, dim: int, seed: int) -> None:
    assume(nonempty(matrix).all())
    first, second = embed(matrix, dim, seed=seed), embed(matrix.copy(), dim, seed=seed)
    assert first.dtype == np.float32
    assert 1 <= first.shape[1] <= min(dim, matrix.shape[0])
    assert first.tobytes() == second.tobytes()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.004, 0.02, 0.2]))
def test_block_lanczos_agrees_with_lapack(seed: int, k: int, copies: int, density: float) -> None:
    # Copies of a component repeat its eigenvalues; few entries leave components apart and rows alone.
    rng = np.random.default_rng(seed)
    part = sparse.random_array((320 // copies, 320 // copies), density=density, rng=rng)
    matrix = sparse.csr_array(sparse.block_diag([part + part.T] * copies))
    assume(matrix.nnz)
    values, vectors = leading_eigenpairs(matrix, k, seed=seed)
    expected = linalg.eigvalsh(matrix.toarray())[::-1][:k]
    np.testing.assert_allclose(values, expected, atol=TOLERANCE * expected[0])
    residuals = np.linalg.norm(matrix @ vectors.astype(float) - vectors * values, axis=0)
    assert residuals.max() <= TOLERANCE * values[0]
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(k), atol=1e-5)
