"""SSSOM TSV 1.0 of a release's mappings, written by sssom-pydantic."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import curies
import sssom_pydantic as sssom
from curies import NamableReference, Reference

from coordinator.edition import Edition
from coordinator.exports.predicates import DECIMALS, predicate
from coordinator.exports.table import base_uri, evidence_line
from coordinator.mapping import Mapping, MappingSet
from coordinator.version import NAME, VERSION
from protocol.study import StudySpec
from protocol.vocabulary import split_curie

_FITTED = Reference(prefix="semapv", identifier="SemanticSimilarityThresholdMatching")
_GIVEN = Reference(prefix="semapv", identifier="ManualMappingCuration")
_NO_TERM_PREDICATE = Reference(prefix="skos", identifier="closeMatch")
_NO_TERM = NamableReference(prefix="sssom", identifier="NoTermFound")
_MEASURE = "cosine similarity of SMILE embeddings"


def write_sssom(path: Path, mappings: MappingSet, edition: Edition) -> None:
    """Write every code outside the standard system: mapped, or `sssom:NoTermFound`.

    An anchor that a site gave is by manual curation, confidence 1; a mapping that
    the fit found is by semantic similarity, its confidence the calibrated probability.
    The predicate follows the rule of `predicates`.
    """
    study, created = edition.study, edition.created.date()
    metadata = sssom.MappingSet(
        id=f"{base_uri(study)}releases/v{edition.version}",
        title=f"Harmonised codes of study {study.id}, version {edition.version}",
        description=study.title or None,
        version=str(edition.version),
        license=study.licence,
        publication_date=created,
    )
    sssom.write(_rows(mappings, study, created), path, metadata=metadata, converter=_converter(study))


def _rows(mappings: MappingSet, study: StudySpec, created: date) -> Iterator[sssom.SemanticMapping]:
    tool = sssom.MappingTool(name=NAME, version=VERSION)
    for row in mappings.rows:
        if row.code.startswith(f"{study.standard}:"):
            continue
        mapped = bool(row.standard_code)
        yield sssom.SemanticMapping(
            subject=_reference(row.code),
            predicate=_predicate(row),
            object=_reference(row.standard_code) if mapped else _NO_TERM,
            justification=_GIVEN if row.anchored else _FITTED,
            confidence=1.0 if row.anchored else round(row.probability, DECIMALS),
            similarity_score=round(max(row.similarity, 0.0), 4) if mapped and not row.anchored else None,
            similarity_measure=_MEASURE if mapped and not row.anchored else None,
            mapping_tool=tool,
            mapping_date=created,
            comment=evidence_line(row),
        )


def _predicate(row: Mapping) -> Reference:
    if not row.standard_code:
        # The specification wants a predicate beside sssom:NoTermFound, and any will do.
        return _NO_TERM_PREDICATE
    prefix, identifier = split_curie(predicate(row.probability, given=row.given))
    return Reference(prefix=prefix, identifier=identifier)


def _reference(code: str) -> NamableReference:
    prefix, rest = split_curie(code)
    # A CURIE's local part holds no spaces or tabs; free-text codes are percent-encoded.
    return NamableReference(prefix=prefix, identifier=urllib.parse.quote(rest, safe=".:/_-+*"))


def _converter(study: StudySpec) -> curies.Converter:
    known = {
        "skos": "http://www.w3.org/2004/02/skos/core#",
        "semapv": "https://w3id.org/semapv/vocab/",
        "sssom": "https://w3id.org/sssom/",
    }
    systems = {s.prefix: s.uri or f"{base_uri(study)}codes/{s.prefix}/" for s in study.code_systems}
    return curies.load_prefix_map(known | systems)
