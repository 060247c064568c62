"""Known pairs of codes."""

import numpy as np
import pytest

from coordinator.model import Relations
from protocol.errors import FitError


@pytest.mark.parametrize(
    ("pairs", "labels"),
    [
        (np.array([[1, 1]]), np.array([True])),
        (np.array([[1.0, 2.0]]), np.array([True])),
        (np.array([[1, 2, 3]]), np.array([True])),
        (np.array([[1, 2]]), np.array([True, False])),
    ],
)
def test_unusable_pairs_are_refused(pairs, labels):
    with pytest.raises(FitError):
        Relations(pairs, labels)


@pytest.mark.parametrize("outside", [-1, 5])
def test_a_pair_outside_the_vocabulary_is_refused(outside):
    with pytest.raises(FitError, match="5 codes"):
        Relations(np.array([[1, outside]]), np.array([True])).check(5)


def test_the_matrices_count_the_listings_of_a_pair_in_either_order():
    listed = np.array([[0, 1], [1, 0], [0, 1], [2, 1]])
    positive, negative = Relations(listed, np.array([True, True, False, False])).matrices(3)
    np.testing.assert_array_equal(positive.toarray(), [[0, 2, 0], [2, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(negative.toarray(), [[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    assert (positive.nnz, negative.nnz) == (2, 4)
