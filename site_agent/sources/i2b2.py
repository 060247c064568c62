"""i2b2: one fact table, with codes written PREFIX:code."""

from __future__ import annotations

from site_agent.sections import Data
from site_agent.sources.relational import CodeColumn, Lookup, Only, RelationalSource, TableMap

# The texts are the hospital's own, whatever ontology it loaded.
CONCEPT_DIMENSION = Lookup(table="concept_dimension", key="concept_cd", description="name_char")

I2B2_TABLES = (
    TableMap(
        table="observation_fact",
        patient="patient_num",
        dates=("start_date",),
        codes=(CodeColumn("concept_cd", split=True, lookup=CONCEPT_DIMENSION),),
        # A modifier adds a dose, a route or a side to a fact that has a row of its own.
        only=Only("modifier_cd", "@", "i2b2 modifier of another row"),
    ),
)


class I2b2Source(RelationalSource):
    """Events of an i2b2 database. Facts of all domains are in one table: `data.domains` changes nothing.

    Args:
        data: database, schema and code systems.
    """

    def __init__(self, data: Data) -> None:
        super().__init__(data, I2B2_TABLES)
