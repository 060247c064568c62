"""City of Hope's published LOINC vectors as one more source: do they help to map and to group laboratory codes?

1,046 vectors of 200 columns, learnt at one institution from 79,081 patients. They join the fit through the LOINC codes that
Synthea's events have too: a few dozen, and fewer at each site.
"""

from __future__ import annotations

import gzip
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coordinator.linking import Clues, self_train
from coordinator.model import Source
from coordinator.model.alignment import unit_rows
from coordinator.model.factor import Array, Index
from coordinator.poisoning.influence import speaking
from coordinator.ranking import default_fusion
from tests.benchmarks.real.groups import (
    LINKED,
    TWO_STAGE,
    Fitted,
    Pairs,
    held_by,
    hits,
    matched,
    meanings,
    popularity,
    two_stage,
)
from tests.benchmarks.real.recoded import LAB, SYSTEM
from tests.benchmarks.real.regimes import Problem, Row, names, rival_embeddings
from tests.cms import shared_file

WITH = "with City of Hope"
_AXES = 20  # of the vectors: there are few shared codes to learn more loadings from


@cache
def city_of_hope() -> tuple[dict[str, int], Array]:
    """LOINC code -> row, and (1046, 20) the unit vectors' leading principal axes, to unit length again."""
    path = shared_file("city_of_hope_loinc/loinc_s200_w5_c5_sg_wv.txt.gz")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        lines = [line.split() for line in stream.readlines()[1:]]
    matrix = unit_rows(np.array([line[1:] for line in lines], dtype=np.float64))
    centred = matrix - matrix.mean(axis=0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    return {line[0]: i for i, line in enumerate(lines)}, unit_rows(left[:, :_AXES] * size[:_AXES])


@cache
def categories() -> dict[str, str]:
    """LOINC code -> City of Hope's own category."""
    path = shared_file("city_of_hope_loinc/coh_top_500_lab_cats_cs.csv")
    table = pd.read_csv(path).dropna(subset=["Category"])
    return dict(zip(table["Loinc"], table["Category"].str.strip(), strict=True))


def source(task: Problem) -> Source:
    """The vectors of the codes that some site released as they are."""
    row, matrix = city_of_hope()
    shared = {
        int(task.union.row[i]): row[code.partition(":")[2][1:]]
        for i, code in enumerate(task.union.codes)
        if code.startswith(f"{SYSTEM}:{LAB}") and code.partition(":")[2][1:] in row
    }
    rows = np.array(sorted(shared), dtype=np.intp)
    return Source("cityofhope/cooccurrence", rows, matrix[[shared[int(r)] for r in rows]])


def with_source(task: Problem, known: Clues) -> tuple[dict[str, Fitted], int]:
    """Our two methods and the rivals with the vectors as a fourth source, and how many codes tie it to the others."""
    also = source(task)
    heard = [*speaking(task.union, task.data), np.ones(len(also.codes), dtype=bool)]
    linked = self_train(
        [*task.data, also],
        task.union.n_rows,
        known,
        task.dim,
        default_fusion(names(task)),
        speaks=heard,
    )
    points = {TWO_STAGE: two_stage(task, [also])} | dict(rival_embeddings(task, [also]))
    found = {LINKED: _fitted(task, linked.latent.vectors(), task.place(linked.score, known))}
    return found | {name: _fitted(task, p) for name, p in points.items()}, len(also.codes)


def _fitted(task: Problem, points: Array, place: NDArray[np.int64] | None = None) -> Fitted:
    return Fitted(points @ points.T, points, task.by_cosine(points) if place is None else place)


def lab_pairs(task: Problem, known: Clues, seed: int) -> Pairs:
    """Labs of one City of Hope category, beside labs of another."""
    meaning = meanings(task)
    category = np.array([categories().get(m[1:], "") if m.startswith(LAB) else "" for m in meaning])
    rows = np.flatnonzero(category != "")
    inside = (category != "")[:, None] & (category != "")[None]
    same = category[:, None] == category[None]
    pairs = np.argwhere(np.triu(same & inside & (meaning[:, None] != meaning[None]), 1))
    return matched(pairs, inside & ~same, rows, popularity(task, known), held_by(task), seed)


def lab_scores(task: Problem, methods: dict[str, Fitted], known: Clues, seed: int) -> dict[str, Row]:
    """hits@1 and hits@5 of recoded labs, and the AUC of pairs of one category, without and with the vectors."""
    pairs = lab_pairs(task, known, seed)
    more, shared = with_source(task, known)
    asked = _labs(task)
    table: dict[str, Row] = {}
    for methods_, title in ((methods, ""), (more, f" {WITH}")):
        for name, method in methods_.items():
            place = None if method.place is None else method.place[asked]
            table[name + title] = {
                "one category": pairs.auc(method.likeness),
                **hits(Fitted(method.likeness, None, place)),
            }
    table["facts"] = {
        "shared": float(shared),
        "pairs": float(len(pairs.known)),
        "queries": float(len(asked)),
        "labs": float(len({c for c in meanings(task) if c.startswith(LAB)})),
    }
    return table


def _labs(task: Problem) -> Index:
    """Queries that are labs."""
    codes = [task.found.truth[task.union.codes[q]].partition(":")[2] for q in task.query]
    return np.flatnonzero([c.startswith(LAB) for c in codes])
