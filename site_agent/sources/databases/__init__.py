"""DuckDB, PostgreSQL and Spark, each read through its own library."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from urllib.parse import SplitResult

import pyarrow as pa

from site_agent.sources.databases.base import Database
from site_agent.sources.databases.duckdb import DuckDB
from site_agent.sources.databases.postgresql import PostgreSQL
from site_agent.sources.databases.spark import Spark

_KINDS: dict[str, Callable[[SplitResult, str], Database]] = {
    "duckdb": DuckDB,
    "postgresql": PostgreSQL,
    "spark": Spark,
}


@contextlib.contextmanager
def connect(url: SplitResult, name: str) -> Iterator[Database]:
    """An open database; the errors of its library become DataErrors.

    Args:
        url: as `parse_url` gives it.
        name: what messages call the database.

    Raises:
        DataError: it is not there, refuses this user, or fails later.
        UsageError: an extra is not installed.
    """
    database = _KINDS[url.scheme](url, name)
    try:
        yield database
    except (*database.errors, pa.ArrowException) as error:
        raise database.explain(error) from None
    finally:
        database.close()
