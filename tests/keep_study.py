"""Real codes below the ICD-9-CM hierarchy, what is known of them, and the rivals of KEEP."""

from __future__ import annotations

import csv
import gzip
import importlib.resources
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
import pyarrow.parquet as pq
import scipy.sparse as sp
from numpy.typing import NDArray

from coordinator.evaluation import auc
from protocol.keep import IsA, history_events, make_is_a
from protocol.keep.evaluation import (
    REPEATS,
    association,
    information_content,
    neighbour_correlation,
    power,
    resnik,
)
from protocol.statistics import embed, nonempty, ppmi, symmetric
from site_agent.cooccurrence import PairCounts, count_pairs
from tests.cms import shared_file

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Events:
    """One row an event: patient number, day (or number of the encounter), ICD-9-CM code without its dot."""

    patient: NDArray[np.int64]
    day: NDArray[np.int64]
    code: NDArray[np.object_]


def _coded(patient: NDArray[np.object_], day: NDArray[np.int64], code: NDArray[np.object_]) -> Events:
    known = icd9_rows()
    code = np.array([c.replace(".", "") for c in code], dtype=object)
    kept = np.array([c in known for c in code])
    _, number = np.unique(patient[kept].astype(str), return_inverse=True)
    return Events(number.astype(np.int64), day[kept], code[kept])


def cms_events(*samples: int) -> Events:
    table = pq.read_table(
        shared_file("cms_claims/inpatient_events.parquet"), filters=[("sample", "in", samples)]
    )
    day = table["date"].to_numpy().astype("datetime64[D]").astype(np.int64)
    patient, code = (np.array(table[name].to_pylist(), dtype=object) for name in ("patient", "code"))
    return _coded(patient, day, code)


def uci_events() -> Events:
    table = pq.read_table(shared_file("uci_diabetes130/diabetic_data.parquet"))
    patient = np.array(table["patient_nbr"].to_pylist(), dtype=object)
    encounter = np.array(table["encounter_id"].to_pylist(), dtype=np.int64)
    codes = [np.array([c or "?" for c in table[f"diag_{k}"].to_pylist()], dtype=object) for k in (1, 2, 3)]
    return _coded(np.tile(patient, 3), np.tile(encounter, 3), np.concatenate(codes))


@cache
def icd9_rows() -> Mapping[str, Mapping[str, str]]:
    path = shared_file("icd_titles/icd9cm_hierarchy.csv.gz")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return {row["code"]: row for row in csv.DictReader(stream)}


@cache
def icd9_links() -> tuple[tuple[str, str], ...]:
    """Code -> code without its last digit -> three digits -> sub-chapter -> chapter."""
    rows, found = icd9_rows(), {}
    for code, row in rows.items():
        chapter = f"chapter {row['chapter']}"
        block = f"{row['sub_chapter']} in {chapter}"
        found[chapter], found[block] = "", chapter
        parent = code[:-1]
        while parent not in rows and len(parent) > len(row["three_digit"]):
            parent = parent[:-1]
        found[code] = block if code == row["three_digit"] else parent
    return tuple(found.items())


@cache
def phecodes() -> Mapping[str, str]:
    """ICD-9-CM code without its dot -> phecode; empty where the package that holds the table is absent."""
    if importlib.util.find_spec("pyphewas") is None:
        return {}
    table = importlib.resources.files("pyphewas") / "phecode_maps" / "phecode12.csv"
    with table.open(encoding="utf-8") as stream:
        rows = csv.DictReader(stream)
        return {r["ICD"].replace(".", ""): r["phecode"] for r in rows if r["flag"] == "9"}


def counted(
    events: Events, graph: IsA, patients: NDArray[np.bool_], *, least: int = 1, up: bool = True
) -> PairCounts:
    mine = patients[events.patient]
    row = np.array([graph.row[c] for c in events.code[mine]], dtype=np.int64)
    columns = (events.patient[mine], events.day[mine], row)
    if up:
        columns = history_events(*columns, graph, least=least)
    return count_pairs(*columns, len(graph.codes), window_days=None, threads=1, max_events_per_patient=None)


class Task:
    """Counts of some patients, and what others of the same data and public tables say of the codes.

    Judged are codes with 10 patients of the one and 5 of the other; correlations with the ontology and with the
    others' co-occurrence are over all codes with 20 patients, ancestors included, as in the paper.
    """

    def __init__(self, events: Events, seed: int, *, share: float = 2 / 3, least: int = 1) -> None:
        graph = self.graph = make_is_a(icd9_links(), wanted=set(events.code))
        mine = np.random.default_rng(seed).random(int(events.patient.max()) + 1) < share
        self.counts = counted(events, graph, mine, least=least)
        codes, theirs = counted(events, graph, mine, up=False), counted(events, graph, ~mine, up=False)
        self.wide = np.flatnonzero(self.counts.code_patients >= 20)
        others = counted(events, graph, ~mine)
        self.cooccurring = sp.csr_array(symmetric(others.events)[self.wide][:, self.wide], dtype=np.float64)
        content = information_content(graph, codes.code_patients)
        self.similar = resnik(graph, content, self.wide)
        self.rows = np.flatnonzero((codes.code_patients >= 10) & (theirs.code_patients >= 5))
        self._pairs(symmetric(theirs.events)[self.rows][:, self.rows].toarray().astype(np.float64))

    def _pairs(self, theirs: Array) -> None:
        """Known pairs: one phecode below two three-digit codes; associated in other patients across sub-chapters."""
        names = [self.graph.codes[r] for r in self.rows]
        rows, phecode = icd9_rows(), phecodes()
        one, other = np.triu_indices(len(names), 1)

        def differ(of: list[str]) -> NDArray[np.bool_]:
            numbers = np.unique(of, return_inverse=True)[1]
            return np.asarray(numbers[one] != numbers[other])

        three = differ([rows[n]["three_digit"] for n in names])
        block = differ([rows[n]["sub_chapter"] for n in names])
        phe = differ([phecode.get(n, f"none {n}") for n in names])
        np.fill_diagonal(theirs, 0.0)
        margin = theirs.sum(axis=1)
        expected = np.outer(margin, margin)[one, other] / max(margin.sum(), 1.0)
        seen = theirs[one, other]
        z = (seen - expected) / np.sqrt(np.maximum(expected, 1e-9))
        self.one, self.other = one, other
        self.phecode_pair, self.far_pair, self.unlike = ~phe, ~phe & three, phe & three
        self.associated, self.free = block & (z > 6) & (seen >= 5), block & (np.abs(z) < 1.5)

    def score(
        self, vectors: NDArray[np.floating], *, repeats: int = REPEATS, seed: int = 0
    ) -> dict[str, float]:
        wide, v = vectors[self.wide], np.asarray(vectors[self.rows], np.float64)
        unit = v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12)
        cosine = (unit @ unit.T)[self.one, self.other]
        found = {
            "Resnik": neighbour_correlation(wide, self.similar, repeats=repeats, seed=seed),
            "co-occurrence": neighbour_correlation(
                wide, lambda i: self.cooccurring[[i]].toarray()[0], repeats=repeats, seed=seed
            ),
            "lift": neighbour_correlation(wide, association(self.cooccurring), repeats=repeats, seed=seed),
            "associated AUC": auc(cosine[self.associated], cosine[self.free]),
            "associated power": power(cosine[self.associated], cosine[self.free]),
        }
        if self.far_pair.any():
            found |= {
                "phecode AUC": auc(cosine[self.phecode_pair], cosine[self.unlike]),
                "far phecode AUC": auc(cosine[self.far_pair], cosine[self.unlike]),
                "far phecode power": power(cosine[self.far_pair], cosine[self.unlike]),
            }
        return found


def drawn_walks(edges: sp.csr_array, walks: int, length: int, seed: int) -> NDArray[np.int64]:
    """(walks * n, length) uniform random walks, the same number from every node."""
    rng = np.random.default_rng(seed)
    first, degree = np.asarray(edges.indptr[:-1], np.int64), np.diff(edges.indptr).astype(np.int64)
    at = np.tile(np.arange(edges.shape[0]), walks)
    found = np.empty((at.size, length), np.int64)
    for t in range(length):
        found[:, t] = at
        at = edges.indices[first[at] + (rng.random(at.size) * degree[at]).astype(np.int64)].astype(np.int64)
    return found


def node2vec(
    edges: sp.csr_array, dim: int, *, walks: int, seed: int, length: int = 30, window: int = 10
) -> Array:
    """gensim's skip-gram with negative sampling on drawn walks, p = q = 1, one thread so that a seed tells all."""
    from gensim.models import Word2Vec

    names = np.array([str(i) for i in range(edges.shape[0])], dtype=object)
    sentences = list(map(list, names[drawn_walks(edges, walks, length, seed)]))
    np.random.default_rng(seed).shuffle(sentences)
    model = Word2Vec(
        sentences, vector_size=dim, window=window, sg=1, min_count=0, workers=1, epochs=1, seed=seed
    )
    return np.stack([model.wv[name] for name in names]).astype(np.float64)


def adagrad_glove(
    counts: sp.csr_array,
    dim: int,
    *,
    seed: int,
    near: Array | None = None,
    penalty: float = 0.0,
    epochs: int = 50,
) -> Array:
    """GloVe as it was published: AdaGrad over cells, rate .05; with `near`, KEEP as published, held at each cell."""
    full = sp.csr_array(symmetric(counts), dtype=np.float64)
    full.setdiag(0.0)
    full.eliminate_zeros()
    cells, rng = full.tocoo(), np.random.default_rng(seed)
    f = np.minimum(1.0, (cells.data / np.quantile(cells.data, 0.75)) ** 0.75)
    row, column = (np.asarray(axis, np.int64) for axis in cells.coords)
    shape = (full.shape[0], dim)
    w, v = (((rng.random(shape) - 0.5) / dim) if near is None else near.copy() for _ in range(2))
    _adagrad(row, column, f, np.log(cells.data), w, v, w.copy(), penalty, epochs, seed)
    return np.asarray((w + v) / 2.0)


@numba.njit
def _adagrad(row, column, f, target, w, v, near, penalty, epochs, seed):  # type: ignore[no-untyped-def]
    n, d = w.shape
    sums_w, sums_v, sums_b = np.ones((n, d)), np.ones((n, d)), np.ones((2, n))
    bias = np.zeros((2, n))
    np.random.seed(seed)  # noqa: NPY002
    for _ in range(epochs):
        for k in np.random.permutation(row.size):  # noqa: NPY002
            i, j = row[k], column[k]
            error = bias[0, i] + bias[1, j] - target[k]
            for a in range(d):
                error += w[i, a] * v[j, a]
            g = f[k] * error
            for a in range(d):
                x = g * v[j, a] + penalty * (w[i, a] - near[i, a])
                y = g * w[i, a] + penalty * (v[j, a] - near[j, a])
                w[i, a] -= 0.05 * x / np.sqrt(sums_w[i, a])
                v[j, a] -= 0.05 * y / np.sqrt(sums_v[j, a])
                sums_w[i, a] += x * x
                sums_v[j, a] += y * y
            bias[0, i] -= 0.05 * g / np.sqrt(sums_b[0, i])
            bias[1, j] -= 0.05 * g / np.sqrt(sums_b[1, j])
            sums_b[0, i] += g * g
            sums_b[1, j] += g * g


def ppmi_vectors(counts: sp.csr_array, dim: int) -> Array:
    """The co-occurrence view, with zero rows for codes that have none."""
    alive = np.flatnonzero(nonempty(ppmi(counts)))
    inside = embed(ppmi(sp.csr_array(counts[alive][:, alive])), dim)
    found = np.zeros((counts.shape[0], inside.shape[1]))
    found[alive] = inside
    return found
