"""Tests of association of codes: what sites and coordinator must compute alike, from statistics that add over sites.

`additive` has margins, the sums that sites give, and the smoother; `testing` the p- and q-values. Pure functions. What only
a site can compute, from its events, is in `site_agent.inference`.
"""

from protocol.inference.additive import (
    BITS,
    EXPECTED_BITS,
    SHRINK,
    VARIANCE_BITS,
    EntrySums,
    HalfCounts,
    Margins,
    Smoothing,
    fit_margins,
    margins_of,
    whitened,
)
from protocol.inference.testing import PairTests, entrywise, smooth, smoothed

__all__ = [
    "BITS",
    "EXPECTED_BITS",
    "SHRINK",
    "VARIANCE_BITS",
    "EntrySums",
    "HalfCounts",
    "Margins",
    "PairTests",
    "Smoothing",
    "entrywise",
    "fit_margins",
    "margins_of",
    "smooth",
    "smoothed",
    "whitened",
]
