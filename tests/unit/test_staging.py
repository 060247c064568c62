"""Staged events: the same events as in memory, in whole patients, found again, and nothing left after an error."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from protocol.errors import DataError
from site_agent import staging
from site_agent.sections import Data, RollUp
from site_agent.sources import Description, Reading
from site_agent.sources.clean import CodedRows, collect
from site_agent.staging import PARTITIONS, Staged, stage

TODAY = date(2026, 1, 1)
MEMORY = 1 << 20


@dataclass
class Source:
    """Batches from memory, and how often they were read."""

    tables: list[pa.Table]
    name: str = "the test's events"
    state: str = "1"
    after: str | None = None
    reads: int = field(default=0)

    def fingerprint(self) -> str:
        return self.state

    def batches(self, reading: Reading) -> Iterator[pa.Table]:
        self.reads += 1
        for i, table in enumerate(self.tables, start=1):
            yield table
            reading.progress("reading", i / len(self.tables))
        reading.skip("static", 3)
        self.state = self.after or self.state

    def ancestors(self) -> Mapping[str, tuple[str, ...]] | None:
        return None


def table(n: int, *, patients: int = 500, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    days = rng.integers(0, 20_000, n).astype(np.int32)
    return pa.table(
        {
            "patient": rng.integers(-patients, patients, n),
            "date": pa.array(days).cast(pa.date32()),
            "code": [f"c{i}" for i in rng.integers(0, 40, n)],
            "description": [f"text {i}" for i in range(n)],
        }
    )


def configured(**changes: Any) -> Data:
    return Data(**({"events": "x", "system": "LOCAL", "bad_rows": "skip"} | changes))


def staged(source: Source, folder: Path, *, memory: int = MEMORY, **changes: Any) -> Staged:
    return stage(source, configured(**changes), folder, memory=memory, today=TODAY)


def rows_of(found: Staged) -> np.ndarray[Any, Any]:
    """(m, 3) all rows, sorted."""
    parts = [np.column_stack(found.partition(i)) for i in range(found.partitions)]
    rows = np.concatenate(parts)
    return rows[np.lexsort(rows.T[::-1])]


def expected(source: Source, data: Data) -> np.ndarray[Any, Any]:
    events = collect(source, data, today=TODAY)
    rows = np.column_stack([events.patient, events.day, events.code])
    return rows[np.lexsort(rows.T[::-1])]


@pytest.mark.parametrize("memory", [1, 1000, MEMORY])
def test_the_same_events_as_in_memory(tmp_path: Path, memory: int) -> None:
    source = Source([table(700), table(2300, seed=1), table(1, seed=2)])
    found = staged(source, tmp_path / "work", memory=memory)
    events = collect(source, configured(), today=TODAY)
    assert found.codes == events.codes
    assert found.descriptions == events.descriptions
    assert found.skipped == events.skipped == {"static": 3}
    assert found.n_rows == 3001 == sum(found.rows)
    np.testing.assert_array_equal(rows_of(found), expected(source, configured()))


def test_rows_wait_within_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, sizes, real = 48 * 100, [], staging._write

    def write(waiting: list[CodedRows], folder: Path) -> Any:
        sizes.append(sum(len(part.code) for part in waiting))
        return real(waiting, folder)

    monkeypatch.setattr(staging, "_write", write)
    staged(Source([table(n, seed=n) for n in (30, 40, 50, 350, 1)]), tmp_path / "work", memory=memory)
    assert sum(sizes) == 471
    assert max(sizes) == 100


def test_partitions_hold_whole_patients_in_order(tmp_path: Path) -> None:
    found = staged(Source([table(3000), table(3000, seed=1)]), tmp_path / "work")
    seen: set[int] = set()
    assert found.partitions == PARTITIONS
    for i in range(found.partitions):
        patient, day, code = found.partition(i)
        assert [str(c.dtype) for c in (patient, day, code)] == ["int64", "int32", "int32"]
        assert len(patient) == found.rows[i]
        np.testing.assert_array_equal(np.lexsort((code, day, patient)), np.arange(len(patient)))
        assert not seen & set(patient.tolist())
        seen |= set(patient.tolist())


@pytest.mark.parametrize(
    "patients",
    [
        np.arange(50_000),
        np.arange(50_000) * 128,
        np.arange(50_000) << 32,
        -np.arange(50_000) - 1,
        np.arange(50_000) * 1000 + 10_000_000,
    ],
    ids=["counted", "times 128", "high bits", "negative", "times 1000"],
)
def test_partitions_are_even_whatever_the_numbers(tmp_path: Path, patients: Any) -> None:
    n = len(patients)
    batch = pa.table({"patient": patients, "date": [date(2020, 1, 1)] * n, "code": ["x"] * n})
    found = staged(Source([batch]), tmp_path / "work")
    # The chi-squared statistic of 127 degrees of freedom; 1 in 10^6 is above 213.
    even = n / PARTITIONS
    assert sum((rows - even) ** 2 / even for rows in found.rows) < 213


def test_batches_and_their_order_change_nothing(tmp_path: Path) -> None:
    whole = table(4000)
    one = staged(Source([whole]), tmp_path / "one")
    pieces = [whole.slice(i, 37) for i in range(0, 4000, 37)]
    many = staged(Source(pieces[::-1]), tmp_path / "many", memory=5000)
    assert one.codes == many.codes
    assert one.rows == many.rows
    for i in range(PARTITIONS):
        for a, b in zip(one.partition(i), many.partition(i), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_patient_with_most_rows_and_many_patients_in_a_partition(tmp_path: Path) -> None:
    # More distinct patients in a partition than the first hash table holds.
    n = PARTITIONS * 3000
    patients = np.concatenate([np.arange(n), np.full(5000, 7)])
    days = pa.array((np.arange(len(patients)) * 7919 % 20_000).astype(np.int32)).cast(pa.date32())
    batch = pa.table({"patient": patients, "date": days, "code": pa.array(["x"] * len(patients))})
    found = staged(Source([batch]), tmp_path / "work", memory=64 << 20)
    counts: dict[int, int] = {}
    for i in range(PARTITIONS):
        patient, day, _ = found.partition(i)
        assert np.all(np.diff(patient) >= 0)
        assert np.all((np.diff(day) >= 0) | (np.diff(patient) > 0))
        ids, n_rows = np.unique(patient, return_counts=True)
        counts |= dict(zip(ids.tolist(), n_rows.tolist(), strict=True))
    assert counts == {p: 5001 if p == 7 else 1 for p in range(n)}


def test_an_earlier_run_is_found_again(tmp_path: Path) -> None:
    source = Source([table(500)])
    first = staged(source, tmp_path / "work", bad_rows="skip")
    again = staged(source, tmp_path / "work", bad_rows="skip")
    assert source.reads == 1
    assert (again.codes, again.rows, again.skipped) == (first.codes, first.rows, first.skipped)
    assert again.descriptions == first.descriptions
    assert all(isinstance(d, Description) for d in again.descriptions.values())
    np.testing.assert_array_equal(rows_of(first), rows_of(again))


class Change(NamedTuple):
    """What makes an earlier run's files useless."""

    state: str = "1"
    configuration: Mapping[str, Any] = {}
    rollup: Mapping[str, tuple[str, ...]] | None = None
    damage: str = ""


@pytest.mark.parametrize(
    "change",
    [
        Change(state="2"),
        Change(configuration={"system": "OTHER"}),
        Change(configuration={"bad_rows": "stop"}),
        Change(rollup={"LOCAL:c1": ("LOCAL:c2",)}),
        Change(damage="short"),
        Change(damage="gone"),
        Change(damage="json"),
        Change(damage="killed"),
    ],
    ids=str,
)
def test_anything_else_is_read_anew(tmp_path: Path, change: Change) -> None:
    folder, source = tmp_path / "work", Source([table(500)])
    first = staged(source, folder)
    path = next(p for p in sorted(folder.glob("rows-*")) if p.stat().st_size)
    if change.damage == "short":
        os.truncate(path, path.stat().st_size - 16)
    elif change.damage == "gone":
        path.unlink()
    elif change.damage == "json":
        (folder / "staged.json").write_text("{")
    elif change.damage == "killed":
        (folder / "staged.json").unlink()
    source.state = change.state
    again = stage(
        source, configured(**change.configuration), folder, memory=MEMORY, rollup=change.rollup, today=TODAY
    )
    assert source.reads == 2
    assert again.n_rows == first.n_rows
    assert len(rows_of(again)) == first.n_rows


def test_the_day_and_the_anchors_change_nothing(tmp_path: Path) -> None:
    source = Source([table(500)])
    staged(source, tmp_path / "work")
    stage(source, configured(anchors="a.csv"), tmp_path / "work", memory=MEMORY * 2, today=date(2026, 1, 2))
    assert source.reads == 1


def test_data_that_change_while_they_are_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="changed while the events were read"):
        staged(Source([table(500)], after="2"), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_bad_rows_leave_nothing(tmp_path: Path) -> None:
    bad = pa.table({"patient": [1], "date": ["soon"], "code": ["x"]})
    with pytest.raises(DataError, match="not a date"):
        staged(Source([table(500), bad]), tmp_path / "work", memory=1000, bad_rows="stop")
    assert not (tmp_path / "work").exists()


def test_only_its_own_files_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    found = staged(Source([table(500)]), folder)
    found.remove()
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    staged(Source([table(500)]), folder).remove()
    assert not folder.exists()


def test_only_this_user_may_read_the_rows(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        staged(Source([table(500)]), tmp_path / "work")
    finally:
        os.umask(before)
    assert (tmp_path / "work").stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "work").iterdir()} == {0o600}


def test_a_full_disk_before_and_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(staging, "_RESERVE", 1 << 62)
        with pytest.raises(DataError, match=r"The disk of .*work is full\. .* MiB are free"):
            staged(Source([table(500)]), tmp_path / "work")
    assert not (tmp_path / "work").exists()

    def write(_descriptor: int, _data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(DataError, match="is full"):
            staged(Source([table(500)]), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_write_may_be_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
        found = staged(Source([table(500)]), tmp_path / "work")
    np.testing.assert_array_equal(rows_of(found), expected(Source([table(500)]), configured()))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be staged"):
        staged(Source([table(5)]), tmp_path / "file" / "work")


def test_partitions_that_vanish_or_shrink(tmp_path: Path) -> None:
    found = staged(Source([table(500)]), tmp_path / "work")
    i = next(i for i, n in enumerate(found.rows) if n)
    path = tmp_path / "work" / f"rows-{i:03}.bin"
    os.truncate(path, 0)
    with pytest.raises(DataError, match="hold 0 rows"):
        found.partition(i)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        found.partition(i)


def test_rollup(tmp_path: Path) -> None:
    batch = pa.table({"patient": [1, 2], "date": [date(2020, 1, 1)] * 2, "code": ["a", "b"]})
    found = stage(
        Source([batch]),
        configured(rollup=RollUp(unmapped="skip")),
        tmp_path / "work",
        memory=MEMORY,
        rollup={"LOCAL:a": ("T:2", "T:1")},
        today=TODAY,
    )
    assert found.codes == ("T:1", "T:2")
    assert rows_of(found)[:, [0, 2]].tolist() == [[1, 0], [1, 1]]
    assert found.skipped == {"static": 3, "no target in the roll-up": 1}


def test_progress_tells_rows_and_rate(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    source = Source([table(500), table(500, seed=1)])
    stage(
        source,
        configured(),
        tmp_path / "work",
        memory=MEMORY,
        progress=lambda *a: told.append(a),
        today=TODAY,
    )
    assert [share for _, share in told] == [0.5, 1.0, 1.0]
    assert told[1][0].startswith("reading: 1,000 rows, ")
    assert told[1][0].endswith("rows a second")


def test_staged_json_holds_no_patient(tmp_path: Path) -> None:
    staged(Source([table(500)]), tmp_path / "work")
    content = json.loads((tmp_path / "work" / "staged.json").read_text())
    assert set(content) == {"digest", "codes", "position", "descriptions", "skipped", "rows"}
