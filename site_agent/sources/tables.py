"""The tables of one connection: found, checked, and as ibis expressions to choose columns from and count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from protocol.errors import DataError
from site_agent.sections import Data
from site_agent.sources.databases.base import Column, Database, no_extra
from site_agent.sources.decoder import Decoder
from site_agent.sources.tablemap import CodeColumn, Lookup, TableMap

# Kinds of columns that may hold a number that is a key, a label (patient or code), and a date.
WHOLE = frozenset({"integer", "number"})
LABEL = WHOLE | {"text", "uuid"}
DAY = frozenset({"date", "timestamp", "text"})
_DTYPE = {"integer": "int64", "number": "decimal(38, 0)", "text": "string", "uuid": "uuid"}

Columns: TypeAlias = Mapping[str, Column]
"""Columns by lower-case name."""


class BoundTable:
    """A table as an ibis expression, with the columns that the database has for it."""

    def __init__(self, table: Any, columns: Columns) -> None:
        self.table, self.columns = table, columns

    def key(self, name: str) -> Any:
        """A whole number as int64, anything else as text."""
        column = self.columns[name.lower()]
        value = self.table[column.name]
        if column.kind in WHOLE:
            return value.cast("int64")
        return value if column.kind == "text" else value.cast("string")

    def label(self, name: str) -> Any:
        """A code as text."""
        return self.key(name).cast("string")


class EventTable(BoundTable):
    """A table with events."""

    def __init__(self, bound: BoundTable, mapped: TableMap) -> None:
        super().__init__(bound.table, bound.columns)
        self.map = mapped

    def date(self) -> Any:
        """The first date of a row that is not null: dates, or text if one of the columns is."""
        found = [self.columns[d.lower()] for d in self.map.dates if d.lower() in self.columns]
        text = any(c.kind == "text" for c in found)
        values = [self.table[c.name] if c.kind == "text" else self.table[c.name].cast("date") for c in found]
        return import_ibis().coalesce(*(v.cast("string") if text else v for v in values))

    def select(self) -> Any:
        """patient, date; for each code column code<i> and, if it has one, system<i>; only, if not all rows are events."""
        chosen = {"patient": self.key(self.map.patient), "date": self.date()}
        for i, code in enumerate(self.map.codes):
            looked_up = code.lookup is not None and code.lookup.code
            chosen[f"code{i}"] = self.key(code.column) if looked_up else self.label(code.column)
            if code.system_column:
                chosen[f"system{i}"] = self.label(code.system_column)
        if self.map.only is not None:
            chosen["only"] = self.label(self.map.only.column)
        return self.table.select(**chosen)


class Tables:
    """The tables of one connection."""

    def __init__(self, database: Database, data: Data, maps: Sequence[TableMap], name: str) -> None:
        self._database, self._name = database, name
        self._schema, self._vocabulary = data.schema_, data.vocabulary_schema or data.schema_
        self._known: dict[str, dict[str, list[str]]] = {}
        # Every table is found and checked before the first row of any is read.
        self.events = [self._event_table(m) for m in maps]
        self.lookups = tuple(dict.fromkeys(c.lookup for m in maps for c in m.codes if c.lookup))
        for lookup in self.lookups:
            self.lookup(lookup)

    def bind(
        self, table: str, needs: Mapping[str, frozenset[str]], *, vocabulary: bool = False
    ) -> BoundTable:
        """A table with columns of the kinds that are needed.

        Raises:
            DataError: it, or one of them, is not there, not readable or of another kind.
        """
        schema = self._vocabulary if vocabulary else self._schema
        real = self._find(schema, table)
        where = f"{schema}.{real}" if schema else real
        columns = self._columns(schema, real)
        missing = [n for n in needs if n.lower() not in columns]
        if missing:
            raise DataError(
                f"The table {where} of {self._name} has no column {' and no column '.join(missing)}",
                why=f"its columns are {', '.join(sorted(columns)[:30])}",
                do="Name the right schema in data.schema, or make a view with the columns of the data model",
            )
        for name, kinds in needs.items():
            _check_kind(where, columns[name.lower()], kinds)
        needed = {n.lower(): columns[n.lower()] for n in needs}
        dtypes = {c.name: _DTYPE.get(c.kind, c.kind) for c in needed.values()}
        expression = import_ibis().table(dtypes, **self._database.location(schema, real))
        return BoundTable(expression, needed)

    def lookup(self, lookup: Lookup, *more: str) -> BoundTable:
        """A lookup table with its columns checked, and more of them."""
        needs = {c: LABEL for c in (lookup.description, lookup.code, lookup.system, *more) if c}
        needs[lookup.key] = WHOLE if lookup.code else LABEL
        return self.bind(lookup.table, needs, vocabulary=lookup.vocabulary)

    def keys(self, lookup: Lookup) -> Any:
        """The distinct keys of a lookup table that events have, one column `wanted`."""
        columns = [
            bound.table.select(wanted=bound.key(code.column))
            for bound in self.events
            for code in bound.map.codes
            if code.lookup == lookup
        ]
        ibis = import_ibis()
        return ibis.union(*columns, distinct=True) if len(columns) > 1 else columns[0].distinct()

    def stream(self, expression: Any) -> Iterator[pa.Table]:
        """Batches of a query's result, in the types that ibis names."""
        schema = arrow_schema(expression)
        sql = import_ibis().to_sql(expression, dialect=self._database.dialect)
        for batch in self._database.query(str(sql), schema):
            yield plain(batch, schema)

    def rows(self, expression: Any) -> pa.Table:
        """A small result as a whole."""
        schema = arrow_schema(expression)
        found = list(self.stream(expression))
        return pa.concat_tables(found).combine_chunks() if found else schema.empty_table()

    def count(self, table: Any) -> int:
        """The number of rows."""
        return int(self.rows(table.aggregate(rows=table.count()))["rows"][0].as_py())

    def decoder(self, code: CodeColumn, bound: EventTable) -> Decoder:
        """What the codes of a column mean; those that occur are fetched."""
        if code.lookup is None:
            return Decoder(code, None)
        lookup, table = code.lookup, self.lookup(code.lookup)
        keys = bound.table.select(wanted=bound.key(code.column)).distinct()
        chosen = {"key": table.key(lookup.key), "description": table.label(lookup.description)}
        if lookup.code:
            chosen |= {"code": table.label(lookup.code), "system": table.label(lookup.system)}
        known = table.table.select(**chosen)
        found = self.rows(known.semi_join(keys, known.key == keys.wanted))
        if lookup.code:
            found = found.filter(pc.not_equal(found["key"], 0))
        return Decoder(code, self._unique(lookup, found))

    def _unique(self, lookup: Lookup, found: pa.Table) -> pa.Table:
        """One row a key: for keys that are codes the first text in order; two codes for one key are an error."""
        found = found.sort_by([("key", "ascending"), ("description", "ascending")])
        keys = found["key"].combine_chunks()
        if len(keys) < 2:
            return found
        first = pa.concat_arrays([pa.array([True]), pc.not_equal(keys[1:], keys[:-1])])
        if lookup.code and not pc.all(first).as_py():
            twice = keys.filter(pc.invert(first))[0].as_py()
            raise DataError(
                f"The table {lookup.table} of {self._name} has {lookup.key} {twice} more than once",
                why="its events could get either code",
                do="Load the vocabulary tables again, into empty tables",
            )
        return found.filter(first)

    def _event_table(self, mapped: TableMap) -> EventTable:
        there = self._columns(self._schema, self._find(self._schema, mapped.table))
        dates = [d for d in mapped.dates if d.lower() in there] or mapped.dates[:1]
        needs = {mapped.patient: LABEL, **dict.fromkeys(dates, DAY)}
        for code in mapped.codes:
            needs[code.column] = WHOLE if code.lookup is not None and code.lookup.code else LABEL
            if code.system_column:
                needs[code.system_column] = LABEL
        if mapped.only is not None:
            needs[mapped.only.column] = LABEL
        return EventTable(self.bind(mapped.table, needs), mapped)

    def _columns(self, schema: str, real: str) -> Columns:
        """Of those that differ in case only, the first."""
        return {c.name.lower(): c for c in reversed(self._database.columns(schema, real))}

    def _find(self, schema: str, table: str) -> str:
        """The table's name in the database's own spelling; that of the data model goes before others."""
        if schema not in self._known:
            self._known[schema] = {}
            for name in self._database.tables(schema):
                self._known[schema].setdefault(name.lower(), []).append(name)
        names = self._known[schema].get(table.lower(), [])
        if len(names) == 1 or table in names:
            return table if table in names else names[0]
        where = f"schema {schema}" if schema else "default schema"
        if names:
            raise DataError(
                f"The {where} of {self._name} has the tables {' and '.join(sorted(names))}",
                why="they differ in case only, and one of them is meant",
                do="Rename one of them",
            )
        there = ", ".join(sorted(self._known[schema])[:20]) or "none"
        raise DataError(
            f"The {where} of {self._name} has no table {table}",
            why=f"its tables are {there}",
            do="Name the right schema in data.schema, or leave the table's domain out of data.domains",
        )


def _check_kind(where: str, column: Column, kinds: frozenset[str]) -> None:
    if not column.readable:
        raise DataError(
            f"This user may not read {column.name} of the table {where}",
            do=f"Ask the database's owner for GRANT SELECT ON {where} TO the user that data.database names, "
            "and GRANT USAGE on its schema",
        )
    if column.kind in kinds:
        return
    wanted = "a date" if kinds == DAY else "a whole number" if kinds == WHOLE else "a whole number or text"
    why, do = f"{wanted} is needed", f"Make a view with a column {column.name} of the right type"
    if column.kind == "zoned":
        why = "the day of a time with a time zone depends on the zone, which the database does not keep"
        do = f"Make a view with ({column.name} AT TIME ZONE 'the hospital''s zone')::date as {column.name}"
    raise DataError(
        f"The column {column.name} of the table {where} is of type {column.declared}", why=why, do=do
    )


def arrow_schema(expression: Any) -> pa.Schema:
    """The columns that a query gives: int64, string and date32 only."""
    types = {"int64": pa.int64(), "string": pa.string(), "date": pa.date32()}
    return pa.schema([(name, types[str(t).lstrip("!")]) for name, t in expression.schema().items()])


def plain(batch: pa.Table, schema: pa.Schema) -> pa.Table:
    """The batch in plain Arrow types; dates that no date32 can be stay text, for `clean` to count."""
    columns = []
    for column, wanted in zip(batch.columns, schema.types, strict=True):
        if column.type == wanted:
            columns.append(column)
            continue
        try:
            columns.append(column.cast(wanted))
        except pa.ArrowInvalid:
            if not pa.types.is_date(wanted):
                raise
            columns.append(column.cast(pa.string()))
    return pa.table(columns, names=schema.names)


def import_ibis() -> Any:
    """The ibis package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import ibis  # noqa: PLC0415 (an optional extra)
    except ImportError as error:
        raise no_extra("sql", error) from None
    return ibis
