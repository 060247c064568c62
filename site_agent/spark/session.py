"""The tables of a Spark session, and Spark's errors in words for the user."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from protocol.errors import DataError, UsageError
from site_agent.sections import Data
from site_agent.sources.databases.base import no_extra
from site_agent.sources.databases.spark import Spark
from site_agent.sources.i2b2 import I2b2Source
from site_agent.sources.omop import OmopSource
from site_agent.sources.pcornet import PcornetSource
from site_agent.sources.relational import RelationalSource
from site_agent.sources.tables import Tables

_SOURCES: dict[str, type[OmopSource | I2b2Source | PcornetSource]] = {
    "omop": OmopSource,
    "i2b2": I2b2Source,
    "pcornet": PcornetSource,
}
_INSTALL = (
    "Install smile-federation[site,spark] on each worker, for the Python that spark.pyspark.python names, or ship an "
    "environment that has it with spark.archives"
)

_KNOWN = (
    (
        "cannot import name",
        "Spark's workers have another version of a Python package",
        "Install the same versions on the workers as on this machine",
    ),
    (
        "PYTHON_VERSION_MISMATCH",
        "Spark's workers have another version of Python",
        "Set spark.pyspark.python to a Python of the same minor version as the agent's",
    ),
    (
        "Cannot run program",
        "Spark's workers cannot start Python",
        "Set spark.pyspark.python to one that they have",
    ),
    (
        "OutOfMemoryError|MemoryError|exited unexpectedly|EOFException|ExecutorLostFailure",
        "A worker of {name} ran out of memory or was stopped",
        "Give the workers more with spark.executor.memoryOverhead (1 GiB a core), or use more partitions",
    ),
    (
        "no locator available",
        "Spark's workers cannot keep compiled code",
        "Set spark.executorEnv.NUMBA_CACHE_DIR to a folder that the workers can write",
    ),
    (
        "No space left on device",
        "A disk of {name} is full",
        "Free space in spark.local.dir of the workers",
    ),
    (
        "SparkContext (was|has been)? ?(shut down|stopped)|stopped SparkContext|Connection refused",
        "The connection to {name} was lost",
        "Run again when the cluster is up",
    ),
)
"""(pattern in an error's text, what happened, what to do)."""


def source_of(session_or_source: Any, data: Data) -> RelationalSource:
    """The source whose tables are counted.

    Raises:
        UsageError: its data are not in Spark.
    """
    if isinstance(session_or_source, RelationalSource):
        source = session_or_source
    elif data.kind in _SOURCES:
        source = _SOURCES[data.kind](data)
    else:
        raise UsageError(
            f"Events of kind {data.kind} are not counted in Spark",
            do=f"Set data.kind to one of {', '.join(_SOURCES)}, or count on this machine",
        )
    if not source.name.startswith("spark://"):
        raise UsageError(
            f"{source.name} is not in Spark", do="Set data.database to spark://host:port or spark://local"
        )
    return source


@contextlib.contextmanager
def open_tables(session_or_source: Any, source: RelationalSource) -> Iterator[Tables]:
    """The tables, found and checked, of the session that is given or that the source opens.

    Raises:
        DataError: Spark, a table or a column is not there.
        UsageError: the extra is not installed.
    """
    if isinstance(session_or_source, RelationalSource):
        with source._open() as tables:
            yield tables
        return
    database = _Given(session_or_source, source.name)
    try:
        yield Tables(database, source._data, source.maps, source.name)
    except (*database.errors, pa.ArrowException) as error:
        raise explain(error, source.name) from None


def session_of(tables: Tables) -> Any:
    """The Spark session of the tables."""
    return tables._database._session  # type: ignore[attr-defined]


class _Given(Spark):
    """A session that the caller has."""

    def __init__(self, session: Any, name: str) -> None:
        try:
            from py4j.protocol import Py4JError  # noqa: PLC0415 (an optional extra)
            from pyspark.errors import PySparkException  # noqa: PLC0415
        except ImportError as error:
            raise no_extra("spark", error) from None
        self.errors = (PySparkException, Py4JError, OSError)
        self._session, self._name = session, name


def explain(error: BaseException, name: str) -> DataError:
    """An error of Spark in a sentence; a stack trace becomes its first line that says something."""
    text = str(error)
    why = first_useful_line(text)
    if missing := re.search(r"No module named '(\w+)", text):
        return DataError(f"Spark's workers lack the Python package {missing[1]}", why=why, do=_INSTALL)
    for pattern, what, do in _KNOWN:
        if re.search(pattern, text):
            return DataError(what.format(name=name), why=why, do=do)
    return DataError(f"{name} cannot count", why=why, do="See the cluster's own log, and check data.schema")


def first_useful_line(text: str) -> str:
    """The exception of a Python worker if there is one, else Spark's first line, without frames and class names."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if "Traceback (most recent call last):" in (stripped := [line.strip() for line in lines]):
        begin = stripped.index("Traceback (most recent call last):")
        raised = [
            line
            for line in lines[begin + 1 :]
            if re.match(r"\s*[A-Za-z_][\w.]*(Error|Exception|Exit)\b", line)
        ]
        lines = raised or lines
    useful = (
        re.sub(r"^[:\s]*([a-z]\w*\.)+[A-Z]\w*(Exception|Error): ?", "", line.strip())
        for line in lines
        if not re.match(
            r"\s*(at |\.\.\. |An error occurred while calling|An exception was thrown from the Python)", line
        )
    )
    found = next((line for line in useful if line), "it gave no reason")
    # "Job aborted due to stage failure: Task 0 in stage 1.0 failed ... (executor 1): reason"
    found = re.sub(r"^Job aborted.*?\(TID \d+\)[^:]*: ", "", found)
    return found[:300]
