"""Tests of association from finished secure sums: which standard codes are related, over all sites together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coordinator.config import Home
from coordinator.graph.structure import unit_rows
from coordinator.sums.asking import finished, proposal_of
from coordinator.sums.outcome import read_outcome
from protocol.errors import ProtocolError, UsageError
from protocol.inference import VARIANCE_BITS, EntrySums, PairTests, entrywise, smoothed
from protocol.pair_index import PairIndex
from protocol.sections import Graph
from protocol.secure_sum.fixed import from_fixed
from protocol.secure_sum.state import need
from protocol.sums import PooledSum, pooled_smoother, tested_pairs

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PooledGraph:
    """The tested pairs of the vocabulary's codes, all vectors in the same order.

    Attributes:
        codes: of the vocabulary, sorted.
        rules: the study's.
        study: its digest.
        sums: the finished sums behind it, by name.
        sites: whose counts are in them.
        alone: each pair tested by itself.
        alone_q: (m,) its q-values.
        smooth: tested by the smoothed matrix; None without a sum of graph-blocks.
        smooth_q: (m,) its q-values.
        structure: (n, rank) each code's row of U f(L)^(1/2) at unit length, zero where the smoother lacks it; None as above.
        notes: what a reader must know of these tests, in sentences.
    """

    codes: tuple[str, ...]
    rules: Graph
    study: str
    sums: tuple[str, ...]
    sites: tuple[str, ...]
    alone: PairTests
    alone_q: Floats
    smooth: PairTests | None
    smooth_q: Floats | None
    structure: Floats | None
    notes: tuple[str, ...]

    @property
    def rank(self) -> int:
        """Eigenpairs of the smoother; 0 where there is none."""
        return 0 if self.structure is None else self.structure.shape[1]

    @property
    def test(self) -> str:
        """The test that decides which pairs are related: smoothed, where it was summed for."""
        return "alone" if self.smooth is None else "smoothed"

    @property
    def decisive(self) -> PairTests:
        """Of that test."""
        return self.alone if self.smooth is None else self.smooth

    @property
    def q(self) -> Floats:
        """(m,) of that test."""
        return self.alone_q if self.smooth_q is None else self.smooth_q


def pooled_graph(home: Home, alone: str, blocks: str = "") -> PooledGraph:
    """The tests that follow from finished sums.

    Args:
        home: the coordinator.
        alone: a sum of graph-alone.
        blocks: a sum of graph-blocks over the same pairs; the sum of graph-halves before it is found by itself.

    Raises:
        RoundError: a sum is not finished.
        UsageError: a sum is of another statistic, or they are over different pairs or sites.
        ProtocolError: a file was altered, or a site has spoiled a sum.
    """
    rules = home.study.graph
    result, values, codes = finished(home, alone, "graph-alone")
    rows = need(proposal_of(home, result).graph).rows
    pairs = tested_pairs(rows, home.study)
    _check_pairs(home, alone, pairs, codes)
    own = entrywise(EntrySums.of(values), pairs, delta=rules.delta, minimum=rules.minimum_expected)
    sums, notes, tests, structure = [alone], [], None, None
    if blocks:
        tests, structure, other = _smoothed(home, blocks, codes, rows, pairs)
        sums += [other.name, blocks]
        if other.sites != result.sites:
            notes.append(
                f"The test of each pair by itself is of {', '.join(result.sites)}, "
                f"the smoothed one of {', '.join(other.sites)}."
            )
    return PooledGraph(
        codes=codes,
        rules=rules,
        study=home.study.digest,
        sums=tuple(sums),
        sites=result.sites,
        alone=own,
        alone_q=own.q(rules.method),
        smooth=tests,
        smooth_q=None if tests is None else tests.q(rules.method),
        structure=structure,
        notes=tuple(notes),
    )


def _smoothed(
    home: Home, blocks: str, codes: tuple[str, ...], rows: tuple[int, ...], pairs: PairIndex
) -> tuple[PairTests, Floats, PooledSum]:
    """The smoothed test, the codes' places in its smoother, and the sum of half-samples that it follows from."""
    result, values, own = finished(home, blocks, "graph-blocks")
    graph = need(proposal_of(home, result).graph)
    halves = need(graph.halves)
    if (own, graph.rows) != (codes, rows):
        raise UsageError(
            f"The sum {blocks} is over other pairs of codes than that of each pair by itself",
            why="they follow from different sums of graph-margins",
            do="Name sums that follow from the same one",
        )
    before, pooled, _ = finished(home, halves.name, "graph-halves")
    if before.digest != halves.result:
        raise ProtocolError(
            f"The outcome of sum {halves.name} is not that from which sum {blocks} followed",
            do="Restore it from your backup; do not use it",
        )
    if before.sites != result.sites:
        raise UsageError(
            f"The sum {blocks} is of other sites than sum {halves.name}",
            why=f"{', '.join(sorted(set(before.sites) ^ set(result.sites)))} is in one of them only, "
            "so the variance is not that of the counts",
            do="Sum graph-halves and graph-blocks again, over the same sites",
        )
    if values[-1] < 1:
        raise ProtocolError(
            f"The sum {blocks} holds {int(values[-1])} degrees of freedom",
            why="a site gave others than it counted, and nobody can see which",
            do="Sum graph-blocks again, without the sites that you doubt",
        )
    smoothing = pooled_smoother(pooled, pairs, home.study)
    variance = from_fixed(values[:-1], VARIANCE_BITS)
    tests = smoothed(smoothing, pairs, variance, int(values[-1]), delta=home.study.graph.delta)
    places = np.zeros((len(codes), len(smoothing.values)))
    places[pairs.order] = unit_rows(smoothing.coordinates())
    return tests, places, before


def _check_pairs(home: Home, name: str, pairs: PairIndex, codes: tuple[str, ...]) -> None:
    """Return only if the pairs that follow from the margins today are those that were summed."""
    arrays = read_outcome(home, name)[1]
    row, column = pairs.codes()
    if not (np.array_equal(arrays["row"], row) and np.array_equal(arrays["column"], column)):
        raise UsageError(
            f"The sum {name} is over other pairs than follow from the study",
            why="graph.minimum_expected has changed since",
            do="Restore the study file of then, or sum again",
        )
