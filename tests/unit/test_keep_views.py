"""The ontology view at a site and at the coordinator: which codes are in it, where, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from coordinator.model import Source
from coordinator.union import UnionVocabulary
from coordinator.views.ontology import ontology_source, pooled_counts
from protocol.errors import FitError
from protocol.messages import Policy
from protocol.release import SourceView
from protocol.sections import Ontology
from site_agent.cooccurrence import count_pairs
from site_agent.gate import KeptCounts, suppress
from site_agent.views.ontology import ontology_view

LINKS = [(f"ICD:{c}", "") for c in "ABCD"] + [(f"ICD:{c}{i}", f"ICD:{c}") for c in "ABCD" for i in range(4)]
CODES = (*(f"ICD:{c}{i}" for c in "ABCD" for i in range(4)), "LOCAL:x", "LOCAL:y", "OTHER:z")
POLICY = Policy(
    min_code_patients=6, min_pair_patients=4, margin_rounding=5, max_dim=128, small_site_patients=0
)


def some_kept(seed: int = 0) -> KeptCounts:
    """Patients with codes of all kinds; LOCAL:x goes with A-codes."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(400), 8)
    letter = rng.integers(0, 4, 400)[who]
    code = np.where(
        rng.random(len(who)) < 0.7,
        letter * 4 + rng.integers(0, 4, len(who)),
        rng.integers(0, len(CODES), len(who)),
    )
    code = np.where((letter == 0) & (rng.random(len(who)) < 0.3), CODES.index("LOCAL:x"), code)
    return suppress(count_pairs(who, np.zeros_like(who), code, len(CODES), window_days=None), POLICY)


def site_view(
    kept: KeptCounts,
    settings: Ontology,
    *,
    links: list[tuple[str, str]] = LINKS,
    dim: int = 64,
    codes_per_dim: int = 0,
) -> SourceView:
    """The view of all codes, where at most `dim` columns leave, and one for so many codes."""
    view = ontology_view(
        kept,
        CODES,
        links,
        settings,
        columns=lambda n: min(dim, n // codes_per_dim if codes_per_dim else dim),
        anchors={"LOCAL:x": "ICD:A1"},
    )
    assert view is not None
    return view


def test_the_site_view_holds_known_and_anchored_codes_in_unit_rows() -> None:
    kept, settings = some_kept(), Ontology(dim=6)
    names = [CODES[r] for r in kept.rows]
    view = site_view(kept, settings)
    inside = [names[r] for r in view.rows]
    assert view.name == "ontology"
    assert inside == [n for n in names if n.startswith("ICD:") or n == "LOCAL:x"]
    assert view.matrix.dtype == np.float32
    assert view.matrix.shape[1] <= 6
    np.testing.assert_allclose(np.linalg.norm(view.matrix, axis=1), 1, rtol=1e-5)
    cosine = view.matrix @ view.matrix.T
    x = inside.index("LOCAL:x")
    assert cosine[x, inside.index("ICD:A2")] > cosine[x, inside.index("ICD:C2")]
    again = site_view(kept, settings)
    assert view.matrix.tobytes() == again.matrix.tobytes()


def test_no_more_dimensions_leave_than_the_gate_allows() -> None:
    assert site_view(some_kept(), Ontology(dim=6), dim=3).matrix.shape[1] <= 3


def test_columns_go_by_the_codes_of_the_view_and_not_of_the_site() -> None:
    view = site_view(some_kept(), Ontology(dim=64), codes_per_dim=5)
    assert len(view.rows) == 17
    assert view.matrix.shape[1] <= 3


def test_the_firmer_the_penalty_the_nearer_to_the_ontology_alone() -> None:
    kept = some_kept()
    views = [site_view(kept, Ontology(dim=6, penalty=penalty)).matrix for penalty in (1e6, 30.0, 1e-2)]
    away = [float(np.linalg.norm(view - views[0])) for view in views]
    assert away == sorted(away)
    assert away[-1] > 0.5


@pytest.mark.parametrize("links", [[("X:1", "")], [("ICD:A1", "")], []])
def test_a_site_whose_codes_the_ontology_hardly_knows_has_no_view(links: list[tuple[str, str]]) -> None:
    found = ontology_view(some_kept(), CODES, links, Ontology(), columns=lambda n: n // 2)
    assert found is None


def union() -> UnionVocabulary:
    codes = tuple(sorted((*CODES[:16], "LOCAL:x", "LOCAL:y")))
    row = np.arange(len(codes))
    row[codes.index("LOCAL:x")] = row[codes.index("ICD:A0")]  # anchored
    _, row = np.unique(row, return_inverse=True)
    standard = {int(row[i]): c for i, c in enumerate(codes) if c.startswith("ICD:")}
    anchored = np.array([c == "LOCAL:x" for c in codes])
    return UnionVocabulary(
        codes, row, int(row.max()) + 1, standard, anchored, ("a",), np.ones((len(codes), 1), bool), ()
    )


def pooled() -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    codes = tuple(reversed(CODES[:16]))
    upper = sp.csr_array(np.triu(rng.poisson(9.0, (16, 16)))).tocoo()
    row, column = upper.coords
    return codes, {"row": row.astype(np.int32), "column": column.astype(np.int32), "values": upper.data - 1}


def test_the_coordinators_source_is_one_that_the_model_takes() -> None:
    held = union()
    alone = ontology_source(held, LINKS, Ontology(dim=8))
    counted = ontology_source(held, LINKS, Ontology(dim=8, penalty=1.0), pooled=pooled_counts(*pooled()))
    for source in (alone, counted):
        assert isinstance(source, Source)
        assert sorted(source.codes.tolist()) == sorted(held.standard)
        assert source.matrix.shape[0] == 16
        assert source.matrix.shape[1] <= 8
    assert np.abs(alone.matrix @ alone.matrix.T - counted.matrix @ counted.matrix.T).max() > 0.1
    cosine = alone.matrix @ alone.matrix.T
    at = {held.standard[int(r)]: i for i, r in enumerate(alone.codes)}
    assert cosine[at["ICD:A0"], at["ICD:A1"]] > cosine[at["ICD:A0"], at["ICD:B1"]]


def test_pooled_counts_are_taken_by_code_and_not_by_place() -> None:
    codes, arrays = pooled()
    turned = {"row": 15 - arrays["column"], "column": 15 - arrays["row"], "values": arrays["values"]}
    one = ontology_source(union(), LINKS, Ontology(dim=8), pooled=pooled_counts(codes, arrays))
    other = ontology_source(union(), LINKS, Ontology(dim=8), pooled=pooled_counts(codes[::-1], turned))
    np.testing.assert_allclose(one.matrix, other.matrix, atol=1e-6)


def test_an_ontology_of_other_codes_is_refused_by_the_coordinator() -> None:
    with pytest.raises(FitError, match="knows no code of the fit"):
        ontology_source(union(), [("X:1", "")], Ontology())
