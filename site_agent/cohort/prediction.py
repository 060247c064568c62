"""`cohort predict`: do a release's code vectors help to foresee an outcome of the site's own patients?

KEEP's extrinsic test: a small encoder over each patient's codes with frozen vectors, scored by the area under the
precision-recall curve on patients it did not learn from, beside random vectors in the same encoder and a logistic regression
on TF-IDF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import expit

from protocol.errors import UsageError
from protocol.published import verify_folder
from protocol.tfidf import inverse_frequency
from site_agent.codelist import latest_result
from site_agent.cohort.building import code_vectors
from site_agent.cohort.histories import Histories, histories
from site_agent.cohort.precision import Interval, average_precision, intervals
from site_agent.cohort.queries import codes_matching
from site_agent.config import Home
from site_agent.keys import coordinator_keys
from site_agent.resources import Resources
from site_agent.sources import Progress, silent
from site_agent.sources.columns import EPOCH
from site_agent.sources.opening import open_source
from site_agent.sources.rollup import rollup_of
from site_agent.staging import Staged, stage
from site_agent.working import work_lock

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
HARMONISED, RANDOM, TFIDF = "harmonised vectors", "random vectors", "TF-IDF, logistic"
_PENALTIES = (0.3, 3.0, 30.0)


@dataclass(frozen=True)
class Prediction:
    """How well an outcome was foreseen.

    Attributes:
        patients: learnt from, kept back to stop, and asked about.
        with_outcome: of those asked about.
        had: patients left out, since they had the outcome before.
        areas: method -> area under the precision-recall curve.
        gains: method -> area of the harmonised vectors less its own.
    """

    patients: tuple[int, int, int]
    with_outcome: int
    had: int
    areas: Mapping[str, Interval]
    gains: Mapping[str, Interval]


def predict_outcome(
    home: Home,
    outcome: tuple[str, ...],
    at: date,
    *,
    machine: Resources,
    seed: int = 0,
    progress: Progress = silent,
) -> Prediction:
    """Read the site's events anew and compare views of their codes on an outcome; nothing is kept.

    Args:
        home: of the site; a release must have arrived.
        outcome: codes, or beginnings and *; a patient has it who has one of them.
        at: codes before this day foretell the outcome on it or later.
        machine: memory and threads that may be taken.
        seed: of the split and the weights.
        progress: told each step.

    Raises:
        UsageError: torch is missing, no release has arrived, no such code, or too few patients.
        DataError: the events cannot be used.
        ProtocolError: the release is not what its manifest says.
    """
    need_torch()
    if home.config.data.database.startswith("spark:"):
        raise UsageError(
            "Cohort search does not read from Spark",
            do="Export the events to a Parquet file, and search from a home folder that names it",
        )
    release = latest_result(home)
    manifest = verify_folder(release, coordinator_keys(home))
    with work_lock(home):
        staged = _staged(home, machine, progress)
        try:
            wanted = np.zeros(len(staged.codes), dtype=bool)
            for pattern in outcome:
                wanted[codes_matching(staged.codes, pattern)] = True
            vectors = code_vectors(release, manifest, staged.codes).vectors
            parts = (staged.partition(i) for i in range(staged.partitions))
            found = histories(parts, (at - EPOCH).days, wanted)
        finally:
            staged.remove()
    return compare_views(found, vectors, seed=seed, threads=machine.threads, progress=progress)


def _staged(home: Home, machine: Resources, progress: Progress) -> Staged:
    """The site's events, coded, in a folder of this command's own."""
    data, source = home.config.data, open_source(home)
    file = home.path(data.rollup.file) if data.rollup.file else None
    return stage(
        source,
        data,
        home.work / "predict",
        memory=machine.memory // 4,
        rollup=rollup_of(data, source, file),
        progress=progress,
        today=data.latest_date,
    )


def need_torch(what: str = "Prediction") -> None:
    """Return only if torch can be imported.

    Args:
        what: needs it.

    Raises:
        UsageError: it cannot.
    """
    try:
        import torch  # noqa: F401, PLC0415 - takes a second, and few sites have it
    except ImportError:
        raise UsageError(
            f"{what} needs torch, which is not installed", do="Run pip install 'smile-federation[predict]'"
        ) from None


def compare_views(
    found: Histories,
    vectors: npt.NDArray[np.float32],
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Progress = silent,
) -> Prediction:
    """Six tenths of the patients are learnt from, two say when to stop, two are asked about.

    Args:
        found: patients.
        vectors: (codes, d) of the release; zero rows for codes that it does not have.
        seed: of the split, the weights and the random vectors.
        threads: that torch may take.
        progress: told each step.
    """
    import torch  # noqa: PLC0415

    from site_agent.cohort.encoder import Fitting, encoder_scores  # noqa: PLC0415

    torch.set_num_threads(max(threads, 1))
    rng = np.random.default_rng(seed)
    n = len(found.outcome)
    learn, stop, ask = np.split(rng.permutation(n), [int(0.6 * n), int(0.8 * n)])
    noise = rng.standard_normal(vectors.shape) * vectors.any(axis=1, keepdims=True)
    noise /= np.maximum(np.linalg.norm(noise, axis=1, keepdims=True), 1e-12)
    scores = {}
    for i, (name, table) in enumerate(((HARMONISED, vectors), (RANDOM, noise.astype(np.float32)))):
        progress(f"learning from {name}", i / 3)
        scores[name] = encoder_scores(found, table, learn, stop, ask, Fitting(seed=seed))
    progress("learning from TF-IDF", 2 / 3)
    scores[TFIDF] = tfidf_scores(found, len(vectors), learn, stop, ask)
    areas, gains = intervals(found.outcome[ask], scores, HARMONISED, seed=seed)
    return Prediction(
        (len(learn), len(stop), len(ask)), int(found.outcome[ask].sum()), found.had, areas, gains
    )


def tfidf_scores(found: Histories, n_codes: int, learn: Rows, stop: Rows, ask: Rows) -> Floats:
    """(len(ask),) log odds by a logistic regression on unit TF-IDF rows of all codes; the penalty is chosen on `stop`."""
    owner = np.repeat(np.arange(len(found.outcome)), np.diff(found.start))
    counts = sparse.csr_array((np.ones(len(owner)), (owner, found.code)), shape=(len(found.outcome), n_codes))
    counts.sum_duplicates()
    counts.data = np.log1p(counts.data)
    support = np.asarray((counts[learn] > 0).sum(axis=0)).ravel()
    rows = sparse.csr_array(counts @ sparse.diags_array(inverse_frequency(support, float(len(learn)))))
    length = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    rows = sparse.csr_array(sparse.diags_array(1.0 / np.maximum(length, 1e-12)) @ rows)
    best: tuple[float, Any] = (-1.0, None)
    for penalty in _PENALTIES:
        weights = _logistic(rows[learn], found.outcome[learn].astype(np.float64), penalty)
        area = average_precision(found.outcome[stop], np.asarray(rows[stop] @ weights[1:]))
        best = max(best, (area, weights), key=lambda pair: pair[0])
    return np.asarray(rows[ask] @ best[1][1:] + best[1][0])


def _logistic(rows: Any, wanted: Floats, penalty: float) -> Floats:
    """Intercept and weights that maximise the likelihood less penalty / 2 |weights|^2."""

    def loss(w: Floats) -> tuple[float, Floats]:
        odds = rows @ w[1:] + w[0]
        error = expit(odds) - wanted
        value = float(np.sum(np.logaddexp(0.0, odds) - wanted * odds) + penalty / 2 * (w[1:] @ w[1:]))
        return value, np.r_[error.sum(), rows.T @ error + penalty * w[1:]]

    found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return np.asarray(found.x)
