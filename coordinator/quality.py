"""Scores of a release against known truth, beside SVD + k-means and chance on the same codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.csv as pa_csv

from coordinator.harmonize import Harmonized
from coordinator.model.rivals import svd_kmeans
from coordinator.report.data import Quality
from coordinator.union import sources
from protocol.errors import DataError
from protocol.release import VerifiedRelease

_BOOTSTRAP = 200


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
    methods see the same aligned data, the same dimension and the same number of
    clusters. Standard errors are bootstrap over codes.
    """
    union, fit = harmonized.union, harmonized.fit
    task = _task(harmonized, truth, standard)
    rival = svd_kmeans(
        sources(releases, union), union.n_rows, harmonized.n_clusters, fit.embedding.shape[1], seed
    )
    rows = [
        _score("SMILE", fit.embedding, np.asarray(fit.labels), task, published=True),
        _score("SVD + k-means", rival.embedding, np.asarray(rival.labels), task),
        _chance(np.asarray(fit.labels), task, seed),
    ]
    scored = (
        f"AMI over {len(task.rows):,} codes whose concept is known and that no anchor touches; hits over "
        f"{len(task.queries):,} of them outside {standard} whose standard code was released, among "
        f"{len(task.candidates):,} standard codes. Errors are bootstrap standard errors over codes."
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
