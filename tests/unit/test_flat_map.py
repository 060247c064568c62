"""The report's map in two dimensions, where vectors are equal."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.reporting import _flat_map
from tests.synthetic import unit_rows


@pytest.mark.parametrize("distinct", [1, 3, 60])
def test_codes_of_one_vector_lie_in_one_place(distinct: int) -> None:
    vectors = unit_rows(np.random.default_rng(0), distinct, 8).astype(np.float32)
    places, method = _flat_map(np.tile(vectors, (4, 1)))
    assert method.startswith("t-SNE" if distinct >= 50 else "first two")
    assert np.isfinite(places).all()
    for copy in range(1, 4):
        np.testing.assert_allclose(
            places[copy * distinct : (copy + 1) * distinct], places[:distinct], atol=1e-9
        )
