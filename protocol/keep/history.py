"""Events as KEEP counts them: with every ancestor of a code, and without what a patient has only once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protocol.keep.ontology import ROOT, Index, IsA


def history_events(
    patient: NDArray[np.integer], day: NDArray[np.integer], row: Index, graph: IsA, *, least: int = 1
) -> tuple[Index, Index, Index]:
    """Events rolled up to all ancestors but the root, of codes that a patient has on at least some days.

    A day with two codes below one ancestor is one day of that ancestor: days are counted after the roll-up, so that
    diabetes of two kinds on two days is diabetes twice. Counted over the whole history (`window_days=None` of the counting) the
    result gives KEEP's co-occurrence.

    Args:
        patient: (m,) any identifiers.
        day: (m,) days from any origin.
        row: (m,) rows of the graph.
        graph: the ontology.
        least: distinct days that a patient needs of a code; KEEP takes 2.

    Returns:
        patient, day and row of the distinct events, by patient, row and day.

    Raises:
        ValueError: least below 1, or columns of different lengths.

    Law: adding an event twice changes nothing.
    """
    if least < 1:
        raise ValueError(f"least is {least}; it must be 1 or more")
    if not len(patient) == len(day) == len(row):
        raise ValueError(f"{len(patient)} patients, {len(day)} days and {len(row)} codes are no events")
    upward = graph.ancestors[row]
    event = np.repeat(np.arange(len(row)), np.diff(upward.indptr))
    above = np.asarray(upward.indices, np.int64)
    event, above = event[above != ROOT], above[above != ROOT]
    columns = np.stack(
        [np.asarray(patient, np.int64)[event], above, np.asarray(day, np.int64)[event]], axis=1
    )
    distinct = np.unique(columns, axis=0)
    starts = np.ones(len(distinct), dtype=bool)
    starts[1:] = (distinct[1:, :2] != distinct[:-1, :2]).any(axis=1)
    group = np.cumsum(starts) - 1
    often = distinct[np.bincount(group)[group] >= least] if len(distinct) else distinct
    return often[:, 0], often[:, 2], often[:, 1]
