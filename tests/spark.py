"""A local Spark session for tests.

Use the fixture by importing it into a test module:

    from tests.spark import spark  # noqa: F401
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

URL = "spark://local"


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A session on two cores with a warehouse of its own; skips with the reason where there can be none.

    A source with the URL `spark://local` in the same process finds this session, and so its tables.
    """
    sql = pytest.importorskip("pyspark.sql")
    java = Path(os.environ.get("JAVA_HOME", "/none")) / "bin" / "java"
    if not (java.exists() or shutil.which("java")):
        pytest.skip("no java here: Spark needs a Java runtime 17 or 21")
    # Workers would else be the first Python on the path, which may lack pyarrow.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = (
        sql.SparkSession.builder.master("local[2]")
        .appName("tests")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .config("spark.ui.enabled", "false")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.driver.memory", "1g")
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )
    yield session
    session.stop()


def load(session: Any, tables: Mapping[str, pa.Table], schema: str) -> None:
    """Write tables as they are into the session's catalog, in place of those that are there."""
    session.sql(f"CREATE DATABASE IF NOT EXISTS {schema}")
    for name, table in tables.items():
        # Its own types for times: timestamps without a zone stay what the clock showed.
        naive = {f.name for f in table.schema if pa.types.is_timestamp(f.type)}
        as_text = table.cast(
            pa.schema([(f.name, pa.string() if f.name in naive else f.type) for f in table.schema])
        )
        frame = session.createDataFrame(as_text)
        for column in naive:
            frame = frame.withColumn(column, frame[column].cast("timestamp"))
        frame.write.mode("overwrite").saveAsTable(f"{schema}.{name}")
