"""Suppression: codes and pairs below the floors are withheld before anything is computed from the counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from protocol.arrays import IntVector
from protocol.messages import Policy, ReleaseStatistics
from protocol.statistics import nonempty, ppmi
from site_agent.cooccurrence import PairCounts

TALLY = 5
"""Numbers of codes and pairs are rounded to this at most: by a hundred, those withheld could look like none."""


@dataclass(frozen=True)
class KeptCounts:
    """Counts after suppression; the only counts that views may be made of.

    Attributes:
        rows: (k,) rows of the site's code list that stay, increasing.
        events: upper triangle (k, k) of their kept co-occurrences, int64.
        code_patients: (k,) distinct patients a code, rounded.
        statistics: what was kept and what was withheld.
    """

    rows: IntVector
    events: sp.csr_array
    code_patients: IntVector
    statistics: ReleaseStatistics


def suppress(counts: PairCounts, policy: Policy, *, shift: float = 1.0) -> KeptCounts:
    """Withhold codes and pairs below the floors, then codes that no pair of theirs is left to describe.

    A pair stays if at least `min_pair_patients` distinct patients have it and
    both its codes stay. A code stays if at least `min_code_patients` distinct
    patients have it and PPMI, with margins of the kept counts alone, connects it
    with the largest group of codes: an embedding says nothing of how codes of
    unconnected groups compare. Dropping a code changes margins, so this is
    repeated until it holds for all.

    At a site that is small by the number of patients in `counts`, rounded, a pair needs `small_site_pair_patients`.

    Laws: the result does not depend on any cell below its floor; counts from which cells below the floor were
    withheld already (`add_counts`) give the same result.
    """
    policy = in_force(policy, counts.n_patients)
    seen = counts.code_patients > 0
    over = counts.code_patients >= policy.min_code_patients
    strong = counts.pair_patients.copy()
    strong.data = (strong.data >= policy.min_pair_patients).astype(np.int64)
    events = sp.csr_array(counts.events * strong)
    rows = np.flatnonzero(over)
    while True:
        kept = sp.csr_array(events[rows][:, rows])
        kept.eliminate_zeros()
        alive = _comparable(ppmi(kept, shift=shift)) if kept.nnz else np.zeros(len(rows), dtype=bool)
        if alive.all():
            break
        rows = rows[alive]
    pair_patients = counts.pair_patients[rows][:, rows].data
    strong_pairs = pair_patients[pair_patients >= policy.min_pair_patients]
    # The least that is shown is the floor: that it was reached is known, and zero would say something else.
    rounded = np.maximum(
        round_to(counts.code_patients[rows], policy.margin_rounding), policy.min_code_patients
    )
    # Cells that were withheld while the counts were added count as if they had been withheld here.
    total = int(counts.events.sum()) + counts.withheld_events
    suppressed = int((counts.pair_patients.data < policy.min_pair_patients).sum()) + counts.withheld_cells

    def coarse(number: int) -> int:
        # Exact tallies of codes and pairs would let two releases be subtracted to see one patient's rare code.
        return round_to_one(number, min(policy.margin_rounding, TALLY))

    statistics = ReleaseStatistics(
        patients=round_to_one(counts.n_patients, policy.margin_rounding),
        codes_seen=coarse(int(seen.sum())),
        codes_suppressed=coarse(int((seen & ~over).sum())),
        codes_without_pairs=coarse(int(over.sum()) - len(rows)),
        codes_released=len(rows),
        pairs_released=coarse(int(kept.nnz)),
        pairs_suppressed=two_digits(suppressed),
        mass_kept=round(int(kept.sum()) / total, 2) if total else 0.0,
        smallest_code_patients=int(rounded.min()) if len(rows) else 0,
        smallest_pair_patients=int(strong_pairs.min()) if len(strong_pairs) else 0,
        capped_patients=round_to_one(counts.capped_patients, policy.margin_rounding),
    )
    return KeptCounts(rows, kept, rounded, statistics)


def _comparable(weights: sp.csr_array) -> npt.NDArray[np.bool_]:
    """Codes of the largest connected group with any weight; the first of equal groups."""
    _, member = connected_components(weights, directed=False)
    size = np.bincount(member, weights=nonempty(weights))
    return np.asarray((member == size.argmax()) & nonempty(weights))


def in_force(policy: Policy, patients: int) -> Policy:
    """A site's floors once its number of patients is known, which decides as it is released: rounded.

    So whether the site has the pair floor of small ones tells nothing that the released number does not tell.
    """
    return policy.at(round_to_one(patients, policy.margin_rounding))


def pair_floor(policy: Policy, patients: int) -> str:
    """The pair floor of a site that releases this number of patients, and why it is that, in words."""
    floor = policy.at(patients).min_pair_patients
    if policy.small(patients) and floor == policy.small_site_pair_patients:
        return f"{floor}, as at all sites that may have fewer than {policy.small_site_patients:,} patients"
    return f"{floor}"


def round_to(counts: IntVector, step: int) -> IntVector:
    """Round to the nearest multiple, halves up.

    Law: |round_to(c, s) - c| <= s / 2.
    """
    return np.asarray((counts + step // 2) // step * step, dtype=np.int64)


def round_to_one(number: int, step: int) -> int:
    """`round_to` of one number."""
    return (number + step // 2) // step * step


def two_digits(number: int) -> int:
    """Rounded to two significant digits: one patient with many rare codes adds thousands of pairs.

    Law: |two_digits(x) - x| <= x / 20.
    """
    return round_to_one(number, int(10 ** max(0, len(str(number)) - 2)))
