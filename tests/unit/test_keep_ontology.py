"""The is-a graph: what it holds, what it refuses, and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from protocol.canonical import file_digest
from protocol.errors import DataError, StudyError
from protocol.keep import history_events, make_is_a, read_ontology

LINKS = (
    ("A", ""),
    ("B", ""),
    ("a1", "A"),
    ("a2", "A"),
    ("a11", "a1"),
    ("ab", "a2"),
    ("ab", "B"),
    ("a111", "a11"),
)


def test_codes_stand_below_one_root_and_know_their_ancestors() -> None:
    graph = make_is_a(LINKS)
    assert graph.codes == ("", "A", "B", "a1", "a2", "ab", "a11", "a111")
    found = graph.ancestors.toarray().astype(bool)
    assert {graph.codes[j] for j in np.flatnonzero(found[graph.row["ab"]])} == {"", "A", "B", "a2", "ab"}
    assert {graph.codes[j] for j in np.flatnonzero(found[graph.row["a111"]])} == {
        "",
        "A",
        "a1",
        "a11",
        "a111",
    }
    assert (graph.edges != graph.edges.T).nnz == 0


def test_only_wanted_codes_and_their_ancestors_are_in() -> None:
    graph = make_is_a(LINKS, wanted={"a11", "unknown"})
    assert graph.codes == ("", "A", "a1", "a11")
    positions, rows = graph.places(["unknown", "a11", "", "A"])
    assert positions.tolist() == [1, 3]
    assert [graph.codes[r] for r in rows] == ["a11", "A"]


def test_deeper_codes_stand_where_their_nearest_ancestor_does() -> None:
    graph = make_is_a(LINKS, depth=2)
    assert graph.codes == ("", "A", "B", "a1", "a2", "ab")  # ab is two steps below the root by way of B
    assert graph.above["a111"] == ("a1",)
    assert graph.above["ab"] == ("ab",)
    positions, rows = graph.places(["a111"])
    assert (positions.tolist(), graph.codes[rows[0]]) == ([0], "a1")


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ([], "The ontology holds no codes"),
        ([("A", "B"), ("B", "C"), ("C", "A"), ("D", "C")], "circle of is-a links at or above A"),
        ([("A", "A")], "circle of is-a links at or above A"),
    ],
)
def test_what_is_no_hierarchy_is_refused(links: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_is_a(links)


def test_a_depth_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        make_is_a(LINKS, depth=0)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_file_is_read_and_held_against_the_study(tmp_path: Path) -> None:
    path = written(tmp_path / "ontology.csv", "parent,code,title\nX:1,X:2,two\n,X:1,one\n")
    assert read_ontology(path, digest=file_digest(path)) == [("X:2", "X:1"), ("X:1", "")]
    with pytest.raises(StudyError, match="is not the one that the study names"):
        read_ontology(path, digest="0" * 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("code,broader\nX:1,X:2\n", "has no column parent"),
        ("", "has no column code"),
        ("code,parent\nX:1,\n,X:1\n", "Line 3 of the ontology file .* names no code"),
        ("code,parent\nX:1\n,\n", "Line 3 of the ontology file .* names no code"),
        ("code,parent\nX:1,nothing\n", "Line 2 of the ontology file .* names no code"),
    ],
)
def test_a_wrong_file_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_ontology(written(tmp_path / "ontology.csv", text))


def test_a_missing_or_unreadable_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no ontology file"):
        read_ontology(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"code,parent\nX:\xe9,\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_ontology(tmp_path / "latin.csv")


def test_history_rolls_up_before_it_asks_how_often() -> None:
    graph = make_is_a(LINKS)
    row = np.array([graph.row[c] for c in ("a11", "a2", "a2", "B")])
    patient, day = np.array([7, 7, 8, 7]), np.array([1, 2, 1, 1])
    once = history_events(patient, day, row, graph)
    twice = history_events(patient, day, row, graph, least=2)

    def named(columns: tuple[np.ndarray, ...]) -> list[tuple[int, int, str]]:
        return [(int(p), int(d), graph.codes[r]) for p, d, r in zip(*columns, strict=True)]

    assert named(once) == [
        (7, 1, "A"), (7, 2, "A"), (7, 1, "B"), (7, 1, "a1"), (7, 2, "a2"), (7, 1, "a11"), (8, 1, "A"), (8, 1, "a2"),
    ]  # fmt: skip
    # Two kinds of A on two days are A twice, though neither kind is.
    assert named(twice) == [(7, 1, "A"), (7, 2, "A")]


def test_history_refuses_columns_that_do_not_go_together() -> None:
    graph = make_is_a(LINKS)
    one = np.array([1])
    with pytest.raises(ValueError, match="are no events"):
        history_events(np.array([1, 2]), one, one, graph)
    with pytest.raises(ValueError, match="least is 0"):
        history_events(one, one, one, graph, least=0)
    empty = np.empty(0, np.int64)
    assert [len(c) for c in history_events(empty, empty, empty, graph)] == [0, 0, 0]
