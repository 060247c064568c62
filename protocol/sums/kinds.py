"""All statistics that can be summed."""

from __future__ import annotations

from typing import Final, Literal

from protocol.sums.cohort import COHORT
from protocol.sums.counts import CELLS, MARGINS
from protocol.sums.graph import ALONE, BLOCKS, GRAPH_MARGINS, HALVES
from protocol.sums.kind import Kind

Statistic = Literal[
    "margins", "cells", "graph-margins", "graph-alone", "graph-halves", "graph-blocks", "cohort"
]

KINDS: Final[dict[Statistic, Kind]] = {
    "margins": MARGINS,
    "cells": CELLS,
    "graph-margins": GRAPH_MARGINS,
    "graph-alone": ALONE,
    "graph-halves": HALVES,
    "graph-blocks": BLOCKS,
    "cohort": COHORT,
}
