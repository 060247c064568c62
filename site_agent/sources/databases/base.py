"""What a database is to a source: it lists tables and columns, and streams the results of queries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from protocol.errors import DataError, UsageError

BATCH_ROWS = 500_000
CONNECT_SECONDS = 10

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
class Column:
    """A column as the database has it.

    Attributes:
        name: in the database's own spelling.
        declared: the database's word for its type.
        readable: whether this user may read it.
    """

    name: str
    declared: str
    readable: bool = True

    @property
    def kind(self) -> str:
        """Integer, number (whole), text, date, timestamp, zoned (timestamp with a time zone), uuid or other."""
        word = self.declared.strip().lower()
        return next((kind for kind, pattern in _KINDS if re.fullmatch(pattern, word, re.DOTALL)), "other")


def joined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of about `BATCH_ROWS` rows from batches of fewer."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= BATCH_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


class Database(Protocol):
    """An open connection.

    Attributes:
        dialect: what ibis calls the database's SQL.
        errors: what the database's library raises, for `explain`.
    """

    dialect: str
    errors: tuple[type[Exception], ...]

    def tables(self, schema: str) -> list[str]:
        """The names of the tables and views of a schema; "" is the default one."""
        ...

    def columns(self, schema: str, table: str) -> list[Column]:
        """The columns of a table; the table's name is one that `tables` gave."""
        ...

    def location(self, schema: str, table: str) -> dict[str, Any]:
        """How ibis is told where a table is."""
        ...

    def query(self, sql: str, schema: pa.Schema) -> Iterator[pa.Table]:
        """The result in batches of bounded size, with the columns of `schema`; types may still differ."""
        ...

    def explain(self, error: Exception) -> DataError:
        """One of `errors` in words for the user."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


def first_line(error: BaseException) -> str:
    """What a library's error says, without its traceback or hints."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def no_extra(name: str, error: ImportError) -> UsageError:
    """The error of a package that only an optional extra brings."""
    return UsageError(
        "A database cannot be read here",
        why=first_line(error),
        do=f"Install it with: pip install 'smile-federation[site,{name}]'",
    )
