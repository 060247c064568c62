"""The gate: what a site's counts must be before anything made of them may leave.

Suppression comes before PPMI, so that small cells are gone from everything
downstream; counts that are released are rounded; a refusal lists all its reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from protocol.arrays import IntVector
from protocol.errors import GateError
from protocol.messages import Anchor, Policy, ReleaseManifest, ReleaseStatistics
from protocol.release import CODE_PATIENTS, Release, SourceView, describe, view_arrays
from protocol.statistics import nonempty, ppmi
from protocol.study import StudySpec
from site_agent.cooccurrence import PairCounts


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

    Laws: the result does not depend on any cell below its floor; counts from which cells below the floor were
    withheld already (`add_counts`) give the same result.
    """
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
    rounded = round_to(counts.code_patients[rows], policy.margin_rounding)
    # Cells that were withheld while the counts were added count as if they had been withheld here.
    total = int(counts.events.sum()) + counts.withheld_events
    suppressed = int((counts.pair_patients.data < policy.min_pair_patients).sum()) + counts.withheld_cells

    def coarse(number: int) -> int:
        # Exact totals would let two releases be subtracted to see one patient's rare code.
        return int(round_to(np.array([number]), policy.margin_rounding)[0])

    statistics = ReleaseStatistics(
        patients=coarse(counts.n_patients),
        codes_seen=coarse(int(seen.sum())),
        codes_suppressed=coarse(int((seen & ~over).sum())),
        codes_without_pairs=coarse(int(over.sum()) - len(rows)),
        codes_released=len(rows),
        pairs_released=coarse(int(kept.nnz)),
        pairs_suppressed=coarse(suppressed),
        mass_kept=round(int(kept.sum()) / total, 2) if total else 0.0,
        smallest_code_patients=int(rounded.min()) if len(rows) else 0,
        smallest_pair_patients=int(strong_pairs.min()) if len(strong_pairs) else 0,
        capped_patients=coarse(counts.capped_patients),
    )
    return KeptCounts(rows, kept, rounded, statistics)


def _comparable(weights: sp.csr_array) -> npt.NDArray[np.bool_]:
    """Codes of the largest connected group with any weight; the first of equal groups."""
    _, member = connected_components(weights, directed=False)
    size = np.bincount(member, weights=nonempty(weights))
    return np.asarray((member == size.argmax()) & nonempty(weights))


def round_to(counts: IntVector, step: int) -> IntVector:
    """Round to the nearest multiple, halves up.

    Law: |round_to(c, s) - c| <= s / 2.
    """
    return np.asarray((counts + step // 2) // step * step, dtype=np.int64)


def allowed_dim(n_codes: int, policy: Policy, study: StudySpec) -> int:
    """The largest embedding dimension that may leave for this many codes."""
    return min(policy.max_dim, n_codes // study.embedding.codes_per_dim)


def check_enough(kept: KeptCounts, policy: Policy, study: StudySpec) -> None:
    """Return only if there is enough left to release.

    Raises:
        GateError: with every reason.
    """
    statistics, reasons = kept.statistics, []
    if statistics.patients < policy.min_code_patients:
        reasons.append(f"there are fewer than {policy.min_code_patients} patients in all")
    needed = 2 * study.embedding.codes_per_dim
    if statistics.codes_released < needed:
        reasons.append(
            f"{statistics.codes_released} of {statistics.codes_seen} codes are left, {needed} are needed for two dimensions "
            f"({statistics.codes_suppressed} have fewer than {policy.min_code_patients} patients, "
            f"{statistics.codes_without_pairs} have no pair with {policy.min_pair_patients})"
        )
    if reasons:
        raise GateError(
            "The gate refuses this release",
            tuple(reasons),
            do="Bring more patients or a longer period; the floors cannot be lowered here",
        )


def make_release(
    kept: KeptCounts,
    views: tuple[SourceView, ...],
    codes: tuple[str, ...],
    anchors: Mapping[str, str],
    *,
    policy: Policy,
    study: StudySpec,
    identity: Mapping[str, Any],
) -> Release:
    """The release of kept counts' views, after the last checks.

    Args:
        codes: the site's whole code list; only the kept rows leave.
        anchors: local CURIE -> standard CURIE; only those of kept codes leave.
        identity: the manifest's site, sequence, previous, agent_version and agent_digest.

    Raises:
        GateError: something would leave that the policy does not allow.
    """
    check_enough(kept, policy, study)
    site = str(identity["site"])
    released = tuple(codes[r] for r in kept.rows)
    reasons = []
    for prefix in sorted({c.partition(":")[0] for c in released}):
        owner = study.system(prefix).local_to
        if owner not in {None, site}:
            reasons.append(f"code system {prefix} is local to site {owner}")
    dim = allowed_dim(len(released), policy, study)
    reasons += [
        f"view {v.name} has {v.matrix.shape[1]} dimensions, {dim} are allowed"
        for v in views
        if v.matrix.shape[1] > dim
    ]
    if kept.statistics.smallest_pair_patients < policy.min_pair_patients:
        reasons.append("a pair below the floor is in use")
    if reasons:
        raise GateError("The gate refuses this release", tuple(reasons), do="Correct site.toml or the study")
    row = {code: i for i, code in enumerate(released)}
    arrays = {CODE_PATIENTS: kept.code_patients}
    for view in views:
        arrays |= view_arrays(view)
    manifest = ReleaseManifest(
        study_digest=study.digest,
        policy=policy,
        statistics=kept.statistics,
        codes=released,
        anchors=tuple(Anchor(row=row[k], standard=v) for k, v in sorted(anchors.items()) if k in row),
        arrays=describe(arrays),
        **identity,
    )
    return Release(manifest, MappingProxyType(arrays))
