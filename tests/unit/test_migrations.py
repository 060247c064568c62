"""The coordinator's database from the first tag on: on SQLite, and on a real PostgreSQL."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, create_engine, inspect, select, text
from sqlalchemy.engine import Engine

from coordinator import migrations
from coordinator.database import PASSWORD_VARIABLE, connect, parse_url
from coordinator.store import Store
from coordinator.tables import Base
from protocol.errors import FederationError, UsageError
from tests.postgres import PASSWORD, Server, postgres  # noqa: F401

VECTORS = Path(__file__).parents[1] / "vectors" / "store"
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Place:
    """An empty database."""

    url: str

    @property
    def engine(self) -> Engine:
        return connect(parse_url(self.url))

    @property
    def is_sqlite(self) -> bool:
        return self.url.startswith("sqlite")

    def load(self, dump: str = "v0.1.0") -> None:
        """What the code of the first tag left."""
        name = f"{dump}.sql" if self.is_sqlite else f"{dump}.postgresql.sql"
        statements = (VECTORS / name).read_text(encoding="utf-8")
        if self.is_sqlite:
            with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"))) as plain:
                plain.executescript(statements)
                plain.execute("PRAGMA journal_mode=WAL")
            return
        with self.engine.connect() as connection:
            plain = connection.connection.driver_connection
            plain.autocommit = True
            plain.execute(statements)

    def rows(self) -> Rows:
        """Everything that is stored."""
        engine, metadata = self.engine, MetaData()
        metadata.reflect(engine)
        with engine.connect() as connection:
            found = {
                t.name: [dict(r) for r in connection.execute(select(t)).mappings()]
                for t in metadata.sorted_tables
            }
        engine.dispose()
        return {name: sorted(rows, key=str) for name, rows in found.items()}


@pytest.fixture(autouse=True)
def connections_closed() -> Iterator[None]:
    """What a test leaves open is collected with it, and not in one that takes warnings for errors."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "sqlite":
        yield Place(f"sqlite:///{tmp_path / 'coordinator.db'}")
        return
    server: Server = request.getfixturevalue("postgres")
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    with server.database("store") as url:
        yield Place(url)


def differences(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        # On SQLite Alembic takes the default of an empty text for a difference.
        options = {"compare_server_default": connection.dialect.name != "sqlite"}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, Base.metadata))


# --- The revisions -------------------------------------------------------------------------------------


def test_the_listed_revisions_are_those_of_the_folder() -> None:
    script = ScriptDirectory(str(migrations.SCRIPTS))
    assert [r.revision for r in script.walk_revisions()][::-1] == list(migrations.REVISIONS)
    assert script.get_heads() == [migrations.HEAD]


def test_a_new_database_is_what_the_tables_say(place: Place) -> None:
    Store(place.url)
    assert differences(place.engine) == []
    assert migrations.stated_revision(place.engine) == migrations.HEAD


def test_a_database_of_the_first_tag_is_brought_up_to_date_with_every_row(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place.load()
    before = place.rows()
    assert set(before) == set(migrations._first_tables())
    assert all(before.values()), "a table of the fixture is empty"
    store = Store(place.url)
    assert differences(place.engine) == []
    after = place.rows()
    for table, rows in before.items():
        kept = [{column: row[column] for column in rows[0]} for row in after[table]]
        assert sorted(kept, key=str) == rows, table
    states = {r.name: r.state for r in store.rounds()}
    assert states == {"r0": "delivered", "r1": "published", "r2": "fitted", "r3": "closed", "r4": "open"}
    assert {name: [e.state for e in store.round_events(name)] for name in states} == {
        name: [state] for name, state in states.items()
    }
    assert "from revision 0001" in caplog.text
    copies = list(tmp_path.glob("coordinator-0001-*.db"))
    assert len(copies) == place.is_sqlite
    if place.is_sqlite:
        assert str(copies[0]) in caplog.text
        assert copies[0].stat().st_mode & 0o777 == 0o600
        assert Place(f"sqlite:///{copies[0]}").rows() == before


def test_references_hold_after_a_table_was_made_anew(place: Place) -> None:
    place.load()
    before = {
        (table, tuple(f["constrained_columns"]), f["referred_table"])
        for table in migrations._first_tables()
        for f in inspect(place.engine).get_foreign_keys(table)
    }
    Store(place.url)
    after = {
        (table, tuple(f["constrained_columns"]), f["referred_table"])
        for table in migrations._first_tables()
        for f in inspect(place.engine).get_foreign_keys(table)
    }
    assert after == before
    assert len(before) == 7


def test_what_the_first_program_was_killed_before_is_made(place: Place) -> None:
    place.load()
    with place.engine.begin() as connection:
        for table in ("delivery", "access_token", "withdrawal"):
            connection.execute(text(f"DROP TABLE {table}"))
    store = Store(place.url)
    assert differences(place.engine) == []
    assert [s.name for s in store.sites()] == ["lake", "north", "south", "west"]


def test_a_current_database_is_opened_without_alembic(place: Place) -> None:
    Store(place.url)
    code = (
        "import sys; from coordinator.store import Store; Store(sys.argv[1]); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, place.url], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- Refusals ------------------------------------------------------------------------------------------


def test_a_database_of_a_newer_program_is_refused(place: Place) -> None:
    Store(place.url)
    with place.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    with pytest.raises(FederationError, match=rf"revision 0999.*up to {migrations.HEAD}.*Upgrade"):
        Store(place.url)


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE patient (id integer)"],
        ["CREATE TABLE site (name varchar(32), secret integer)"],
        [
            "CREATE TABLE alembic_version (version_num varchar(32))",
            "INSERT INTO alembic_version VALUES ('3f2a')",
        ],
    ],
)
def test_a_database_of_something_else_is_refused_and_left_alone(place: Place, statements: list[str]) -> None:
    with place.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    before = place.rows()
    with pytest.raises(FederationError, match="not a coordinator's store"):
        Store(place.url)
    assert place.rows() == before


@pytest.mark.parametrize(
    "url",
    [
        "",
        "coordinator.db",
        "sqlite://",
        "sqlite:///coordinator.db",
        "mysql://u@h/n",
        "postgresql://u@h",
        "postgresql://u@h:x/n",
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="not the URL of a database"):
        Store(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:tiger@h/n",
        "postgresql://u@h/n?password=tiger",
        "postgresql://u:ti@tiger@h/n",
        "postgresql://u:p/tiger@h/n",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Store(url)
    assert "tiger" not in str(caught.value)
    assert PASSWORD_VARIABLE in str(caught.value)


def test_connections_that_fail_say_why(
    postgres: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong-tiger")
    with pytest.raises(
        FederationError, match=r"cannot be opened.*password.*SMILE_DATABASE_PASSWORD"
    ) as caught:
        Store(postgres.url())
    assert "wrong-tiger" not in str(caught.value)
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    with pytest.raises(FederationError, match=r"does not exist.*createdb"):
        Store(postgres.url("nowhere"))
    with pytest.raises(FederationError, match=r"cannot be opened.*Check host and port"):
        Store("postgresql://u@127.0.0.1:1/n")


def test_a_user_who_may_make_no_tables_is_told_so(
    postgres: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "reader-word")
    with postgres.connect() as admin:
        admin.execute("CREATE ROLE reader LOGIN PASSWORD 'reader-word'")
    with (
        postgres.database("shut"),
        pytest.raises(FederationError, match=r"permission denied.*Nothing was changed"),
    ):
        Store(postgres.url("shut", user="reader"))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"PK\x03\x04" * 2000)
    with pytest.raises(FederationError, match=r"cannot be opened.*not a database"):
        Store(f"sqlite:///{tmp_path / 'x.db'}")


# --- Several at once, and killed -----------------------------------------------------------------------

OPEN = """
import sys
from coordinator.store import Store
sys.stdin.read(1)
print(len(Store(sys.argv[1]).sites()))
"""


@pytest.mark.parametrize("start", ["empty", "v0.1.0"])
def test_eight_processes_open_one_database_at_once(place: Place, start: str, tmp_path: Path) -> None:
    if start == "v0.1.0":
        place.load()
    command = [sys.executable, "-c", OPEN, place.url]
    started = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("g")
        process.stdin.flush()
    ended = [process.communicate(timeout=120) for process in started]
    assert [e for _, e in ended if "Error" in e or "rror:" in e] == []
    assert [o.strip() for o, _ in ended] == ["4" if start == "v0.1.0" else "0"] * 8
    assert sum("was brought from revision" in e for _, e in ended) == (start == "v0.1.0")
    assert len(list(tmp_path.glob("coordinator-0001-*"))) == (place.is_sqlite and start == "v0.1.0")
    assert differences(place.engine) == []
    assert len(place.rows()["alembic_version"]) == 1


KILLED = """
import os, signal, sys
from sqlalchemy import Engine, event
from coordinator.store import Store
seen = 0
@event.listens_for(Engine, "after_cursor_execute")
def count(connection, cursor, statement, *rest):
    global seen
    if statement.startswith(("CREATE", "ALTER", "DROP", "INSERT", "UPDATE")):
        if seen == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1
Store(sys.argv[1])
print(seen)
"""


def test_killed_after_any_statement_of_a_migration_nothing_is_half_done(place: Place) -> None:
    place.load()
    before = place.rows()
    run: Callable[[int], subprocess.CompletedProcess[str]] = lambda at: subprocess.run(  # noqa: E731
        [sys.executable, "-c", KILLED, place.url, str(at)], capture_output=True, text=True, check=False
    )
    full = os.environ.get("SMILE_BATTERY") == "full"
    for at in range(100) if full else (0, 2, 5, 8, 100):
        done = run(at)
        if done.returncode == 0:
            assert int(done.stdout) <= at
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert place.rows() == before
    else:
        pytest.fail("the migration was never let through")
    assert differences(place.engine) == []
    assert len(Store(place.url).sites()) == len(before["site"])


def test_a_migration_that_leaves_a_dangling_reference_is_taken_back(tmp_path: Path) -> None:
    place = Place(f"sqlite:///{tmp_path / 'coordinator.db'}")
    place.load()
    plain = create_engine(place.url)
    with plain.begin() as connection:
        connection.execute(text("DELETE FROM site WHERE name = 'lake'"))
    before = place.rows()
    with pytest.raises(FederationError, match="rows would refer to others"):
        Store(place.url)
    assert place.rows() == before
