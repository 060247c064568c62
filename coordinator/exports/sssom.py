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
from coordinator.exports.cells import guarded
from coordinator.exports.predicates import DECIMALS, predicate
from coordinator.exports.table import base_uri, evidence_line
from coordinator.mapping import Mapping, MappingSet
from coordinator.version import NAME, VERSION
from protocol.study import StudySpec
from protocol.vocabulary import split_curie

_FITTED = Reference(prefix="semapv", identifier="SemanticSimilarityThresholdMatching")
_GIVEN = Reference(prefix="semapv", identifier="ManualMappingCuration")
_REVIEWED = Reference(prefix="semapv", identifier="MappingReview")
_REVIEWER = "reviewer"
_NO_TERM_PREDICATE = Reference(prefix="skos", identifier="closeMatch")
_NO_TERM = NamableReference(prefix="sssom", identifier="NoTermFound")
_SYSTEM = "codesystem"  # a source is an entity of its own in SSSOM, and needs a CURIE
_MEASURE = "cosine similarity of SMILE embeddings"


def write_sssom(path: Path, mappings: MappingSet, edition: Edition) -> None:
    """Write every code outside the standard system: mapped, or `sssom:NoTermFound`.

    An anchor that a site gave is by manual curation, confidence 1; a mapping that
    the fit found is by semantic similarity, its confidence the calibrated probability.
    The predicate follows the rule of `predicates`.

    What people decided are rows of their own, by mapping review and without a confidence, so that nobody takes the one for the
    other: a rejected target has the predicate modifier Not.
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
    rows = (*_rows(mappings, study, created), *_reviewed_rows(mappings, edition))
    sssom.write(rows, path, metadata=metadata, converter=_converter(study))


def _rows(mappings: MappingSet, study: StudySpec, created: date) -> Iterator[sssom.SemanticMapping]:
    tool = sssom.MappingTool(name=NAME, version=VERSION)
    for row in mappings.rows:
        if row.code.startswith(f"{study.standard}:"):
            continue
        mapped = bool(row.standard_code)
        yield sssom.SemanticMapping(
            subject=_reference(row.code, row.name),
            predicate=_predicate(row),
            object=_reference(row.standard_code, row.standard_name) if mapped else _NO_TERM,
            justification=_GIVEN if row.anchored else _FITTED,
            confidence=1.0 if row.anchored else round(row.probability, DECIMALS),
            similarity_score=round(max(row.similarity, 0.0), 4) if mapped and not row.anchored else None,
            similarity_measure=_MEASURE if mapped and not row.anchored else None,
            subject_source=_source(row.code),
            object_source=_source(row.standard_code) if mapped else None,
            mapping_tool=tool,
            mapping_date=created,
            comment=evidence_line(row),
        )


def _reviewed_rows(mappings: MappingSet, edition: Edition) -> Iterator[sssom.SemanticMapping]:
    """What people settled of these codes."""
    names = {row.code: row.name for row in mappings.rows}
    for said in edition.reviews:
        if said.code not in names or not said.settled:
            continue
        match = "exact" if said.verdict == "reject" else said.relation or "exact"
        target = _reference(said.target, names.get(said.target, "")) if said.target else _NO_TERM
        yield sssom.SemanticMapping(
            subject=_reference(said.code, names[said.code]),
            predicate=Reference(prefix="skos", identifier=f"{match}Match")
            if said.target
            else _NO_TERM_PREDICATE,
            predicate_modifier="Not" if said.verdict == "reject" else None,
            object=target,
            justification=_REVIEWED,
            subject_source=_source(said.code),
            object_source=_source(said.target) if said.target else None,
            reviewers=[
                Reference(prefix=_REVIEWER, identifier=urllib.parse.quote(n, safe=""))
                for n in said.reviewed_by
            ],
            review_date=said.decided.date(),
        )


def _predicate(row: Mapping) -> Reference:
    if not row.standard_code:
        # The specification wants a predicate beside sssom:NoTermFound, and any will do.
        return _NO_TERM_PREDICATE
    prefix, identifier = split_curie(predicate(row.probability, given=row.given, kinship=row.kinship))
    return Reference(prefix=prefix, identifier=identifier)


def _reference(code: str, name: str) -> NamableReference:
    prefix, rest = split_curie(code)
    # A CURIE's local part holds no spaces or tabs; free-text codes are percent-encoded.
    identifier = urllib.parse.quote(rest, safe=".:/_-+*")
    return NamableReference(prefix=prefix, identifier=identifier, name=guarded(name) or None)


def _source(code: str) -> Reference:
    return Reference(prefix=_SYSTEM, identifier=split_curie(code)[0])


def _converter(study: StudySpec) -> curies.Converter:
    known = {
        "skos": "http://www.w3.org/2004/02/skos/core#",
        "semapv": "https://w3id.org/semapv/vocab/",
        "sssom": "https://w3id.org/sssom/",
        _SYSTEM: f"{base_uri(study)}systems/",
        _REVIEWER: f"{base_uri(study)}reviewers/",
    }
    systems = {s.prefix: s.uri or f"{base_uri(study)}codes/{s.prefix}/" for s in study.code_systems}
    return curies.load_prefix_map(known | systems)
