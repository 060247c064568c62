"""What a site computes for tests of association: margins, half-sample counts, sums for single pairs and block sums.

Everything here is additive over disjoint sets of patients, and nothing names one: a study's sharing decides whether it is
sealed or summed. Pure functions; which codes and cells a site withholds is an argument.
"""

from site_agent.inference.blocks import MIN_BLOCKS, BlockSums, block_sums
from site_agent.inference.cells import Shown, code_rows, expected_counts, half_counts, packed, shown
from site_agent.inference.moments import entry_sums

__all__ = [
    "MIN_BLOCKS",
    "BlockSums",
    "Shown",
    "block_sums",
    "code_rows",
    "entry_sums",
    "expected_counts",
    "half_counts",
    "packed",
    "shown",
]
