"""How a site counts for each statistic that can be summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from protocol.sums import Statistic, SumProposal, layout
from site_agent.config import Home
from site_agent.resources import Resources
from site_agent.sources import Progress
from site_agent.sums.counted import Counted
from site_agent.sums.counting import Bound, count_standard
from site_agent.sums.folder import SumFolder
from site_agent.sums.graph import count_graph
from site_agent.sums.vectors import cells_vector, margins_vector, over_vocabulary

Counter = Callable[[Home, SumFolder, SumProposal, Resources, Progress], Counted]
"""Counts what a proposal asks for, under the site's floors; nothing leaves. Raises DataError, GateError and UsageError."""


def _counts(
    home: Home, folder: SumFolder, proposal: SumProposal, machine: Resources, progress: Progress
) -> Counted:
    """Margins or cells."""
    rule = home.study.differential_privacy
    # A floor would let one patient move a cell by as many as the floor asks for: noise protects small cells instead.
    zero = home.study.sharing.small_cells == "zero" and not rule.enabled
    policy = home.policy() if zero else None
    found = count_standard(
        home,
        machine,
        floor=policy.min_pair_patients if policy else 0,
        bound=Bound(frozenset(proposal.vocabulary), rule.codes_per_patient) if rule.enabled else None,
        progress=progress,
    )
    progress("selecting the cells of the sum", 1.0)
    counts = over_vocabulary(found.counts, found.codes, proposal.vocabulary, policy)
    pairs = layout(proposal, home.study).pairs
    return Counted(
        values=margins_vector(counts, private=rule.enabled)
        if pairs is None
        else cells_vector(counts, pairs, private=rule.enabled),
        days=found.days,
        policy=policy,
        withheld_codes=counts.withheld_codes,
        withheld_pairs=counts.withheld_pairs + found.counts.withheld_cells,
        other_codes=counts.other_codes,
    )


COUNTERS: Final[dict[Statistic, Counter]] = {
    "margins": _counts,
    "cells": _counts,
    "graph-margins": count_graph,
    "graph-alone": count_graph,
    "graph-halves": count_graph,
    "graph-blocks": count_graph,
}
