"""Do the knowledge graph's error rates hold? Tests of relations on generated patients whose relations are known.

    python -m pytest tests/benchmarks/test_graph_calibration.py -s                      short: what CI runs
    SMILE_BENCH=full python -m pytest tests/benchmarks/test_graph_calibration.py -s     60 replications of each design

A patient has visits, their number by a Gamma(2) intensity; at a visit each of five channels emits codes of its topic, and topics
stick from visit to visit. Channels are independent: pairs across them are exact nulls. Within a channel a pair is related if its
exact expectation says so. Everything runs through the code that sites and coordinator run: counting, moments, blocks, tests.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from protocol.errors import FitError
from protocol.inference import (
    EntrySums,
    HalfCounts,
    Margins,
    PairTests,
    entrywise,
    fit_margins,
    smooth,
    smoothed,
)
from protocol.pair_index import PairIndex, index_pairs
from protocol.sections import Counting
from site_agent.cooccurrence import PairCounts, add_counts, count_pairs
from site_agent.inference import Shown, block_sums, code_rows, entry_sums, half_counts, shown

pytestmark = pytest.mark.benchmark
FULL = os.environ.get("SMILE_BENCH") == "full"
REPLICATIONS = int(os.environ.get("SMILE_REPLICATIONS", "60" if FULL else "4"))
CODES, CHANNELS, TOPICS, BLOCKS = 100, 5, 3, 128
SIZE = CODES // CHANNELS
TARGET, MINIMUM = 0.05, 10.0
Floats = NDArray[np.float64]
Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Design:
    """How patients are made and counted.

    Attributes:
        name: in the table.
        binary: a code once a visit, or every event of it.
        events: of a channel at a visit, on average.
        strength: standard deviation of the topics' log odds; 0: no pair is related.
        sites: that hold equal parts of the patients.
        floor: patients a pair needs at a site.
        spread: how the sites' numbers of events differ: the first has this many times those of the last.
        delta: the least excess that is looked for.
        sticky: chance that a topic stays until the next visit.
        patients: of all sites.
        mix: standard deviation of the log rates by which sites use each code more or less than others.
    """

    name: str
    binary: bool = False
    events: float = 2.0
    strength: float = 0.65
    sites: int = 1
    floor: int = 0
    spread: float = 1.0
    delta: float = 0.0
    sticky: float = 0.8
    patients: int = 4000
    mix: float = 0.0

    @property
    def rule(self) -> Counting:
        return Counting(window_days=0 if self.binary else 500, max_events_per_patient=90_000)


REFERENCE = (
    Design("events"),
    Design("binary", binary=True),
)
SPARSE = (
    Design("sparse, events", events=0.75),
    Design("sparse, binary", events=0.8, binary=True),
)
FURTHER = (
    Design("no relation at all", strength=0.0),
    Design("least excess 10 %", delta=0.1),
    Design("topics stay, heavy patients", sticky=0.97),
    Design("three unequal sites", sites=3, spread=3.0),
    Design("three sites, other habits", sites=3, mix=0.4),
    Design("three sites, floor 11", sites=3, floor=11),
    Design("three sites, other habits, floor 11", sites=3, mix=0.4, floor=11),
    Design("sparse, three sites, floor 11", events=0.75, sites=3, floor=11),
)


def topics(design: Design, site: int = 0) -> Floats:
    """(channels, topics, codes of a channel) probabilities of codes at a site; the same in every replication."""
    rng = np.random.default_rng(7)
    base = np.exp(rng.normal(0, 0.5, (CHANNELS, 1, SIZE)))
    theta = base * np.exp(design.strength * rng.normal(size=(CHANNELS, TOPICS, SIZE)))
    habit = np.random.default_rng(site).normal(size=(CHANNELS, 1, SIZE))
    theta *= np.exp(design.mix * habit)
    return np.asarray(theta / theta.sum(axis=2, keepdims=True))


def truth(design: Design) -> Floats:
    """(codes, codes) exact log ratio of each pair, by expected counts and margins; with several sites their mean."""
    return np.asarray(np.mean([_truth(design, s) for s in range(design.sites)], axis=0))


def _truth(design: Design, site: int) -> Floats:
    theta = topics(design, site)
    rate = 1 - np.exp(-design.events * theta) if design.binary else design.events * theta
    mean = rate.mean(axis=1).ravel()
    expected = np.outer(mean, mean)
    for m in range(CHANNELS):
        own = slice(m * SIZE, (m + 1) * SIZE)
        expected[own, own] = np.einsum("ka,kb->ab", rate[m], rate[m]) / TOPICS
    np.fill_diagonal(expected, 0.0)
    level = fit_margins(expected.sum(axis=1)).level
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(expected) - np.log(np.outer(level, level)))


@njit(cache=True)
def _simulate(site, cumulated, events, sticky, seed):  # type: ignore[no-untyped-def]
    np.random.seed(seed)  # noqa: NPY002
    _, channels, kinds, size = cumulated.shape
    rows = []
    for i in range(site.size):
        visits = np.random.poisson(8.0 * np.random.gamma(2.0, 0.5))  # noqa: NPY002
        topic = np.random.randint(0, kinds, channels)  # noqa: NPY002
        for visit in range(visits):
            e = 0
            for m in range(channels):
                if np.random.random() > sticky:  # noqa: NPY002
                    topic[m] = np.random.randint(0, kinds)  # noqa: NPY002
                for _ in range(np.random.poisson(events[i])):  # noqa: NPY002
                    code = min(np.searchsorted(cumulated[site[i], m, topic[m]], np.random.random()), size - 1)  # noqa: NPY002
                    rows.append((i, 1000 * visit + e, m * size + code))
                    e += 1
    return np.array(rows)


def simulate(design: Design, seed: int) -> NDArray[np.int64]:
    """(m, 3) patient, day and code, by patient and day."""
    site = np.arange(design.patients) % design.sites
    factor = np.geomspace(design.spread, 1.0, design.sites)
    events = design.events * (factor / factor.mean())[site]
    own = np.stack([np.cumsum(topics(design, s), axis=2) for s in range(design.sites)])
    rows = np.asarray(_simulate(site, own, events, design.sticky, seed))
    if design.binary:
        rows[:, 1] -= rows[:, 1] % 1000
    return rows


@dataclass(frozen=True, eq=False)
class Site:
    """A site's events, their counts in blocks, and what it does when it is asked."""

    events: tuple[Int64s, NDArray[np.int32], NDArray[np.int32]]
    blocks: list[PairCounts]
    design: Design

    @classmethod
    def of(cls, rows: Int64s, design: Design) -> Site:
        columns = rows[:, 0], rows[:, 1].astype(np.int32), rows[:, 2].astype(np.int32)
        block = (rows[:, 0] // design.sites) % BLOCKS
        order = np.argsort(block, kind="stable")
        cuts = np.searchsorted(block[order], np.arange(BLOCKS + 1))
        blocks = []
        for g in range(BLOCKS):
            part = order[cuts[g] : cuts[g + 1]]
            window = design.rule.window
            blocks.append(
                count_pairs(*(c[part] for c in columns), CODES, window_days=window, threads=1, memory=1 << 22)
            )
        return cls(columns, blocks, design)

    def total(self) -> PairCounts:
        return add_counts(self.blocks)

    def shown(self, pairs: PairIndex) -> Shown:
        return shown(self.total(), pairs, min_pair_patients=self.design.floor)

    def margins(self) -> Margins:
        return fit_margins(code_rows(self.total()))

    def halves(self, pairs: PairIndex) -> HalfCounts:
        both = [add_counts(self.blocks[: BLOCKS // 2]), add_counts(self.blocks[BLOCKS // 2 :])]
        return half_counts(both, pairs, self.shown(pairs))

    def entries(self, pairs: PairIndex) -> EntrySums:
        return entry_sums(
            [self.events], self.design.rule, pairs, self.margins(), self.shown(pairs), threads=1
        )


def both_tests(sites: list[Site], delta: float) -> tuple[PairTests, PairTests | None]:
    """Both tests, of the sums of what the sites send; no smoothed one if nothing stands out of the noise."""
    rows = np.sum([code_rows(s.total()) for s in sites], axis=0)
    pairs = index_pairs(fit_margins(rows).level, MINIMUM)
    entries = EntrySums.of(np.sum([s.entries(pairs).vector(sites=3) for s in sites], axis=0))
    single = entrywise(entries, pairs, delta=delta)
    try:
        halves = HalfCounts.of(np.sum([s.halves(pairs).vector(sites=3) for s in sites], axis=0))
        smoothing = smooth(halves, pairs)
    except FitError:
        return single, None
    sums = [block_sums(s.blocks, pairs, smoothing, s.margins(), s.shown(pairs)) for s in sites]
    variance = np.sum([s.variance for s in sums], axis=0)
    return single, smoothed(smoothing, pairs, variance, sum(s.freedom for s in sums), delta=delta)


@dataclass
class Scores:
    """Of one test, a value for each replication."""

    mean: list[float] = field(default_factory=list)
    sd: list[float] = field(default_factory=list)
    false: list[float] = field(default_factory=list)
    power: list[float] = field(default_factory=list)

    def add(self, tests: PairTests | None, log_ratio: Floats, delta: float, pairs: PairTests) -> None:
        real = log_ratio[pairs.row, pairs.column]
        null = pairs.row // SIZE != pairs.column // SIZE
        related = ~null & (real > np.log1p(delta))
        z = tests.z[null & np.isfinite(tests.z)] if tests is not None else np.zeros(1)
        z = z if z.size else np.zeros(1)
        found = tests.q() <= TARGET if tests is not None else np.zeros(related.size, np.bool_)
        self.mean.append(float(z.mean()))
        self.sd.append(float(z.std()))
        self.false.append(float((found & ~related).sum() / max(1, found.sum())))
        self.power.append(float((found & related).sum() / max(1, related.sum())))

    def value(self, name: str) -> tuple[float, float]:
        """Mean over the replications, and its standard error."""
        values = np.array(getattr(self, name))
        return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))


RESULTS: dict[str, dict[str, Scores]] = {}


def run(design: Design) -> dict[str, Scores]:
    """All replications of a design; once, however many tests look at it."""
    if design.name in RESULTS:
        return RESULTS[design.name]
    real, scores = truth(design), {"each pair": Scores(), "smoothed": Scores()}
    for seed in range(REPLICATIONS):
        rows = simulate(design, seed)
        sites = [Site.of(rows[rows[:, 0] % design.sites == s], design) for s in range(design.sites)]
        single, smoothed_tests = both_tests(sites, design.delta)
        scores["each pair"].add(single, real, design.delta, single)
        scores["smoothed"].add(smoothed_tests, real, design.delta, single)
    RESULTS[design.name] = scores
    for name, found in scores.items():
        cells = ["{:.3f} ± {:.3f}".format(*found.value(k)) for k in ("mean", "sd", "false", "power")]
        print(f"| {design.name} | {name} | " + " | ".join(cells) + " |", flush=True)
    return scores


@pytest.fixture(scope="module", autouse=True)
def header() -> None:
    print(
        f"\n{REPLICATIONS} replications, mean ± standard error; false discovery rate and power at a target of {TARGET:.0%}"
    )
    print("| design | test | null z mean | null z sd | FDR | power |\n|---|---|---|---|---|---|", flush=True)


def at_most(scores: Scores, name: str, bar: float, *, centre: float = 0.0) -> None:
    """The value keeps to the bar; of few replications, within three standard errors of it."""
    value, error = scores.value(name)
    assert abs(value - centre) <= bar + (0.0 if FULL else 3 * error), f"{name}: {value:.3f} ± {error:.3f}"


def check_each_pair(scores: Scores) -> None:
    """Null statistics are standard normal, whatever the design."""
    at_most(scores, "mean", 0.05)
    at_most(scores, "sd", 0.05, centre=1.0)


@pytest.mark.parametrize("design", REFERENCE, ids=lambda d: d.name)
def test_reference(design: Design) -> None:
    scores = run(design)
    check_each_pair(scores["each pair"])
    at_most(scores["smoothed"], "false", 0.065)
    if FULL:
        assert scores["smoothed"].value("false")[0] >= 0.02
    assert scores["smoothed"].value("power")[0] >= 0.25
    assert scores["smoothed"].value("power")[0] > scores["each pair"].value("power")[0]


@pytest.mark.parametrize("design", SPARSE, ids=lambda d: d.name)
def test_few_counts(design: Design) -> None:
    scores = run(design)
    check_each_pair(scores["each pair"])
    at_most(scores["smoothed"], "false", TARGET)


@pytest.mark.parametrize("design", FURTHER, ids=lambda d: d.name)
def test_further(design: Design) -> None:
    scores = run(design)
    if design.delta == 0:
        check_each_pair(scores["each pair"])
    at_most(scores["smoothed"], "false", 0.065)
