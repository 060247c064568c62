"""Vectors of a site's own codes, from its counts without floors: for search within the site, beside the harmonised ones."""

from __future__ import annotations

import shutil

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from protocol.sections import Counting, Embedding
from protocol.statistics import embed, nonempty, ppmi
from site_agent.cooccurrence import PairCounts
from site_agent.counting import count_staged
from site_agent.resources import Resources
from site_agent.sources import Progress, silent
from site_agent.staging import Staged

Vectors = npt.NDArray[np.float32]

LEAST_PATIENTS, LEAST_PAIR_PATIENTS = 5, 2
"""Of a code with an own vector, and of a pair. No floors, for nothing leaves: what fewer had together is mostly chance, and
pairs of one patient are most of the cells."""
HARMONISED_SHARE = 0.35
"""What the harmonised part is of the cosine of two codes that have both vectors; .2 and .5 are nearly as good."""


def own_vectors(
    counts: PairCounts,
    *,
    dim: int,
    least: int = LEAST_PATIENTS,
    least_pair: int = LEAST_PAIR_PATIENTS,
    shift: float = 1.0,
    seed: int = 0,
) -> Vectors:
    """PMI-SVD embedding of a site's codes from nearly all their pairs.

    Unlike the view that a site releases (`cooccurrence_view`) it knows no floors, and codes may be of several
    unconnected groups.

    Args:
        counts: of all patients.
        dim: columns that are wanted; there are fewer with few codes.
        least: patients that a code needs.
        least_pair: patients that a pair needs.
        shift: of the PPMI.
        seed: of the eigensolver.

    Returns:
        (n_codes, q) unit rows; zero rows for codes of few patients and for those without a pair above chance. q is 0
        where no code is left.

    Laws: cells below `least_pair` change nothing, nor do those of codes below `least`.
    Source: Levy and Goldberg 2014; ARCH, section 2.3.
    """
    strong = counts.pair_patients.copy()
    strong.data = (strong.data >= least_pair).astype(np.int64)
    rows = np.flatnonzero(counts.code_patients >= least)
    events = sp.csr_array(sp.csr_array(counts.events * strong)[rows][:, rows])
    events.eliminate_zeros()
    none = np.zeros((len(counts.code_patients), 0), dtype=np.float32)
    if not events.nnz:
        return none
    weights = ppmi(events, shift=shift)
    # A code without a pair above chance is an empty row, and an empty column: without it no other row is another.
    held = nonempty(weights)
    rows = rows[held]
    if not rows.size:
        return none
    found = embed(sp.csr_array(weights[held][:, held]), min(dim, len(rows)), seed=seed)
    vectors = np.zeros((len(counts.code_patients), found.shape[1]), dtype=np.float32)
    vectors[rows] = found
    return vectors


def joined(harmonised: Vectors, own: Vectors, share: float = HARMONISED_SHARE) -> Vectors:
    """Both vectors of each code side by side, their squared lengths `share` and 1 - `share`.

    Args:
        harmonised: (n, d) unit rows, or zero rows.
        own: (n, q) likewise.
        share: between 0 and 1.

    Returns:
        (n, d + q). The product of two rows is share cos_harmonised + (1 - share) cos_own; a vector that a code lacks adds
        nothing. The first d columns of a patient's sum point where the patient's harmonised vector does.
    """
    parts = [np.sqrt(share) * harmonised, np.sqrt(1.0 - share) * own]
    return np.hstack(parts).astype(np.float32)


def count_own(
    staged: Staged, rule: Counting, embedding: Embedding, machine: Resources, progress: Progress = silent
) -> Vectors:
    """Count the staged events by the study's rule, without floors, and embed the codes; no count stays on the disk.

    Raises:
        DataError: the disk is full.
    """
    folder = staged.folder / "own"
    try:
        runs = count_staged(
            staged, rule, folder, memory=machine.memory, threads=machine.threads, progress=progress
        )
        counts = runs.total(floor=LEAST_PAIR_PATIENTS, memory=machine.memory // 2, threads=machine.threads)
        progress("vectors of the site's own codes", 0.0)
        return own_vectors(counts, dim=embedding.dim, shift=embedding.ppmi_shift, seed=embedding.seed)
    finally:
        # Also what a count that did not end had written.
        shutil.rmtree(folder, ignore_errors=True)
