"""A real PostgreSQL server for tests: its own data folder, its own port, gone at the end.

Use the fixture by importing it into a test module:

    from tests.postgres import postgres  # noqa: F401
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

ADMIN, PASSWORD = "hospital", "correct-horse-battery"


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: on 127.0.0.1; every connection needs a password.
    """

    port: int

    def url(self, database: str = "postgres", user: str = ADMIN) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> Any:
        """A connection as the administrator that commits each statement."""
        import psycopg

        return psycopg.connect(self.url(database), password=PASSWORD, autocommit=True)

    @contextlib.contextmanager
    def database(self, name: str) -> Iterator[str]:
        """An empty database, dropped at the end; yields its URL."""
        with self.connect() as admin:
            admin.execute(f'CREATE DATABASE "{name}"')
        try:
            yield self.url(name)
        finally:
            with self.connect() as admin:
                admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server for the session; skips with the reason where there can be none."""
    pytest.importorskip("psycopg")
    programs = _programs() or _install()
    # Not pytest's folder: it is closed to other users, and the server must run as one.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    account = _account()
    if account:
        shutil.chown(folder, account)
    data, password = folder / "data", folder / "password"
    password.write_text(PASSWORD)
    if account:
        shutil.chown(password, account)
    try:
        options = [
            "--username",
            ADMIN,
            "--pwfile",
            str(password),
            "--encoding",
            "UTF8",
            "--locale",
            "C.UTF-8",
        ]
        _run([programs / "initdb", "--pgdata", data, "--auth", "scram-sha-256", *options], account)
        port = _free_port()
        settings = f"-h 127.0.0.1 -p {port} -k {folder} -F -c max_connections=40 -c lc_messages=C"
        log = folder / "log"
        # --wait returns when the server answers.
        start = [
            programs / "pg_ctl",
            "start",
            "--wait",
            "--pgdata",
            data,
            "--log",
            log,
            "--options",
            settings,
        ]
        _run(start, account)
        try:
            yield Server(port)
        finally:
            _run([programs / "pg_ctl", "stop", "--pgdata", data, "--mode", "immediate"], account)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    """The folder with initdb and pg_ctl: Debian keeps it off the path."""
    found = [
        p.resolve().parent for name in ("initdb", "pg_ctl") if (p := Path(shutil.which(name) or "/none"))
    ]
    places = [*found, *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return next((p for p in places if all((p / n).exists() for n in ("initdb", "pg_ctl", "postgres"))), None)


def _install() -> Path:
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("no PostgreSQL server here: initdb is neither on the path nor in /usr/lib/postgresql")
    done = subprocess.run(
        ["apt-get", "install", "-y", "postgresql"],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        check=False,
        timeout=300,
    )
    programs = _programs()
    if programs is None:
        pytest.skip(f"apt-get install postgresql left with {done.returncode} and there is no initdb")
    return programs


def _account() -> str | None:
    """PostgreSQL refuses to run as root: the account that it gets instead."""
    if os.geteuid():
        return None
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


def _run(command: list[Any], account: str | None) -> None:
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        user=account,
        cwd="/",
        # pg_ctl's child would hold a pipe open for as long as the server runs.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=120,
    )
    if done.returncode:
        raise RuntimeError(f"{Path(words[0]).name} left with {done.returncode}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def load(connection: Any, tables: Mapping[str, pa.Table], schema: str = "public") -> None:
    """Write tables as they are, names in their own case, in place of those that are there."""
    connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    for name, table in tables.items():
        columns = ", ".join(f'"{f.name}" {_TYPES[f.type]}' for f in table.schema)
        connection.execute(f'DROP TABLE IF EXISTS "{schema}"."{name}" CASCADE')
        connection.execute(f'CREATE TABLE "{schema}"."{name}" ({columns})')
        with (
            connection.cursor() as cursor,
            cursor.copy(f'COPY "{schema}"."{name}" FROM STDIN (FORMAT csv)') as rows,
        ):
            rows.write(_csv(table))


_TYPES = {
    pa.int64(): "bigint",
    pa.int32(): "integer",
    pa.string(): "text",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp",
}


def _csv(table: pa.Table) -> bytes:
    # Texts in quotes, nulls without: an empty text is not a null.
    sink = pa.BufferOutputStream()
    options = pa_csv.WriteOptions(include_header=False, quoting_style="needed")
    pa_csv.write_csv(table, sink, options)
    return sink.getvalue().to_pybytes()
