"""OMOP CDM 5.3 and 5.4: the events of a person in five tables, with codes as concepts of the OMOP vocabularies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.errors import DataError
from protocol.vocabulary import curie
from site_agent.sections import Data, Domain
from site_agent.sources.relational import WHOLE, CodeColumn, Lookup, RelationalSource, TableMap

CONCEPT = Lookup(
    table="concept",
    key="concept_id",
    description="concept_name",
    code="concept_code",
    system="vocabulary_id",
    public=True,
    vocabulary=True,
)


def _table(domain: Domain, table: str, date: str) -> TableMap:
    """The concept's code; where there is no concept, the code as the hospital's own system wrote it."""
    codes = (CodeColumn(f"{domain}_concept_id", lookup=CONCEPT), CodeColumn(f"{domain}_source_value"))
    return TableMap(table, "person_id", (date,), codes, domain)


OMOP_TABLES = (
    _table("condition", "condition_occurrence", "condition_start_date"),
    _table("drug", "drug_exposure", "drug_exposure_start_date"),
    _table("measurement", "measurement", "measurement_date"),
    _table("procedure", "procedure_occurrence", "procedure_date"),
    _table("observation", "observation", "observation_date"),
)
"""The columns that are read have the same names in both versions."""


class OmopSource(RelationalSource):
    """Events of an OMOP database.

    Args:
        data: database, schemas, domains, code systems and roll-up.
    """

    def __init__(self, data: Data) -> None:
        super().__init__(data, OMOP_TABLES)

    def ancestors(self) -> Mapping[str, tuple[str, ...]] | None:
        """CURIE -> the CURIEs of its ancestors of the classes in `data.rollup.classes`, in order; None if not asked for.

        A concept of such a class stands for itself. Only concepts that events have are looked up.

        Raises:
            DataError: as `fingerprint`, or concept_ancestor is empty.
        """
        if not self._data.rollup.concept_ancestor:
            return None
        found: dict[str, set[str]] = {}
        with self._open() as tables:
            concept = tables.lookup(CONCEPT, "concept_class_id")
            needs = dict.fromkeys(("ancestor_concept_id", "descendant_concept_id"), WHOLE)
            tree = tables.bind("concept_ancestor", needs, vocabulary=True)
            if not tables.count(tree.table):
                raise DataError(
                    f"The table concept_ancestor of {self.name} is empty",
                    do="Load the vocabularies with their ancestors, or roll up by a file (data.rollup.file)",
                )
            wanted = tables.keys(CONCEPT)
            every = concept.table.select(
                id=concept.key("concept_id"),
                system=concept.label("vocabulary_id"),
                code=concept.label("concept_code"),
                kind=concept.label("concept_class_id"),
            )
            steps = tree.table.select(
                below=tree.key("descendant_concept_id"), above=tree.key("ancestor_concept_id")
            )
            own = every.semi_join(wanted, every.id == wanted.wanted)
            above = every.filter(every.kind.isin(self._data.rollup.classes))
            steps = steps.semi_join(wanted, steps.below == wanted.wanted)
            pairs = steps.join(above, steps.above == above.id).select("below", "system", "code")
            names: dict[int, str] = {}
            for row in tables.rows(own).to_pylist():
                name = self._curie(row["system"], row["code"])
                if name is None or not row["id"]:
                    continue
                if row["kind"] in self._data.rollup.classes:
                    found[name] = {name}
                else:
                    names[row["id"]] = name
            for row in tables.rows(pairs).to_pylist():
                target = self._curie(row["system"], row["code"])
                if target is not None and row["below"] in names:
                    found.setdefault(names[row["below"]], set()).add(target)
        return {name: tuple(sorted(targets)) for name, targets in sorted(found.items())}

    def _curie(self, system: Any, code: Any) -> str | None:
        """The CURIE that `clean` makes of a concept; None where it refuses the code, and counts its rows."""
        if system is None or code is None:
            return None
        systems = self._data.systems
        try:
            return curie(systems.get(system) or systems.get(system.strip()) or system.strip(), code)
        except DataError:
            return None
