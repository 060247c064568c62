"""Events from a relational database: a declarative map of its tables, on DuckDB, PostgreSQL or Spark.

A `TableMap` says which columns hold patient, date and code. ibis writes the queries in each database's dialect; they
only choose columns, cast them and count. What a code means is looked up here, in Arrow, from a table of the concepts
that occur: all databases then give the same rows, and no name travels with each of a million rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from protocol.errors import DataError, UsageError
from site_agent.sections import Data
from site_agent.sources import Reading
from site_agent.sources.databases import connect
from site_agent.sources.databases.base import BATCH_ROWS
from site_agent.sources.databases.url import parse_url
from site_agent.sources.decoder import events_of, only_events
from site_agent.sources.tablemap import CodeColumn, Lookup, Only, TableMap
from site_agent.sources.tables import WHOLE, Tables, import_ibis

__all__ = ["BATCH_ROWS", "WHOLE", "CodeColumn", "Lookup", "Only", "RelationalSource", "TableMap", "Tables"]


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
        self._url = parse_url(data.database)
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
            facts.extend(
                [lookup.table, tables.count(tables.lookup(lookup).table)] for lookup in tables.lookups
            )
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
                    kept = only_events(raw, bound.map.only, reading)
                    if len(kept):
                        yield events_of(kept, decoders)
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
    def _open(self) -> Iterator[Tables]:
        """The tables, found and checked; every error of the database's library becomes a DataError."""
        import_ibis()  # said before a server is asked
        with connect(self._url, self.name) as database:
            yield Tables(database, self._data, self.maps, self.name)
