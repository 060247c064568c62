"""Counts of staged events: groups, resuming, floors, and what is left on the disk."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from protocol.errors import DataError, UsageError
from protocol.sections import Counting
from site_agent import counting
from site_agent.cooccurrence import PairCounts, count_pairs
from site_agent.counting import CountRuns, count_staged
from site_agent.resources import parse_size, resources
from site_agent.sections import Data, Machine
from site_agent.sources.clean import collect
from site_agent.staging import PARTITIONS, Staged, stage
from tests.unit.test_staging import TODAY, Source, table

DATA = Data(events="x", system="ICD10CM")
RULE = Counting(window_days=400)
FEW = 1 << 10  # bytes: a group for each partition


def staged(folder: Path, n: int = 20_000) -> Staged:
    return stage(Source([table(n)]), DATA, folder / "events", memory=1 << 20, today=TODAY)


def in_memory(n: int = 20_000, rule: Counting = RULE) -> PairCounts:
    events = collect(Source([table(n)]), DATA, today=TODAY)
    window = rule.window_days if rule.rule == "window" else None
    return count_pairs(events.patient, events.day, events.code, len(events.codes), window_days=window)


def total(runs: CountRuns, **options: Any) -> PairCounts:
    return runs.total(**({"memory": 1 << 26, "threads": 2} | options))


def assert_same(left: PairCounts, right: PairCounts) -> None:
    for name in ("events", "pair_patients"):
        assert (getattr(left, name) != getattr(right, name)).nnz == 0
        assert getattr(left, name).dtype == np.int64
    np.testing.assert_array_equal(left.code_patients, right.code_patients)
    assert (left.n_patients, left.n_events) == (right.n_patients, right.n_events)
    assert left.capped_patients == right.capped_patients


@pytest.mark.parametrize("memory", [FEW, 1 << 22, 1 << 30])
@pytest.mark.parametrize("rule", [RULE, Counting(rule="whole-history")])
def test_counts_of_any_groups_are_those_in_memory(tmp_path: Path, memory: int, rule: Counting) -> None:
    runs = count_staged(staged(tmp_path), rule, tmp_path / "counts", memory=memory, threads=2)
    assert_same(total(runs), in_memory(rule=rule))


def test_blocks_are_partitions_and_halves_add_up(tmp_path: Path) -> None:
    runs = count_staged(staged(tmp_path), RULE, tmp_path / "counts", memory=1 << 30, threads=1, blocks=True)
    assert len(runs.folders) == PARTITIONS
    halves = [runs.half(i, memory=1 << 26, threads=1) for i in (0, 1)]
    assert_same(halves[0] + halves[1], total(runs))
    assert 0.4 < halves[0].n_patients / total(runs).n_patients < 0.6
    assert sum(runs.block(i).n_patients for i in range(PARTITIONS)) == total(runs).n_patients


def test_a_floor_is_that_of_the_sum(tmp_path: Path) -> None:
    runs = count_staged(staged(tmp_path), RULE, tmp_path / "counts", memory=FEW, threads=1)
    whole, floored = total(runs), total(runs, floor=3)
    keep = whole.pair_patients.data >= 3
    assert 0 < keep.sum() < keep.size
    np.testing.assert_array_equal(floored.pair_patients.data, whole.pair_patients.data[keep])
    assert floored.withheld_cells == (~keep).sum()
    assert floored.withheld_events == whole.events.data[~keep].sum()


def test_a_killed_run_goes_on_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events, counted = staged(tmp_path), []
    real = counting._count_group

    def dies(staged: Staged, rule: Counting, partitions: range, *rest: Any) -> PairCounts:
        if len(counted) == 5:
            raise KeyboardInterrupt
        counted.append(partitions)
        return real(staged, rule, partitions, *rest)

    monkeypatch.setattr(counting, "_count_group", dies)
    with pytest.raises(KeyboardInterrupt):
        count_staged(events, RULE, tmp_path / "counts", memory=FEW, threads=1)
    (tmp_path / "counts" / "run-torn.part").mkdir()
    monkeypatch.setattr(
        counting, "_count_group", lambda s, r, p, *rest: (counted.append(p), real(s, r, p, *rest))[1]
    )
    runs = count_staged(events, RULE, tmp_path / "counts", memory=FEW, threads=1)
    assert len(counted) == len(set(counted)) == len(runs.folders)
    assert not (tmp_path / "counts" / "run-torn.part").exists()
    assert_same(total(runs), in_memory())


def test_a_killed_removal_leaves_no_run_that_passes_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = staged(tmp_path)
    runs = count_staged(events, RULE, tmp_path / "counts", memory=FEW, threads=1)

    def dies(folder: Path, **_: Any) -> None:
        if Path(folder).is_dir():
            (Path(folder) / "about.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(counting.shutil, "rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            runs.remove()
    again = count_staged(events, RULE, tmp_path / "counts", memory=FEW, threads=1)
    assert_same(total(again), in_memory())
    assert sorted((tmp_path / "counts").iterdir()) == sorted(again.folders)


def test_runs_of_another_rule_are_not_taken(tmp_path: Path) -> None:
    events = staged(tmp_path)
    count_staged(events, Counting(window_days=1), tmp_path / "counts", memory=FEW, threads=1)
    runs = count_staged(events, RULE, tmp_path / "counts", memory=FEW, threads=1)
    assert_same(total(runs), in_memory())
    assert sorted((tmp_path / "counts").iterdir()) == sorted(runs.folders)


def test_only_the_owner_reads_runs_and_remove_leaves_nothing(tmp_path: Path) -> None:
    runs = count_staged(staged(tmp_path), RULE, tmp_path / "counts", memory=1 << 30, threads=1)
    for folder in runs.folders:
        assert folder.stat().st_mode & 0o077 == 0
        assert all(f.stat().st_mode & 0o077 == 0 for f in folder.iterdir())
    runs.remove()
    assert list((tmp_path / "counts").iterdir()) == []


def test_a_full_disk_says_so_and_a_torn_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = staged(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(counting.shutil, "disk_usage", lambda _p: usage._replace(free=10))
    with pytest.raises(DataError, match=r"The disk of .*counts is full.*goes on where it stopped"):
        count_staged(events, RULE, tmp_path / "counts", memory=FEW, threads=1)
    monkeypatch.undo()

    def denied(*_: Any, **__: Any) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(counting, "_write", denied)
    with pytest.raises(DataError, match=r"cannot be written.*permissions"):
        count_staged(events, RULE, tmp_path / "counts", memory=FEW, threads=1)
    monkeypatch.undo()
    runs = count_staged(events, RULE, tmp_path / "counts", memory=FEW, threads=1)
    (runs.folders[0] / "pairs.bin").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"run-.*cannot be read.*Remove"):
        total(runs)


def test_one_patient_with_most_rows_neither_stops_nor_dominates(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 300_000
    machine = pa.table(
        {
            "patient": np.full(n, 10**6),
            "date": pa.array(rng.integers(0, 30, n).astype(np.int32)).cast(pa.date32()),
            "code": pa.array([f"C{i}" for i in rng.integers(0, 40, n)]),
        }
    )
    small = table(5_000).select(machine.column_names).cast(machine.schema)
    source = Source([pa.concat_tables([small, machine])])
    events = stage(source, DATA, tmp_path / "events", memory=1 << 20, today=TODAY)
    rule = Counting(window_days=30, max_events_per_patient=500)
    counts = total(count_staged(events, rule, tmp_path / "counts", memory=1 << 20, threads=2))
    assert counts.capped_patients == 1
    assert int(counts.events.max()) <= 500 * 500
    assert int(counts.pair_patients.max()) <= counts.n_patients


@pytest.mark.parametrize(("text", "size"), [("6G", 6 * 2**30), ("1.5g", 3 * 2**29), ("300M", 300 * 2**20)])
def test_sizes_of_memory(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert resources(Machine(), memory=text, threads=3).threads == 3


@pytest.mark.parametrize("text", ["6", "G", "-1G", "6 gigs", "100K"])
def test_bad_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="memory"):
        resources(Machine(), memory=text)
