"""Search beside what a user would take instead: exact search, faiss and usearch for vectors, SQLite FTS5 for texts.

    python -m pytest tests/benchmarks/test_search.py -s                    20,000 vectors, 10,000 names: what CI runs
    SMILE_BENCH=full python -m pytest tests/benchmarks/test_search.py -s   100,000 x 128, all names, growth; half an hour

Times are those of the thread (`time.thread_time`), one query at a time on one core, so that other work on the machine does not
count; `wall` is what a watch says. Every graph has the same links and build effort, and the least ef of one ladder that
finds .99 of the ten nearest. Half of the queries are codes, half are vectors halfway between a code and its tenth neighbour.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from coordinator.index import EF_CONSTRUCTION, M, build_graph, choose_effort
from protocol.codeindex import CodeIndex
from protocol.textindex import TextIndex
from tests.codes_and_names import Array, isotropic, published_like, titles, unit

pytestmark = pytest.mark.benchmark
FULL = os.environ.get("SMILE_BENCH") == "full"
N, DIM, K = (100_000 if FULL else 20_000), 128, 10
QUERIES = 1000 if FULL else 200
LADDER = (16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048)
ENOUGH = 0.99
RIVALS = all(importlib.util.find_spec(name) for name in ("faiss", "usearch"))
Rows = npt.NDArray[np.intp]
KINDS: dict[str, Callable[[int, int], Array]] = {"published-like": published_like, "isotropic": isotropic}


@dataclass
class Times:
    cpu: list[float]
    wall: list[float]

    @property
    def p50(self) -> float:
        return float(np.median(self.cpu)) * 1e3

    def __str__(self) -> str:
        p99, wall = float(np.quantile(self.cpu, 0.99)) * 1e3, float(np.median(self.wall)) * 1e3
        return f"{self.p50:8.3f} {p99:8.3f} {wall:8.3f} {len(self.cpu) / sum(self.cpu):9,.0f}"


HEAD = f"{'':34}{'ef':>5} {'recall':>7} {'p50 ms':>8} {'p99':>8} {'wall p50':>8} {'per s':>9} {'build s':>8} {'MiB':>6}"


def timed(ask: Callable[[Any], Any], queries: Sequence[Any]) -> tuple[list[Any], Times]:
    found, times = [], Times([], [])
    for query in queries[:20]:
        ask(query)
    for query in queries:
        wall, cpu = time.perf_counter(), time.thread_time()
        found.append(ask(query))
        times.cpu.append(time.thread_time() - cpu)
        times.wall.append(time.perf_counter() - wall)
    return found, times


@dataclass
class Data:
    vectors: Array
    queries: Array
    last: npt.NDArray[np.float32]

    def recall(self, found: Sequence[Rows]) -> float:
        """Share of what was found that is as near as the tenth true neighbour."""
        rows = np.array([np.asarray(f, dtype=np.intp)[:K] for f in found])
        near = np.einsum("qkd,qd->qk", self.vectors[rows], self.queries)
        return float((near >= self.last - 1e-6).mean())


def tenth(vectors: Array, queries: Array) -> Rows:
    found = [
        np.argpartition(-(queries[i : i + 50] @ vectors.T), K - 1, axis=1) for i in range(0, len(queries), 50)
    ]
    return np.concatenate([f[:, K - 1] for f in found])


def make(kind: str, n: int = N) -> Data:
    vectors = KINDS[kind](n, DIM)
    rows = vectors[np.random.default_rng(1).choice(n, QUERIES // 2, replace=False)]
    queries = np.vstack([rows, unit(rows + vectors[tenth(vectors, rows)])])
    last = np.einsum("qd,qd->q", vectors[tenth(vectors, queries)], queries)
    return Data(vectors, queries, last[:, None])


def least(data: Data, set_ef: Callable[[int], Any], ask: Callable[[Any], Any]) -> tuple[int, float, Times]:
    """The first ef that finds enough, or the last one."""
    for ef in LADDER:
        set_ef(ef)
        found, times = timed(ask, data.queries)
        recall = data.recall(found)
        if recall >= ENOUGH:
            break
    return ef, recall, times


def line(name: str, ef: int | str, recall: float, times: Times, build: float = 0.0, mib: float = 0.0) -> None:
    print(f"{name:34}{ef:>5} {recall:7.4f} {times} {build:8.1f} {mib:6.0f}")


def built(make_it: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return make_it(), time.process_time() - start


def rows_of(index: CodeIndex, **limits: Any) -> Callable[[Any], Rows]:
    return lambda q: np.array([int(h.code.partition(":")[2]) for h in index.search(q, K, **limits)])


def codes_for(prefixes: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{p}:{i}" for i, p in enumerate(prefixes))


@pytest.fixture(scope="module", params=list(KINDS))
def graph(request: pytest.FixtureRequest) -> tuple[str, Data, Any, int, float, float]:
    data = make(request.param)
    made, seconds = built(lambda: build_graph(data.vectors))
    (ef, recall), choosing = built(lambda: choose_effort(made, data.vectors))
    print(
        f"\n{request.param} {data.vectors.shape}, M {M}, ef_construction {EF_CONSTRUCTION}: publication chooses ef {ef} "
        f"(recall {recall:.4f}) in {choosing:.1f} s"
    )
    return request.param, data, made, ef, seconds, recall


def test_vectors_beside_rivals(graph: tuple[str, Data, Any, int, float, float]) -> None:
    kind, data, made, ef, seconds, _ = graph
    codes = codes_for(["A"] * len(data.vectors))
    print(HEAD)
    exact = CodeIndex(codes, data.vectors)
    found, exactly = timed(rows_of(exact), data.queries[:: 10 if FULL else 1])
    line("CodeIndex, exact (numpy)", "", 1.0, exactly, 0.0, data.vectors.nbytes / 2**20)

    if ef:
        made.set_ef(ef)
    index = CodeIndex(codes, data.vectors, made if ef else None, ef)
    found, ours = timed(rows_of(index), data.queries)
    recall = data.recall(found)
    mib = (made.index_file_size() if ef else 0) / 2**20
    line("CodeIndex as published", ef or "exact", recall, ours, seconds, mib + data.vectors.nbytes / 2**20)
    assert recall >= ENOUGH

    raw = least(data, made.set_ef, lambda q: made.knn_query(q[None], k=K, num_threads=1)[0][0])
    line("hnswlib alone", *raw, seconds, made.index_file_size() / 2**20)
    if ef:
        # A fraction of exact search where the map has a structure; where it has none ef is 0, and both are one.
        assert ours.p50 < (1 if FULL else 2) * exactly.p50
    ratios = {"exact search": exactly.p50 / ours.p50}
    if RIVALS:
        for name, (rival_ef, rival_recall, times, build, size) in rivals(data).items():
            line(name, rival_ef, rival_recall, times, build, size)
            ratios[name] = times.p50 / raw[2].p50
    print(
        "time at equal recall, of hnswlib alone: "
        + ", ".join(f"{k} {v:.2f}" for k, v in ratios.items() if k != "exact search")
    )
    print(f"time of exact search, of CodeIndex as published ({kind}): {ratios['exact search']:.1f}")


def rivals(data: Data) -> dict[str, tuple[int | str, float, Times, float, float]]:
    import faiss
    from usearch.index import Index

    faiss.omp_set_num_threads(1)
    found: dict[str, tuple[int | str, float, Times, float, float]] = {}
    flat = faiss.IndexFlatIP(DIM)
    flat.add(data.vectors)
    _, times = timed(lambda q: flat.search(q[None], K)[1][0], data.queries[:: 10 if FULL else 1])
    found["faiss flat"] = ("", 1.0, times, 0.0, data.vectors.nbytes / 2**20)

    hnsw = faiss.IndexHNSWFlat(DIM, M, faiss.METRIC_INNER_PRODUCT)
    hnsw.hnsw.efConstruction = EF_CONSTRUCTION
    _, seconds = built(lambda: hnsw.add(data.vectors))
    ef, recall, times = least(
        data, lambda e: setattr(hnsw.hnsw, "efSearch", e), lambda q: hnsw.search(q[None], K)[1][0]
    )
    found["faiss HNSW"] = (ef, recall, times, seconds, len(faiss.serialize_index(hnsw)) / 2**20)

    other = Index(ndim=DIM, metric="ip", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION)
    _, seconds = built(lambda: other.add(np.arange(len(data.vectors)), data.vectors, threads=1))
    ef, recall, times = least(
        data,
        lambda e: setattr(other, "expansion_search", e),
        lambda q: np.asarray(other.search(q, K, threads=1).keys, dtype=np.intp),
    )
    found["usearch"] = (ef, recall, times, seconds, other.memory_usage / 2**20)
    return found


def test_filters(graph: tuple[str, Data, Any, int, float, float]) -> None:
    kind, data, made, ef, _, _ = graph
    n, rng = len(data.vectors), np.random.default_rng(2)
    if ef:
        made.set_ef(ef)
    side = np.where(
        data.vectors @ data.vectors[0] > np.quantile(data.vectors @ data.vectors[0], 0.7), "IN", "OUT"
    )
    splits = {
        "half of the rows": (rng.choice(["IN", "OUT"], n), "IN"),
        "a fifth": (np.where(rng.random(n) < 0.2, "IN", "OUT"), "IN"),
        "a hundredth": (np.where(rng.random(n) < 0.01, "IN", "OUT"), "IN"),
        "the three tenths nearest to a code": (side, "IN"),
        "the seven tenths farthest from it": (side, "OUT"),
    }
    print(f"\n{kind}, limited to")
    print(HEAD)
    for name, (prefixes, wanted) in splits.items():
        index = CodeIndex(codes_for(list(prefixes)), data.vectors, made if ef else None, ef)
        limited = CodeIndex(tuple(index.codes), data.vectors)
        found, times = timed(rows_of(index, systems={wanted}), data.queries)
        best = [limited.search(q, K, systems={wanted})[-1].similarity for q in data.queries]
        near = np.einsum("qkd,qd->qk", data.vectors[np.array(found)], data.queries)
        recall = float((near >= np.array(best)[:, None] - 1e-6).mean())
        line(name, ef or "exact", recall, times)
        assert recall >= ENOUGH
        assert all(prefixes[row] == wanted for rows in found for row in rows)


@pytest.mark.skipif(not FULL, reason="minutes: SMILE_BENCH=full")
def test_growth(graph: tuple[str, Data, Any, int, float, float]) -> None:
    kind, largest, largest_graph, _, largest_seconds, _ = graph
    rows = []
    for n in (1_000, 3_000, 10_000, 30_000, N):
        data, made, seconds = largest, largest_graph, largest_seconds
        if n < N:
            data = make(kind, n)
            made, seconds = built(lambda vectors=data.vectors: build_graph(vectors))
        ask = partial(made.knn_query, k=K, num_threads=1)
        ef, recall, times = least(data, made.set_ef, lambda q, ask=ask: ask(q[None])[0][0])
        exact = CodeIndex(codes_for(["A"] * n), data.vectors)
        _, exactly = timed(partial(exact.search, k=K), data.queries[::10])
        rows.append((n, ef, recall, times.p50, exactly.p50, seconds))
    print(f"\n{kind}: least ef for {ENOUGH}")
    print(f"{'codes':>8} {'ef':>5} {'recall':>7} {'graph ms':>9} {'exact ms':>9} {'build s':>8}")
    for n, ef, recall, graph_ms, exact_ms, seconds in rows:
        print(f"{n:8,} {ef:5} {recall:7.4f} {graph_ms:9.3f} {exact_ms:9.3f} {seconds:8.1f}")
    logs = np.log([[r[0], r[3], r[4], r[5]] for r in rows])
    for name, column in (("graph", 1), ("exact search", 2), ("build", 3)):
        print(f"time of {name} ~ n^{np.polyfit(logs[:, 0], logs[:, column], 1)[0]:.2f}")


# --- Texts ---------------------------------------------------------------------------------------------


def misspelt(word: str, rng: random.Random) -> str:
    """One letter left out, doubled, exchanged or swapped with the next."""
    at = rng.randrange(1, len(word) - 1)
    change = rng.choice("odes")
    if change == "o":
        return word[:at] + word[at + 1 :]
    if change == "d":
        return word[:at] + word[at] + word[at:]
    if change == "e":
        return word[:at] + rng.choice("aeionrst") + word[at + 1 :]
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


class Fts:
    """What one would build with SQLite: FTS5 over words with prefixes, and over trigrams."""

    def __init__(self, names: Sequence[str], tokenizer: str) -> None:
        self.trigram = tokenizer == "trigram"
        self.db = sqlite3.connect(":memory:")
        self.db.execute(f"CREATE VIRTUAL TABLE t USING fts5(name, tokenize='{tokenizer}', content='')")
        self.db.executemany("INSERT INTO t(rowid, name) VALUES (?, ?)", enumerate(names))

    def find(self, text: str, k: int) -> list[int]:
        if self.trigram:
            parts = sorted({w[i : i + 3] for w in text.split() for i in range(len(w) - 2)})
            query = " OR ".join(f'"{p}"' for p in parts)
        else:
            query = " ".join(f'"{w}"*' for w in text.split())
        if not query:
            return []
        rows = self.db.execute("SELECT rowid FROM t WHERE t MATCH ? ORDER BY rank LIMIT ?", (query, k))
        return [r[0] for r in rows]


def test_texts_beside_fts5() -> None:
    found = titles(None if FULL else 10_000)
    if not found:
        pytest.skip("the titles of ICD-9-CM and ICD-10-CM are not at hand")
    codes, names = zip(*found, strict=True)
    own, seconds = built(lambda: TextIndex(codes, names, range(len(codes)), [""] * len(codes)))
    words, words_seconds = built(lambda: Fts(names, "unicode61"))
    grams, grams_seconds = built(lambda: Fts(names, "trigram"))
    rng = random.Random(0)  # noqa: S311
    plain, partly, wrong, truth, rows_asked = [], [], [], [], []
    for row in rng.sample(range(len(names)), QUERIES // 2):
        name = [w for w in names[row].lower().replace(",", " ").split() if w.isalpha() and len(w) > 4]
        if len(name) < 3:
            continue
        asked = rng.sample(name, 3)
        truth.append(asked)
        rows_asked.append(row)
        plain.append(" ".join(asked))
        partly.append(" ".join(w[: max(4, len(w) - 3)] for w in asked))
        wrong.append(" ".join([misspelt(asked[0], rng), *asked[1:]]))

    def share(ask: Callable[[str], Sequence[int]], queries: Sequence[str]) -> tuple[float, Times]:
        # Trigrams of common words take a tenth of a second each.
        queries = queries[:60] if ask is ways["FTS5, trigrams"][0] else queries
        rows, times = timed(ask, queries)
        hit = [
            bool(got) and set(meant) <= set(names[got[0]].lower().replace(",", " ").split())
            for got, meant in zip(rows, truth[: len(rows)], strict=True)
        ]
        return float(np.mean(hit)), times

    number = {code: row for row, code in enumerate(codes)}
    ways: dict[str, tuple[Callable[[str], Sequence[int]], float]] = {
        "TextIndex": (lambda t: [number[f.code] for f in own.find(t, 10)], seconds),
        "FTS5, words with prefixes": (lambda t: words.find(t, 10), words_seconds),
        "FTS5, trigrams": (lambda t: grams.find(t, 10), grams_seconds),
    }
    print(
        f"\n{len(names):,} names; {len(truth)} times three words of one; the first that is found holds them all"
    )
    print(f"{'':28}{'build s':>8}" + "".join(f"{x:>26}" for x in ("words", "beginnings", "one typo")))
    scores: dict[str, list[float]] = {}
    for name, (ask, build) in ways.items():
        cells = [share(ask, queries) for queries in (plain, partly, wrong)]
        scores[name] = [hit for hit, _ in cells]
        shown = "".join(
            f"{hit:8.3f} {t.p50:6.2f}/{np.quantile(t.cpu, 0.99) * 1e3:6.2f} ms" for hit, t in cells
        )
        print(f"{name:28}{build:8.1f}{shown}")
    assert scores["TextIndex"][0] >= scores["FTS5, words with prefixes"][0] - 0.02
    assert scores["TextIndex"][2] > scores["FTS5, words with prefixes"][2] + 0.3
    codes_asked = [codes[row] for row in rows_asked]
    first = [own.find(c, 1)[0].code for c in codes_asked]
    assert first == codes_asked
    _, times = timed(lambda c: own.find(c, 10), codes_asked)
    print(f"TextIndex, a code: p50 {times.p50:.2f} ms")
