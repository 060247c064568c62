"""Pair counts of events that lie in Spark, made there: the driver's part."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from protocol.errors import DataError
from protocol.sections import Counting
from site_agent.changes import Fingerprints, Keys, gathered
from site_agent.cooccurrence import PairCounts
from site_agent.cooccurrence.counts import matrices
from site_agent.sections import Data
from site_agent.sources import Description, Progress, silent
from site_agent.sources.codebook import MAX_CODES
from site_agent.sources.tables import Tables, arrow_schema, import_ibis
from site_agent.spark import tasks
from site_agent.spark.cleaning import PartCleaner
from site_agent.spark.layout import span_cuts, unpacked
from site_agent.spark.session import explain, open_tables, session_of, source_of

BUCKETS_A_PARTITION = 16  # so many that partitions of the shuffle come out about equal
_ARROW_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class SparkCounted:
    """Counts of all events of a Spark database.

    Attributes:
        counts: pair counts; cells below the floor are withheld and tallied.
        codes: CURIEs in order of text.
        descriptions: CURIE -> text; local ones never leave the site. Of several texts for one code the smallest
            from a public terminology, else the smallest.
        skipped: reason -> number of rows that were left out for it.
        n_rows: coded events, before duplicates are dropped.
        patients: salted fingerprints of the patients' events, if a salt was given; empty otherwise.
    """

    counts: PairCounts
    codes: tuple[str, ...]
    descriptions: Mapping[str, Description]
    skipped: Mapping[str, int]
    n_rows: int
    patients: Fingerprints


def count_in_spark(
    session_or_source: Any,
    data: Data,
    rule: Counting,
    *,
    rollup: Mapping[str, tuple[str, ...]] | None = None,
    floor: int = 0,
    exact: Callable[[tuple[str, ...]], NDArray[np.int64] | None] = lambda _: None,
    salt: bytes | None = None,
    today: date | None = None,
    partitions: int | None = None,
    progress: Progress = silent,
) -> SparkCounted:
    """Count the co-occurring pairs of codes of every patient on Spark's workers.

    Rows are checked, coded and counted there by the same code as elsewhere. Here come the code names, one text a code,
    tallies, and the sums of all patients.

    Args:
        session_or_source: a SparkSession, or a relational source whose `data.database` is in Spark.
        data: the configuration of the tables; its kind is omop, i2b2 or pcornet.
        rule: which pairs count.
        rollup: as `site_agent.sources.rollup.rollup_of` gives it.
        floor: cells that fewer distinct patients have are withheld before anything comes here.
        exact: given the CURIEs, names cells (row * n + column, increasing) that are not withheld, however small.
        salt: of fingerprints of the patients' events (`site_agent.changes`); none are made without it.
        today: dates after this day are refused; the current day if None.
        partitions: Spark tasks over which patients are dealt out; if None one for each 2 million rows, at least one a core.
        progress: told each step, and the share of its Spark tasks that are done.

    A task takes about 1 GiB on its worker, whatever the size of the data, and 100 bytes a row for a patient with more
    than 2 million. While it runs, the session's spark.sql.execution.arrow.maxRecordsPerBatch is another.

    Raises:
        DataError: Spark or a table is not there, a worker lacks this package, rows cannot be used, or a table changed.
        UsageError: the extra `spark` is not installed, or the data are not in Spark.

    Law: the result is that of `count_pairs` on the same rows, for any number of partitions.
    """
    if partitions is not None and partitions < 1:
        raise ValueError(f"partitions is {partitions}; it must be 1 or more")
    source = source_of(session_or_source, data)
    with open_tables(session_or_source, source) as tables:
        run = _Run(session_of(tables), source.name, progress)
        try:
            return _count(run, tables, data, rule, rollup, floor, exact, salt, today, partitions)
        except (*tables._database.errors, pa.ArrowException) as error:
            raise explain(error, source.name) from None
        finally:
            run.release()


def _count(
    run: _Run,
    tables: Tables,
    data: Data,
    rule: Counting,
    rollup: Mapping[str, tuple[str, ...]] | None,
    floor: int,
    exact: Callable[[tuple[str, ...]], NDArray[np.int64] | None],
    salt: bytes | None,
    today: date | None,
    partitions: int | None,
) -> SparkCounted:
    cleaner = PartCleaner(data, today or datetime.now(UTC).date(), rollup, name=run.name)
    expected = [tables.count(bound.table) for bound in tables.events]
    coded = run.kept(_coded_rows(run, tables, data, cleaner, rollup))
    skipped = _findings(run, tables, coded, expected, cleaner)
    codes, descriptions = _codes(run, coded)
    n = partitions or max(run.cores, math.ceil(cleaner.kept / tasks.GROUP_ROWS))
    buckets = max(n * BUCKETS_A_PARTITION, math.ceil(cleaner.kept / tasks.BUCKET_ROWS))
    scatter = tasks.Scatter(pa.array(codes), buckets)
    with _pieces_in_arrow(run.session):
        sums = _sums(run, _blocks(coded, scatter, n), tasks.Floor(floor, exact(codes)), rule, len(codes), n)
        patients = gathered(())
        if salt is not None:
            task = tasks.FingerprintPatients(Keys.make(codes, salt), rule.max_events_per_patient)
            patients = _fingerprints(run, _blocks(coded, scatter, n), task)
    return SparkCounted(
        counts=_pair_counts(sums, span_cuts(len(codes))),
        codes=codes,
        descriptions=descriptions,
        skipped=skipped,
        n_rows=cleaner.kept,
        patients=patients,
    )


def _coded_rows(
    run: _Run, tables: Tables, data: Data, cleaner: PartCleaner, rollup: Mapping[str, tuple[str, ...]] | None
) -> Any:
    """The rows of all tables as a Spark data frame of `tasks.CODED`; nothing is read yet."""
    frames = []
    for order, bound in enumerate(tables.events):
        query = bound.select()
        task = tasks.CodeTable(
            table=bound.map.table,
            order=order,
            schema=arrow_schema(query),
            decoders=tuple(tables.decoder(code, bound) for code in bound.map.codes),
            only=bound.map.only,
            data=data,
            today=cleaner.today,
            rollup=rollup,
        )
        sql = str(import_ibis().to_sql(query, dialect="pyspark"))
        frames.append(run.session.sql(sql).mapInArrow(task, tasks.CODED))
    whole = frames[0]
    for frame in frames[1:]:
        whole = whole.unionAll(frame)
    return whole


def _findings(
    run: _Run, tables: Tables, coded: Any, expected: list[int], cleaner: PartCleaner
) -> Mapping[str, int]:
    """Reason -> rows left out, with every table read once as a whole.

    Raises:
        DataError: rows cannot be used, or a table changed.
    """
    wanted = coded.where(coded.kind == tasks.FINDINGS).select("number", "text")
    told = run.action("reading and coding the tables", wanted.collect)
    parts = sorted(
        ((json.loads(row["text"]), row["number"]) for row in told), key=lambda p: (p[0]["order"], p[1])
    )
    read, skipped = [0] * len(expected), Counter[str]()
    for part, _ in parts:
        if part["error"]:
            what, why, do = part["error"]
            raise DataError(what, why=why, do=do)
        _check_version(part["version"])
        read[part["order"]] += part["read"]
        skipped += Counter(part["skipped"])
        cleaner.take_in(part["findings"])
    for bound, before, after in zip(tables.events, expected, read, strict=True):
        if before != after:
            raise DataError(
                f"The table {bound.map.table} of {run.name} changed while it was read",
                why=f"it had {before:,} rows, then {after:,}",
                do="Run again when no one loads data",
            )
    return cleaner.finish(skipped).skipped


def _check_version(theirs: str) -> None:
    ours = tasks.version()
    if theirs and ours and theirs != ours:
        raise DataError(
            f"Spark's workers have version {theirs} of smile-federation, this machine has {ours}",
            why="two versions could count by different rules",
            do="Install the same version for the Python that spark.pyspark.python names on the workers",
        )


def _codes(run: _Run, coded: Any) -> tuple[tuple[str, ...], dict[str, Description]]:
    """CURIEs that have events, in order of text, and the descriptions of those that have one.

    Raises:
        DataError: there are more than any hospital has.
    """
    from pyspark.sql import functions as f  # noqa: PLC0415 (an optional extra)

    told = coded.where(coded.kind.isin(tasks.CODE, tasks.DESCRIPTION)).groupBy("text")
    best = f.min(f.when(coded.kind == tasks.DESCRIPTION, f.struct("number", "detail")))
    codes = told.agg(f.bool_or(coded.kind == tasks.CODE).alias("used"), best.alias("best")).where("used")
    rows = run.action("collecting the codes", codes.limit(MAX_CODES + 1).collect)
    rows.sort(key=lambda row: row["text"])
    if len(rows) > MAX_CODES:
        raise DataError(
            f"The data have more than {MAX_CODES:,} distinct codes",
            why=f"one of them is {rows[0]['text'][:60]!r}",
            do="Check that the code column does not hold free text, numbers or identifiers",
        )
    described = {row["text"]: row["best"] for row in rows if row["best"]}
    descriptions = {
        code: Description(best["detail"], public=not best["number"]) for code, best in described.items()
    }
    return tuple(row["text"] for row in rows), descriptions


def _blocks(coded: Any, scatter: tasks.Scatter, partitions: int) -> Any:
    """Coded rows by blocks of whole patients, in order of the blocks; a data frame of `tasks.PIECES`."""
    rows = coded.where(coded.kind.isin(tasks.CODE, tasks.ROWS)).mapInArrow(scatter, tasks.PIECES)
    return rows.repartition(partitions, "bucket").sortWithinPartitions("bucket")


def _sums(
    run: _Run, blocks: Any, floor: tasks.Floor, rule: Counting, n_codes: int, partitions: int
) -> list[dict[str, Any]]:
    """The sums of all patients, by span."""
    spans = span_cuts(n_codes)
    count = tasks.CountPatients(n_codes, rule.window, rule.max_events_per_patient, spans)
    cells = blocks.mapInArrow(count, tasks.COUNTS)
    ranges = cells.repartition(min(partitions, len(spans) - 1), "span").sortWithinPartitions("span")
    sums = run.kept(ranges.mapInArrow(tasks.AddCounts(n_codes, spans, floor), tasks.SUMS))
    # First on all workers at once; then they come one partition at a time, whatever spark.driver.maxResultSize says.
    run.action("counting pairs", sums.count)
    found = run.action(
        "collecting the sums", lambda: [unpacked(row.asDict()) for row in sums.toLocalIterator()]
    )
    return sorted(found, key=lambda part: int(part["span"]))


def _fingerprints(run: _Run, blocks: Any, task: tasks.FingerprintPatients) -> Fingerprints:
    """Of all patients: 16 bytes each come here, a partition at a time."""
    hashes = run.kept(blocks.mapInArrow(task, tasks.HASHES))
    run.action("comparing patients' events with those of earlier releases", hashes.count)
    return gathered(
        (np.frombuffer(row["whole"], np.uint64), np.frombuffer(row["days"], np.uint64))
        for row in hashes.toLocalIterator()
    )


def _pair_counts(parts: list[dict[str, Any]], spans: NDArray[np.int64]) -> PairCounts:
    n_codes = int(spans[-1])
    filled, code_patients = np.zeros(n_codes, np.int64), np.zeros(n_codes, np.int64)
    for part in parts:
        rows = slice(spans[part["span"]], spans[part["span"] + 1])
        filled[rows], code_patients[rows] = part["filled"], part["code_patients"]
    cells = (np.concatenate([part[name] for part in parts]) for name in ("cell", "pairs", "patients"))
    events, pair_patients = matrices(filled, *cells)

    def total(name: str) -> int:
        return sum(int(part[name]) for part in parts)

    return PairCounts(
        events=events,
        pair_patients=pair_patients,
        code_patients=code_patients,
        n_patients=total("n_patients"),
        n_events=total("n_events"),
        capped_patients=total("capped"),
        withheld_cells=total("withheld_cells"),
        withheld_events=total("withheld_events"),
    )


class _Run:
    """One run: its session, what it keeps on the workers, and its progress."""

    def __init__(self, session: Any, name: str, progress: Progress) -> None:
        self.session, self.name = session, name
        self._progress = progress
        self._kept: list[Any] = []

    @property
    def cores(self) -> int:
        """Tasks that run at the same time."""
        return int(self.session.sparkContext.defaultParallelism)

    def kept(self, frame: Any) -> Any:
        """A data frame that is made once and then kept, in memory or on the disk, until `release`."""
        from pyspark import StorageLevel  # noqa: PLC0415 (an optional extra)

        self._kept.append(frame.persist(StorageLevel.MEMORY_AND_DISK))
        return self._kept[-1]

    def release(self) -> None:
        """Drop what was kept; where Spark is gone, so is that."""
        with contextlib.suppress(Exception):
            for frame in self._kept:
                frame.unpersist()

    def action(self, step: str, action: Callable[[], _T]) -> _T:
        """What a Spark action gives, with the share of its tasks told meanwhile."""
        self._progress(step, 0.0)
        shown = 0.0
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(action)
            while not wait([future], timeout=1).done:
                shown = max(shown, self._share())
                self._progress(step, shown)
            result = future.result()
        self._progress(step, 1.0)
        return result

    def _share(self) -> float:
        """Of the tasks of the stages at work, how many are done."""
        tracker = self.session.sparkContext.statusTracker()
        stages = [tracker.getStageInfo(i) for i in tracker.getActiveStageIds()]
        known = [(s.numCompletedTasks, s.numTasks) for s in stages if s]
        return float(sum(done for done, _ in known) / max(sum(n for _, n in known), 1))


@contextlib.contextmanager
def _pieces_in_arrow(session: Any) -> Iterator[None]:
    """Few of Spark's rows in one Arrow batch: each is a piece of many events or cells."""
    before = session.conf.get(_ARROW_ROWS)
    session.conf.set(_ARROW_ROWS, str(tasks.BATCH_PIECES))
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # a session that is gone needs no settings
            session.conf.set(_ARROW_ROWS, before)
