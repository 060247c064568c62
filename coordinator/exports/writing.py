"""Writers of the formats that analysts' tools read: a verified release's table in, bytes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from coordinator.exports.crm import write_crm
from coordinator.exports.fhir import write_r4, write_r5
from coordinator.exports.formats import COPIED, FORMATS, RELATED, WITH_CONCEPTS, WRITTEN
from coordinator.exports.kinship import with_kinship
from coordinator.exports.plain import write_csv, write_parquet
from coordinator.exports.reading import read_map
from coordinator.exports.stcm import write_stcm
from coordinator.exports.table import PublishedMap
from coordinator.exports.usagi import write_usagi
from coordinator.exports.vocabulary import Vocabulary, read_vocabulary
from coordinator.knowledge.systems import Systems
from protocol.errors import UsageError
from protocol.files import write_atomic
from protocol.messages import PublishedManifest
from protocol.published import Trust, read_listed, verify_folder

_WITH_CONCEPTS: Final[dict[str, Callable[[PublishedMap, Vocabulary], bytes]]] = {
    "stcm": write_stcm,
    "crm": write_crm,
    "usagi": write_usagi,
}
_WRITTEN: Final[dict[str, Callable[[PublishedMap, Vocabulary | None], bytes]]] = {
    "fhir-r4": write_r4,
    "fhir-r5": write_r5,
    "csv": lambda published, _: write_csv(published),
    "parquet": lambda published, _: write_parquet(published),
}


@dataclass(frozen=True)
class Exported:
    """What an export holds.

    Attributes:
        mappings: codes outside the standard system.
        unmapped: those of them without a standard code.
        no_source: those that are no concept of the vocabulary; 0 where none was read.
        no_target: those whose standard code is none.
    """

    mappings: int
    unmapped: int
    no_source: int = 0
    no_target: int = 0


def export_release(
    release: Path,
    output: Path,
    form: str,
    *,
    trust: Trust,
    vocabulary: Path | None = None,
    at_least: float = 0.0,
) -> Exported | None:
    """Write one format of a verified release.

    Args:
        release: its folder.
        output: the file, which appears whole or not at all.
        form: one of `FORMATS`.
        trust: who may have signed.
        vocabulary: folder of the OMOP vocabularies as Athena delivers them.
        at_least: found mappings that are less probable are written as codes without a standard code.

    Returns:
        what was written; None for a file that was copied, and for the graph.

    Raises:
        UsageError: the format is unknown, needs the vocabularies or does not take what was asked, the vocabularies hold none of
            the standard codes, the release has no graph, or the file cannot be written.
        ProtocolError: the release folder is not what its manifest says.
        DataError: the vocabularies cannot be read.
    """
    if form not in FORMATS:
        raise UsageError(f"There is no format {form!r}", do=f"Take one of {', '.join(FORMATS)}")
    if form in WITH_CONCEPTS and vocabulary is None:
        raise UsageError(
            f"The format {form} needs the OMOP vocabularies",
            why="it names codes by concept ids, and a release holds none",
            do="Name the folder that Athena delivered with --vocabulary, or take csv, fhir-r4, fhir-r5 or sssom",
        )
    if form in COPIED and (vocabulary is not None or at_least > 0.0):
        raise UsageError(
            f"The format {form} is a file of the release, copied as it is",
            do=f"Leave out --vocabulary and --at-least, or take one of {', '.join((*WITH_CONCEPTS, *WRITTEN))}",
        )
    if form in RELATED and (vocabulary is not None or at_least > 0.0):
        raise UsageError(
            f"The format {form} is of related codes, and not of where codes are mapped to",
            do=f"Leave out --vocabulary and --at-least, or take one of {', '.join((*WITH_CONCEPTS, *WRITTEN))}",
        )
    manifest = verify_folder(release, trust)
    if form in RELATED:
        _write(output, _related(release, manifest, form))
        return None
    if form in COPIED:
        _write(output, read_listed(release, manifest, COPIED[form]))
        return None
    published, concepts = read_map(release, manifest).at_least(at_least), None
    if vocabulary is not None:
        concepts = concepts_of(published, vocabulary)
        published = with_kinship(published, concepts, vocabulary)
    if form in WRITTEN:
        _write(output, _WRITTEN[form](published, concepts))
    elif concepts is not None:
        _write(output, _WITH_CONCEPTS[form](published, concepts))
    return _counts(published, concepts)


def concepts_of(published: PublishedMap, folder: Path) -> Vocabulary:
    """The concepts of a map's codes.

    Raises:
        UsageError: none of its standard codes is a concept.
    """
    targets = {e.standard_code for e in published.mappings if e.standard_code}
    said = {r.target for rows in published.reviews.values() for r in rows if r.target}
    codes = {e.code for e in published.mappings} | targets | said
    found = read_vocabulary(folder, Systems.of_study(published.study), codes)
    if targets and not any(found.get(code) for code in targets):
        raise UsageError(
            f"The vocabulary in {folder} holds none of the map's {len(targets)} standard codes",
            why=f"these are of {published.study.standard}, as {min(targets)}",
            do="Download this system from athena.ohdsi.org too",
        )
    return found


def _related(release: Path, manifest: PublishedManifest, form: str) -> bytes:
    from coordinator.graph.exports import write_csv, write_graphml  # noqa: PLC0415 - it imports this module
    from coordinator.graph.published import read_graph  # noqa: PLC0415

    graph = read_graph(release, manifest, read_map(release, manifest).entries)
    write = write_graphml if form == "graphml" else write_csv
    return write(graph.edges, graph.names, graph.categories)


def _write(output: Path, data: bytes) -> None:
    try:
        write_atomic(output, data, mode=0o644)
    except OSError as error:
        raise UsageError(
            f"The export {output} cannot be written", why=str(error.strerror), do="Name another file"
        ) from None


def _counts(published: PublishedMap, concepts: Vocabulary | None) -> Exported:
    rows = published.mappings
    counts = Exported(len(rows), sum(not e.standard_code for e in rows))
    if concepts is None:
        return counts
    return replace(
        counts,
        no_source=sum(concepts.get(e.code) is None for e in rows),
        no_target=sum(bool(e.standard_code) and concepts.get(e.standard_code) is None for e in rows),
    )
