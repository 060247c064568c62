"""SSSOM mapping sets (TSV), positive and negative."""

from __future__ import annotations

import urllib.parse
from collections import Counter
from typing import Final, Literal

import pyarrow as pa
import sssom_pydantic as sssom
from sssom_pydantic.io import ParseError, read_iterable

from coordinator.knowledge.assertions import IS_A, RELATED, SAME_AS, SIMILAR, raw_table
from coordinator.knowledge.readers.base import Source
from coordinator.knowledge.systems import Systems
from coordinator.knowledge.tables import text_lines
from protocol.errors import DataError

_CLOSE: Final = 0.8
_REVERSED: Final = "reversed is-a"
_PREDICATES: Final = {
    "skos:exactMatch": (SIMILAR, 1.0),
    "skos:closeMatch": (SIMILAR, _CLOSE),
    "owl:equivalentClass": (SAME_AS, 1.0),
    "owl:sameAs": (SAME_AS, 1.0),
    "oboInOwl:hasDbXref": (SIMILAR, _CLOSE),
    "oboinowl:hasDbXref": (SIMILAR, _CLOSE),
    "skos:broadMatch": (IS_A, 1.0),
    "rdfs:subClassOf": (IS_A, 1.0),
    "skos:narrowMatch": (_REVERSED, 1.0),
    "skos:relatedMatch": (RELATED + "related", 1.0),
}
"""Predicate -> relation and weight."""

_NEEDED: Final = ("subject_id", "predicate_id", "object_id", "mapping_justification")
NO_TERM: Final = "no term was found (sssom:NoTermFound)"
UNREAD: Final = "a row that does not follow SSSOM"


class Sssom(Source):
    """Mappings by predicate; `predicate_modifier` Not makes a negative, and `confidence` is multiplied into the weight.

    Source: SSSOM 1.0; read by sssom-pydantic, which needs each prefix in `curie_map`.
    """

    kind: Literal["sssom"]

    def take(self, systems: Systems, skipped: Counter[str]) -> tuple[pa.Table, str]:
        """See `Source.take`."""
        self._check_header()
        rows: list[tuple[str, str, str, str, str, bool, float]] = []
        version, first_fault = "", ""
        try:
            with read_iterable(self.path) as found:
                version = found.mapping_set.version or ""
                for mapping in found.mappings:
                    if isinstance(mapping, ParseError):
                        skipped[UNREAD] += 1
                        first_fault = (
                            first_fault
                            or f"line {mapping.line_number}: {str(mapping.exception).splitlines()[0]}"
                        )
                    else:
                        self._row(mapping, rows, skipped)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise self._not_sssom(
                f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            ) from None
        if not rows and skipped[UNREAD]:
            raise self._not_sssom(first_fault)
        columns = list(zip(*rows, strict=True)) or [()] * 7
        names = ("system_1", "code_1", "system_2", "code_2", "relation", "label", "weight")
        return raw_table(**{name: list(c) for name, c in zip(names, columns, strict=True)}), version

    def _check_header(self) -> None:
        # All lines, so that a file that is not UTF-8 is told as one.
        header = next((line for line in list(text_lines(self.path)) if not line.startswith("#")), "")
        names = [cell.strip() for cell in header.split("\t")]
        lacking = [name for name in _NEEDED if name not in names]
        if lacking:
            raise self._not_sssom(f"no column {lacking[0]!r} between tabs in its header")

    def _not_sssom(self, reason: str) -> DataError:
        return DataError(
            f"The file {self.path} is no SSSOM mapping set",
            why=reason,
            do="Check it with sssom-pydantic's lint",
        )

    def _row(
        self,
        mapping: sssom.SemanticMapping,
        rows: list[tuple[str, str, str, str, str, bool, float]],
        skipped: Counter[str],
    ) -> None:
        subject, obj = mapping.subject, mapping.object
        if "sssom:NoTermFound" in {subject.curie, obj.curie}:
            skipped[NO_TERM] += 1
            return
        known = _PREDICATES.get(mapping.predicate.curie)
        if known is None:
            skipped[f"the predicate {mapping.predicate.curie}"] += 1
            return
        relation, weight = known
        if relation == _REVERSED:
            relation, subject, obj = IS_A, obj, subject
        weight *= mapping.confidence if mapping.confidence is not None else 1.0
        if weight <= 0.0:
            skipped["confidence 0"] += 1
            return
        # Free-text codes are percent-encoded in a CURIE.
        codes = (urllib.parse.unquote(r.identifier) for r in (subject, obj))
        one, other = codes
        rows.append((subject.prefix, one, obj.prefix, other, relation, not mapping.negated, weight))
