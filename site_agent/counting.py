"""Counting of staged events: groups of whole patients that fit the memory, each written to the disk, then added.

    run-000-016/     counts of the patients in partitions 0 to 15, in raw arrays; there once they are whole

A run that is killed goes on with the first group that is not there. Since the partitions are random blocks of patients,
groups of one partition are the patient blocks, and the groups of either half the half-samples, that error control of a
knowledge graph needs: `blocks=True` keeps them apart.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from protocol.errors import DataError
from protocol.files import write_atomic
from protocol.sections import Counting
from site_agent.cooccurrence import PairCounts, add_counts, count_pairs
from site_agent.sources import Progress, silent
from site_agent.staging import Staged

_RULES = 1  # changes whenever the same events are to be counted anew
_BYTES_A_ROW = 96  # of the events of one group: sorting them, and a copy for the counting
_LEAST = 64 << 20  # bytes; below this the counting takes what it needs anyway


@dataclass(frozen=True, eq=False)
class CountRuns:
    """Counts of groups of patients on the disk.

    Attributes:
        folders: one for each group, in order of the partitions.
        partitions: for each group, the first partition and the one after the last.
        n_partitions: of all groups.
    """

    folders: tuple[Path, ...]
    partitions: tuple[tuple[int, int], ...]
    n_partitions: int

    def total(self, *, floor: int = 0, memory: int, threads: int) -> PairCounts:
        """Counts of all patients; cells of fewer than `floor` patients are left out and tallied."""
        return self._sum(self.folders, floor=floor, memory=memory, threads=threads)

    def half(self, which: int, *, floor: int = 0, memory: int, threads: int) -> PairCounts:
        """Counts of one half of the patients, by partition at random: 0 or 1."""
        middle = self.n_partitions // 2
        chosen = [
            f
            for f, (first, _) in zip(self.folders, self.partitions, strict=True)
            if (first >= middle) == which
        ]
        return self._sum(chosen, floor=floor, memory=memory, threads=threads)

    def block(self, i: int) -> PairCounts:
        """Counts of one group of patients."""
        return _load(self.folders[i])

    def remove(self) -> None:
        """Remove all runs from the disk."""
        for folder in self.folders:
            _discard(folder)

    def _sum(self, folders: Sequence[Path], *, floor: int, memory: int, threads: int) -> PairCounts:
        return add_counts([_load(f) for f in folders], floor=floor, threads=threads, memory=memory)


def count_staged(
    staged: Staged,
    rule: Counting,
    folder: Path,
    *,
    memory: int,
    threads: int,
    blocks: bool = False,
    progress: Progress = silent,
) -> CountRuns:
    """Count all staged events, a group of partitions at a time; groups that are on the disk already are kept.

    Args:
        staged: the events.
        rule: which pairs count.
        folder: where the runs go; made if it is not there.
        memory: bytes that the events of a group and their counting may take.
        threads: that count at the same time.
        blocks: a group for each partition, for error control, and not as many as the memory allows.
        progress: told the rows so far, rows a second, and the share done.

    Raises:
        DataError: the staged events are gone, or the disk is full.

    Law: the sum over the groups is the same for any memory, number of threads and interruption.
    """
    groups = _groups(staged.rows, 1 if blocks else max(1, memory // 2 // _BYTES_A_ROW))
    digest = _digest(staged, rule)
    _drop_others(folder, digest)
    start, done, fresh = time.monotonic(), 0, 0
    folders = []
    for first, stop in groups:
        rate = fresh / max(time.monotonic() - start, 1e-9)
        speed = f", {rate:,.0f} a second" if fresh else ""
        progress(f"counting pairs: {done:,} of {staged.n_rows:,} rows{speed}", done / max(staged.n_rows, 1))
        target = folder / f"run-{digest[:12]}-{first:03}-{stop:03}"
        rows = sum(staged.rows[first:stop])
        if not target.is_dir():
            _save(_count_group(staged, rule, range(first, stop), memory // 2, threads), target)
            fresh += rows
        done += rows
        folders.append(target)
    progress(f"counting pairs: {done:,} rows", 1.0)
    return CountRuns(tuple(folders), tuple(groups), staged.partitions)


def _count_group(staged: Staged, rule: Counting, partitions: range, memory: int, threads: int) -> PairCounts:
    parts = [staged.partition(i) for i in partitions]
    # Patients of different partitions differ; numbered from the front, the rows of all parts are in order.
    offset, patients = 0, []
    for patient, _, _ in parts:
        number = np.cumsum(np.diff(patient, prepend=patient[:1]) != 0) + offset
        patients.append(number)
        offset = int(number[-1]) + 1 if number.size else offset
    return count_pairs(
        np.concatenate(patients),
        np.concatenate([day for _, day, _ in parts]),
        np.concatenate([code for _, _, code in parts]),
        len(staged.codes),
        window_days=rule.window,
        max_events_per_patient=rule.max_events_per_patient,
        threads=threads,
        memory=max(memory, _LEAST),
    )


def _groups(rows: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Ranges of partitions of at most `most` rows together, or one partition; none reaches over the middle."""
    groups: list[tuple[int, int]] = []
    for begin, end in ((0, len(rows) // 2), (len(rows) // 2, len(rows))):
        first, size = begin, 0
        for i in range(begin, end):
            if i > first and size + rows[i] > most:
                groups.append((first, i))
                first, size = i, 0
            size += rows[i]
        if end > first:
            groups.append((first, end))
    return groups


def _digest(staged: Staged, rule: Counting) -> str:
    """Of what decides the counts: the staged events and the rule."""
    text = json.dumps([_RULES, staged.digest, rule.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _drop_others(folder: Path, digest: str) -> None:
    """Remove runs of other events or rules, and what a killed run had half written."""
    for path in list(folder.glob("run-*")):
        if not path.name.startswith(f"run-{digest[:12]}-") or path.suffix == ".part":
            _discard(path)


def _discard(run: Path) -> None:
    """Remove a run, which has no name that counts from the first moment on: half removed, it would pass for whole."""
    part = run.with_suffix(".part")
    if run != part and run.is_dir():
        shutil.rmtree(part, ignore_errors=True)
        with suppress(OSError):  # another user's: then it stays whole
            run.rename(part)
    shutil.rmtree(part, ignore_errors=True)


def _save(counts: PairCounts, target: Path) -> None:
    part = target.with_suffix(".part")
    arrays: dict[str, NDArray[Any]] = {
        "pointer": np.asarray(counts.events.indptr, np.int64),
        "column": counts.events.indices.astype(np.int32, copy=False),
        "pairs": _narrow(counts.events.data),
        "patients": _narrow(counts.pair_patients.data),
        "code_patients": counts.code_patients,
    }
    size = sum(a.nbytes for a in arrays.values())
    with _disk_errors(target.parent):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
        if shutil.disk_usage(part).free < size + _LEAST:
            raise OSError(errno.ENOSPC, f"{size >> 20:,} MiB are needed")
        for name, array in arrays.items():
            _write(part / f"{name}.bin", array)
        kinds = {name: array.dtype.newbyteorder("<").str for name, array in arrays.items()}
        tallies = {k: v for k, v in asdict(counts).items() if isinstance(v, int)}
        write_atomic(part / "about.json", json.dumps({"arrays": kinds, "tallies": tallies}))
        part.rename(target)


def _load(folder: Path) -> PairCounts:
    """Counts whose arrays stay on the disk until they are read."""
    try:
        about = json.loads((folder / "about.json").read_bytes())
        arrays = {name: _mapped(folder / f"{name}.bin", kind) for name, kind in about["arrays"].items()}
        if arrays["pointer"][-1] != arrays["column"].size or arrays["patients"].size != arrays["pairs"].size:
            raise ValueError("its arrays do not fit together")  # noqa: TRY301
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"The counts in {folder} cannot be read",
            why=str(error),
            do=f"Remove {folder} and run the command again",
        ) from None
    n = arrays["pointer"].size - 1
    made = []
    for name in ("pairs", "patients"):
        matrix = sparse.csr_array((n, n), dtype=arrays[name].dtype)
        # Past the constructor, which would look at every cell and copy.
        matrix.data, matrix.indices, matrix.indptr = arrays[name], arrays["column"], arrays["pointer"]
        made.append(matrix)
    return PairCounts(made[0], made[1], np.asarray(arrays["code_patients"]), **about["tallies"])


def _write(path: Path, array: NDArray[Any]) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        array.tofile(stream)


def _mapped(path: Path, kind: str) -> NDArray[Any]:
    """An array that stays on the disk; an empty file cannot be mapped."""
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, kind)


def _narrow(data: NDArray[np.int64]) -> NDArray[Any]:
    return data.astype(np.int32) if data.max(initial=0) < 2**31 else data


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise DataError(
            f"The disk of {folder} is full" if full else f"Counts cannot be written to {folder}",
            why=str(error.strerror or error),
            do="Free space and run the command again: it goes on where it stopped"
            if full
            else "Correct its permissions",
        ) from None
