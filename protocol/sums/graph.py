"""Sums for tests of association of codes (`protocol.inference`).

    graph-margins   row sums of C without the diagonal (n); from them follow the tested pairs (m)
    graph-alone     `EntrySums` of the tested pairs (5 m): each pair by itself
    graph-halves    `HalfCounts` of the tested pairs (5 m): the smoother follows from them
    graph-blocks    variances of the smoothed test (m), by `VARIANCE_BITS`, and their degrees of freedom (1)

Nothing but pooled numbers decides what is summed next, and each party derives it anew: the tested pairs from the pooled row
sums, the smoother from the pooled halves. So no one can have a site apply a smoother that was made to single out a patient.

Derivations and what each sum reveals: docs/explanation/knowledge-graph.md.
"""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from protocol.canonical import digest
from protocol.errors import DataError, ProtocolError
from protocol.messages import HexDigest, Message
from protocol.pair_index import PairIndex, index_pairs
from protocol.secure_sum.state import need
from protocol.study import StudySpec
from protocol.sums.kind import CellIndex, Kind, Shape

if TYPE_CHECKING:
    from protocol.inference import Smoothing
    from protocol.secure_sum.fixed import Int64Vector
    from protocol.sums.proposal import SumProposal


MAX_BASIS = 240 << 20
"""Characters of the pooled halves beside a proposal: some ten million tested pairs."""


class PooledHalves(Message):
    """The outcome of a sum of half-samples, from which the smoother of the next sum follows."""

    name: str = Field(pattern="^[a-z0-9-]{1,24}$", description="Of the sum of half-samples.")
    result: HexDigest = Field(description="Digest of its `PooledSum`.")
    rank: int = Field(ge=1, le=1000, description="Eigenpairs of the smoother, as a check on the arithmetic.")


class GraphBasis(Message):
    """What a sum for tests of association follows from."""

    rows: tuple[int, ...] = Field(
        description="(n,) pooled row sums without the diagonal, from a sum of graph-margins."
    )
    halves: PooledHalves | None = Field(None, description="For graph-blocks only.")


def tested_pairs(rows: tuple[int, ...], study: StudySpec) -> PairIndex:
    """The pairs whose count, expected from the pooled row sums, is large enough.

    Args:
        rows: (n,) pooled, of `GraphBasis`.
        study: says how large.

    Raises:
        DataError: expected counts cannot be fitted, or no pair or too many are left.
    """
    # SciPy is imported where it is used: an agent waits for months without it.
    from protocol.inference import fit_margins  # noqa: PLC0415

    return index_pairs(fit_margins(rows).level, study.graph.minimum_expected)


def pooled_smoother(values: Int64Vector, pairs: PairIndex, study: StudySpec) -> Smoothing:
    """The smoother that follows from the pooled half-samples; every party derives it alike.

    Args:
        values: (5 m,) of a sum of graph-halves.
        pairs: its tested pairs.
        study: says which pairs have a part in it.

    Raises:
        FitError: no structure stands out of the noise.
        ProtocolError: a count is negative.
    """
    from protocol.inference import HalfCounts, smooth  # noqa: PLC0415

    if values.min() < 0:
        raise ProtocolError(
            "The pooled halves hold negative counts",
            why="a site gave others than it counted, and nobody can see which",
            do="Sum graph-halves again, without the sites that you doubt",
        )
    return smooth(HalfCounts.of(values), pairs, minimum=study.graph.minimum_expected)


def pack_basis(data: bytes) -> str:
    """The file of an earlier sum's values, as text beside a proposal.

    Raises:
        DataError: it would be too large to be sent.
    """
    text = base64.b64encode(zlib.compress(data, 1)).decode()
    if len(text) > MAX_BASIS:
        raise DataError(
            f"The pooled halves take {len(text) >> 20} MiB, and {MAX_BASIS >> 20} MiB can be sent",
            why="each site derives the smoother from them",
            do="Raise graph.minimum_expected in the study, or test fewer codes",
        )
    return text


def unpack_basis(text: str, pairs: int) -> bytes:
    """The bytes behind `pack_basis`, of a sum over so many tested pairs; nothing in them is checked yet.

    Raises:
        ProtocolError: they are damaged, or more than such a sum has.
    """
    most = pairs * (5 * 8 + 2 * 4) + (1 << 16)
    try:
        stream = zlib.decompressobj()
        data = stream.decompress(base64.b64decode(text, validate=True), most)
    except (ValueError, zlib.error):
        data = b""
    if not data or not stream.eof:
        raise ProtocolError("The pooled halves beside the proposal are damaged")
    return data


def _unfit(study: StudySpec) -> tuple[str, ...]:
    reasons = []
    if study.differential_privacy.enabled:
        reasons.append(
            "nothing bounds what one patient adds to a test of association, and the study asks for noise"
        )
    if study.sharing.small_cells == "include":
        reasons.append(
            'sharing.small_cells is "include", and these sums hold squares of few patients\' counts'
        )
    return tuple(reasons)


def _check(proposal: SumProposal) -> None:
    graph = need(proposal.graph)
    if len(graph.rows) != len(proposal.vocabulary):
        raise ValueError("the pooled row sums are of another vocabulary")
    if min(graph.rows) < 0:
        raise ValueError("a pooled row sum is negative, so a site has spoiled the sum that it is from")
    if (graph.halves is not None) != (proposal.statistic == "graph-blocks"):
        raise ValueError("graph-blocks follows from pooled halves, and no other statistic does")


def _of_margins(proposal: SumProposal, study: StudySpec) -> Shape:
    return Shape(cells=len(proposal.vocabulary))


def _of_pairs(proposal: SumProposal, study: StudySpec) -> Shape:
    """Five vectors over the tested pairs; for blocks one, and the freedom."""
    graph = need(proposal.graph)
    pairs = tested_pairs(graph.rows, study)
    digests = {"pairs": digest(pairs.order.astype("<i8").tobytes() + pairs.width.astype("<i8").tobytes())}
    if graph.halves is not None:
        digests["halves"] = graph.halves.result
    row, column = (codes.astype(np.int32) for codes in pairs.codes())
    cells = 5 * pairs.size if graph.halves is None else pairs.size + 1
    return Shape(cells=cells, pairs=CellIndex(row, column), digests=digests)


GRAPH_MARGINS = Kind(
    what="co-occurrences of each code with any other code, for tests of association",
    given=frozenset(),
    shape=_of_margins,
    unfit=_unfit,
    pair_floor=False,
    reveals="beside a sum of cells: what all pairs below the floors together give a code",
)
ALONE = Kind(
    what="counts, squares and expected counts of each tested pair of codes",
    given=frozenset({"graph"}),
    shape=_of_pairs,
    unfit=_unfit,
    check=_check,
    reveals="how many co-occurrences a patient with the pair has, on average, and how they vary",
)
HALVES = Kind(
    what="counts of each tested pair in two random halves of the patients, and expected counts",
    given=frozenset({"graph"}),
    shape=_of_pairs,
    unfit=_unfit,
    check=_check,
    reveals="counts of half as many patients: a pair at the floor may have one or two in a half",
)
BLOCKS = Kind(
    what="variance of each tested pair's smoothed relation over random blocks of patients",
    given=frozenset({"graph"}),
    shape=_of_pairs,
    unfit=_unfit,
    check=_check,
    reveals="no count: one variance a pair, and the number of blocks",
)
