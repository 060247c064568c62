"""One site's own knowledge graph: which of its codes are related, from its events alone. Nothing of it leaves.

The tests are those of pooled statistics (`protocol.inference`) with one site in the sum: every pair by itself, and
smoothed, with the partitions of the staged events as the random blocks of patients. The site's floors hold here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.errors import DataError, FitError, UsageError
from protocol.inference import PairTests, entrywise, fit_margins, smooth, smoothed
from protocol.pair_index import PairIndex, index_pairs
from protocol.sections import Graph
from protocol.study import StudySpec
from site_agent.config import Home
from site_agent.counting import CountRuns, count_staged
from site_agent.gate.suppression import in_force
from site_agent.inference import MIN_BLOCKS, Shown, block_sums, code_rows, entry_sums, half_counts, shown
from site_agent.prepare import stage_events
from site_agent.resources import Resources
from site_agent.sources import Progress, silent
from site_agent.staging import Staged
from site_agent.working import work_lock

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SiteGraph:
    """The tested pairs of one site's codes, all vectors in the same order.

    Attributes:
        codes: CURIEs of all codes of the site, in order of text.
        names: (n,) what the site calls each; empty if it says nothing.
        rules: the study's.
        alone: each pair tested by itself.
        alone_q: (m,) its q-values.
        smooth: tested by the smoothed matrix; None where no structure stands out of the noise.
        smooth_q: (m,) its q-values.
        rank: eigenpairs of the smoother; 0 where there is none.
        withheld: pairs in which the site takes no part by its floors: p is 1.
        notes: what a reader must know of these tests, in sentences.
    """

    codes: tuple[str, ...]
    names: tuple[str, ...]
    rules: Graph
    alone: PairTests
    alone_q: Floats
    smooth: PairTests | None
    smooth_q: Floats | None
    rank: int
    withheld: int
    notes: tuple[str, ...]

    @property
    def test(self) -> str:
        """The test that decides which pairs are related: smoothed, where there is a smoother."""
        return "alone" if self.smooth is None else "smoothed"

    @property
    def decisive(self) -> PairTests:
        """Of that test."""
        return self.alone if self.smooth is None else self.smooth

    @property
    def q(self) -> Floats:
        """(m,) of that test."""
        return self.alone_q if self.smooth_q is None else self.smooth_q


def site_graph(home: Home, machine: Resources, progress: Progress = silent) -> SiteGraph:
    """Test all pairs of a site's codes that are expected often enough.

    Coded events and counts are removed from the disk at the end; after a failure or a kill they stay and are used again.

    Raises:
        UsageError: another command is at work, or the site's events lie in Spark.
        DataError: the data cannot be used, or are too few for a test.
        StudyError: they hold a code system that the study does not list.
    """
    if home.config.data.database.startswith("spark:"):
        raise UsageError(
            "A graph cannot be made of events in Spark",
            why="its tests go over the patients on this machine",
            do="Export the events to a Parquet file, and name that in a site.toml",
        )
    with work_lock(home):
        staged = stage_events(home, machine, progress)
        runs = count_staged(
            staged,
            home.study.counting,
            home.work / "graph-counts",
            memory=machine.memory,
            threads=machine.threads,
            blocks=True,
            progress=progress,
        )
        found = _tested(home, staged, runs, machine, progress)
        runs.remove()
        staged.remove()
    progress("done", 1.0)
    return found


def _tested(home: Home, staged: Staged, runs: CountRuns, machine: Resources, progress: Progress) -> SiteGraph:
    if len(runs.folders) < MIN_BLOCKS:
        raise DataError(
            f"The events fall into {len(runs.folders)} random blocks of patients, and tests need {MIN_BLOCKS}",
            why="there are too few patients",
        )
    progress("adding up counts", 0.0)
    take = {"memory": machine.memory // 2, "threads": machine.threads}
    total = runs.total(**take)
    rules, policy = home.study.graph, in_force(home.policy(), total.n_patients)
    margins = fit_margins(code_rows(total, total.code_patients >= policy.min_code_patients))
    pairs = index_pairs(margins.level, rules.minimum_expected)
    show = shown(
        total,
        pairs,
        min_code_patients=policy.min_code_patients,
        min_pair_patients=policy.min_pair_patients,
    )
    if not show.pairs.any():
        raise DataError(
            f"No pair of codes reaches this site's floor of {policy.min_pair_patients} patients",
            why="so many must be expected that chance hardly takes the pair below it",
            do="Test with more data",
        )
    del total
    parts = (staged.partition(i) for i in _told(staged.partitions, "testing each pair by itself", progress))
    sums = entry_sums(parts, home.study.counting, pairs, margins, show, threads=machine.threads)
    alone = entrywise(sums, pairs, delta=rules.delta, minimum=rules.minimum_expected)
    progress("smoothing", 0.0)
    halves = half_counts([runs.half(0, **take), runs.half(1, **take)], pairs, show)
    tests, rank, notes = None, 0, []
    try:
        smoothing = smooth(halves, pairs, minimum=rules.minimum_expected)
    except FitError as error:
        notes.append(f"{error.what}: {error.why}. Each pair is tested by itself only.")
    else:
        rank = len(smoothing.values)
        blocks = (runs.block(i) for i in _told(len(runs.folders), "testing smoothed pairs", progress))
        spread = block_sums(blocks, pairs, smoothing, margins, show)
        tests = smoothed(smoothing, pairs, spread.variance, spread.freedom, delta=rules.delta)
    return _graph(home.study, staged, pairs, show, alone, tests, rank, tuple(notes))


def _graph(
    study: StudySpec,
    staged: Staged,
    pairs: PairIndex,
    show: Shown,
    alone: PairTests,
    tests: PairTests | None,
    rank: int,
    notes: tuple[str, ...],
) -> SiteGraph:
    method = study.graph.method
    said = (staged.descriptions.get(code) for code in staged.codes)
    return SiteGraph(
        codes=staged.codes,
        names=tuple("" if d is None else d.text for d in said),
        rules=study.graph,
        alone=alone,
        alone_q=alone.q(method),
        smooth=tests,
        smooth_q=None if tests is None else tests.q(method),
        rank=rank,
        withheld=pairs.size - int(show.pairs.sum()),
        notes=notes,
    )


def _told(n: int, step: str, progress: Progress) -> Iterator[int]:
    for i in range(n):
        progress(step, i / n)
        yield i
