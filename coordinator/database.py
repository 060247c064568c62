"""Opening the coordinator's database: SQLite in a file, or PostgreSQL."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from coordinator import migrations
from protocol.errors import FederationError, UsageError

PASSWORD_VARIABLE = "SMILE_DATABASE_PASSWORD"  # noqa: S105 - a name, not a password
_PASSWORDS = frozenset({"password", "sslpassword", "oauth_client_secret"})


def open_engine(url: str) -> Engine:
    """Connect to a study's database, made or brought up to date where it must be.

    Args:
        url: `sqlite:////path` or `postgresql://user@host:port/name`, without a password.

    Raises:
        UsageError: the URL is none of these, or holds a password, which the message does not repeat.
        FederationError: the database does not answer, is not a store, or is a newer program's.
    """
    parsed = parse_url(url)
    engine = connect(parsed)
    try:
        migrations.bring_up_to_date(engine)
    except SQLAlchemyError as error:
        engine.dispose()
        raise unusable(parsed, error) from None
    return engine


def parse_url(url: str) -> URL:
    """A database's URL, with the driver that is used.

    Raises:
        UsageError: as `open_engine`.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise _no_url() from None
    # A password with a slash or an @ in it ends the host's part early.
    in_name = "@" in (parsed.database or "") and parsed.get_backend_name() != "sqlite"
    if parsed.password is not None or _PASSWORDS & set(parsed.query) or in_name:
        raise UsageError(
            "database in coordinator.toml holds a password",
            why="that file is read and copied by people who must not have it",
            do=f"Take it out of the URL and put it into the variable {PASSWORD_VARIABLE} or into ~/.pgpass; "
            "change the password if others have seen it",
        )
    kind, name = parsed.get_backend_name(), parsed.database or ""
    if kind == "sqlite" and name.startswith("/"):
        return parsed.set(drivername="sqlite")
    if kind == "postgresql" and name:
        return parsed.set(drivername="postgresql+psycopg")
    raise _no_url()


def connect(url: URL) -> Engine:
    """The engine alone; nothing is opened yet."""
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url)
        event.listen(engine, "connect", _careful_sqlite)
        return engine
    options = {"connect_timeout": 10, "application_name": "smile-coordinator"}
    given = {k: v for k, v in options.items() if k not in url.query}
    if password := os.environ.get(PASSWORD_VARIABLE):
        given["password"] = password
    # A service outlives its server's restarts: a connection is tried before it is used.
    return create_engine(url, connect_args=given, pool_pre_ping=True)


def unusable(url: URL, error: SQLAlchemyError) -> FederationError:
    """What the driver says of a database that does not open; no driver repeats a password."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())[:300]
    if url.get_backend_name() == "sqlite":
        do = "Check its folder, its rights, and that the disk has room"
    elif "password" in text:
        do = f"Put the right password into {PASSWORD_VARIABLE} or ~/.pgpass"
    elif "database" in text and "does not exist" in text:
        do = "Make it with createdb, or correct its name at the end of database in coordinator.toml"
    elif "permission denied" in text:
        do = "Make the user its owner: ALTER DATABASE ... OWNER TO ..."
    elif "role" in text:
        do = "Correct the user of database in coordinator.toml"
    else:
        do = "Check host and port of database in coordinator.toml, and that the server runs and is open to this machine"
    return FederationError(
        f"The coordinator's database {shown(url)} cannot be opened", why=text.rstrip("."), do=do
    )


def shown(url: URL) -> str:
    """A database for people: the file, or the URL; never a password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.set(drivername="postgresql", query={}, password=None).render_as_string()


def sqlite_file(url: URL) -> Path | None:
    """The file of a SQLite database; None for others."""
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def _careful_sqlite(connection: object, _record: object) -> None:
    """Foreign keys hold, a writer waits for another, and a committed row is on the disk."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("foreign_keys=ON", "busy_timeout=10000", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _no_url() -> UsageError:
    return UsageError(
        "database in coordinator.toml is not the URL of a database that can be used",
        why="a relative path would be another file in each folder that a command runs in",
        do="Leave it empty, or write sqlite:////absolute/path or postgresql://user@host:port/name",
    )
