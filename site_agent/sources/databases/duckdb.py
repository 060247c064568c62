"""DuckDB: a file that this process reads by itself."""

# ruff: noqa: D102 (`Database` says what the methods do)

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote

import pyarrow as pa

from protocol.errors import DataError
from site_agent.sources.databases.base import BATCH_ROWS, Column, first_line, no_extra


class DuckDB:
    """A file, opened so that nothing can be written."""

    dialect = "duckdb"

    def __init__(self, url: SplitResult, name: str) -> None:
        try:
            import duckdb  # noqa: PLC0415 (an optional extra)
        except ImportError as error:
            raise no_extra("sql", error) from None
        self._name = name
        self.errors: tuple[type[Exception], ...] = (duckdb.Error,)
        path = Path(unquote(url.path))
        if not path.is_file():
            raise DataError(
                f"There is no database file {path}",
                do="Correct data.database in site.toml; after duckdb:// comes the absolute path",
            )
        try:
            # Nothing is fetched from outside, whatever a view asks for.
            settings: dict[str, Any] = {"autoinstall_known_extensions": "false"}
            self._connection = duckdb.connect(str(path), read_only=True, config=settings)
        except duckdb.Error as error:
            raise DataError(
                f"The database file {path} cannot be opened",
                why=first_line(error),
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
        return [Column(name, declared) for name, declared in found]

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
            f"{self._name} cannot be read", why=first_line(error), do="Check the file and its views"
        )

    def close(self) -> None:
        self._connection.close()
