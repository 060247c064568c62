"""OBO ontologies: is_a, part_of and other relationships, and cross references."""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from typing import Any, Final, Literal

import pyarrow as pa
from pydantic import Field

from coordinator.knowledge.assertions import IS_A, RELATED, SIMILAR, raw_table
from coordinator.knowledge.readers.base import Source
from coordinator.knowledge.readers.functional import UMLS_KINDS
from coordinator.knowledge.systems import Systems
from coordinator.knowledge.tables import text_lines
from protocol.errors import DataError, UsageError

XREF_WEIGHT: Final = 0.8
"""A cross reference says that two terms go together; not always that they mean the same."""

NO_PREFIX: Final = "an identifier without a prefix"


class Obo(Source):
    """`is_a` is is-a, other relationships are related by their name, `xref` is similar.

    Obsolete terms are left out. Source: OBO Flat File Format 1.4; read by obonet.
    """

    kind: Literal["obo"]
    shared_depth: int = Field(
        2, ge=0, description="Kinship counts through ancestors at least this many steps below a root."
    )

    def take(self, systems: Systems, skipped: Counter[str]) -> tuple[pa.Table, str]:
        """See `Source.take`."""
        graph = self._graph()
        rows: list[tuple[str, str, str, str, str, float]] = []

        def add(one: str, other: str, relation: str, weight: float = 1.0) -> None:
            (system_1, _, code_1), (system_2, _, code_2) = one.partition(":"), other.partition(":")
            if not (code_1 and code_2):
                skipped[NO_PREFIX] += 1
                return
            rows.append((system_1, code_1, system_2, code_2, relation, weight))

        for one, other, name in graph.edges(keys=True):
            add(one, other, IS_A if name == "is_a" else RELATED + _kind(name))
        for one, facts in graph.nodes(data=True):
            for xref in facts.get("xref", ()):
                add(one, xref.split(" ")[0].split('"')[0], SIMILAR, XREF_WEIGHT)
        columns = list(zip(*rows, strict=True)) or [()] * 6
        names = ("system_1", "code_1", "system_2", "code_2", "relation", "weight")
        raw = raw_table(**{name: list(c) for name, c in zip(names, columns, strict=True)})
        return raw, str(graph.graph.get("data-version", ""))

    def _graph(self) -> Any:
        try:
            import obonet  # type: ignore[import-untyped,unused-ignore]  # noqa: PLC0415 - slow to import
        except ImportError:
            raise UsageError(
                f"The source {self.name} needs the package obonet",
                do="pip install 'smile-federation[coordinator]'",
            ) from None
        text = "\n".join(text_lines(self.path))
        if "[Term]" not in text:
            raise DataError(
                f"The file {self.path} is no OBO ontology",
                why="it has no [Term]",
                do="Take the .obo file, not OWL",
            )
        logging.getLogger("obonet").setLevel(logging.ERROR)
        try:
            return obonet.read_obo(io.StringIO(text))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(
                f"The ontology {self.path} cannot be read",
                why=f"{type(error).__name__}: {str(error)[:200]}",
                do="Check it with a tool such as ROBOT, or fetch it again",
            ) from None


def _kind(relationship: str) -> str:
    """The kind of relatedness that a relationship's name stands for: part_of -> part-of, due_to -> causes."""
    name = relationship.rpartition(":")[2]
    return UMLS_KINDS.get(name, re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")[:60] or "related")
