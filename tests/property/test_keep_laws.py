"""Laws of the ontology view: what renumbering, rotating, repeating and adding must not change."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.keep import IsA, fit_glove, history_events, make_is_a, walk_ppmi


@st.composite
def hierarchies(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Each code has up to two parents among the codes before it."""
    n = draw(st.integers(2, 14))
    links = [("c0", "")]
    for i in range(1, n):
        parents = draw(st.sets(st.integers(0, i - 1), max_size=2))
        links += [(f"c{i}", f"c{p}") for p in parents] or [(f"c{i}", "")]
    return links


@st.composite
def problems(draw: st.DrawFn) -> tuple[sp.csr_array, np.ndarray]:
    n, dim = draw(st.integers(2, 9)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return sp.csr_array(np.triu(rng.poisson(draw(st.floats(0.1, 8.0)), (n, n)))), rng.normal(size=(n, dim))


@settings(max_examples=60, deadline=None)
@given(links=hierarchies(), depth=st.integers(1, 5))
def test_every_code_has_a_place_and_the_order_of_links_says_nothing(
    links: list[tuple[str, str]], depth: int
) -> None:
    graph, again = make_is_a(links, depth=depth), make_is_a(links[::-1], depth=depth)
    assert graph.codes == again.codes
    assert (graph.parents != again.parents).nnz == 0
    codes = sorted({code for code, _ in links})
    positions, rows = graph.places(codes)
    assert positions.tolist() == list(range(len(codes)))
    assert (rows > 0).all()
    assert (graph.ancestors[:, [0]].toarray() == 1).all()


@settings(max_examples=40, deadline=None)
@given(links=hierarchies(), seed=st.integers(0, 2**32 - 1))
def test_renumbering_nodes_renumbers_the_walks(links: list[tuple[str, str]], seed: int) -> None:
    edges = make_is_a(links).edges
    order = np.random.default_rng(seed).permutation(edges.shape[0])
    whole = walk_ppmi(edges).toarray()
    np.testing.assert_allclose(
        walk_ppmi(sp.csr_array(edges[order][:, order])).toarray(), whole[order][:, order], atol=1e-9
    )
    np.testing.assert_array_equal(whole, whole.T)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), penalty=st.floats(0.05, 50.0), per=st.sampled_from(["code", "pair"]))
def test_a_sweep_of_glove_never_raises_its_objective(
    problem: tuple[sp.csr_array, np.ndarray], penalty: float, per: str
) -> None:
    history = fit_glove(*problem, penalty=penalty, per=per, sweeps=6, tol=0.0).history  # type: ignore[arg-type]
    # The equations are made in single precision.
    assert all(b <= a + 1e-4 * (1 + abs(a)) for a, b in pairwise(history))


@settings(max_examples=40, deadline=None)
@given(problem=problems(), seed=st.integers(0, 2**32 - 1))
def test_glove_turns_with_its_start_and_follows_the_numbering(
    problem: tuple[sp.csr_array, np.ndarray], seed: int
) -> None:
    counts, start = problem
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(start.shape[1],) * 2))[0]
    order = rng.permutation(len(start))
    whole = (counts + counts.T).toarray()[order][:, order]
    found = fit_glove(counts, start, penalty=1.0).vectors
    np.testing.assert_allclose(fit_glove(counts, start @ turn, penalty=1.0).vectors, found @ turn, atol=2e-2)
    moved = fit_glove(sp.csr_array(np.triu(whole)), start[order], penalty=1.0).vectors
    np.testing.assert_allclose(moved, found[order], atol=2e-2)


def distinct(columns: tuple[np.ndarray, ...]) -> set[tuple[int, ...]]:
    return {tuple(map(int, event)) for event in zip(*columns, strict=True)}


@settings(max_examples=60, deadline=None)
@given(
    links=hierarchies(),
    events=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 30)), max_size=25),
    least=st.integers(1, 3),
)
def test_history_is_what_its_definition_says(
    links: list[tuple[str, str]], events: list[tuple[int, int, int]], least: int
) -> None:
    graph: IsA = make_is_a(links)
    n = len(graph.codes) - 1
    columns = np.array([(p, d, 1 + r % n) for p, d, r in events], dtype=np.int64).reshape(-1, 3)
    above = graph.ancestors.toarray()
    rolled = {(p, d, a) for p, d, r in columns.tolist() for a in np.flatnonzero(above[r]).tolist() if a}
    often = {(p, d, a) for p, d, a in rolled if len({e for q, e, b in rolled if (q, b) == (p, a)}) >= least}
    once = history_events(*columns.T, graph, least=least)
    assert distinct(once) == often
    assert len(once[0]) == len(often)
    twice = history_events(*np.concatenate([columns, columns]).T, graph, least=least)
    assert distinct(twice) == often
