"""One cell of the evaluation: a split of the claims, a share of anchors, and what the codes are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from coordinator.evaluation import ami
from coordinator.harmonize import fit_dim
from coordinator.linking import Clues, Linked, gather, self_train
from coordinator.model import Source
from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Index
from coordinator.model.rivals import CLUSTERINGS, EMBEDDINGS
from coordinator.poisoning.influence import speaking
from coordinator.ranking import LEAST, Fusion, default_fusion, learn_fusion
from coordinator.union import UnionVocabulary, build_union, patient_shares, sources
from coordinator.weak_pairs import latent
from protocol.errors import FitError
from protocol.release import VerifiedRelease
from tests.benchmarks.real.data import Hospitals, hospitals, split, with_anchors

OURS = "SMILE, all views"
SCORES = ("hits@1", "hits@5", "MRR", "AMI")
_FOLDS = 3
_UNFLOORED_DIM = 16  # rare codes are noise in most directions: better than 32 and 52 on other samples
_TEXT_AXES = 200
_PENALTIES = 12  # of SLIDE's path, whose default of 50 takes a minute a cell
Row = dict[str, float | None]


@dataclass(frozen=True)
class Cell:
    """What is measured: split and anchors are drawn by the seed."""

    seed: int
    floors: bool
    share: float
    regime: str


@dataclass(frozen=True, eq=False)
class Problem:
    """Releases with anchors, their union, and the codes that are scored.

    `query` are codes outside the standard without an anchor of their own whose standard code was released, `target`
    all released standard codes, `right` each query's place in `target`; `scored` codes whose row no anchor touches.
    `kinds` numbers each row's kind, where there are several: candidates are those of the query's kind.
    """

    cell: Cell
    found: Hospitals
    releases: tuple[VerifiedRelease, ...]
    union: UnionVocabulary
    data: list[Source]
    dim: int
    text: NDArray[np.float64] | None
    query: Index
    target: Index
    right: Index
    scored: Index
    kinds: Index | None = None

    def place(self, score: Array, clues: Clues) -> NDArray[np.int64]:
        """Ranks of the right targets by an (n_local, n_standard) score; a tie ranks before."""
        row, column = np.full(self.union.n_rows, -1), np.full(self.union.n_rows, -1)
        row[clues.local], column[clues.standard] = np.arange(len(clues.local)), np.arange(len(clues.standard))
        return self.ranks(score[np.ix_(row[self.union.row[self.query]], column[self.union.row[self.target]])])

    def ranks(self, score: Array) -> NDArray[np.int64]:
        """Ranks of the right targets by a (queries, targets) score."""
        if self.kinds is not None:
            kind = self.kinds[self.union.row]
            score = np.where(kind[self.query][:, None] == kind[self.target][None], score, -np.inf)
        best = score[np.arange(len(self.right)), self.right]
        return np.asarray((score >= best[:, None]).sum(axis=1), dtype=np.int64)

    def by_cosine(self, points: Array) -> NDArray[np.int64]:
        rows = self.union.row
        return self.ranks(points[rows[self.query]] @ points[rows[self.target]].T)


@lru_cache(maxsize=4)
def _hospitals(seed: int, floors: bool) -> Hospitals:
    return hospitals(split(seed), floors=floors, seed=seed)


def problem(cell: Cell) -> Problem:
    """The cell's releases and task."""
    found = _hospitals(cell.seed, cell.floors)
    return task_of(cell, found, with_anchors(found, cell.share, cell.seed))


def task_of(cell: Cell, found: Hospitals, releases: tuple[VerifiedRelease, ...]) -> Problem:
    """What is asked of these releases."""
    system = found.study.standard
    union = build_union(releases, standard=system, require_links=False)
    codes = union.codes
    standard = np.array([c.startswith(f"{system}:") for c in codes])
    target = np.flatnonzero(standard)
    place = {codes[j]: k for k, j in enumerate(target)}
    query = [i for i in np.flatnonzero(~standard & ~union.anchored) if found.truth[codes[i]] in place]
    touched = np.isin(union.row, union.row[union.anchored])
    return Problem(
        cell=cell,
        found=found,
        releases=releases,
        union=union,
        data=sources(releases, union),
        dim=fit_dim(releases, found.study) if cell.floors else _UNFLOORED_DIM,
        text=text_vectors(union, found.titles[cell.regime]) if cell.regime != "no text" else None,
        query=np.array(query, dtype=np.intp),
        target=target,
        right=np.array([place[found.truth[codes[i]]] for i in query], dtype=np.intp),
        scored=np.flatnonzero(~touched),
        kinds=_kinds(union, found.kinds) if found.kinds else None,
    )


def _kinds(union: UnionVocabulary, kinds: Mapping[str, str]) -> Index:
    number = np.unique([kinds[c] for c in union.codes], return_inverse=True)[1]
    found = np.zeros(union.n_rows, dtype=np.intp)
    found[union.row] = number
    return found


def text_vectors(union: UnionVocabulary, titles: Mapping[str, str]) -> NDArray[np.float64]:
    """(n_rows, p) character n-gram TF-IDF of the codes' titles, added up where codes share a row."""
    found = _coordinates(tuple(titles.get(code, "") for code in union.codes))
    onto = sp.csr_array((np.ones(len(union.row)), (union.row, np.arange(len(union.row)))))
    return unit_rows(np.asarray(onto @ found))


@lru_cache(maxsize=1)
def _coordinates(texts: tuple[str, ...]) -> NDArray[np.float64]:
    """(n, p) principal coordinates of the texts' TF-IDF, without loss: there are fewer texts than n-grams."""
    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    rows = sp.csr_array(words.fit_transform(texts))
    _, first, place, count = np.unique(texts, return_index=True, return_inverse=True, return_counts=True)
    # A text that comes many times is one row of the Gram matrix with that weight.
    weight = np.sqrt(count)[:, None]
    gram = (rows[first] @ rows[first].T).toarray() * weight * weight.T
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-9 * values[-1]
    return np.asarray((vectors[:, kept] * np.sqrt(values[kept]) / weight)[place, ::-1])


def clues(task: Problem) -> Clues:
    """What needs no alignment."""
    standard = np.array(sorted(task.union.standard))
    share = patient_shares(task.releases, task.union, task.data)
    return gather(task.data, task.union.n_rows, standard, share, task.text, categories=task.kinds)


def names(task: Problem) -> tuple[str, ...]:
    """The features that there are."""
    return ("latent", "support", "profile", *(("text",) if task.text is not None else ()))


def link(task: Problem, known: Clues, fusion: Fusion, rounds: int = 6) -> Linked:
    """Self-training on the cell's releases."""
    heard = speaking(task.union, task.data)
    return self_train(task.data, task.union.n_rows, known, task.dim, fusion, rounds=rounds, speaks=heard)


def learnt(task: Problem) -> Fusion:
    """Weights from anchors that were hidden a third at a time; the default where there are few."""
    given = [(s, a) for s, r in enumerate(task.releases) for a in r.manifest.anchors]
    fold = np.random.default_rng(task.cell.seed).permutation(len(given)) % _FOLDS
    tasks = []
    for f in range(_FOLDS if len(given) >= LEAST else 0):
        hidden = {(s, a.row): a.standard for (s, a), k in zip(given, fold, strict=True) if k == f}
        part = task_of(task.cell, task.found, tuple(_less(r, s, hidden) for s, r in enumerate(task.releases)))
        known = clues(part)
        linked = link(part, known, default_fusion(names(part)), rounds=4)
        row = dict(zip(part.union.codes, part.union.row.tolist(), strict=True))
        local = {int(r): i for i, r in enumerate(known.local)}
        goals = {int(r): j for j, r in enumerate(known.standard)}
        code = {key: row[task.releases[key[0]].manifest.codes[key[1]]] for key in hidden}
        cells = [
            (local[code[key]], goals[row[goal]])
            for key, goal in hidden.items()
            if code[key] in local and row.get(goal) in goals
        ]
        chosen = np.array(cells, dtype=np.intp).reshape(-1, 2)
        tasks.append(({n: linked.features[n][chosen[:, 0]] for n in names(part)}, chosen[:, 1]))
    return learn_fusion(tasks, names=names(task))


def _less(release: VerifiedRelease, site: int, hidden: Mapping[tuple[int, int], str]) -> VerifiedRelease:
    kept = tuple(a for a in release.manifest.anchors if (site, a.row) not in hidden)
    return replace(release, manifest=release.manifest.model_copy(update={"anchors": kept}))


def mapped_clusters(task: Problem, known: Clues, score: Array) -> Index:
    """(n_rows,) every local row in the cluster of its first target, every standard row in its own."""
    labels = np.arange(task.union.n_rows)
    labels[known.local] = known.standard[score.argmax(axis=1)]
    return labels


def measure(cell: Cell, *, ablation: bool = False) -> dict[str, Row]:
    """Every method's scores in one cell; without floors, rivals cluster by average linkage alone."""
    task = problem(cell)
    known = clues(task)
    table: dict[str, Row] = {}
    linked = link(task, known, default_fusion(names(task)))
    labels = mapped_clusters(task, known, linked.score)
    n_clusters = len(np.unique(labels[task.union.row]))
    table[OURS] = _row(task, task.place(linked.score, known), labels)
    for name in names(task)[1:]:
        value = known.fixed.get(name, linked.features[name])
        label = {"text": "text, CSLS", "support": "support alone", "profile": "profile alone"}[name]
        table[label] = _row(task, task.place(value, known), mapped_clusters(task, known, value))
    if task.text is not None:
        cosine = task.text[known.local] @ task.text[known.standard].T
        labels = mapped_clusters(task, known, cosine)
        table["text, cosine"] = _row(task, task.place(cosine, known), labels)
    if cell.share:
        alone = latent(task.data, np.arange(task.union.n_rows), task.dim, speaking(task.union, task.data))
        points = alone.vectors()
        table["co-occurrence, anchors alone"] = _row(
            task, task.by_cosine(points), CLUSTERINGS["average linkage"](points, n_clusters, 0)
        )
    if task.text is None:
        # With titles this row would be the same.
        latent_score = linked.features["latent"]
        labels = mapped_clusters(task, known, latent_score)
        table["co-occurrence, self-trained"] = _row(task, task.place(latent_score, known), labels)
    table |= _rivals(task, n_clusters)
    if ablation:
        table |= _ablation(task, known)
    table["facts"] = {
        "candidates": float(len(task.target)),
        "queries": float(len(task.query)),
        "codes": float(np.mean([len(r.manifest.codes) for r in task.releases])),
        "mass": float(np.mean(task.found.mass)),
        "clusters": float(n_clusters),
    }
    return table


def _ablation(task: Problem, known: Clues) -> dict[str, Row]:
    whole = default_fusion(names(task))
    table: dict[str, Row] = {}

    def add(name: str, fusion: Fusion, clues_: Clues = known, rounds: int = 6) -> None:
        try:
            score = link(task, clues_, fusion, rounds).score
        except FitError:
            return
        table[name] = _row(task, task.place(score, known), mapped_clusters(task, known, score))

    if task.cell.share:
        add("without self-training", whole, rounds=1)
        # A score's scale decides which matches are sure enough to train on, so only the ranking is by learnt weights.
        score = learnt(task).score(link(task, known, whole).features)
        table["ranking by weights learnt from hidden anchors"] = _row(
            task, task.place(score, known), mapped_clusters(task, known, score)
        )
    for name in names(task):
        keep = [i for i, n in enumerate(whole.names) if n != name]
        add(f"without {name}", Fusion(tuple(whole.names[i] for i in keep), whole.weights[keep]))
    keep = [i for i, n in enumerate(whole.names) if n not in {"support", "profile"}]
    if task.cell.share:
        add("without support and profile", Fusion(tuple(whole.names[i] for i in keep), whole.weights[keep]))
    if task.text is not None:
        cosine = task.text[known.local] @ task.text[known.standard].T
        add("text by cosine, not CSLS", whole, replace(known, fixed=dict(known.fixed) | {"text": cosine}))
    return table


def _rivals(task: Problem, n_clusters: int) -> dict[str, Row]:
    """Every rival on the same sources, the text (if any) one more of them; none where nothing links the sites."""
    table: dict[str, Row] = {}
    for name, points in rival_embeddings(task):
        place = task.by_cosine(points)
        for clustering in CLUSTERINGS if task.cell.floors else ("average linkage",):
            labels = CLUSTERINGS[clustering](points, n_clusters, 0)
            table[f"{name} + {clustering}"] = _row(task, place, labels)
    return table


def rival_embeddings(task: Problem, also: Sequence[Source] = ()) -> Iterator[tuple[str, Array]]:
    """(n_rows, d) unit rows of each rival, at three fifths of the released columns and at all of them.

    Without floors only those whose cost such numbers of codes allow.
    """
    data = [*task.data, *also]
    dims = {task.dim, min(source.matrix.shape[1] for source in task.data)}
    if task.text is not None:
        data.append(Source("text", np.arange(task.union.n_rows), task.text[:, :_TEXT_AXES]))
    for name in EMBEDDINGS if task.cell.floors else ("SVD", "Procrustes", "BONMI"):
        for dim in sorted(dims) if name in {"SVD", "Procrustes"} else [task.dim]:
            options = {"n_penalties": _PENALTIES} if name == "SLIDE" else {}
            try:
                points = EMBEDDINGS[name](data, task.union.n_rows, dim, **options)
            except FitError:
                continue
            yield f"{name} (d {'3/5' if dim == task.dim else 'all'})", points


def _row(task: Problem, place: NDArray[np.int64], labels: Index) -> Row:
    truth = [task.found.truth[task.union.codes[i]] for i in task.scored]
    return {
        "hits@1": float(np.mean(place <= 1)),
        "hits@5": float(np.mean(place <= 5)),
        "MRR": float(np.mean(1.0 / place)),
        "AMI": ami(truth, labels[task.union.row[task.scored]]),
    }
