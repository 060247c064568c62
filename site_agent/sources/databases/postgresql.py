"""PostgreSQL: a server, read through COPY in one transaction."""

# ruff: noqa: D102 (`Database` says what the methods do)

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from typing import Any
from urllib.parse import SplitResult, unquote

import pyarrow as pa
import pyarrow.csv as pa_csv

from protocol.errors import DataError
from site_agent.sources.databases.base import BATCH_ROWS, CONNECT_SECONDS, Column, first_line, no_extra
from site_agent.sources.databases.url import PASSWORD_VARIABLE


class PostgreSQL:
    """One connection, and one read-only transaction for everything: all tables are of one moment."""

    dialect = "postgres"

    def __init__(self, url: SplitResult, name: str) -> None:
        try:
            import psycopg  # noqa: PLC0415 (an optional extra)
        except ImportError as error:
            raise no_extra("sql", error) from None
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
        return [Column(name, declared, readable) for name, declared, readable in found]

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
                f"{self._name} refuses to read: {first_line(error)}",
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
                why=first_line(error),
                do="Run again; nothing that was read in part is used",
            )
        return DataError(
            f"{self._name} cannot be read", why=first_line(error), do="Show this to its administrator"
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
