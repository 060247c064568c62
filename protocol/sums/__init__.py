"""Secure sums of counts over the standard codes: what may be summed, and the messages around `protocol.secure_sum`.

The vocabulary V is fixed first: a sorted list of standard codes in the coordinator's signed proposal. A site counts its
local codes as the standard codes that its anchors name. Each statistic is a vector of int64 that is added modulo 2^64; what
its cells mean is in a module of its family:

    counts   margins and cells: co-occurrences of codes
    graph    tests of association of codes
    cohort   how many patients a question is about

`kinds` has the list of all statistics, `proposal` what the coordinator asks for and the `layout` that every party derives
from it anew, `messages` the steps of a sum, `answers` the sites' answers as files.
"""

from protocol.sums.answers import Answer, read_answer, write_answer
from protocol.sums.counts import PooledMargins, agreed_cells, read_margins
from protocol.sums.graph import (
    GraphBasis,
    PooledHalves,
    pack_basis,
    pooled_smoother,
    tested_pairs,
    unpack_basis,
)
from protocol.sums.kind import CellIndex, Kind, Shape
from protocol.sums.kinds import KINDS, Statistic
from protocol.sums.messages import (
    COUNTS,
    MAX_MATERIAL,
    STEPS,
    PooledSum,
    Step,
    StepMaterial,
    SumCall,
    SumOffer,
    SumReceipt,
    step_id,
)
from protocol.sums.proposal import (
    Roster,
    SumLayout,
    SumName,
    SumProposal,
    layout,
    roster_differences,
    vocabulary_digest,
)

__all__ = [
    "COUNTS",
    "KINDS",
    "MAX_MATERIAL",
    "STEPS",
    "Answer",
    "CellIndex",
    "GraphBasis",
    "Kind",
    "PooledHalves",
    "PooledMargins",
    "PooledSum",
    "Roster",
    "Shape",
    "Statistic",
    "Step",
    "StepMaterial",
    "SumCall",
    "SumLayout",
    "SumName",
    "SumOffer",
    "SumProposal",
    "SumReceipt",
    "agreed_cells",
    "layout",
    "pack_basis",
    "pooled_smoother",
    "read_answer",
    "read_margins",
    "roster_differences",
    "step_id",
    "tested_pairs",
    "unpack_basis",
    "vocabulary_digest",
    "write_answer",
]
