"""Co-occurrence of codes within patients: events in, exact pair counts out.

All arithmetic is on integers: the counts are exact, and they add exactly over disjoint sets of patients.

Source: ARCH (event-level window rule); KEEP (whole-history rule).
"""

from protocol.statistics import symmetric
from site_agent.cooccurrence.count import MAX_EVENTS_PER_PATIENT, count_pairs
from site_agent.cooccurrence.counts import PairCounts, add_counts

__all__ = ["MAX_EVENTS_PER_PATIENT", "PairCounts", "add_counts", "count_pairs", "symmetric"]
