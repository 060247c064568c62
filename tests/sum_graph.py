"""Tests of association that are pooled in the clear from the gated inputs of three sites: what secure sums must give."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from coordinator.graph.pooled import pooled_graph
from coordinator.sums.outcome import read_outcome
from protocol.inference import EntrySums, HalfCounts, PairTests, entrywise, fit_margins, smooth, smoothed
from protocol.pair_index import PairIndex, index_pairs
from site_agent.blocks import partition_of
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.inference import block_sums, code_rows, entry_sums, half_counts, shown
from site_agent.staging import PARTITIONS
from tests.sum_federation import CODES, SITES, Consortium, make_events

PATIENTS = {"lake": 900, "north": 800, "south": 1400}
FLOORS = {"min_code_patients": 20, "min_pair_patients": 25}  # of pairs, that of small sites


def more_events(site: str, seed: int) -> list[tuple[int, int, str]]:
    """Enough patients for blocks."""
    return make_events(site, seed, PATIENTS[site])


class Clear(NamedTuple):
    """What the sites would send, without masks or fixed point, over the pairs that they agree on."""

    rows: list[Any]
    pairs: PairIndex
    alone: list[EntrySums]
    halves: list[HalfCounts]
    tests: PairTests
    smoothed: PairTests


def coded(rows: list[tuple[int, int, str]]) -> tuple[np.ndarray[Any, Any], ...]:
    """Patient, day and code of the vocabulary's codes, sorted; a code that it lacks comes behind them."""
    place = {code: i for i, code in enumerate(CODES)}
    found = sorted(
        {(who, day, place.get(code.replace("SOUTH:L", "ICD10CM:C"), len(CODES))) for who, day, code in rows}
    )
    who, day, code = (np.array(c) for c in zip(*found, strict=True))
    return who.astype(np.int64), day.astype(np.int32), code.astype(np.int32)


def counted(events: tuple[np.ndarray[Any, Any], ...], keep: Any) -> PairCounts:
    found = count_pairs(*(c[keep] for c in events), len(CODES) + 1, window_days=30, threads=1)
    found.code_patients[len(CODES)] = 0  # no part in any number
    return found


def pooled_in_the_clear(finished: Consortium) -> Clear:
    """By counting each site's events anew."""
    tables = [coded(finished.rows[s]) for s in SITES]
    totals = [counted(t, slice(None)) for t in tables]
    low = [t.code_patients >= FLOORS["min_code_patients"] for t in totals]
    rows = [code_rows(t, keep) for t, keep in zip(totals, low, strict=True)]
    pairs = index_pairs(fit_margins(sum(rows)).level, 10.0)
    shows = [shown(t, pairs, **FLOORS) for t in totals]
    margins = [fit_margins(r) for r in rows]
    where = [partition_of(t[0], PARTITIONS) for t in tables]
    rule = finished.study.counting
    alone = [
        entry_sums([t], rule, pairs, m, s, threads=1) for t, m, s in zip(tables, margins, shows, strict=True)
    ]
    halves = [
        half_counts([counted(t, w < PARTITIONS // 2), counted(t, w >= PARTITIONS // 2)], pairs, s)
        for t, w, s in zip(tables, where, shows, strict=True)
    ]
    one = EntrySums(*(sum(getattr(a, f) for a in alone) for f in EntrySums._fields))
    smoothing = smooth(HalfCounts(*(sum(getattr(h, f) for h in halves) for f in HalfCounts._fields)), pairs)
    spread = [
        block_sums((counted(t, w == g) for g in range(PARTITIONS)), pairs, smoothing, m, s)
        for t, w, m, s in zip(tables, where, margins, shows, strict=True)
    ]
    tests = smoothed(smoothing, pairs, sum(b.variance for b in spread), sum(b.freedom for b in spread))
    return Clear(rows, pairs, alone, halves, entrywise(one, pairs), tests)


def values(consortium: Consortium, name: str) -> Any:
    """The pooled vector of a finished sum."""
    return read_outcome(consortium.hub, name)[1]["values"]


def check_integers(finished: Consortium, clear: Clear) -> None:
    """Row sums, counts and squares are exactly those of the gated inputs."""
    np.testing.assert_array_equal(values(finished, "margins"), sum(clear.rows)[: len(CODES)])
    m = clear.pairs.size
    assert all((a.counts > 0).sum() > 50 for a in clear.alone)
    assert 100 < m <= len(CODES) * (len(CODES) - 1) // 2
    got = values(finished, "alone").reshape(5, m)
    np.testing.assert_array_equal(got[0], sum(a.counts for a in clear.alone))
    np.testing.assert_array_equal(got[1], sum(a.squares for a in clear.alone))
    assert (got[0] > 0).sum() > 50
    half = values(finished, "halves").reshape(5, m)
    np.testing.assert_array_equal(half[:2], sum(h.counts for h in clear.halves))
    np.testing.assert_array_equal(half[:2].sum(axis=0), got[0])
    names = [CODES.index(c) for c in read_outcome(finished.hub, "alone")[2]]
    arrays = read_outcome(finished.hub, "alone")[1]
    np.testing.assert_array_equal(np.array(names)[arrays["row"]], clear.pairs.codes()[0])
    np.testing.assert_array_equal(np.array(names)[arrays["column"]], clear.pairs.codes()[1])


def check_smoothed(finished: Consortium, clear: Clear) -> None:
    """Both tests are those of the clear sums, but for the rounding of fixed point."""
    found = pooled_graph(finished.hub, "alone", "blocks")
    assert found.smooth is not None
    assert found.rank > 0
    seen = np.isfinite(clear.smoothed.z)
    assert seen.sum() > 50
    np.testing.assert_array_equal(np.isfinite(found.smooth.z), seen)
    np.testing.assert_allclose(found.smooth.z[seen], clear.smoothed.z[seen], atol=1e-6, rtol=0.0)
    np.testing.assert_allclose(found.smooth_q, clear.smoothed.q("bh"), atol=1e-6)
    own = np.isfinite(clear.tests.z)
    np.testing.assert_allclose(found.alone.z[own], clear.tests.z[own], atol=1e-5, rtol=0.0)
