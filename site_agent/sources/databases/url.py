"""The URL of a database in `site.toml`, which never holds a password."""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qs, urlsplit

from protocol.errors import UsageError

PASSWORD_VARIABLE = "SMILE_DATABASE_PASSWORD"  # noqa: S105 (a name, not a password)


def parse_url(url: str) -> SplitResult:
    """The parts of a database's URL.

    Raises:
        UsageError: it is of no known form, or holds a password, which the message does not repeat.
    """
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_fine = urlsplit(""), False
    if _holds_password(parts):
        raise UsageError(
            "data.database holds a password",
            why="site.toml is read and copied by people who must not have it",
            do=f"Take it out of the URL and put it into the variable {PASSWORD_VARIABLE} or into ~/.pgpass; "
            "change the password if others have seen it",
        )
    if not port_is_fine or not _is_whole(parts, url):
        raise UsageError(
            "data.database is not the URL of a database that can be read",
            why="a DuckDB file needs its absolute path, after two slashes"
            if parts.scheme == "duckdb"
            else "",
            do="Write duckdb:///path/to/file, postgresql://user@host:port/name, spark://local or spark://host:port",
        )
    return parts


def _is_whole(parts: SplitResult, url: str) -> bool:
    if parts.scheme == "duckdb":
        # Commands and services run in different folders: a relative path would be another file in each.
        return url.startswith("duckdb:///") and bool(parts.path.strip("/"))
    if parts.scheme == "postgresql":
        return bool(parts.path.strip("/"))
    return parts.scheme == "spark" and bool(parts.hostname)


def _holds_password(parts: SplitResult) -> bool:
    if parts.password is not None or "password" in parse_qs(parts.query):
        return True
    # A password with a slash in it ends the host's part early.
    return parts.scheme == "postgresql" and "@" in parts.path + parts.query
