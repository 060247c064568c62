"""From knowledge files to one folder: pairs.parquet, links.parquet, contradictions.parquet, report.json, report.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coordinator.knowledge import cache
from coordinator.knowledge.assertions import Assertions
from coordinator.knowledge.config import KnowledgeFile
from coordinator.knowledge.merge import LINKS, PAIRS, KinOptions, Said, merge, pairs_of
from coordinator.knowledge.readers import Source
from coordinator.knowledge.report import (
    Report,
    SourceReport,
    count_codes,
    count_pairs,
    describe_contradictions,
)
from coordinator.knowledge.systems import Systems
from protocol.errors import DataError, UsageError
from protocol.files import atomic_file, write_atomic
from protocol.study import StudySpec

FILES: Final = ("pairs.parquet", "links.parquet", "contradictions.parquet", "report.json", "report.md")
Progress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Build:
    """Knowledge that is ready for a fit.

    Attributes:
        pairs: of schema `merge.PAIRS`: code_1 < code_2, kind, label, weight, sources.
        report: the content of report.json.
        links: of schema `merge.LINKS`: which code is broader, which the same; `ancestry` reads them.
        fresh: whether it was made now, and not found as it was.
    """

    pairs: pa.Table
    report: dict[str, Any]
    links: pa.Table = field(default_factory=LINKS.empty_table)
    fresh: bool = False


def build(
    file: KnowledgeFile,
    study: StudySpec,
    folder: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Build:
    """Read all sources, merge them and write the folder; nothing is done where no input has changed.

    Args:
        file: the sources.
        study: its code systems say which codes count, and which of them can mean the same.
        folder: new, empty, or an earlier build.
        force: read and write even if nothing has changed.
        progress: told the step and the share done.

    Raises:
        DataError: a source's file is missing, not of its kind, or none gives a pair.
        UsageError: the folder holds something else.
    """
    tell = progress or (lambda _step, _share: None)
    _check_folder(folder)
    tell("comparing the files", 0.0)
    key = cache.input_key(file, study)
    if not force and cache.is_current(folder, key):
        return load_build(folder)
    systems, tables, links, reports = Systems.of_study(study), [], [LINKS.empty_table()], []
    for number, source in enumerate(file.sources):
        tell(f"reading {source.name}", number / len(file.sources))
        assertions = source.read(systems)
        options = KinOptions(source.shared_depth, source.kin_weight, source.most_per_family, file.seed)
        said = pairs_of(assertions, systems.naming(source.systems), source.name, options)
        tables.append(said.table)
        links.append(said.links)
        reports.append(_source_report(source, assertions, said))
    tell("merging", 0.95)
    merged = merge(tables)
    if not merged.pairs.num_rows:
        raise DataError(
            "The knowledge sources give no pair of the study's codes",
            why="; ".join(
                f"{r.name}: {r.rows:,} rows, systems {', '.join(r.unknown) or 'known'}" for r in reports
            ),
            do="Name their systems as the study does, with systems in the source's table",
        )
    report = Report(
        sources=tuple(reports),
        pairs=count_pairs(merged.pairs),
        codes=count_codes(merged.pairs),
        contradictions=merged.contradictions.num_rows // 2,
        shown=describe_contradictions(merged.contradictions),
    )
    every = pa.concat_tables(links).combine_chunks()
    _write(folder, merged.pairs, every, merged.contradictions, report)
    cache.mark(folder, key, FILES)
    return Build(merged.pairs, json.loads(report.as_json()), every, fresh=True)


def load_build(folder: Path) -> Build:
    """Read a folder that `build` wrote.

    Raises:
        UsageError: it is none.
        DataError: its files are damaged.
    """
    if not (folder / cache.MARK).is_file():
        raise UsageError(
            f"{folder} is no folder of knowledge",
            why=f"it has no {cache.MARK}",
            do="Make one with coordinator knowledge build",
        )
    try:
        pairs = pq.read_table(folder / "pairs.parquet")
        links = pq.read_table(folder / "links.parquet")
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return Build(pairs.select(PAIRS.names).cast(PAIRS), report, links.select(LINKS.names).cast(LINKS))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"The knowledge in {folder} cannot be read",
            why=str(error).splitlines()[0][:200],
            do="Run coordinator knowledge build --force",
        ) from None


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", do="Name a new folder with --output")
    if (
        folder.exists()
        and any(folder.iterdir())
        and not any((folder / n).exists() for n in (*FILES, cache.MARK))
    ):
        raise UsageError(
            f"The folder {folder} is not empty",
            why="it holds no build of knowledge",
            do="Name a new folder with --output",
        )


def _write(folder: Path, pairs: pa.Table, links: pa.Table, contradictions: pa.Table, report: Report) -> None:
    # Without its mark a folder is no build: half of a new one beside half of an old one cannot be taken for one.
    (folder / cache.MARK).unlink(missing_ok=True)
    tables = {"pairs.parquet": pairs, "links.parquet": links, "contradictions.parquet": contradictions}
    for name, table in tables.items():
        with atomic_file(folder / name, mode=0o644) as stream:
            pq.write_table(table, stream, compression="zstd")
    write_atomic(folder / "report.json", report.as_json(), mode=0o644)
    write_atomic(folder / "report.md", report.as_markdown(), mode=0o644)


def _source_report(source: Source, assertions: Assertions, said: Said) -> SourceReport:
    counted = pc.value_counts(assertions.table["relation"]).to_pylist()
    return SourceReport(
        name=source.name,
        kind=str(source.kind),  # type: ignore[attr-defined]
        version=assertions.version,
        licence=source.licence,
        rows=len(assertions),
        relations={c["values"]: c["counts"] for c in sorted(counted, key=lambda c: str(c["values"]))},
        pairs=count_pairs(said.table),
        skipped=said.skipped,
        unknown=said.unknown,
        notes=said.notes,
    )
