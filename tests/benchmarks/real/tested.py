"""Tests of relations of some patients' events, made as a site and the coordinator make them, as matrices of codes by codes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from protocol.errors import FitError
from protocol.inference import PairTests, Smoothing, entrywise, fit_margins, smooth, smoothed
from protocol.pair_index import PairIndex, index_pairs
from protocol.sections import Counting
from site_agent.cooccurrence import add_counts, count_pairs
from site_agent.inference import block_sums, code_rows, entry_sums, half_counts, shown

Array = NDArray[np.float64]
BLOCKS = 128
"""Random blocks of patients, half of them in either half of the patients."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Events of the codes that are released, and how patients are drawn.

    Attributes:
        patient, day, code: of each event, distinct and by patient and day; codes from 0 to n - 1.
        n: codes.
        first: of each patient, whether in the first half.
        window: days; None is the whole history.
        floor: patients a pair needs; 1 is no floor.
        seed: of the blocks.
    """

    patient: NDArray[np.int64]
    day: NDArray[np.int32]
    code: NDArray[np.int32]
    n: int
    first: NDArray[np.bool_]
    window: int | None
    floor: int
    seed: int

    @cached_property
    def tests(self) -> Tests:
        """As they are: pairs of which at least ten are expected."""
        return tests_of(self, 10.0)


@dataclass(frozen=True, eq=False)
class Tests:
    """Both tests; `smooth` and `smoothing` are None where nothing stands out of the noise.

    Attributes:
        n: codes.
        pairs: tested pairs.
        open: (m,) those that the floors let out; the others keep p = 1.
        alone: each pair by itself.
        smooth: the smoothed test.
        smoothing: its smoother.
    """

    n: int
    pairs: PairIndex
    open: NDArray[np.bool_]
    alone: PairTests
    smooth: PairTests | None
    smoothing: Smoothing | None

    def matrix(self, values: Array, rest: float) -> Array:
        """(n, n) values of the tested pairs, and `rest` elsewhere."""
        found = np.full((self.n, self.n), rest)
        found[self.alone.row, self.alone.column] = found[self.alone.column, self.alone.row] = values
        return found

    @cached_property
    def tested(self) -> NDArray[np.bool_]:
        """(n, n) pairs that are tested and not withheld."""
        return self.matrix(self.open.astype(np.float64), 0.0) > 0

    def z(self, tests: PairTests | None) -> Array:
        """(n, n) statistics; 0, which says nothing, for pairs without one."""
        if tests is None:
            return np.zeros((self.n, self.n))
        return self.matrix(np.where(np.isfinite(tests.z), tests.z, 0.0), 0.0)

    def q(self, tests: PairTests | None) -> Array:
        """(n, n) q-values; 1 for pairs without one."""
        return np.ones((self.n, self.n)) if tests is None else self.matrix(tests.q(), 1.0)

    @property
    def cosine(self) -> Array:
        """(n, n) cosines of the rows of U f(L)^(1/2), the codes as the smoother has them; 0 with a code that it lacks."""
        points = np.zeros((self.n, 1 if self.smoothing is None else self.smoothing.values.size))
        if self.smoothing is not None:
            points[self.pairs.order] = self.smoothing.coordinates()
        length = np.linalg.norm(points, axis=1, keepdims=True)
        points /= np.where(length > 0.0, length, 1.0)
        return np.asarray(points @ points.T)


def tests_of(sample: Sample, minimum: float) -> Tests:
    """Both tests of one site that holds all these patients; its margins are those of the released codes."""
    events = (sample.patient, sample.day, sample.code)
    drawn = np.random.default_rng(sample.seed).integers(0, BLOCKS // 2, sample.first.size)
    block = (drawn + BLOCKS // 2 * ~sample.first)[sample.patient]
    blocks = [
        count_pairs(
            *(c[block == g] for c in events), sample.n, window_days=sample.window, threads=1, memory=1 << 24
        )
        for g in range(BLOCKS)
    ]
    both = [add_counts(blocks[: BLOCKS // 2]), add_counts(blocks[BLOCKS // 2 :])]
    total = add_counts(both)
    margins = fit_margins(code_rows(total))
    pairs = index_pairs(margins.level, minimum)
    show = shown(total, pairs, min_pair_patients=sample.floor if sample.floor > 1 else 0)
    rule = Counting(rule="whole-history") if sample.window is None else Counting(window_days=sample.window)
    sums = entry_sums([events], rule, pairs, margins, show, threads=1)
    alone = entrywise(sums, pairs, minimum=minimum)
    try:
        smoothing = smooth(half_counts(both, pairs, show), pairs, minimum=minimum)
    except FitError:
        return Tests(sample.n, pairs, show.pairs, alone, None, None)
    found = block_sums(blocks, pairs, smoothing, margins, show)
    tests = smoothed(smoothing, pairs, found.variance, found.freedom)
    return Tests(sample.n, pairs, show.pairs, alone, tests, smoothing)
