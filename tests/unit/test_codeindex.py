"""Nearest codes: exact, by graph, limited to code systems, from many threads; and what a release says of its graph."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import index as building
from coordinator.index import build_graph, choose_effort, write_index
from protocol import codeindex
from protocol.arrays import decode_arrays, encode_arrays
from protocol.codeindex import GRAPH, HNSW, VECTORS, CodeIndex
from protocol.errors import ProtocolError, UsageError
from protocol.keys import PrivateKeys
from protocol.messages import PublishedManifest
from protocol.published import list_files, sign_manifest
from tests.codes_and_names import isotropic, published_like, unit
from tests.hub import Hub, releases

N, DIM = 13_000, 24
SHARES = {"A": 6_000, "B": 6_900, "C": 100}


@pytest.fixture(scope="module")
def codes() -> tuple[str, ...]:
    made = [f"{p}:{i:05}" for p, count in SHARES.items() for i in range(count)]
    return tuple(np.random.default_rng(0).permutation(made).tolist())


@pytest.fixture(scope="module")
def vectors() -> Any:
    return published_like(N, DIM)


@pytest.fixture(scope="module")
def approximate(codes: tuple[str, ...], vectors: Any) -> CodeIndex:
    graph = build_graph(vectors)
    ef, recall = choose_effort(graph, vectors)
    assert ef
    assert recall >= building.ENOUGH
    graph.set_ef(ef)
    return CodeIndex(codes, vectors, graph, ef)


@pytest.fixture(scope="module")
def exact(codes: tuple[str, ...], vectors: Any) -> CodeIndex:
    return CodeIndex(codes, vectors)


@pytest.fixture(scope="module")
def queries(vectors: Any) -> Any:
    rng = np.random.default_rng(1)
    return unit(vectors[rng.choice(N, 100)] + 0.1 * rng.standard_normal((100, DIM)))


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=400), st.integers(1, 400), st.sampled_from([0.0, 1e-3])
)
def test_the_largest_are_those_of_a_sort(values: list[int], k: int, spread: float) -> None:
    array = np.array(values, dtype=np.float32) + spread * np.random.default_rng(0).random(len(values))
    k = min(k, len(values))
    places = codeindex._largest(array, k)
    least = np.sort(array)[-k]
    assert sorted(places.tolist()) == np.flatnonzero(array >= least).tolist()


LIMITS = [(), {"A"}, {"C"}, {"A", "B"}, {"A", "B", "C"}]


@pytest.mark.parametrize("systems", LIMITS, ids=lambda s: "+".join(sorted(s)) or "all")
def test_exact_search_is_the_definition(exact: CodeIndex, queries: Any, systems: Any) -> None:
    allowed = [i for i, c in enumerate(exact.codes) if not systems or c.partition(":")[0] in systems]
    for query in queries[:20]:
        cosines = {exact.codes[i]: float(exact.vectors[i] @ query) for i in allowed}
        best = sorted(cosines.values(), reverse=True)[:10]
        hits = exact.search(query, 10, systems=systems)
        np.testing.assert_allclose([h.similarity for h in hits], best, atol=1e-6)
        assert all(cosines[h.code] == pytest.approx(h.similarity, abs=1e-6) for h in hits)


@pytest.mark.parametrize("systems", LIMITS, ids=lambda s: "+".join(sorted(s)) or "all")
def test_the_graph_finds_what_exact_search_finds(
    approximate: CodeIndex, exact: CodeIndex, queries: Any, systems: Any
) -> None:
    found = 0
    for query in queries:
        last = exact.search(query, 10, systems=systems)[-1].similarity
        hits = approximate.search(query, 10, systems=systems)
        assert len({h.code for h in hits}) == 10
        assert all(not systems or h.code.partition(":")[0] in systems for h in hits)
        found += sum(h.similarity >= last - 1e-6 for h in hits)
    assert found >= 990


def test_the_graph_is_asked_only_where_rows_are_many(
    approximate: CodeIndex, queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting:
        asked = 0

        def knn_query(self, *arguments: Any, **named: Any) -> Any:
            self.asked += 1
            return approximate.hnsw.knn_query(*arguments, **named)

    counting = Counting()
    index = CodeIndex(approximate.codes, approximate.vectors, counting, approximate.ef)
    for systems, asked in ((frozenset({"C"}), 0), (frozenset({"A"}), 0), (frozenset({"A", "B"}), 1), ((), 2)):
        index.search(queries[0], 5, systems=systems)
        assert counting.asked == asked
    index.search(queries[0], N // 2)
    assert counting.asked == 2, "half of the codes are not asked of a graph"


def test_a_graph_that_gives_too_little_is_not_the_last_word(exact: CodeIndex, queries: Any) -> None:
    class Broken:
        def knn_query(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("Cannot return the results in a contiguous 2D array")

    class OtherSystem:
        """Finds only what a limit takes away again."""

        def knn_query(self, _: Any, k: int, **__: Any) -> Any:
            rows = [i for i, c in enumerate(exact.codes) if c.startswith("C:")]
            return np.resize(np.array(rows, dtype=np.uint64), (1, k)), None

    for graph, systems in ((Broken(), ()), (OtherSystem(), frozenset({"A", "B"}))):
        index = CodeIndex(exact.codes, exact.vectors, graph, 64)
        assert index.search(queries[0], 10, systems=systems) == exact.search(queries[0], 10, systems=systems)


def test_the_code_itself_is_left_out(approximate: CodeIndex, exact: CodeIndex) -> None:
    for index in (approximate, exact):
        for systems in LIMITS[:3]:
            hits = index.search("C:00007", 5, systems=systems)
            assert len(hits) == 5
            assert "C:00007" not in {h.code for h in hits}


def test_many_at_once_are_found_as_one_by_one(approximate: CodeIndex, exact: CodeIndex, queries: Any) -> None:
    for index in (approximate, exact):
        for systems in LIMITS:
            for one, many in zip(
                [index.search(q, 7, systems=systems) for q in queries],
                index.search_many(queries, 7, systems=systems),
                strict=True,
            ):
                np.testing.assert_allclose(
                    [h.similarity for h in one], [h.similarity for h in many], atol=1e-6
                )


def test_search_from_many_threads_is_that_of_one(approximate: CodeIndex, queries: Any) -> None:
    jobs = [(q, k, s) for q in queries for k, s in ((3, ()), (60, frozenset({"A", "B"})), (400, ()))]
    alone = [approximate.search(q, k, systems=s) for q, k, s in jobs]
    fresh = CodeIndex(approximate.codes, approximate.vectors, approximate.hnsw, approximate.ef)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: fresh.search(job[0], job[1], systems=job[2]), jobs))
    assert together == alone


def test_nothing_and_everything(exact: CodeIndex, queries: Any) -> None:
    assert exact.search(queries[0], 0) == []
    assert exact.search(queries[0], 5, systems={"NONE"}) == []
    assert exact.search_many(queries[:2], 5, systems={"NONE"}) == [[], []]
    assert len(exact.search(queries[0], 2 * N)) == N
    empty = CodeIndex((), np.empty((0, DIM), np.float32))
    assert empty.search(queries[0]) == []


@pytest.mark.parametrize(
    "vector",
    [np.zeros(DIM), np.full(DIM, np.nan), np.full(DIM, np.inf)],
    ids=["zero", "NaN", "infinite"],
)
def test_a_vector_without_direction_is_refused(exact: CodeIndex, vector: Any) -> None:
    with pytest.raises(UsageError, match="no direction"):
        exact.search(vector)


def test_rows_are_found_without_looking_through_all(exact: CodeIndex) -> None:
    assert exact.codes[exact.row("B:00042")] == "B:00042"
    assert exact.codes[exact.row("06500")] == "B:06500"
    with pytest.raises(UsageError, match="several systems"):
        exact.row("00042")
    with pytest.raises(UsageError, match="not in this release"):
        exact.row("B:x")
    # A look through all codes takes a millisecond, 10,000 of them ten seconds; a table some milliseconds.
    start = time.thread_time()
    for _ in range(10_000):
        exact.row("C:00099")
    looked_up = time.thread_time() - start
    start = time.thread_time()
    for _ in range(100):
        [i for i, c in enumerate(exact.codes) if c == "C:00099"]
    assert looked_up < time.thread_time() - start


# --- What a release says -------------------------------------------------------------------------------


def test_equal_input_gives_equal_files(tmp_path: Path) -> None:
    vectors = published_like(600, 16)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_index(tmp_path / name, [f"A:{i}" for i in range(600)], vectors)
    files = list_files(tmp_path / "a")
    assert files == list_files(tmp_path / "b")
    assert len(files) == 3


def test_the_effort_is_measured_and_none_is_promised_where_none_suffices() -> None:
    easy, hard = published_like(3_000, 32), isotropic(3_000, 128)
    graph = build_graph(easy)
    ef, recall = choose_effort(graph, easy)
    assert 0 < ef <= 64
    assert recall >= building.ENOUGH
    assert choose_effort(build_graph(hard), hard) == (0, 1.0)


def test_many_equal_vectors_are_no_trouble() -> None:
    same = np.repeat(unit(np.random.default_rng(0).standard_normal((3, 8))), 400, axis=0)
    graph = build_graph(same)
    ef, _ = choose_effort(graph, same)
    if ef:
        graph.set_ef(ef)
    index = CodeIndex(tuple(f"A:{i}" for i in range(len(same))), same, graph if ef else None, ef)
    for row in (0, 500, 1100):
        assert [h.similarity for h in index.search(same[row], 10)] == pytest.approx([1.0] * 10, abs=1e-5)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrivateKeys]:
    hub = Hub(tmp_path_factory.mktemp("hub"))
    hub.enrol(*releases())
    return hub.run_round(releases(), "r1"), hub.home.keys


def resigned(folder: Path, keys: PrivateKeys, told: dict[str, str]) -> None:
    """The same release, where the index says something else of itself."""
    arrays, _ = decode_arrays((folder / VECTORS).read_bytes())
    (folder / VECTORS).write_bytes(encode_arrays(arrays, told))
    document = json.loads((folder / "manifest.json").read_text())["manifest"]
    manifest = PublishedManifest.model_validate_json(json.dumps(document))
    sign_manifest(folder, manifest.model_copy(update={"files": list_files(folder)}), keys)


def test_a_release_loads_with_its_effort(published: tuple[Path, PrivateKeys]) -> None:
    folder, keys = published
    told = json.loads(decode_arrays((folder / VECTORS).read_bytes())[1][GRAPH])
    index = CodeIndex.load(folder, trust=keys.public())
    assert index.hnsw is not None
    assert index.ef == told["ef"] == index.hnsw.ef
    assert told["recall"] >= building.ENOUGH
    bare = CodeIndex.load(folder, trust=keys.public(), exact=True)
    assert bare.hnsw is None
    for code in index.codes[:20]:
        assert index.search(code, 5) == bare.search(code, 5)


@pytest.mark.parametrize(
    "ef",
    ["", "{}", "64", "[" * 9999, *(f'{{"ef": {v}}}' for v in ("-1", "1.5", "64.0", "1025", '"64"', "true"))],
)
def test_an_effort_that_makes_no_sense_is_refused(
    published: tuple[Path, PrivateKeys], tmp_path: Path, ef: str
) -> None:
    folder = shutil.copytree(published[0], tmp_path / "v1")
    resigned(folder, published[1], {GRAPH: ef} if ef else {})
    with pytest.raises(ProtocolError, match="how much effort"):
        CodeIndex.load(folder, trust=published[1].public())


def test_a_release_without_a_graph_is_searched_exactly(
    published: tuple[Path, PrivateKeys], tmp_path: Path
) -> None:
    folder = shutil.copytree(published[0], tmp_path / "v1")
    (folder / HNSW).unlink()
    resigned(folder, published[1], {GRAPH: '{"ef": 0, "recall": 1.0}'})
    index = CodeIndex.load(folder, trust=published[1].public())
    assert index.hnsw is None
    assert len(index.search(index.codes[0], 5)) == 5


def test_without_hnswlib_search_is_exact(
    published: tuple[Path, PrivateKeys], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "hnswlib":
            raise ImportError(name)
        return real(name, *arguments, **named)

    with_it = CodeIndex.load(published[0], trust=published[1].public())
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "hnswlib")
    assert codeindex._hnswlib() is None
    index = CodeIndex.load(published[0], trust=published[1].public())
    assert index.hnsw is None
    assert index.search(index.codes[3], 5) == with_it.search(index.codes[3], 5)
