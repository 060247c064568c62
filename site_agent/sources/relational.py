"""Events from a relational database: a declarative map of its tables, on DuckDB, PostgreSQL or Spark.

A `TableMap` says which columns hold patient, date and code. ibis writes the queries in each database's dialect; they
only choose columns, cast them and count. What a code means is looked up here, in Arrow, from a table of the concepts
that occur: all databases then give the same rows, and no name travels with each of a million rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from protocol.errors import DataError, FederationError, UsageError
from site_agent.config import Data, Domain
from site_agent.sources import Reading

BATCH_ROWS = 500_000
CONNECT_SECONDS = 10
PASSWORD_VARIABLE = "SMILE_DATABASE_PASSWORD"  # noqa: S105 (a name, not a password)

WHOLE = frozenset({"integer", "number"})
_LABEL = WHOLE | {"text", "uuid"}
_DAY = frozenset({"date", "timestamp", "text"})
_DTYPE = {"integer": "int64", "number": "decimal(38, 0)", "text": "string", "uuid": "uuid"}
_KINDS = (
    ("integer", r"u?(tiny|small|big|huge)?int(eger)?|u?hugeint"),
    ("number", r"(numeric|decimal)(\(\d+(,\s*0)?\))?"),
    ("text", r"(character varying|character|varchar|char|text|string|bpchar|citext|name|enum)(\(.*\))?"),
    ("date", r"date"),
    ("zoned", r"timestamp(\(\d\))? with time zone|timestamptz"),
    ("timestamp", r"timestamp(_ntz|_s|_ms|_ns|\(\d\))?( without time zone)?"),
    ("uuid", r"uuid"),
)


@dataclass(frozen=True)
class Lookup:
    """A table in which the codes of an event table are keys.

    Attributes:
        table: its name.
        key: the column that the event table's code column equals; 0 is nobody's key.
        description: the column with the text.
        code: the column with the code itself; "" if the key is the code.
        system: the column with the code system; "" if there is none.
        public: whether the texts come from a public terminology.
        vocabulary: whether it lies in `data.vocabulary_schema`.
    """

    table: str
    key: str
    description: str
    code: str = ""
    system: str = ""
    public: bool = False
    vocabulary: bool = False


@dataclass(frozen=True)
class CodeColumn:
    """A column that may hold an event's code.

    Attributes:
        column: its name.
        system: the code system of all its codes; "" for the configured one.
        system_column: the column with a short sign of the code system, if each row says its own.
        systems: sign -> prefix, "" for the configured one; other signs are passed on as they are.
        alike: (sign, regular expression, prefix): codes under the sign that look like this are of another system.
        split: whether the codes are written PREFIX:code.
        lookup: the table that says what the codes mean.
    """

    column: str
    system: str = ""
    system_column: str = ""
    systems: Mapping[str, str] = field(default_factory=dict)
    alike: tuple[tuple[str, str, str], ...] = ()
    split: bool = False
    lookup: Lookup | None = None


@dataclass(frozen=True)
class Only:
    """Rows that are events by themselves; the others are skipped and counted.

    Attributes:
        column: the column that tells.
        value: what it holds in rows to keep, or null.
        reason: what the other rows are counted as.
    """

    column: str
    value: str
    reason: str


@dataclass(frozen=True)
class TableMap:
    """Where in a table its events are.

    Attributes:
        table: its name; case does not matter, here and in columns.
        patient: the column with the patient.
        dates: columns with a date; the first that is not null counts. One of them must exist.
        codes: columns with a code; the first that holds one counts.
        domain: what kind of events; None if of every kind.
        only: which rows are events, if not all.
    """

    table: str
    patient: str
    dates: tuple[str, ...]
    codes: tuple[CodeColumn, ...]
    domain: Domain | None = None
    only: Only | None = None


@dataclass(frozen=True)
class Column:
    """A column as the database has it.

    Attributes:
        name: in the database's own spelling.
        kind: integer, number (whole), text, date, timestamp, zoned (timestamp with a time zone), uuid or other.
        declared: the database's word for its type.
        readable: whether this user may read it.
    """

    name: str
    kind: str
    declared: str
    readable: bool = True


Columns: TypeAlias = Mapping[str, Column]  # by lower-case name


class _Database(Protocol):
    """A connection that lists tables and streams the results of queries."""

    dialect: str
    errors: tuple[type[Exception], ...]

    def tables(self, schema: str) -> list[str]: ...

    def columns(self, schema: str, table: str) -> list[Column]: ...

    def location(self, schema: str, table: str) -> dict[str, Any]:
        """How ibis is told where a table is."""
        ...

    def query(self, sql: str, schema: pa.Schema) -> Iterator[pa.Table]: ...

    def explain(self, error: Exception) -> DataError:
        """One of `errors` in words for the user."""
        ...

    def close(self) -> None: ...


class RelationalSource:
    """Events of one database, read through table maps.

    Args:
        data: where the database is and which domains to read.
        maps: its tables; those of other domains are never looked at.

    Raises:
        UsageError: the URL is wrong or holds a password, no table is left, or an extra is not installed.
    """

    def __init__(self, data: Data, maps: Sequence[TableMap]) -> None:
        self._data = data
        self._url = _parse(data.database)
        self.maps = tuple(m for m in maps if m.domain is None or m.domain in data.domains)
        if not self.maps:
            raise UsageError(
                f"No table of kind {data.kind} has the domains {', '.join(data.domains) or '(none)'}",
                do="Set data.domains in site.toml",
            )

    @property
    def name(self) -> str:
        """The database's URL, which holds no password, and the schema."""
        schema = f", schema {self._data.schema_}" if self._data.schema_ else ""
        return f"{self._url.scheme}://{self._url.netloc}{self._url.path}{schema}"

    def fingerprint(self) -> str:
        """A digest of columns, row counts and last dates of every table that is read; updates in place do not show.

        Raises:
            DataError: no connection, no rights, or a table or column is missing or of a wrong type.
        """
        with self._open() as tables:
            facts: list[Any] = []
            for bound in tables.events:
                last = bound.date().max().cast("string")
                found = tables.rows(bound.table.aggregate(rows=bound.table.count(), last=last))
                kinds = {name: column.kind for name, column in bound.columns.items()}
                facts.append([bound.map.table, kinds, found["rows"][0].as_py(), found["last"][0].as_py()])
            lookups = dict.fromkeys(c.lookup for m in self.maps for c in m.codes if c.lookup)
            facts.extend([lookup.table, tables.count(tables.lookup(lookup).table)] for lookup in lookups)
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def batches(self, reading: Reading) -> Iterator[pa.Table]:
        """Raw rows, table by table; on PostgreSQL all of one snapshot.

        Raises:
            DataError: as `fingerprint`; the connection is lost, or a table changes while it is read.
        """
        with self._open() as tables:
            counts = [tables.count(bound.table) for bound in tables.events]
            total, done = max(sum(counts), 1), 0
            for bound, count in zip(tables.events, counts, strict=True):
                decoders = [tables.decoder(code, bound) for code in bound.map.codes]
                read = 0
                for raw in tables.stream(bound.select()):
                    read += len(raw)
                    reading.progress(f"reading {bound.map.table}", min((done + read) / total, 1.0))
                    kept = _filtered(raw, bound.map.only, reading)
                    if len(kept):
                        yield _events(kept, decoders)
                if read != count:
                    raise DataError(
                        f"The table {bound.map.table} of {self.name} changed while it was read",
                        why=f"it had {count:,} rows, then {read:,}",
                        do="Run again when no one loads data",
                    )
                done += count

    def ancestors(self) -> Mapping[str, tuple[str, ...]] | None:
        """None: only OMOP has a hierarchy that is used."""
        return None

    @contextlib.contextmanager
    def _open(self) -> Iterator[_Tables]:
        """The tables, found and checked; every error of the database's library becomes a DataError."""
        with _connect(self._url, self.name) as database:
            yield _Tables(database, self._data, self.maps, self.name)


class _BoundTable:
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


class _EventTable(_BoundTable):
    """A table with events."""

    def __init__(self, bound: _BoundTable, mapped: TableMap) -> None:
        super().__init__(bound.table, bound.columns)
        self.map = mapped

    def date(self) -> Any:
        """The first date of a row that is not null: dates, or text if one of the columns is."""
        found = [self.columns[d.lower()] for d in self.map.dates if d.lower() in self.columns]
        text = any(c.kind == "text" for c in found)
        values = [self.table[c.name] if c.kind == "text" else self.table[c.name].cast("date") for c in found]
        return _ibis().coalesce(*(v.cast("string") for v in values)) if text else _ibis().coalesce(*values)

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


class _Tables:
    """The tables of one connection."""

    def __init__(self, database: _Database, data: Data, maps: Sequence[TableMap], name: str) -> None:
        self._database, self._name = database, name
        self._schema, self._vocabulary = data.schema_, data.vocabulary_schema or data.schema_
        self._known: dict[str, dict[str, list[str]]] = {}
        self.maps = maps
        # Every table is found and checked before the first row of any is read.
        self.events = [self._event_table(m) for m in maps]
        for lookup in {c.lookup for m in maps for c in m.codes if c.lookup}:
            self.lookup(lookup)

    def bind(
        self, table: str, needs: Mapping[str, frozenset[str]], *, vocabulary: bool = False
    ) -> _BoundTable:
        """A table with columns of the kinds that are needed.

        Raises:
            DataError: it, or one of them, is not there, not readable or of another kind.
        """
        schema = self._vocabulary if vocabulary else self._schema
        real = self._find(schema, table)
        where = f"{schema}.{real}" if schema else real
        columns: dict[str, Column] = {}
        for column in self._database.columns(schema, real):
            columns.setdefault(column.name.lower(), column)
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
        expression = _ibis().table(dtypes, **self._database.location(schema, real))
        return _BoundTable(expression, needed)

    def lookup(self, lookup: Lookup, *more: str) -> _BoundTable:
        """A lookup table with its columns checked, and more of them."""
        needs = {c: _LABEL for c in (lookup.description, lookup.code, lookup.system, *more) if c}
        needs[lookup.key] = WHOLE if lookup.code else _LABEL
        return self.bind(lookup.table, needs, vocabulary=lookup.vocabulary)

    def keys(self, lookup: Lookup) -> Any:
        """The distinct keys of a lookup table that events have, one column `wanted`."""
        columns = [
            bound.table.select(wanted=bound.key(code.column))
            for bound in self.events
            for code in bound.map.codes
            if code.lookup == lookup
        ]
        ibis = _ibis()
        return ibis.union(*columns, distinct=True) if len(columns) > 1 else columns[0].distinct()

    def stream(self, expression: Any) -> Iterator[pa.Table]:
        """Batches of a query's result, in the types that ibis names."""
        schema = pa.schema([(n, _arrow_type(t)) for n, t in expression.schema().items()])
        sql = _ibis().to_sql(expression, dialect=self._database.dialect)
        for batch in self._database.query(str(sql), schema):
            yield _plain(batch, schema)

    def rows(self, expression: Any) -> pa.Table:
        """A small result as a whole."""
        schema = pa.schema([(n, _arrow_type(t)) for n, t in expression.schema().items()])
        found = list(self.stream(expression))
        return pa.concat_tables(found).combine_chunks() if found else schema.empty_table()

    def count(self, table: Any) -> int:
        """The number of rows."""
        return int(self.rows(table.aggregate(rows=table.count()))["rows"][0].as_py())

    def decoder(self, code: CodeColumn, bound: _EventTable) -> _Decoder:
        """What the codes of a column mean; those that occur are fetched."""
        if code.lookup is None:
            return _Decoder(code, None)
        lookup, table = code.lookup, self.lookup(code.lookup)
        keys = bound.table.select(wanted=bound.key(code.column)).distinct()
        chosen = {"key": table.key(lookup.key), "description": table.label(lookup.description)}
        if lookup.code:
            chosen |= {"code": table.label(lookup.code), "system": table.label(lookup.system)}
        known = table.table.select(**chosen)
        found = self.rows(known.semi_join(keys, known.key == keys.wanted))
        if lookup.code:
            found = found.filter(pc.not_equal(found["key"], 0))
        return _Decoder(code, self._unique(lookup, found))

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

    def _event_table(self, mapped: TableMap) -> _EventTable:
        real = self._find(self._schema, mapped.table)
        there = {c.name.lower() for c in self._database.columns(self._schema, real)}
        dates = [d for d in mapped.dates if d.lower() in there] or mapped.dates[:1]
        needs = {mapped.patient: _LABEL, **dict.fromkeys(dates, _DAY)}
        for code in mapped.codes:
            needs[code.column] = WHOLE if code.lookup is not None and code.lookup.code else _LABEL
            if code.system_column:
                needs[code.system_column] = _LABEL
        if mapped.only is not None:
            needs[mapped.only.column] = _LABEL
        return _EventTable(self.bind(mapped.table, needs), mapped)

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


class _Decoder:
    """Makes code, system, description and public of one code column."""

    def __init__(self, code: CodeColumn, known: pa.Table | None) -> None:
        self._code, self._known = code, known

    def decode(self, values: pa.ChunkedArray, signs: pa.ChunkedArray | None) -> tuple[pa.Array, ...]:
        """(code, system, description), null where there is none."""
        values = values.combine_chunks()
        nulls = pa.nulls(len(values), pa.string())
        description, system = nulls, nulls
        code = values
        if self._known is not None:
            at = pc.index_in(values, value_set=self._known["key"].combine_chunks())
            description = self._known["description"].combine_chunks().take(at)
            if "code" in self._known.column_names:
                code = self._known["code"].combine_chunks().take(at)
                system = self._known["system"].combine_chunks().take(at)
        if self._code.split:
            system, code = _split(code)
        elif self._code.system:
            system = pa.array([self._code.system], pa.string()).take(pa.array([0] * len(values)))
        elif signs is not None:
            system = self._named(signs.combine_chunks(), code)
        return code, system, description

    def _named(self, signs: pa.Array, codes: pa.Array) -> pa.Array:
        signs = pc.utf8_trim_whitespace(signs)
        upper = pc.utf8_upper(signs)
        names = self._code.systems
        at = pc.index_in(upper, value_set=pa.array(list(names), pa.string()))
        prefix = pa.array([p or None for p in names.values()], pa.string()).take(at)
        system = pc.if_else(pc.is_valid(at), prefix, signs)
        for sign, pattern, other in self._code.alike:
            alike = pc.and_(
                pc.equal(upper, sign), pc.match_substring_regex(codes, f"^\\s*(?:{pattern})\\s*$")
            )
            system = pc.if_else(pc.fill_null(alike, False), other, system)
        return system


def _events(raw: pa.Table, decoders: Sequence[_Decoder]) -> pa.Table:
    """Raw rows with the first code that each holds."""
    chosen: tuple[pa.Array, ...] | None = None
    public = pa.array([False]).take(pa.array([0] * len(raw)))
    for i, decoder in enumerate(decoders):
        signs = raw[f"system{i}"] if f"system{i}" in raw.column_names else None
        found = decoder.decode(raw[f"code{i}"], signs)
        lookup = decoder._code.lookup
        if chosen is None:
            chosen, public = found, pa.array([bool(lookup and lookup.public)]).take(pa.array([0] * len(raw)))
            continue
        empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(chosen[0]), ""), True)
        chosen = tuple(pc.if_else(empty, new, old) for new, old in zip(found, chosen, strict=True))
        public = pc.if_else(empty, bool(lookup and lookup.public), public)
    if chosen is None:
        raise ValueError("a table map without code columns")
    code, system, description = chosen
    return pa.table(
        {
            "patient": raw["patient"],
            "date": raw["date"],
            "code": code,
            "system": system,
            "description": description,
            "public": public,
        }
    )


def _split(codes: pa.Array) -> tuple[pa.Array, pa.Array]:
    """PREFIX and code; a code without a colon has no prefix."""
    encoded = codes.dictionary_encode()
    parts = pc.extract_regex(encoded.dictionary, r"(?s)^(?P<system>[^:]*):(?P<code>.*)$")
    system, code = parts.field("system"), parts.field("code")
    whole = parts.is_null()
    system = pc.if_else(whole, None, system)
    code = pc.if_else(whole, encoded.dictionary, code)
    return system.take(encoded.indices), code.take(encoded.indices)


def _filtered(raw: pa.Table, only: Only | None, reading: Reading) -> pa.Table:
    if only is None:
        return raw
    keep = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(raw["only"]), only.value), True)
    kept = raw.filter(keep)
    reading.skip(only.reason, len(raw) - len(kept))
    return kept


def _check_kind(where: str, column: Column, kinds: frozenset[str]) -> None:
    if not column.readable:
        raise DataError(
            f"This user may not read {column.name} of the table {where}",
            do=f"Ask the database's owner for GRANT SELECT ON {where} TO the user that data.database names, "
            "and GRANT USAGE on its schema",
        )
    if column.kind in kinds:
        return
    wanted = "a date" if kinds == _DAY else "a whole number" if kinds == WHOLE else "a whole number or text"
    why, do = f"{wanted} is needed", f"Make a view with a column {column.name} of the right type"
    if column.kind == "zoned":
        why = "the day of a time with a time zone depends on the zone, which the database does not keep"
        do = f"Make a view with ({column.name} AT TIME ZONE 'the hospital''s zone')::date as {column.name}"
    raise DataError(
        f"The column {column.name} of the table {where} is of type {column.declared}", why=why, do=do
    )


def _kind(declared: str) -> str:
    word = declared.strip().lower()
    return next((kind for kind, pattern in _KINDS if re.fullmatch(pattern, word, re.DOTALL)), "other")


def _arrow_type(dtype: Any) -> pa.DataType:
    names = {"int64": pa.int64(), "string": pa.string(), "date": pa.date32()}
    return names[str(dtype).lstrip("!")]


def _plain(batch: pa.Table, schema: pa.Schema) -> pa.Table:
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


def _ibis() -> Any:
    """The ibis package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import ibis  # noqa: PLC0415 (an optional extra)
    except ImportError as error:
        raise _no_extra("sql", error) from None
    return ibis


def _no_extra(name: str, error: ImportError) -> UsageError:
    return UsageError(
        "A database cannot be read here",
        why=str(error).splitlines()[0][:200],
        do=f"Install it with: pip install 'smile-federation[site,{name}]'",
    )


# Below: the three kinds of databases. Each lists tables, and streams a query's result in batches of bounded size.


def _parse(url: str) -> SplitResult:
    """The parts of a database URL.

    Raises:
        UsageError: it is of no known form, or holds a password, which the message does not repeat.
    """
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_fine = urlsplit(""), False
    if parts.password is not None or "password" in parse_qs(parts.query) or _hidden_password(parts):
        raise UsageError(
            "data.database holds a password",
            why="site.toml is read and copied by people who must not have it",
            do=f"Take it out of the URL and put it into the variable {PASSWORD_VARIABLE} or into ~/.pgpass; "
            "change the password if others have seen it",
        )
    whole = {"duckdb": parts.path.strip("/") and not parts.netloc, "postgresql": parts.path.strip("/")}
    if not port_is_fine or not whole.get(parts.scheme, parts.scheme == "spark" and parts.hostname):
        raise UsageError(
            "data.database is not the URL of a database that can be read",
            do="Write duckdb:///path/to/file, postgresql://user@host:port/name, spark://local or spark://host:port",
        )
    return parts


def _hidden_password(parts: SplitResult) -> bool:
    """A password with a slash in it ends the host's part early."""
    return parts.scheme == "postgresql" and "@" in parts.path + parts.query


@contextlib.contextmanager
def _connect(url: SplitResult, name: str) -> Iterator[_Database]:
    """An open database whose library's errors become DataErrors.

    Raises:
        DataError: it is not there, refuses this user, or fails later.
        UsageError: an extra is not installed.
    """
    _ibis()
    kinds: dict[str, Callable[[SplitResult, str], _Database]]
    kinds = {"duckdb": _DuckDB, "postgresql": _PostgreSQL, "spark": _Spark}
    database = kinds[url.scheme](url, name)
    try:
        yield database
    except FederationError:
        raise
    except (*database.errors, pa.ArrowException) as error:
        raise database.explain(error) from None
    finally:
        database.close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


class _DuckDB:
    """A file, opened so that nothing can be written."""

    dialect = "duckdb"

    def __init__(self, url: SplitResult, name: str) -> None:
        try:
            import duckdb  # noqa: PLC0415 (an optional extra)
        except ImportError as error:
            raise _no_extra("sql", error) from None
        self._name = name
        self.errors: tuple[type[Exception], ...] = (duckdb.Error,)
        path = Path(unquote(url.path))
        if not path.is_file():
            raise DataError(f"There is no database file {path}", do="Correct data.database in site.toml")
        try:
            # Nothing is fetched from outside, whatever a view asks for.
            settings: dict[str, Any] = {"autoinstall_known_extensions": "false"}
            self._connection = duckdb.connect(str(path), read_only=True, config=settings)
        except duckdb.Error as error:
            raise DataError(
                f"The database file {path} cannot be opened",
                why=_first_line(error),
                do="Close the program that has it open for writing, or name a DuckDB file",
            ) from None

        self._catalog = self._connection.execute("SELECT current_database()").fetchall()[0][0]

    def tables(self, schema: str) -> list[str]:
        asked = (
            "SELECT table_name FROM information_schema.tables "
            "WHERE table_catalog = current_database() AND lower(table_schema) = lower(?)"
        )
        return [row[0] for row in self._connection.execute(asked, [schema or "main"]).fetchall()]

    def columns(self, schema: str, table: str) -> list[Column]:
        asked = (
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_catalog = current_database() "
            "AND lower(table_schema) = lower(?) AND table_name = ? ORDER BY ordinal_position"
        )
        found = self._connection.execute(asked, [schema or "main", table]).fetchall()
        return [Column(name, _kind(declared), declared) for name, declared in found]

    def location(self, schema: str, table: str) -> dict[str, Any]:
        # A file cdm.duckdb with a schema cdm: without its catalog the name would be ambiguous.
        return {"name": table, "catalog": self._catalog, "database": schema or "main"}

    def query(self, sql: str, schema: pa.Schema) -> Iterator[pa.Table]:
        # A cursor of its own: one connection holds one open result.
        with self._connection.cursor() as cursor:
            for batch in cursor.sql(sql).to_arrow_reader(BATCH_ROWS):
                yield pa.Table.from_batches([batch])

    def explain(self, error: Exception) -> DataError:
        return DataError(
            f"{self._name} cannot be read", why=_first_line(error), do="Check the file and its views"
        )

    def close(self) -> None:
        self._connection.close()


class _PostgreSQL:
    """One connection, and one read-only transaction for everything: all tables are of one moment."""

    dialect = "postgres"

    def __init__(self, url: SplitResult, name: str) -> None:
        try:
            import psycopg  # noqa: PLC0415 (an optional extra)
        except ImportError as error:
            raise _no_extra("sql", error) from None
        self._name, self._user = name, unquote(url.username or "")
        self._psycopg = psycopg
        self.errors: tuple[type[Exception], ...] = (psycopg.Error,)
        settings: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "client_encoding": "utf8"}
        if password := os.environ.get(PASSWORD_VARIABLE):
            settings["password"] = password
        try:
            self._connection = psycopg.connect(url.geturl(), application_name="site-agent", **settings)
            self._prepare()
        except psycopg.Error as error:
            raise self._refused(error) from None

    def _prepare(self) -> None:
        self._connection.isolation_level = self._psycopg.IsolationLevel.REPEATABLE_READ
        self._connection.read_only = True
        for setting in (
            # Rows that a policy hides would be missing without a word: now they are an error.
            "SET row_security = off",
            # A role's limits are made for people's queries, not for one that reads everything.
            "SET statement_timeout = 0",
            "SET idle_in_transaction_session_timeout = 0",
            "SET datestyle = 'ISO, YMD'",
        ):
            self._connection.execute(setting)

    def tables(self, schema: str) -> list[str]:
        asked = (
            "SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname = coalesce(%s, current_schema())"
        )
        return [row[0] for row in self._connection.execute(asked, [schema or None]).fetchall()]

    def columns(self, schema: str, table: str) -> list[Column]:
        asked = (
            "SELECT a.attname, CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) "
            "WHEN t.typtype = 'e' THEN 'enum' ELSE format_type(a.atttypid, a.atttypmod) END, "
            "has_schema_privilege(n.oid, 'USAGE') AND has_column_privilege(c.oid, a.attnum, 'SELECT') "
            "FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid "
            "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_type t ON t.oid = a.atttypid "
            "WHERE n.nspname = coalesce(%s, current_schema()) AND c.relname = %s AND a.attnum > 0 "
            "AND NOT a.attisdropped ORDER BY a.attnum"
        )
        found = self._connection.execute(asked, [schema or None, table]).fetchall()
        return [Column(name, _kind(declared), declared, readable) for name, declared, readable in found]

    def location(self, schema: str, table: str) -> dict[str, Any]:
        return {"name": table, "database": schema or None}

    def query(self, sql: str, schema: pa.Schema) -> Iterator[pa.Table]:
        # COPY streams as a cursor does, and its text goes to Arrow without a Python object for each value.
        convert = pa_csv.ConvertOptions(
            # A date that Arrow cannot hold, as infinity, must not stop the reading here.
            column_types={f.name: pa.string() if pa.types.is_date(f.type) else f.type for f in schema},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        read = pa_csv.ReadOptions(column_names=schema.names, use_threads=False)
        parse = pa_csv.ParseOptions(newlines_in_values=True)
        with self._connection.cursor() as cursor, cursor.copy(f"COPY ({sql}) TO STDOUT (FORMAT csv)") as rows:
            # Each row is an object of its own until it is joined to others: few at a time.
            while text := b"".join(b"".join(islice(rows, 10_000)) for _ in range(BATCH_ROWS // 10_000)):
                yield pa_csv.read_csv(pa.py_buffer(text), read, parse, convert)

    def explain(self, error: Exception) -> DataError:
        state = getattr(error, "sqlstate", None)
        if state == "42501":
            return DataError(
                f"{self._name} refuses to read: {_first_line(error)}",
                do=f"Ask the database's owner for GRANT SELECT on the tables to {self._user or 'this user'}; "
                "where row-level security hides rows, for BYPASSRLS",
            )
        if (
            getattr(self._connection, "broken", False)
            or self._connection.closed
            or str(state).startswith("57P")
        ):
            return DataError(
                f"The connection to {self._name} was lost while it was read",
                why=_first_line(error),
                do="Run again; nothing that was read in part is used",
            )
        return DataError(
            f"{self._name} cannot be read", why=_first_line(error), do="Show this to its administrator"
        )

    def close(self) -> None:
        self._connection.close()

    def _refused(self, error: Exception) -> DataError:
        text = " ".join(str(error).split())
        if "password" in text:
            do = f"Put the right password into {PASSWORD_VARIABLE} or ~/.pgpass"
        elif "database" in text and "does not exist" in text:
            do = "Correct the database's name at the end of data.database"
        elif "role" in text:
            do = "Correct the user in data.database"
        else:
            do = "Check host and port in data.database, and that the server runs and is open to this machine"
        return DataError(f"No connection to {self._name}", why=text[:300], do=do)


class _Spark:
    """A session on this machine or a cluster; a session of this process is used if there is one."""

    dialect = "pyspark"

    def __init__(self, url: SplitResult, name: str) -> None:
        try:
            from py4j.protocol import Py4JError  # noqa: PLC0415 (an optional extra)
            from pyspark.errors import PySparkException  # noqa: PLC0415
            from pyspark.sql import SparkSession  # noqa: PLC0415
        except ImportError as error:
            raise _no_extra("spark", error) from None
        self._name = name
        self.errors: tuple[type[Exception], ...] = (PySparkException, Py4JError, OSError)
        local = url.hostname == "local"
        if not local:
            _probe(url, name)
        # Workers on this machine must be the Python that has pyarrow, not the first one on the path.
        if local:
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.appName("site-agent").config("spark.log.level", "OFF")
        builder = builder.config("spark.ui.showConsoleProgress", "false")
        try:
            self._session = builder.master("local[*]" if local else f"spark://{url.netloc}").getOrCreate()
        except self.errors as error:
            raise DataError(
                f"Spark does not start for {name}",
                why=_first_line(error),
                do="Check that Java 17 or 21 is installed and JAVA_HOME names it, and that the cluster runs",
            ) from None

    def tables(self, schema: str) -> list[str]:
        place = f" IN {_quoted(schema)}" if schema else ""
        found = self._session.sql(f"SHOW TABLES{place}").collect()
        # A temporary view belongs to the session, not to a schema.
        return [row["tableName"] for row in found if not (schema and row["isTemporary"])]

    def columns(self, schema: str, table: str) -> list[Column]:
        place = f"{_quoted(schema)}." if schema else ""
        fields = self._session.sql(f"SELECT * FROM {place}`{table}` LIMIT 0").schema.fields  # noqa: S608 (catalog's names)
        # Spark's timestamp counts in the session's zone, and so does its day.
        return [Column(f.name, _kind(t), t) for f in fields for t in [f.dataType.simpleString()]]

    def location(self, schema: str, table: str) -> dict[str, Any]:
        catalog, _, namespace = schema.rpartition(".")
        return {"name": table, "catalog": catalog or None, "database": namespace or None}

    def query(self, sql: str, schema: pa.Schema) -> Iterator[pa.Table]:
        # toArrow() would hold the whole result. Workers pack batches as Arrow bytes; one partition at a time comes here.
        packed = self._session.sql(sql).mapInArrow(_packer(), "packed binary")
        rows = packed.toLocalIterator()
        batches = chain.from_iterable(pa.ipc.open_stream(row[0]) for row in rows)
        waiting: list[pa.RecordBatch] = []
        for batch in batches:
            waiting.append(batch)
            if sum(map(len, waiting)) >= BATCH_ROWS:
                yield pa.Table.from_batches(waiting)
                waiting = []
        if waiting:
            yield pa.Table.from_batches(waiting)

    def explain(self, error: Exception) -> DataError:
        if "pyarrow" in str(error):
            why, do = (
                "its workers lack pyarrow",
                "Install pyarrow for the workers' Python, or set PYSPARK_PYTHON",
            )
        else:
            why, do = _first_line(error), "Check data.schema, and the cluster's own log"
        return DataError(f"{self._name} cannot be read", why=why, do=do)

    def close(self) -> None:
        """The session stays: starting one takes seconds, and it ends with the process."""


def _packer() -> Any:
    # A function within a function travels to workers by value: they need not have this package.
    def pack(batches: Iterator[Any]) -> Iterator[Any]:
        import pyarrow  # noqa: PLC0415 (the worker's)

        for batch in batches:
            sink = pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            packed = pyarrow.array([sink.getvalue().to_pybytes()], pyarrow.binary())
            yield pyarrow.record_batch([packed], names=["packed"])

    return pack


def _quoted(schema: str) -> str:
    return ".".join(f"`{part.replace('`', '``')}`" for part in schema.split("."))


def _probe(url: SplitResult, name: str) -> None:
    """Spark itself would try for minutes."""
    try:
        with socket.create_connection((url.hostname or "", url.port or 7077), timeout=CONNECT_SECONDS):
            return
    except OSError as error:
        raise DataError(
            f"There is no Spark at {name}",
            why=_first_line(error),
            do="Check host and port in data.database, and that the cluster's master runs",
        ) from None
