"""The revisions of the coordinator's database, and how an older one is brought to the newest.

`versions/` holds one file a revision, in Alembic's form. A database says in `alembic_version` which one it has; opening it
compares that one row with `HEAD`, and imports Alembic only where they differ. To write the next revision, after a
change of `coordinator.tables`::

    alembic -c coordinator/migrations/alembic.ini -x url=sqlite:////tmp/at-head.db revision --autogenerate -m "what changes"

then add its number to `REVISIONS`.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError

from protocol.errors import FederationError
from protocol.locking import exclusive

REVISIONS = ("0001", "0002")
HEAD = REVISIONS[-1]
SCRIPTS = Path(__file__).parent
_VERSION_TABLE = "alembic_version"
_ADVISORY_LOCK = 0x534D494C45  # "SMILE"
_WAIT_SECONDS = 60
_log = logging.getLogger(__name__)


def bring_up_to_date(engine: Engine) -> None:
    """Bring a database to `HEAD`, whole or not at all; fast where it is there already.

    Of several processes at once one does it, and the others wait for it. A SQLite file is copied beside itself before
    it is changed.

    Raises:
        FederationError: it is a newer program's, or no store, or a revision failed; it is unchanged.
        SQLAlchemyError: it does not answer.
    """
    file = Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None
    if file is not None and not file.exists():
        # The other files that SQLite makes beside it get its mode.
        _make_private(file)
    with engine.connect() as connection:
        found = _stated(connection)
    if found == HEAD:
        return
    if found is not None:
        _check_known(found)
    if file is None:
        _upgrade_postgresql(engine)
        return
    try:
        _upgrade_sqlite(engine, file)
    except OSError as error:
        raise _cannot_be_opened(file, error) from None


def stated_revision(engine: Engine) -> str | None:
    """The revision that a database says it has; None where it says nothing."""
    with engine.connect() as connection:
        return _stated(connection)


def _stated(connection: Connection) -> str | None:
    try:
        # A savepoint of its own: on PostgreSQL a failed statement would end the transaction.
        with connection.begin_nested():
            row = connection.execute(text(f"SELECT version_num FROM {_VERSION_TABLE}")).first()  # noqa: S608
    except DBAPIError as error:
        if connection.invalidated or not _no_table(error):
            raise
        return None
    return None if row is None else str(row[0])


def _no_table(error: DBAPIError) -> bool:
    return "no such table" in str(error.orig) or getattr(error.orig, "sqlstate", "") == "42P01"


def _check_known(found: str) -> None:
    if found in REVISIONS:
        return
    if len(found) == len(HEAD) and found.isdigit() and found > HEAD:
        raise FederationError(
            f"The coordinator's database is of revision {found}, and this program knows revisions up to {HEAD}",
            why="a newer version of the software has opened it",
            do="Upgrade smile-federation on this machine, or restore a backup from before into a new home folder",
        )
    raise _foreign(f"it is at revision {found!r} of another program")


# --- Each database in its way --------------------------------------------------------------------------


def _upgrade_postgresql(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{_WAIT_SECONDS}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        before = _begins_at(connection)
        if before != HEAD:
            _run(connection)
            _tell(before, "")


def _upgrade_sqlite(engine: Engine, file: Path) -> None:
    own = create_engine(engine.url, poolclass=NullPool)
    event.listen(own, "connect", _by_hand)
    event.listen(own, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with exclusive(file.with_name(f".{file.name}.lock")):
        # Kept in the file: readers do not wait for a writer. Not while another process opens it for the first time.
        with closing(sqlite3.connect(file, timeout=_WAIT_SECONDS, isolation_level=None)) as plain:
            plain.execute("PRAGMA journal_mode=WAL")
        with own.begin() as connection:
            before = _begins_at(connection)
            if before == HEAD:
                return
            copy = _safety_copy(file, before) if before else ""
            _run(connection)
            if connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                raise FederationError(
                    f"The coordinator's database could not be brought to revision {HEAD}",
                    why="rows would refer to others that are not there",
                    do="Nothing was changed; report this",
                )
        _tell(before, copy)


def _by_hand(connection: sqlite3.Connection, _record: object) -> None:
    """Python's driver would commit before a change of a table, and SQLite check foreign keys while one is rebuilt."""
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=OFF")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA busy_timeout={_WAIT_SECONDS * 1000}")


def _safety_copy(file: Path, before: str) -> str:
    """A copy of the file as it is, made while nobody writes."""
    target = file.with_name(f"{file.stem}-{before}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}{file.suffix}")
    part = target.with_name(f".part-{target.name}")
    part.unlink(missing_ok=True)
    _make_private(part)
    try:
        with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(part)) as copy:
            source.backup(copy)
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.replace(target)
    except (OSError, sqlite3.Error) as error:
        part.unlink(missing_ok=True)
        raise FederationError(
            f"The safety copy {target} of the coordinator's database cannot be written",
            why=str(error),
            do="Nothing was changed; make room on the disk, then run the command again",
        ) from None
    return str(target)


def _make_private(file: Path) -> None:
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise _cannot_be_opened(file, error) from None


def _cannot_be_opened(file: Path, error: OSError) -> FederationError:
    return FederationError(
        f"The coordinator's database {file} cannot be opened",
        why=error.strerror or "",
        do="Check its folder, its rights, and that the disk has room; a service that may only read its folder cannot bring it "
        "up to date: run any command of coordinator first",
    )


def _tell(before: str, copy: str) -> None:
    if before:
        kept = f"; as it was it lies in {copy}, which may be deleted once all is well" if copy else ""
        _log.warning("The coordinator's database was brought from revision %s to %s%s.", before, HEAD, kept)


# --- What is there -------------------------------------------------------------------------------------


def _begins_at(connection: Connection) -> str:
    """The revision that a database has; "" for an empty one.

    Stores of v0.1.0 do not state it: they are known by their tables. Where that program was killed while it made them,
    the first revision makes the rest.

    Raises:
        FederationError: it has tables of something else, or is a newer program's.
    """
    found = _stated(connection)
    if found is not None:
        _check_known(found)
        return found
    there = inspect(connection)
    tables = set(there.get_table_names()) - {_VERSION_TABLE}
    if not tables:
        return ""
    first = _first_tables()
    if unknown := sorted(tables - set(first)):
        raise _foreign(f"it has tables of something else, {unknown[0]!r} among them")
    for name in sorted(tables):
        if {c["name"] for c in there.get_columns(name)} != first[name]:
            raise _foreign(f"its table {name!r} has other columns than the one of v0.1.0")
    return REVISIONS[0]


def _foreign(why: str) -> FederationError:
    return FederationError(
        "The database that coordinator.toml names is not a coordinator's store",
        why=why,
        do="Name an empty database, or the right one; nothing was changed",
    )


def _first_tables() -> dict[str, set[str]]:
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    script = ScriptDirectory(str(SCRIPTS)).get_revision(REVISIONS[0])
    if script is None:
        raise FileNotFoundError(SCRIPTS / "versions")
    return {t.name: {c.name for c in t.columns} for t in script.module.tables.sorted_tables}


def _run(connection: Connection) -> None:
    """Every revision that is missing, in the connection's transaction."""
    from alembic import command  # noqa: PLC0415 - takes a while, and is needed once in the life of a database
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    with _failing_clearly():
        command.upgrade(config, HEAD)


@contextmanager
def _failing_clearly() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise FederationError(
            f"The coordinator's database could not be brought to revision {HEAD}",
            why=" ".join(str(error.orig).split())[:300].rstrip("."),
            do="Nothing was changed; stop the coordinator's other programs and check rights and disk, then run the command again",
        ) from None
