"""Sources, their principal axes, and their alignment."""

import numpy as np
import pytest

from coordinator.model import Source, alignment, factor
from coordinator.simulation.generate import simulate_sites
from protocol.errors import FitError


def _unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def _exact_sources(parts, dim=4, columns=6, seed=0):
    """Sources without noise: rows of one embedding, rotated differently at each source."""
    rng = np.random.default_rng(seed)
    n = 1 + max(int(max(codes)) for codes in parts)
    truth = _unit(rng.standard_normal((n, dim)))
    sources = []
    for s, codes in enumerate(parts):
        turn = np.linalg.qr(rng.standard_normal((columns, dim)))[0]
        sources.append(Source(f"s{s}", np.array(codes), truth[codes] @ turn.T))
    return truth, sources


def _gram_error(points, truth):
    return np.abs(points @ points.T - truth @ truth.T).max()


@pytest.mark.parametrize(
    ("codes", "matrix", "message"),
    [
        ([0, 1], np.ones((3, 2)), "shape"),
        ([0, 0], np.ones((2, 2)), "distinct"),
        ([0.0, 1.0], np.ones((2, 2)), "whole numbers"),
        ([0, 7], np.array([[1.0, 2.0], [np.nan, 1.0]]), "code 7"),
    ],
)
def test_a_source_that_cannot_be_used_says_why(codes, matrix, message):
    with pytest.raises(FitError, match=message):
        Source("north", np.array(codes), matrix)


def test_compression_is_an_exact_rotation():
    matrix = np.random.default_rng(0).standard_normal((20, 60))
    view = factor.compress(Source("a", np.arange(20), matrix))
    assert view.scores.shape == (20, 20)
    assert view.columns == 60
    np.testing.assert_allclose(view.scores @ view.scores.T, matrix @ matrix.T, atol=1e-10)


def test_compression_does_not_see_a_rotation_of_the_columns():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((30, 8))
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    one, two = (factor.compress(Source("a", np.arange(30), m)) for m in (matrix, matrix @ turn))
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-10)


def test_energy_of_axes_left_out_is_kept_as_rest():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((30, 8)) * np.arange(8, 0, -1)
    singular = np.linalg.svd(matrix, compute_uv=False)
    view = factor.compress(Source("a", np.arange(30), matrix), axes=3)
    assert view.scores.shape == (30, 3)
    assert view.columns == 8
    assert view.rest == pytest.approx(np.sum(singular[3:] ** 2))
    assert view.energy == pytest.approx(np.sum(matrix**2))
    full = factor.compress(Source("a", np.arange(30), matrix))
    assert full.rest == 0.0
    np.testing.assert_allclose(view.scores, full.scores[:, :3], atol=1e-10)


@pytest.mark.parametrize("exponent", [0.5, 2.0, 4.0])
def test_a_column_scaling_keeps_the_energy_and_weighs_the_axes(exponent):
    matrix = np.random.default_rng(1).standard_normal((30, 8)) * np.arange(8, 0, -1)
    view = factor.compress(Source("a", np.arange(30), matrix), axes=5)
    scaled = view.rescaled(exponent)
    assert scaled.energy == pytest.approx(view.energy)
    before, after = (np.linalg.norm(v.scores, axis=0) for v in (view, scaled))
    np.testing.assert_allclose(after / after[0], (before / before[0]) ** exponent)


def test_patterns_say_which_source_holds_which_code():
    _, sources = _exact_sources([range(30), range(10, 40)])
    where = factor.patterns([factor.compress(s) for s in sources], 40)
    held = where.held[where.pattern]
    np.testing.assert_array_equal(held[:, 0], np.arange(40) < 30)
    np.testing.assert_array_equal(held[:, 1], np.arange(40) >= 10)
    assert len(where.held) == 3


def test_alignment_recovers_one_embedding_from_rotated_parts():
    truth, sources = _exact_sources([range(40), range(30, 70), range(60, 100)])
    views = [factor.compress(s) for s in sources]
    aligned = alignment.align(views, 100, 4)
    assert aligned.warnings == ()
    assert _gram_error(aligned.common, truth) < 1e-8
    points = alignment.unit_rows(alignment.filled_svd(views, aligned, 4))
    assert _gram_error(points, truth) < 0.4  # the singular values weigh the axes, the directions are right


def test_too_few_shared_codes_still_align_and_are_reported():
    _, sources = _exact_sources([range(30), range(28, 60)])
    views = [factor.compress(s) for s in sources]
    aligned = alignment.align(views, 60, 4)
    assert len(aligned.warnings) == 1
    assert "2 shared codes" in aligned.warnings[0]
    assert np.isfinite(aligned.common).all()


def test_sources_without_a_path_of_shared_codes_are_named():
    _, sources = _exact_sources([range(20), range(10, 30), range(30, 50)])
    views = [factor.compress(s) for s in sources]
    with pytest.raises(FitError, match=r"\[s0, s1\] with \[s2\]"):
        alignment.check_connected(views, 50)


def test_a_code_without_data_is_named():
    _, sources = _exact_sources([[0, 1, 2, 4, 5]])
    with pytest.raises(FitError, match="row 3"):
        alignment.check_connected([factor.compress(s) for s in sources], 6)


def test_a_code_outside_the_vocabulary_is_refused():
    _, sources = _exact_sources([range(10)])
    with pytest.raises(FitError, match="outside the vocabulary"):
        alignment.check_connected([factor.compress(s) for s in sources], 9)


@pytest.mark.parametrize(("spectral", "expected"), [(False, {1.0}), (True, {2.0, 3.0, 4.0})])
def test_the_column_scaling_follows_the_noise(spectral, expected):
    """White noise leaves the columns alone; eigenvectors of a noisy matrix are noisier along late axes."""
    simulation = simulate_sites(1, noise=1.5 if spectral else 0.5, spectral=spectral)
    views = [factor.compress(s) for s in simulation.sources]
    assert alignment.choose_exponent(views, simulation.n_codes, 32) in expected
