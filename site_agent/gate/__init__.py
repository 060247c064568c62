"""The gate: what a site's counts must be before anything made of them may leave.

Counts that were released before stay as they were until they have moved enough (`sticky`); suppression comes before
PPMI, so that small cells are gone from everything downstream (`suppression`); a refusal lists all its reasons (`release`).
"""

from site_agent.gate.release import (
    Difference,
    about_patients,
    allowed_columns,
    allowed_dim,
    foreign_systems,
    make_release,
    refuse,
    too_little,
    too_similar,
)
from site_agent.gate.sticky import Reference, doubtful_cells, sticky_counts
from site_agent.gate.suppression import KeptCounts, pair_floor, round_to, suppress

__all__ = [
    "Difference",
    "KeptCounts",
    "Reference",
    "about_patients",
    "allowed_columns",
    "allowed_dim",
    "doubtful_cells",
    "foreign_systems",
    "make_release",
    "pair_floor",
    "refuse",
    "round_to",
    "sticky_counts",
    "suppress",
    "too_little",
    "too_similar",
]
