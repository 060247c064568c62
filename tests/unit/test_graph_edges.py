"""The table of edges, its exports and what is looked up in it."""

from __future__ import annotations

import csv
import io
from dataclasses import fields, replace

import networkx as nx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.exports.cells import unguarded
from coordinator.graph import (
    Edges,
    Graph,
    Significance,
    edges_table,
    merge_edges,
    read_edges,
    write_csv,
    write_graphml,
)
from coordinator.graph.fewshot import fit_head
from coordinator.graph.tables import SCHEMA
from protocol.errors import ProtocolError, UsageError
from protocol.tfidf import inverse_frequency, patient_vectors

CODES = ("A:1", "A:2", "B:1", "B:2", "B:3")
CATEGORIES = {c: "drug" if c.startswith("A") else "condition" for c in CODES}
NAMES = {"A:1": "aspirin", "B:1": "stroke"}


def vectors() -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(5, 4))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def example() -> Edges:
    weights = np.zeros((5, 5))
    weights[0, 2], weights[2, 0], weights[1, 2], weights[3, 1] = 0.5, 0.3, -0.2, 0.1
    family = [-1, -1, 7, 7, -1]
    pairs = np.array([[2, 0], [0, 1], [2, 3], [0, 4], [1, 4]])
    tested = Significance(
        pairs, np.array([1e-9, 0.01, 0.02, 0.9, 0.001]), np.array([1e-8, 0.04, 0.05, 0.9, 0.02])
    )
    return merge_edges(CODES, vectors(), sp.csr_array(weights), family=family, tested=tested)


def rows(edges: Edges) -> dict[tuple[str, str], dict[str, object]]:
    table = edges_table(edges).to_pylist()
    return {(r["left"], r["right"]): r for r in table}


def same(one: Edges, other: Edges) -> bool:
    return one.codes == other.codes and all(
        np.array_equal(getattr(one, f.name), getattr(other, f.name), equal_nan=f.name in {"weight", "p", "q"})
        for f in fields(one)
        if f.name != "codes"
    )


def test_one_row_a_pair_says_what_selected_it_and_what_the_tests_say() -> None:
    found = rows(example())
    assert list(found) == [
        ("A:1", "A:2"), ("A:1", "B:1"), ("A:2", "B:1"), ("A:2", "B:2"), ("A:2", "B:3"), ("B:1", "B:2"),
    ]  # fmt: skip
    both = found["A:1", "B:1"]
    assert both["weight"] == pytest.approx(0.4) and both["ends"] == 2 and both["relation"] == "direct"
    assert both["p"] == 1e-9 and both["q"] == 1e-8
    negative = found["A:2", "B:1"]
    assert negative["weight"] == pytest.approx(-0.1) and negative["sign"] == -1 and negative["ends"] == 1
    assert negative["p"] is None and negative["q"] is None
    indirect = found["A:1", "A:2"]
    assert indirect["relation"] == "indirect" and indirect["weight"] == 0.0 and indirect["ends"] == 0
    assert indirect["sign"] == np.sign(indirect["cosine"])
    kin = found["B:1", "B:2"]
    assert kin["relation"] == "family" and kin["weight"] is None and kin["q"] == 0.05


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_codes_and_of_a_pair_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 12
    codes = [f"X:{i}" for i in rng.permutation(100)[:n]]
    points, weights = rng.normal(size=(n, 3)), rng.normal(size=(n, n)) * (rng.random((n, n)) < 0.2)
    np.fill_diagonal(weights, 0.0)
    pairs = np.argwhere(np.triu(rng.random((n, n)) < 0.3, 1))
    p, family = rng.random(len(pairs)), rng.integers(-1, 4, size=n)
    one = merge_edges(
        codes, points, sp.csr_array(weights), family=family, tested=Significance(pairs, p, p), q_most=0.5
    )
    order = rng.permutation(n)
    place = np.argsort(order)
    shuffled = Significance(place[pairs][::-1, ::-1], p[::-1], p[::-1])
    other = merge_edges(
        [codes[i] for i in order], points[order], sp.csr_array(weights[np.ix_(order, order)]),
        family=family[order], tested=shuffled, q_most=0.5,
    )  # fmt: skip
    assert all(
        np.allclose(getattr(one, f.name), getattr(other, f.name), equal_nan=True)
        for f in fields(one)
        if f.name != "codes"
    )
    assert one.codes == other.codes == tuple(sorted(codes))
    assert (one.left < one.right).all()


def test_parquet_keeps_every_value_and_documents_every_column() -> None:
    edges, sink = example(), io.BytesIO()
    pq.write_table(edges_table(edges), sink)
    read = pq.read_table(io.BytesIO(sink.getvalue()))
    assert all(read.schema.field(name).metadata[b"description"] for name in SCHEMA.names)
    back = read_edges(read, edges.codes)
    assert np.array_equal(back.relation, edges.relation)
    assert same(replace(back, cosine=edges.cosine, kin=edges.kin), edges)
    assert np.allclose(back.cosine, edges.cosine, atol=1e-6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t.drop(["q"]),
        lambda t: t.set_column(0, SCHEMA.field("left"), pa.array(["Z:9"] * len(t))),
        lambda t: t.set_column(7, SCHEMA.field("relation"), pa.array(["direct"] * len(t))),
        lambda t: t.set_column(7, SCHEMA.field("relation"), pa.array(["odd"] * len(t))),
    ],
)
def test_a_table_that_is_not_one_of_edges_is_refused(spoil) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ProtocolError):
        read_edges(spoil(edges_table(example())), CODES)


def test_a_graph_without_edges_is_a_graph() -> None:
    empty = merge_edges(CODES, vectors(), sp.csr_array((5, 5), dtype=np.float64))
    assert len(empty) == 0 and edges_table(empty).schema.equals(SCHEMA)
    assert same(read_edges(edges_table(empty), CODES), empty)
    assert Graph(empty, {}, {}).neighbours("A:1") == []
    assert nx.read_graphml(io.BytesIO(write_graphml(empty, {}, {}))).number_of_nodes() == 5


@pytest.mark.parametrize(
    "change",
    [
        {"codes": ("A:1",) * 5},
        {"codes": CODES[:4]},
        {"tested": Significance(np.array([[0, 0]]), np.array([0.1]), np.array([0.1]))},
        {"tested": Significance(np.array([[0, 1], [1, 0]]), np.array([0.1, 0.1]), np.array([0.1, 0.1]))},
        {"tested": Significance(np.array([[0, 1]]), np.array([np.nan]), np.array([0.1]))},
        {"tested": Significance(np.array([[0, 1]]), np.array([0.1]), np.array([0.1, 0.2]))},
    ],
)
def test_what_cannot_be_merged_is_refused(change: dict[str, object]) -> None:
    given: dict[str, object] = {
        "codes": CODES,
        "vectors": vectors(),
        "weights": sp.csr_array((5, 5), dtype=float),
    }
    with pytest.raises(ValueError):
        merge_edges(**(given | change))  # type: ignore[arg-type]


def test_an_audience_sees_no_pair_of_a_code_that_it_may_not_see() -> None:
    part = example().among({"A:1", "A:2", "B:2"})
    assert part.codes == ("A:1", "A:2", "B:2")
    assert set(rows(part)) == {("A:1", "A:2"), ("A:2", "B:2")}


HOSTILE = "=1+1<&\"'>\x01\u202e\ud7ff]]>"


def hostile() -> tuple[Edges, dict[str, str]]:
    codes = ["A:<&\"'>", "A:\x01", "A:\ufffd", f"B:{HOSTILE}", "B:ok"]
    weights = sp.csr_array(np.ones((5, 5)) - np.eye(5))
    return merge_edges(codes, vectors(), weights), dict.fromkeys(codes, HOSTILE)


def test_graphml_is_read_by_networkx_whatever_codes_are_called() -> None:
    graph = nx.read_graphml(io.BytesIO(write_graphml(example(), NAMES, CATEGORIES)))
    assert not graph.is_directed() and set(graph.nodes) == set(CODES)
    assert graph.nodes["A:1"] == {"name": "aspirin", "category": "drug"}
    assert graph.edges["A:1", "B:1"]["weight"] == pytest.approx(0.4)
    assert graph.edges["A:1", "B:1"]["ends"] == 2
    assert "q" not in graph.edges["A:2", "B:1"] and "weight" not in graph.edges["B:1", "B:2"]
    edges, names = hostile()
    graph = nx.read_graphml(io.BytesIO(write_graphml(edges, names, {})))
    assert graph.number_of_nodes() == 5 and graph.number_of_edges() == 10
    assert {"A:<&\"'>", "A:\ufffd", "A:\ufffd (2)"} <= set(graph.nodes)
    assert graph.nodes["B:ok"]["name"] == HOSTILE.replace("\x01", "\ufffd")


def test_no_cell_of_the_csv_is_a_formula_and_null_is_empty() -> None:
    read = list(csv.DictReader(io.StringIO(write_csv(example(), NAMES, CATEGORIES).decode(), newline="")))
    assert [(r["left"], r["right"]) for r in read] == list(rows(example()))
    assert read[1]["left_name"] == "aspirin" and read[1]["right_category"] == "condition"
    assert read[2]["q"] == "" and float(read[1]["q"]) == 1e-8
    edges, names = hostile()
    cells = [c for r in csv.reader(io.StringIO(write_csv(edges, names, {}).decode(), newline="")) for c in r]
    assert not any(c.lstrip().startswith("=") for c in cells)
    assert any(unguarded(c) == HOSTILE for c in cells)


def test_neighbours_are_ordered_and_filtered() -> None:
    graph = Graph(example(), NAMES, CATEGORIES)
    assert [n.code for n in graph.neighbours("A:2")] == ["B:1", "B:2", "B:3", "A:1"]
    assert [n.code for n in graph.neighbours("A:2", k=1)] == ["B:1"]
    assert [n.code for n in graph.neighbours("A:2", q_most=0.03)] == ["B:3"]
    assert [n.code for n in graph.neighbours("A:2", categories={"drug"})] == ["A:1"]
    assert [n.code for n in graph.neighbours("B:1", relations={"family"})] == ["B:2"]
    first = graph.neighbours("B:1")[0]
    assert (first.code, first.name, first.ends, first.q) == ("A:1", "aspirin", 2, 1e-8)
    with pytest.raises(UsageError, match="not in the graph"):
        graph.neighbours("C:1")


def test_features_are_the_nearest_positive_direct_codes_of_each_category() -> None:
    graph = Graph(example(), NAMES, CATEGORIES)
    assert {c: [n.code for n in f] for c, f in graph.features("A:2").items()} == {"condition": ["B:2"]}
    assert {c: [n.code for n in f] for c, f in graph.features("B:1").items()} == {"drug": ["A:1"]}
    part = graph.neighbourhood("A:1", q_most=0.045)
    assert set(rows(part)) == {("A:1", "A:2"), ("A:1", "B:1")}


def test_a_ranking_adds_cosine_weight_and_structure() -> None:
    graph, points = Graph(example(), NAMES, CATEGORIES), vectors()
    ranked = {g.code: g for g in graph.ranking("A:2", "condition", points)}
    assert {c: g.weight for c, g in ranked.items()} == {"B:1": -0.1, "B:2": pytest.approx(0.05), "B:3": 0.0}
    assert ranked["B:3"].q == 0.02 and ranked["B:1"].cosine == pytest.approx(points[1] @ points[2])
    for guess in ranked.values():
        assert guess.score == pytest.approx(guess.cosine + 3 * guess.weight) and guess.structure is None
    order = [g.score for g in ranked.values()]
    assert order == sorted(order, reverse=True)
    assert len(graph.ranking("A:2", "condition", points, k=2)) == 2
    # Where A:2 and B:1 stand alike, and nothing is known of B:3.
    alike = np.zeros((5, 3))
    alike[[1, 2]], alike[3] = np.eye(3)[0], np.eye(3)[1]
    placed = {
        g.code: g for g in Graph(example(), NAMES, CATEGORIES, alike).ranking("A:2", "condition", points)
    }
    assert {c: g.structure for c, g in placed.items()} == {"B:1": 1.0, "B:2": 0.0, "B:3": None}
    assert {c: pytest.approx(g.score - ranked[c].score) for c, g in placed.items()} == {
        "B:1": 0.5,
        "B:2": 0.0,
        "B:3": 0.0,
    }


@pytest.mark.parametrize("few", [15, 200])
def test_a_head_learns_a_relation_that_the_cosine_does_not_show(few: int) -> None:
    rng = np.random.default_rng(0)
    d = 6
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 1500, d)))
    label = np.einsum("ij,ij->i", left @ turn, right) > 0.2
    head = fit_head(left[:few], right[:few], label[:few])

    def auc(score: np.ndarray) -> float:
        return float((score[label][:, None] > score[~label][None]).mean())

    assert abs(auc(np.einsum("ij,ij->i", left, right)) - 0.5) < 0.05
    learnt = auc(head.scores(left, right))
    assert learnt > (0.9 if few > 100 else 0.52)
    # Below ten of a class no folds are drawn, and the order of the pairs changes nothing.
    again = fit_head(left[:few][::-1], right[:few][::-1], label[:few][::-1])
    if few < 20:
        assert np.allclose(head.form, again.form, atol=1e-3)


def test_a_head_needs_labels_of_both_classes() -> None:
    with pytest.raises(ValueError, match="both classes"):
        fit_head(np.eye(3), np.eye(3), [True] * 3)
    with pytest.raises(ValueError, match="do not go with"):
        fit_head(np.eye(3), np.eye(3), [True, False])


@given(margins=st.lists(st.integers(0, 1000), min_size=2, max_size=20))
def test_a_commoner_code_weighs_less(margins: list[int]) -> None:
    weights = inverse_frequency(margins, 1000)
    order = np.argsort(margins, kind="stable")
    assert (np.diff(weights[order]) <= 1e-12).all() and (weights >= 1.0).all()
    with pytest.raises(ValueError, match="total"):
        inverse_frequency([*margins, 1001], 1000)


def test_patients_are_unit_sums_of_their_codes() -> None:
    counts = sp.csr_array(np.array([[2, 0, 0, 0, 1], [0, 0, 0, 0, 0]]))
    weights, points = inverse_frequency([5, 1, 1, 1, 1], 10), vectors()
    found = patient_vectors(counts, weights, points)
    wanted = np.log(3) * weights[0] * points[0] + np.log(2) * weights[4] * points[4]
    assert np.allclose(found[0], wanted / np.linalg.norm(wanted)) and not found[1].any()
    assert counts.toarray()[0, 0] == 2
