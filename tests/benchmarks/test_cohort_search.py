"""Search over patient vectors beside exact search, faiss (HNSW, IVF), in one run.

    python -m pytest tests/benchmarks/test_cohort_search.py -s                    10,000 and 20,000 patients: what CI runs
    SMILE_BENCH=full python -m pytest tests/benchmarks/test_cohort_search.py -s   10,000 to 300,000 x 256; half an hour

Patients are made like those of a hospital: a few topics each, common codes more often, 5 to 200 codes, weighted and added up
by the product's own function. Queries are patients (who find themselves first). Times of a query are those of the thread
(`time.thread_time`), one at a time on one core; `wall` is what a watch says on a machine that does other work too. Annoy has
no wheel for Linux, so that it is not among the rivals.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp

from protocol.tfidf import inverse_frequency, patient_vectors
from site_agent.cohort.index import EF, EF_CONSTRUCTION, EXACT_ROWS, M, PatientIndex, build_graph

FULL = os.environ.get("SMILE_BENCH") == "full"
pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200 if FULL else 600)]
SIZES = (10_000, 30_000, 100_000, 300_000) if FULL else (10_000, 22_000)
DIM, K, QUERIES, CODES, TOPICS = (256 if FULL else 64), 100, (200 if FULL else 50), 5_000, 200
Vectors = npt.NDArray[np.float32]


def patients(n: int, dim: int = DIM, seed: int = 0) -> Vectors:
    """(n, dim) patient vectors."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((TOPICS, dim))
    topic = rng.integers(TOPICS, size=CODES)
    codes = centre[topic] + 0.8 * rng.standard_normal((CODES, dim)) + 0.5
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    common = 1.0 / (1.0 + rng.permutation(CODES)) ** 0.8
    members = [np.flatnonzero(topic == t) for t in range(TOPICS)]
    chances = [common[m] / common[m].sum() for m in members]
    size = np.clip(rng.lognormal(3.2, 0.8, n), 5, 200).astype(int)
    owner = np.repeat(np.arange(n), size)
    own = rng.integers(TOPICS, size=(n, 3))
    picked = own[owner, rng.choice(3, len(owner), p=(0.6, 0.3, 0.1))]
    anywhere = rng.random(len(owner)) < 0.25
    code = np.empty(len(owner), dtype=np.int64)
    code[anywhere] = rng.choice(CODES, int(anywhere.sum()), p=common / common.sum())
    for t in range(TOPICS):
        rows = np.flatnonzero((picked == t) & ~anywhere)
        code[rows] = rng.choice(members[t], len(rows), p=chances[t])
    counts = sp.csr_array((np.ones(len(owner)), (owner, code)), shape=(n, CODES))
    counts.sum_duplicates()
    weight = inverse_frequency(np.bincount(counts.indices, minlength=CODES), n)
    parts = [patient_vectors(counts[i : i + 8192], weight, codes) for i in range(0, n, 8192)]
    return np.concatenate(parts).astype(np.float32)


def timed(ask: Callable[[Vectors], Any], queries: Vectors) -> tuple[list[Any], float, float]:
    """Answers, and the median thread and wall time of one in milliseconds."""
    found, cpu, wall = [], [], []
    for query in queries[:10]:
        ask(query)
    for query in queries:
        w, c = time.perf_counter(), time.thread_time()
        found.append(ask(query))
        cpu.append(time.thread_time() - c)
        wall.append(time.perf_counter() - w)
    return found, float(np.median(cpu)) * 1e3, float(np.median(wall)) * 1e3


def recall(vectors: Vectors, queries: Vectors, found: Sequence[Any], least: npt.NDArray[np.float32]) -> float:
    """Share of the K places filled by a row as near as the K-th true neighbour; fewer rows lose."""
    near = [
        int((vectors[np.asarray(r, dtype=np.intp)[:K]] @ q >= x - 1e-6).sum()) / K
        for r, q, x in zip(found, queries, least, strict=True)
    ]
    return float(np.mean(near))


def built(make: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    made = make()
    return made, time.process_time() - cpu, time.perf_counter() - wall


def line(
    name: str, n: int, value: float, cpu: float, wall: float, build: float = 0.0, took: float = 0.0
) -> None:
    print(f"{name:28}{n:>9,} {value:7.4f} {cpu:9.3f} {wall:9.3f} {build:9.1f} {took:9.1f}", flush=True)


def rivals(vectors: Vectors, queries: Vectors, least: npt.NDArray[np.float32]) -> dict[str, float]:
    """faiss: the same graph, and an inverted file of 4 sqrt(n) lists at the fewest probes that reach .98."""
    import faiss

    faiss.omp_set_num_threads(2)
    n, dim = vectors.shape

    def graph() -> Any:
        index = faiss.IndexHNSWFlat(dim, M, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = EF_CONSTRUCTION, EF
        index.add(vectors)
        return index

    def lists() -> Any:
        cells = int(4 * np.sqrt(n))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[np.random.default_rng(0).permutation(n)[: 40 * cells]])
        index.add(vectors)
        return index

    flat = faiss.IndexFlatIP(dim)
    flat.add(vectors)
    times = {}
    for name, make in (("faiss HNSW", graph), ("faiss IVF", lists)):
        index, cpu_build, wall_build = built(make)
        faiss.omp_set_num_threads(1)
        probes = (8, 16, 32, 64, 128, 256) if name == "faiss IVF" else (0,)
        for probe in probes:
            if probe:
                index.nprobe = probe
            found, cpu, wall = timed(lambda q, i=index: i.search(q[None], K)[1][0], queries)  # type: ignore[misc]
            score = recall(vectors, queries, found, least)
            if score >= 0.98:
                break
        line(name + (f", {probe} probes" if probe else ""), n, score, cpu, wall, cpu_build, wall_build)
        times[name] = cpu
        faiss.omp_set_num_threads(2)
    faiss.omp_set_num_threads(1)
    found, cpu, wall = timed(lambda q: flat.search(q[None], K)[1][0], queries[:30])
    line("faiss, exact", n, recall(vectors, queries[:30], found, least[:30]), cpu, wall)
    times["faiss, exact"] = cpu
    return times


@pytest.mark.parametrize("n", SIZES)
def test_nearest_patients(n: int) -> None:
    pytest.importorskip("hnswlib")
    vectors = patients(n)
    queries = vectors[np.random.default_rng(1).choice(n, QUERIES, replace=False)]
    exact = PatientIndex(vectors)
    print(
        f"\n{'':28}{'patients':>9} {'recall':>7} {'p50 ms':>9} {'wall p50':>9} {'build cpu':>9} {'wall s':>9}"
    )
    found, cpu_exact, wall = timed(lambda q: exact.search(q, K), queries)
    least = np.array([cosines[-1] for _, cosines in found], dtype=np.float32)
    line("ours, exact", n, 1.0, cpu_exact, wall)

    graph, cpu_build, wall_build = built(lambda: build_graph(vectors, threads=2))
    index = PatientIndex(vectors, graph)
    answers, cpu, wall = timed(lambda q: index.search(q, K), queries)
    score = recall(vectors, queries, [rows for rows, _ in answers], least)
    line(f"ours, HNSW ef {EF}", n, score, cpu, wall, cpu_build, wall_build)
    times = {"ours, exact": cpu_exact}
    if importlib.util.find_spec("faiss"):
        times |= rivals(vectors, queries, least)
    ratios = ", ".join(f"{name} {t / cpu:.1f}" for name, t in times.items())
    print(f"times of others over ours: {ratios}")

    assert all((np.diff(cosines) <= 0).all() for _, cosines in found)
    assert score >= 0.98
    if n > EXACT_ROWS:
        assert cpu < cpu_exact


def test_filters_and_large_cohorts_find_what_exact_search_finds() -> None:
    pytest.importorskip("hnswlib")
    n = SIZES[1]
    vectors = patients(n, 32)
    index, exact = PatientIndex(vectors, build_graph(vectors)), PatientIndex(vectors)
    rng = np.random.default_rng(2)
    for share, k in ((0.95, 100), (0.5, 100), (0.01, 100), (1.0, 2_000)):
        allowed = rng.random(n) < share
        right, found = [], []
        for query in vectors[:20]:
            rows, cosines = exact.search(query, k, allowed=allowed)
            got, _ = index.search(query, k, allowed=allowed)
            assert allowed[got].all()
            assert len(got) == len(rows)
            right.append(cosines[-1])
            found.append(float((vectors[got] @ query >= cosines[-1] - 1e-6).mean()))
        assert np.mean(found) >= 0.98, (share, k)
