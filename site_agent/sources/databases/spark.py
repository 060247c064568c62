"""Spark: a session on this machine or of a cluster."""

# ruff: noqa: D102 (`Database` says what the methods do)

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from itertools import chain
from typing import Any
from urllib.parse import SplitResult

import pyarrow as pa

from protocol.errors import DataError
from site_agent.sources.databases.base import CONNECT_SECONDS, Column, first_line, joined, no_extra

MASTER_SECONDS = 30
"""Time for a master to answer once Java runs. Spark gives up after a minute, with an error that names another cause."""


class Spark:
    """A session on this machine or a cluster; a session of this process is used if there is one."""

    dialect = "pyspark"

    def __init__(self, url: SplitResult, name: str) -> None:
        try:
            from py4j.protocol import Py4JError  # noqa: PLC0415 (an optional extra)
            from pyspark.errors import PySparkException  # noqa: PLC0415
            from pyspark.sql import SparkSession  # noqa: PLC0415
        except ImportError as error:
            raise no_extra("spark", error) from None
        self._name = name
        self.errors: tuple[type[Exception], ...] = (PySparkException, Py4JError, OSError)
        builder = SparkSession.builder.appName("site-agent").config("spark.log.level", "OFF")
        builder = builder.config("spark.ui.showConsoleProgress", "false")
        try:
            if url.hostname == "local":
                # Workers on this machine must be the Python that has pyarrow, not the first one on the path.
                os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
                self._session = builder.master("local[*]").getOrCreate()
            else:
                _probe(url, name)
                with _master_answers(name):
                    self._session = builder.master(f"spark://{url.netloc}").getOrCreate()
        except self.errors as error:
            raise DataError(
                f"Spark does not start for {name}",
                why=first_line(error),
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
        return [Column(f.name, t) for f in fields for t in [f.dataType.simpleString()]]

    def location(self, schema: str, table: str) -> dict[str, Any]:
        catalog, _, namespace = schema.rpartition(".")
        return {"name": table, "catalog": catalog or None, "database": namespace or None}

    def query(self, sql: str, schema: pa.Schema) -> Iterator[pa.Table]:
        # toArrow() would hold the whole result. Workers pack batches as Arrow bytes; one partition at a time comes here.
        packed = self._session.sql(sql).mapInArrow(_packer(), "packed binary")
        rows = packed.toLocalIterator()
        yield from joined(chain.from_iterable(pa.ipc.open_stream(row[0]) for row in rows))

    def explain(self, error: Exception) -> DataError:
        if "pyarrow" in str(error):
            why, do = (
                "its workers lack pyarrow",
                "Install pyarrow for the workers' Python, or set PYSPARK_PYTHON",
            )
        else:
            why, do = first_line(error), "Check data.schema, and the cluster's own log"
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


@contextlib.contextmanager
def _master_answers(name: str) -> Iterator[None]:
    """Ends Java if the block, a call into it that cannot be interrupted, takes more than `MASTER_SECONDS`.

    Raises:
        DataError: the master has not answered by then.
    """
    from pyspark import SparkContext  # noqa: PLC0415 (an optional extra)

    done, silent = threading.Event(), threading.Event()

    def watch() -> None:
        while (gateway := SparkContext._gateway) is None:  # Java is starting
            if done.wait(0.1):
                return
        java = getattr(gateway, "proc", None)
        if java is not None and not done.wait(MASTER_SECONDS):
            silent.set()
            java.kill()
            java.wait()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        if silent.is_set():
            # The next session starts Java anew.
            SparkContext._gateway = SparkContext._jvm = None
            raise DataError(
                f"The Spark master of {name} does not answer",
                why=f"it took the connection, and nothing that Spark understands came for {MASTER_SECONDS} seconds",
                do="Check that host and port in data.database are those of the cluster's master and not of its web page "
                "or of a load balancer, that it has Spark's version, and that it can reach this machine",
            ) from None


def _probe(url: SplitResult, name: str) -> None:
    """Whether anyone listens: Spark itself would try for a minute."""
    try:
        with socket.create_connection((url.hostname or "", url.port or 7077), timeout=CONNECT_SECONDS):
            return
    except OSError as error:
        raise DataError(
            f"There is no Spark at {name}",
            why=first_line(error),
            do="Check host and port in data.database, and that the cluster's master runs",
        ) from None
