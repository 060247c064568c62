"""How a site counts for tests of association: what `site-agent graph` computes for itself, as vectors of sums.

Codes outside the vocabulary stay in the counting, so that the cap on a patient's events falls as in every other sum; they
have no part in any number that leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from protocol.arrays import decode_arrays
from protocol.errors import DataError, GateError
from protocol.inference import VARIANCE_BITS, Margins, fit_margins
from protocol.messages import Policy
from protocol.pair_index import PairIndex
from protocol.secure_sum.fixed import Int64Vector, to_fixed
from protocol.secure_sum.state import need
from protocol.sums import SumProposal, pooled_smoother, tested_pairs, vocabulary_digest
from site_agent.changes import UInt64s
from site_agent.config import Home
from site_agent.cooccurrence import PairCounts
from site_agent.counting import CountRuns, count_staged
from site_agent.gate.suppression import in_force
from site_agent.inference import MIN_BLOCKS, Shown, block_sums, code_rows, entry_sums, half_counts, shown
from site_agent.resources import Resources
from site_agent.sources import Progress
from site_agent.staging import Staged
from site_agent.sums.approval import values_digest
from site_agent.sums.counted import Counted, days_digest
from site_agent.sums.counting import stage_standard
from site_agent.sums.folder import SumFolder
from site_agent.working import work_lock


def count_graph(
    home: Home, folder: SumFolder, proposal: SumProposal, machine: Resources, progress: Progress
) -> Counted:
    """Count what a sum for tests of association asks for.

    Coded events and counts are removed from the disk at the end; after a failure or a kill they stay and are used again.

    Raises:
        GateError: the events lie in Spark; or they are not those of the sum that this one follows from.
        DataError: the data cannot be used, or are too few.
        UsageError: another command is at work.
    """
    if home.config.data.database.startswith("spark:"):
        raise GateError(
            f"The sum {proposal.name} cannot be counted in Spark",
            ("tests of association go over the patients on this machine",),
            do="Let the agent read the tables itself, through postgresql:// or duckdb://, or from an extract",
        )
    with work_lock(home):
        staged, days = stage_standard(home, machine, progress)
        inside = _ordered(staged, proposal.vocabulary)
        blocks = proposal.statistic in {"graph-halves", "graph-blocks"}
        with _counted(home, inside, machine, progress, blocks=blocks) as runs:
            found = _Site.of(home, proposal, inside, runs, machine, progress)
            values = _VALUES[proposal.statistic](found, folder, days)
        staged.remove()
    progress("done", 1.0)
    n = len(proposal.vocabulary)
    patients = found.code_patients[:n]
    return Counted(
        values=values,
        days=days,
        policy=found.policy,
        withheld_codes=int(((patients > 0) & (patients < found.policy.min_code_patients)).sum()),
        withheld_pairs=0 if found.pairs is None else found.pairs.size - int(found.show.pairs.sum()),
        other_codes=int((found.code_patients[n:] > 0).sum()),
    )


@dataclass(frozen=True, eq=False)
class _Site:
    """A site's counts over the codes of the vocabulary, which come first, and its other codes."""

    home: Home
    proposal: SumProposal
    staged: Staged
    runs: CountRuns
    machine: Resources
    progress: Progress
    policy: Policy
    code_patients: Int64Vector
    rows: Int64Vector
    pairs: PairIndex | None
    show: Shown

    @classmethod
    def of(
        cls,
        home: Home,
        proposal: SumProposal,
        staged: Staged,
        runs: CountRuns,
        machine: Resources,
        progress: Progress,
    ) -> _Site:
        progress("adding up counts", 0.0)
        total = runs.total(memory=machine.memory // 2, threads=machine.threads)
        policy = in_force(home.policy(), total.n_patients)
        seen = total.code_patients.copy()
        total = replace(total, code_patients=_inside(total, len(proposal.vocabulary)))
        pairs, nothing = None, np.zeros(0, np.bool_)
        show = Shown(np.asarray(total.code_patients >= policy.min_code_patients), nothing, nothing)
        if proposal.graph is not None:
            pairs = tested_pairs(proposal.graph.rows, home.study)
            show = shown(
                total,
                pairs,
                min_code_patients=policy.min_code_patients,
                min_pair_patients=policy.min_pair_patients,
            )
        rows = code_rows(total, show.codes)
        return cls(home, proposal, staged, runs, machine, progress, policy, seen, rows, pairs, show)

    @property
    def margins(self) -> Margins:
        """The site's own."""
        return fit_margins(self.rows)

    @property
    def sites(self) -> int:
        """That may be in the sum."""
        return len(self.proposal.roster.keys)

    def told(self, n: int, step: str) -> Iterator[int]:
        """0 to n - 1, with progress."""
        for i in range(n):
            self.progress(step, i / n)
            yield i


def _margins(site: _Site, folder: SumFolder, days: UInt64s) -> Int64Vector:
    """(n,) row sums."""
    return site.rows[: len(site.proposal.vocabulary)]


def _alone(site: _Site, folder: SumFolder, days: UInt64s) -> Int64Vector:
    """(5 m,) of `EntrySums`."""
    parts = (
        site.staged.partition(i)
        for i in site.told(site.staged.partitions, "summing over patients for each pair")
    )
    rule, pairs = site.home.study.counting, need(site.pairs)
    sums = entry_sums(parts, rule, pairs, site.margins, site.show, threads=site.machine.threads)
    return sums.vector(sites=site.sites)


def _halves(site: _Site, folder: SumFolder, days: UInt64s) -> Int64Vector:
    """(5 m,) of `HalfCounts`."""
    if len(site.runs.folders) < MIN_BLOCKS:
        raise DataError(
            f"The events fall into {len(site.runs.folders)} random blocks of patients, and the smoothed test needs {MIN_BLOCKS}",
            why="there are too few patients",
            do="Have the coordinator restart the sum without this site",
        )
    take = {"memory": site.machine.memory // 2, "threads": site.machine.threads}
    site.progress("adding up half-samples", 0.0)
    halves = half_counts([site.runs.half(0, **take), site.runs.half(1, **take)], need(site.pairs), site.show)
    return halves.vector(sites=site.sites)


def _blocks(site: _Site, folder: SumFolder, days: UInt64s) -> Int64Vector:
    """(m + 1,) of `BlockSums`."""
    name, pairs = site.proposal.name, need(site.pairs)
    halves = need(need(site.proposal.graph).halves)
    basis, before = folder.basis(name), folder.preview(halves.name)
    if basis is None or before is None:
        raise GateError(
            f"The pooled halves that sum {name} follows from are not here",
            (f"the agent takes them from the coordinator once it knows the outcome of sum {halves.name}",),
            do="Keep site-agent run running, have the coordinator run the sum again, and then repeat the command",
        )
    reasons = []
    if days_digest(days) != before.data:
        reasons.append("the patients' events are others")
    elif values_digest(_halves(site, folder, days)) != before.values:
        reasons.append("the coding, the floors or the counting are others")
    if reasons:
        raise GateError(
            f"This site's data are not those of sum {halves.name}, which sum {name} follows from",
            tuple(reasons),
            do="Count over the data of then, or have the coordinator begin again with a sum of graph-margins",
        )
    site.progress("smoothing", 0.0)
    smoothing = pooled_smoother(decode_arrays(basis)[0]["values"], pairs, site.home.study)
    if len(smoothing.values) != halves.rank:
        raise GateError(
            f"The smoother of sum {name} has {len(smoothing.values)} eigenpairs here and {halves.rank} at the coordinator",
            ("an eigenvalue lies so close to the noise that the two machines' rounding decides",),
            do="Have the coordinator change graph.minimum_expected in the study, or use the test of each pair by itself",
        )
    blocks = (
        site.runs.block(i) for i in site.told(len(site.runs.folders), "summing over blocks of patients")
    )
    spread = block_sums(blocks, pairs, smoothing, site.margins, site.show)
    variance = to_fixed(spread.variance, VARIANCE_BITS, sites=site.sites)
    return np.append(variance, np.int64(spread.freedom))


_VALUES = {
    "graph-margins": _margins,
    "graph-alone": _alone,
    "graph-halves": _halves,
    "graph-blocks": _blocks,
}


def _inside(total: PairCounts, codes: int) -> Int64Vector:
    """(k,) patients of each code of the vocabulary; 0 for other codes, which so have no part."""
    return np.where(np.arange(total.code_patients.size) < codes, total.code_patients, 0)


def _ordered(staged: Staged, vocabulary: tuple[str, ...]) -> Staged:
    """The same events, with the codes of the vocabulary as the first rows of the code list."""
    place = {code: i for i, code in enumerate(vocabulary)}
    others = [code for code in staged.codes if code not in place]
    place |= {code: len(vocabulary) + i for i, code in enumerate(others)}
    row = np.array([place[code] for code in staged.codes], np.int32)
    digest = hashlib.sha256(f"{staged.digest} {vocabulary_digest(vocabulary)}".encode()).hexdigest()
    return replace(staged, codes=(*vocabulary, *others), position=row[staged.position], digest=digest)


@contextmanager
def _counted(
    home: Home, staged: Staged, machine: Resources, progress: Progress, *, blocks: bool
) -> Iterator[CountRuns]:
    """Counts on the disk, until they have been used."""
    take: dict[str, Any] = {"memory": machine.memory, "threads": machine.threads}
    runs = count_staged(
        staged, home.study.counting, home.work / "graph-counts", blocks=blocks, progress=progress, **take
    )
    yield runs
    runs.remove()
