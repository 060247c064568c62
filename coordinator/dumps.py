"""One snapshot of the coordinator's database into a file, and back: SQLite's own backup, or pg_dump and pg_restore."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Literal

from sqlalchemy import URL, create_engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from coordinator.database import PASSWORD_VARIABLE, connect, shown, unusable
from protocol.errors import FederationError, UsageError

Kind = Literal["sqlite", "postgresql"]
DUMPS: dict[Kind, str] = {"sqlite": "database.sqlite", "postgresql": "database.pgdump"}


def dump(url: URL, target: Path, read: Callable[[Session], None]) -> None:
    """Write a database to a file of its own.

    Args:
        url: of the database.
        target: a new file.
        read: called with a session that sees exactly what the file holds.

    Raises:
        FederationError: the database is damaged or does not answer, or there is no pg_dump.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT, 0o600))
    if url.get_backend_name() == "sqlite":
        copy_sqlite(Path(url.database or ""), target)
        engine = create_engine(f"sqlite:///{target}")
        with Session(engine) as session:
            read(session)
        engine.dispose()
        return
    engine = connect(url)
    try:
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            snapshot = connection.scalar(text("SELECT pg_export_snapshot()"))
            read(Session(connection))
            _run(url, "pg_dump", "--format=custom", f"--snapshot={snapshot}", f"--file={target}", "--dbname")
    except SQLAlchemyError as error:
        raise unusable(url, error) from None
    finally:
        engine.dispose()


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a SQLite database that others may be writing; the copy is one file, and whole.

    Raises:
        FederationError: it is damaged.
    """
    try:
        with closing(sqlite3.connect(source, timeout=60)) as one, closing(sqlite3.connect(target)) as other:
            one.backup(other)
            other.execute("PRAGMA journal_mode=DELETE")
            found = other.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise FederationError(
            f"The database {source} cannot be copied",
            why=found,
            do="Check the disk; keep your earlier backups",
        )


def check_empty(url: URL) -> None:
    """Return only if nothing would be overwritten.

    Raises:
        UsageError: the file exists, or the database has tables.
        FederationError: it does not answer.
    """
    if url.get_backend_name() == "sqlite":
        used = Path(url.database or "").exists()
    else:
        engine = connect(url)
        try:
            used = bool(inspect(engine).get_table_names())
        except SQLAlchemyError as error:
            raise unusable(url, error) from None
        finally:
            engine.dispose()
    if used:
        raise UsageError(
            f"The database {shown(url)} is not empty",
            why="a restore never overwrites one",
            do="Name a new one with --database",
        )


def restore_postgresql(url: URL, source: Path) -> None:
    """Fill an empty database, in one transaction.

    Raises:
        FederationError: it cannot be filled, or there is no pg_restore; it is still empty.
    """
    plain = ("--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error")
    _run(url, "pg_restore", *plain, str(source), "--dbname")


def _run(url: URL, program: str, *words: str) -> None:
    if shutil.which(program) is None:
        raise FederationError(
            f"The program {program} is not installed here",
            why="a PostgreSQL database is copied by PostgreSQL's own programs",
            do="Install PostgreSQL's client of the server's version: apt-get install postgresql-client",
        )
    plain = url.set(drivername="postgresql", password=None).render_as_string()
    environment = dict(os.environ)
    if password := environment.get(PASSWORD_VARIABLE):
        environment["PGPASSWORD"] = password
    private = (
        ("--no-password",) if program == "pg_restore" else ("--no-password", "--no-owner", "--no-privileges")
    )
    done = subprocess.run(
        [program, *private, *words, plain], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = " ".join(done.stderr.split())[:300].rstrip(".")
        raise FederationError(
            f"{program} could not copy the database {shown(url)}",
            why=said,
            do="Its version must not be older than the server's; nothing was left behind",
        )
