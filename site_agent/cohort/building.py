"""`cohort build`: from a site's events and the newest release to patient vectors on the site's disk."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from protocol.codeindex import CodeIndex
from protocol.errors import DataError, UsageError
from protocol.messages import PublishedManifest
from protocol.published import read_listed, verify_folder
from protocol.tfidf import inverse_frequency, patient_vectors
from site_agent.codelist import latest_result
from site_agent.cohort.files import GRAPHS, CohortManifest, Writer, new_build, publish
from site_agent.cohort.gathering import PatientCodes, Window, follow_up, gather
from site_agent.cohort.index import EF, EF_CONSTRUCTION, M, build_graph
from site_agent.cohort.labelling import Labelling
from site_agent.cohort.own import count_own, joined
from site_agent.cohort.people import People, nobody_known, read_people
from site_agent.config import Home
from site_agent.keys import coordinator_keys
from site_agent.resources import Resources
from site_agent.software import version
from site_agent.sources import Progress, silent
from site_agent.sources.columns import EPOCH
from site_agent.sources.opening import open_source
from site_agent.sources.rollup import rollup_of
from site_agent.staging import Staged, stage
from site_agent.working import work_lock

_BLOCK = 4096
_COLUMNS = ["code", "name", "standard_code"]


@dataclass(frozen=True, eq=False)
class CodeVectors:
    """What a release says of a site's codes, and the site's own vectors of them, in order of the site's list.

    Attributes:
        vectors: (n, d); zero rows for codes that are not in the release.
        names: the release's; "" without one.
        standard: standard codes; "" without one.
        own: (n, q) the site's own; q = 0 where there are none.
    """

    vectors: npt.NDArray[np.float32]
    names: tuple[str, ...]
    standard: tuple[str, ...]
    own: npt.NDArray[np.float32]


def build_cohort(
    home: Home, window: Window, *, machine: Resources, progress: Progress = silent, exact: bool = False
) -> CohortManifest:
    """Read the site's events anew, make a vector for each patient and put them in the place of an earlier build.

    Events are coded into files by blocks of patients and read block by block; memory holds one block and, while the
    graph is built, the graph. Nothing leaves the site, and nothing is kept of a build that did not end.

    Args:
        home: of the site; a release must have arrived.
        window: of days whose events count.
        machine: memory and threads that may be taken.
        progress: told each step.
        exact: no graph, even where hnswlib is installed.

    Raises:
        UsageError: no release has arrived, or another command is at work.
        DataError: the events or the patients table cannot be used, or no event lies in the window.
        ProtocolError: the release is not what its manifest says.
    """
    if home.config.data.database.startswith("spark:"):
        raise UsageError(
            "Cohort search does not read from Spark",
            do="Export the events to a Parquet file, and search from a home folder that names it",
        )
    release = latest_result(home)
    manifest = verify_folder(release, coordinator_keys(home))
    with work_lock(home):
        source = Labelling(open_source(home))
        staged = _staged(home, source, machine, progress)
        try:
            codes = code_vectors(release, manifest, staged.codes)
            if home.config.cohort.own_codes:
                study = home.study
                own = count_own(staged, study.counting, study.embedding, machine, progress)
                codes = replace(codes, own=own)
            with new_build(home) as writer:
                found = _written(home, writer, staged, codes, window, source.labels, progress)
                if not exact:
                    found |= {"graph": _graphs(writer, found, machine, progress)}
                made = CohortManifest(
                    site=home.config.site,
                    study=home.study.id,
                    release=manifest.version,
                    release_digest=manifest.digest,
                    made=datetime.now(UTC),
                    software=version(),
                    first=window.first,
                    last=window.last,
                    files=writer.files,
                    **found,
                )
                publish(home, writer, made)
        finally:
            staged.remove()
    progress("done", 1.0)
    return made


def _staged(home: Home, source: Labelling, machine: Resources, progress: Progress) -> Staged:
    data = home.config.data
    file = home.path(data.rollup.file) if data.rollup.file else None
    # A folder of its own: the texts of patients are in no file that an earlier command left.
    folder = home.work / "cohort"
    with suppress(FileNotFoundError):
        (folder / "staged.json").unlink()
    return stage(
        source,
        data,
        folder,
        memory=machine.memory // 4,
        rollup=rollup_of(data, source, file),
        progress=progress,
        today=data.latest_date,
    )


def code_vectors(release: Path, manifest: PublishedManifest, codes: tuple[str, ...]) -> CodeVectors:
    """The harmonised vectors of a site's codes; the release was verified.

    Raises:
        ProtocolError: a file changed since.
    """
    index = CodeIndex.read(release, manifest, exact=True)
    row = {code: i for i, code in enumerate(index.codes)}
    vectors = np.zeros((len(codes), index.vectors.shape[1]), dtype=np.float32)
    for i, code in enumerate(codes):
        if code in row:
            vectors[i] = index.vectors[row[code]]
    data = read_listed(release, manifest, "clusters.parquet")
    table = pq.read_table(pa.BufferReader(data), columns=_COLUMNS).to_pylist()
    told = {r["code"]: r for r in table}
    nothing = {"name": "", "standard_code": ""}
    rows = [told.get(code, nothing) for code in codes]
    names, standard = (tuple(r[c] or "" for r in rows) for c in _COLUMNS[1:])
    return CodeVectors(vectors, names, standard, np.zeros((len(codes), 0), dtype=np.float32))


def _written(
    home: Home,
    writer: Writer,
    staged: Staged,
    codes: CodeVectors,
    window: Window,
    labels: Mapping[int, str],
    progress: Progress,
) -> dict[str, Any]:
    """Write everything but the graph; the facts of the manifest."""
    patients, outside, data_end, support = _write_codes(writer, staged, window, progress)
    if not patients.size:
        raise DataError(
            "No event lies in the window", why=f"the last one is on {_day(data_end)}", do="Give other days"
        )
    people = _people(home, patients)
    for name, values in (("birth", people.birth), ("death", people.death), ("sex", people.sex)):
        writer.whole(f"{name}.bin", values)
    weight = inverse_frequency(support, float(len(patients)))
    empty, events, covered = _write_vectors(writer, "vectors", codes.vectors, weight, progress)
    told = {"without_vector": empty, "events": events, "covered": covered}
    if codes.own.shape[1]:
        both = joined(codes.vectors, codes.own)
        empty, _, covered = _write_vectors(writer, "joined", both, weight, progress)
    told |= {"without_any_vector": empty, "covered_by_any": covered}
    # To make vectors again without some codes, which no patient vector tells.
    writer.whole(
        "code_vectors.bin", joined(codes.vectors, codes.own) if codes.own.shape[1] else codes.vectors
    )
    released, own = codes.vectors.any(axis=1), codes.own.any(axis=1)
    _write_tables(writer, staged, codes, support, weight, patients, labels)
    return {
        "patients": len(patients),
        "outside": outside,
        "data_end": _day(data_end),
        "codes": len(staged.codes),
        "codes_with_vector": int(released.sum()),
        "codes_with_own": int(own.sum()),
        "codes_without_any": int((~released & ~own).sum()),
        "dim": codes.vectors.shape[1],
        "own_dim": codes.own.shape[1],
        "sexes": people.sexes,
        "with_birth": int((people.birth != nobody_known(1).birth[0]).sum()),
        "with_death": int((people.death != nobody_known(1).death[0]).sum()),
        **told,
    }


def _write_codes(
    writer: Writer, staged: Staged, window: Window, progress: Progress
) -> tuple[npt.NDArray[np.int64], int, int, npt.NDArray[np.int64]]:
    """Patients and their codes, block by block: (patients, outside, last day of all, patients of each code)."""
    support = np.zeros(len(staged.codes), dtype=np.int64)
    everyone, starts, outside, offset, last = [], [np.zeros(1, np.int64)], 0, 0, int(np.iinfo(np.int32).min)
    names = ("first", "last", "seen", "code", "days")
    with (
        writer.array("first.bin", np.int32) as first,
        writer.array("last.bin", np.int32) as end,
        writer.array("seen.bin", np.int32) as seen,
        writer.array("code.bin", np.int32) as code,
        writer.array("days.bin", np.int32) as days,
    ):
        parts = dict(zip(names, (first, end, seen, code, days), strict=True))
        for i in range(staged.partitions):
            progress("gathering codes of patients", i / staged.partitions)
            rows = staged.partition(i)
            last = max(last, int(rows[1].max(initial=last)))
            found: PatientCodes = gather(*rows, window)
            for name, part in parts.items():
                part.add(getattr(found, name))
            everyone.append(found.patient)
            starts.append(found.start[1:] + offset)
            offset += len(found.code)
            outside += found.outside
            support += np.bincount(found.code, minlength=len(support))
    patients = np.concatenate(everyone)
    writer.whole("patients.bin", patients)
    writer.whole("start.bin", np.concatenate(starts))
    return patients, outside, last, support


def _write_vectors(
    writer: Writer,
    file: str,
    vectors_of_codes: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float64],
    progress: Progress,
) -> tuple[int, int, int]:
    """Vectors of all patients, a few thousand at a time: (patients without one, events, those of codes with a vector)."""
    start, first, last, code, days = (
        np.fromfile(writer.folder / f"{name}.bin", dtype=writer.files[f"{name}.bin"].dtype)
        if name in {"start", "first", "last"}
        else _mapped(writer, name)
        for name in ("start", "first", "last", "code", "days")
    )
    n, dim = len(start) - 1, vectors_of_codes.shape[1]
    held = np.asarray(vectors_of_codes.any(axis=1))
    empty = events = covered = 0
    years = follow_up(first, last)
    with writer.array(f"{file}.bin", np.float32, dim) as out:
        for low in range(0, n, _BLOCK):
            progress("patient vectors", low / n)
            high = min(low + _BLOCK, n)
            span = slice(int(start[low]), int(start[high]))
            times, which = np.asarray(days[span], np.float64), np.asarray(code[span])
            pointer = start[low : high + 1] - start[low]
            events += int(times.sum())
            covered += int(times[held[which]].sum())
            rate = times / np.repeat(years[low:high], np.diff(pointer))
            counts = sparse.csr_array((rate, which, pointer), shape=(high - low, len(weight)))
            vectors = patient_vectors(counts, weight, vectors_of_codes).astype(np.float32)
            empty += int((~vectors.any(axis=1)).sum())
            out.add(vectors)
    return empty, events, covered


def _write_tables(
    writer: Writer,
    staged: Staged,
    codes: CodeVectors,
    support: npt.NDArray[np.int64],
    weight: npt.NDArray[np.float64],
    patients: npt.NDArray[np.int64],
    labels: Mapping[int, str],
) -> None:
    own = [staged.descriptions[c].text if c in staged.descriptions else "" for c in staged.codes]
    table = {
        "code": pa.array(staged.codes),
        "name": pa.array([mine or theirs for mine, theirs in zip(own, codes.names, strict=True)]),
        "standard": pa.array(codes.standard),
        "patients": pa.array(support),
        "weight": pa.array(weight),
        "vector": pa.array(codes.vectors.any(axis=1)),
        "own": pa.array(codes.own.any(axis=1)),
    }
    writer.table("codes.parquet", pa.table(table))
    if labels:
        numbers = [int(p) for p in patients]
        writer.table(
            "labels.parquet",
            pa.table({"patient": numbers, "label": [labels.get(p, str(p)) for p in numbers]}),
        )


def _graphs(
    writer: Writer, found: Mapping[str, Any], machine: Resources, progress: Progress
) -> dict[str, int]:
    """A graph over each kind of vectors that some patient has; their parameters, or nothing if none was built."""
    made = False
    for kind, empty in (("vectors", "without_vector"), ("joined", "without_any_vector")):
        if f"{kind}.bin" not in writer.files or found[empty] == found["patients"]:
            continue
        graph = build_graph(_mapped(writer, kind), threads=machine.threads, progress=progress)
        if graph is not None:
            graph.save_index(str(writer.folder / GRAPHS[kind]))
            writer.known(GRAPHS[kind])
            made = True
    return {"M": M, "ef_construction": EF_CONSTRUCTION, "ef": EF} if made else {}


def _people(home: Home, patients: npt.NDArray[np.int64]) -> People:
    name = home.config.cohort.patients
    return read_people(home.path(name), patients) if name else nobody_known(len(patients))


def _mapped(writer: Writer, name: str) -> npt.NDArray[Any]:
    told = writer.files[f"{name}.bin"]
    if not told.bytes:
        return np.empty(told.shape, told.dtype)
    return np.memmap(writer.folder / f"{name}.bin", dtype=told.dtype, mode="r", shape=told.shape)


def _day(day: int) -> Any:
    return EPOCH + timedelta(days=day)
