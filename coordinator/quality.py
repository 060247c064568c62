"""Scores of a release against known truth, beside SVD + k-means and chance on the same codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.csv as pa_csv

from coordinator.candidates import Ranking
from coordinator.evaluation import ami, chance_hits, ranks
from coordinator.harmonize import Harmonized
from coordinator.model.rivals import svd_kmeans, svd_linkage
from coordinator.report.data import Quality, QualityRow
from coordinator.union import sources
from protocol.errors import DataError
from protocol.release import VerifiedRelease

_HALVES, _AMI_HALVES = 200, 20  # random halves behind a standard error; AMI takes a tenth of a second each


def read_truth(path: Path) -> dict[str, str]:
    """CURIE -> concept, from a CSV with the columns system, code and concept.

    Raises:
        DataError: no such file or column.
    """
    try:
        table = pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(strings_can_be_null=False))
        columns = [table[name].cast("string").to_pylist() for name in ("system", "code", "concept")]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"The truth file {path} cannot be read",
            why=str(error).splitlines()[0],
            do="It needs system, code, concept",
        ) from None
    return {f"{system}:{code}": concept for system, code, concept in zip(*columns, strict=True)}


@dataclass(frozen=True)
class _Task:
    """Which codes are scored, and what is right for them; rows are rows of the fit."""

    rows: npt.NDArray[np.int64]
    concepts: tuple[str, ...]
    queries: npt.NDArray[np.int64]
    candidates: npt.NDArray[np.int64]
    right: tuple[frozenset[int], ...]


def compare(
    harmonized: Harmonized,
    releases: tuple[VerifiedRelease, ...],
    truth: Mapping[str, str],
    *,
    standard: str,
    seed: int = 0,
) -> Quality:
    """AMI of clusters and hits@k of code -> standard code for the fit, for SVD + k-means and for chance.

    Scored are codes that no anchor touches: an anchored code, and the standard
    code that it is anchored to, share a row of the fit from the start. All
    methods see the same releases and the same number of clusters; the SVD keeps
    every dimension of the smallest site, which suits it better than fewer.
    Standard errors are over codes, from random halves.
    """
    union, fit = harmonized.union, harmonized.fit
    releases = harmonized.screening.admitted(releases)
    task = _task(harmonized, truth, standard)
    data = sources(releases, union)
    dim = min(source.matrix.shape[1] for source in data)
    means = svd_kmeans(data, union.n_rows, harmonized.n_clusters, dim, seed)
    linkage = svd_linkage(data, union.n_rows, harmonized.n_clusters, dim)
    rows = [
        _score("SMILE", _ranked(harmonized.ranking, task), np.asarray(fit.labels), task, published=True),
        _score("SVD + k-means", _nearest(means.embedding, task), means.labels, task),
        _score("SVD + average linkage", _nearest(linkage.embedding, task), linkage.labels, task),
        _chance(np.asarray(fit.labels), task, seed),
    ]
    scored = (
        f"AMI over {len(task.rows):,} codes whose concept is known and that no anchor touches; hits over "
        f"{len(task.queries):,} of them outside {standard} whose standard code was released, among "
        f"{len(task.candidates):,} standard codes. ± is one standard error over codes."
    )
    return Quality(scored, tuple(rows))


def _task(harmonized: Harmonized, truth: Mapping[str, str], standard: str) -> _Task:
    union = harmonized.union
    is_standard = np.array([c.startswith(f"{standard}:") for c in union.codes])
    touched = np.unique(union.row[union.anchored])
    free = ~np.isin(union.row, touched)
    known = np.array([c in truth for c in union.codes])
    scored = np.flatnonzero(free & known)
    # Every released standard code is a candidate, the anchored ones too: nobody knows beforehand which are taken.
    candidates = np.flatnonzero(is_standard)
    by_concept: dict[str, set[int]] = {}
    for position, i in enumerate(candidates):
        if free[i]:
            by_concept.setdefault(truth.get(union.codes[i], ""), set()).add(position)
    queries = [i for i in scored if not is_standard[i] and by_concept.get(truth[union.codes[i]])]
    return _Task(
        rows=union.row[scored],
        concepts=tuple(truth[union.codes[i]] for i in scored),
        queries=union.row[np.array(queries, dtype=np.int64)],
        candidates=union.row[candidates],
        right=tuple(frozenset(by_concept[truth[union.codes[i]]]) for i in queries),
    )


def _nearest(embedding: npt.NDArray[np.float64], task: _Task) -> npt.NDArray[np.int64]:
    """(n,) place of each query's first right candidate by cosine."""
    return ranks(embedding[task.queries], embedding[task.candidates], task.right)


def _ranked(ranking: Ranking, task: _Task) -> npt.NDArray[np.int64]:
    """(n,) place of each query's first right candidate in the mapping; beyond its last one where none is right."""
    rows = ranking.rows[task.queries]
    right = [task.candidates[list(positions)] for positions in task.right]
    found = np.array([np.isin(row, one) for row, one in zip(rows, right, strict=True)]).reshape(rows.shape)
    return np.asarray(np.where(found.any(axis=1), found.argmax(axis=1), rows.shape[1]) + 1)


def _score(
    method: str,
    place: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    task: _Task,
    *,
    published: bool = False,
) -> QualityRow:
    found = np.asarray(labels)[task.rows]
    return QualityRow(
        method=method,
        n_scored=len(task.rows),
        ami=ami(task.concepts, found),
        ami_se=_error(
            lambda draw: ami(np.array(task.concepts)[draw], found[draw]), len(task.rows), _AMI_HALVES
        ),
        hits1=float((place <= 1).mean()),
        hits1_se=_error(lambda draw: float((place[draw] <= 1).mean()), len(place)),
        hits5=float((place <= 5).mean()),
        hits5_se=_error(lambda draw: float((place[draw] <= 5).mean()), len(place)),
        published=published,
    )


def _chance(labels: npt.NDArray[np.int64], task: _Task, seed: int) -> QualityRow:
    """Shuffled labels, so clusters of the same sizes; and the exact expectation of a random ranking."""
    rng = np.random.default_rng(seed)
    draws = [ami(task.concepts, rng.permutation(labels[task.rows])) for _ in range(5)]
    expected = chance_hits(len(task.candidates), [len(r) for r in task.right], (1, 5))
    return QualityRow(
        method="chance",
        n_scored=len(task.rows),
        ami=max(float(np.mean(draws)), 0.0),
        hits1=expected[1],
        hits5=expected[5],
    )


def _error(statistic: Callable[[npt.NDArray[np.int64]], float], n: int, halves: int = _HALVES) -> float:
    """Standard error over codes from random halves without replacement.

    For a mean the variance over such halves is that of the full sample, s^2 / n (Politis and Romano 1994).
    The usual bootstrap would draw a code twice, and the two copies share cluster and concept by construction.
    """
    rng = np.random.default_rng(0)
    draws = [statistic(np.sort(rng.choice(n, n // 2, replace=False))) for _ in range(halves)]
    return float(np.std(draws))
