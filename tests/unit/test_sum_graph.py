"""Tests of association pooled over three sites by secure sum, against pooling the same gated inputs in the clear."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("flwr")

from coordinator.flower import post
from coordinator.sums.asking import asked_for
from coordinator.sums.drive import run_sum
from coordinator.sums.opening import open_sum
from coordinator.sums.outcome import read_outcome
from protocol.errors import GateError, RoundError
from protocol.inference import EntrySums, HalfCounts, PairTests, entrywise, fit_margins, smooth, smoothed
from protocol.pair_index import PairIndex, index_pairs
from protocol.sums import Statistic
from site_agent.blocks import partition_of
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.inference import block_sums, code_rows, entry_sums, half_counts, shown
from site_agent.staging import PARTITIONS
from tests.sum_federation import CODES, SITES, Consortium, make_events
from tests.unit.test_sum_federation import NODES, Line, enrolled, status

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
PATIENTS = {"lake": 700, "north": 500, "south": 900}
FLOORS = {"min_code_patients": 20, "min_pair_patients": 25}  # of pairs, that of small sites


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post.Post, "pause", lambda self: time.sleep(0.001))
    monkeypatch.setattr(post, "DISK_RESERVE", 0)


def more_events(site: str, seed: int) -> list[tuple[int, int, str]]:
    return make_events(site, seed, PATIENTS[site])


def ask(consortium: Consortium, name: str, statistic: Statistic, **options: str) -> None:
    asked = asked_for(consortium.hub, statistic, **options)
    open_sum(consortium.hub, name, asked, enrolled=enrolled(consortium), nodes=NODES)


def summed(consortium: Consortium, line: Line, name: str) -> None:
    """Propose, approve at every site, and sum."""
    with pytest.raises(RoundError, match="0 of 3"):
        run_sum(consortium.hub, name, line)
    for site in SITES:
        if "no roster" in status(consortium, name)[site]:
            consortium.trust(site)
        consortium.approve(site, name)
    assert run_sum(consortium.hub, name, line).sites == SITES


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    """All four sums, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(post.Post, "pause", lambda self: time.sleep(0.001))
        patch.setattr(post, "DISK_RESERVE", 0)
        patch.setattr("tests.sum_federation.make_events", more_events)
        consortium = Consortium(tmp_path_factory.mktemp("graph") / "all")
        line = Line(consortium)
        ask(consortium, "margins", "graph-margins", codes=str(consortium.codes))
        summed(consortium, line, "margins")
        ask(consortium, "alone", "graph-alone", margins="margins")
        summed(consortium, line, "alone")
        ask(consortium, "halves", "graph-halves", margins="margins")
        summed(consortium, line, "halves")
        ask(consortium, "blocks", "graph-blocks", halves="halves")
        summed(consortium, line, "blocks")
    return consortium


# --- Pooled in the clear -------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def clear(finished: Consortium) -> Clear:
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
        block_sums((counted(t, w == g) for g in np.unique(w)), pairs, smoothing, m, s)
        for t, w, m, s in zip(tables, where, margins, shows, strict=True)
    ]
    tests = smoothed(smoothing, pairs, sum(b.variance for b in spread), sum(b.freedom for b in spread))
    return Clear(rows, pairs, alone, halves, entrywise(one, pairs), tests)


def values(consortium: Consortium, name: str) -> Any:
    return read_outcome(consortium.hub, name)[1]["values"]


def test_row_sums_are_those_of_the_sites_together(finished: Consortium, clear: Clear) -> None:
    np.testing.assert_array_equal(values(finished, "margins"), sum(clear.rows)[: len(CODES)])


def test_integer_moments_are_exactly_those_of_the_gated_inputs(finished: Consortium, clear: Clear) -> None:
    m = clear.pairs.size
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
