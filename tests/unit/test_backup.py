"""Backup and restore of a coordinator's home, and what follows of a memory that went back in time."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator import backup as backing
from coordinator import rounds, setup, withdrawal
from coordinator.backup import make_backup
from coordinator.catchup import catch_up
from coordinator.config import Home
from coordinator.database import PASSWORD_VARIABLE
from coordinator.restore import restore
from coordinator.review import Reviews
from coordinator.store import Store, Submission
from protocol.canonical import file_digest
from protocol.errors import FederationError, ProtocolError, UsageError
from protocol.processes import scripts_folder
from protocol.published import verify_folder
from site_agent.agent import Agent
from site_agent.enrolment import init_home, write_enrolment
from tests.hub import Hub, releases
from tests.postgres import PASSWORD, Server, postgres  # noqa: F401
from tests.unit.test_agent import PASSPHRASE, STUDY, write_events
from tests.unit.test_migrations import connections_closed  # noqa: F401

SITES = ("lake", "north", "south", "west")
GIVEN = releases()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A hub with a published round, and a second one to which two of four sites have released."""
    hub = Hub(tmp_path_factory.mktemp("published"))
    hub.enrol(*SITES)
    hub.run_round(GIVEN)
    hub.open_round("r2")
    for site in SITES[:2]:
        hub.release(site, GIVEN[site], "r2")
    hub.collect("r2")
    return hub


def at(hub: Hub, folder: Path) -> Hub:
    """The same sites with another home folder."""
    other = copy.copy(hub)
    other.home, other.last = Home(folder), dict(hub.last)
    return other


def tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    return {
        p.relative_to(folder).as_posix(): (p.stat().st_mode, p.stat().st_mtime_ns, file_digest(p))
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".db" not in p.name and not p.name.endswith(".lock")
    }


# --- There and back ------------------------------------------------------------------------------------


def test_a_restored_home_holds_everything_and_goes_on(published: Hub, tmp_path: Path) -> None:
    home = published.home
    Reviews(home, published.store).comment(reviewer="ann", code="WEST:9", text="sure")
    made = make_backup(home, tmp_path / "backup")
    assert (made.versions, made.missing, made.outside, made.passphrase) == (1, (), (), False)
    assert made.sites == {s.name: s.accepted_sequence for s in published.store.sites()}
    private = list((tmp_path / "backup").rglob("*"))
    assert {p.stat().st_mode & 0o777 for p in private} == {0o600, 0o700}

    assert restore(tmp_path / "backup", tmp_path / "new") == made
    other = at(published, tmp_path / "new")
    assert tree(other.home.folder) == tree(home.folder)
    assert verify_folder(other.home.release_folder(1), keys_of(other.home)).version == 1
    assert len(rounds.accepted_releases(other.home, other.store, "r1")) == 4
    assert Reviews(other.home, other.store).verify().records == 1
    for site in SITES[2:]:
        other.release(site, GIVEN[site], "r2")
    assert {s: v.state for s, v in other.collect("r2").items()} == dict.fromkeys(SITES, "accepted")
    other.publish("r2")
    assert [v.version for v in other.store.versions()] == [1, 2]
    assert [v.version for v in published.store.versions()] == [1]


def keys_of(home: Home) -> Any:
    return home.keys.public()


def test_the_commands(published: Hub, tmp_path: Path) -> None:
    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(scripts_folder() / "coordinator"), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    made = run("backup", tmp_path / "b", "--home", published.home.folder)
    assert made.returncode == 0, made.stderr
    assert "without a passphrase" in made.stdout
    assert file_digest(tmp_path / "b" / "backup.json") in made.stdout
    again = run("backup", tmp_path / "b", "--home", published.home.folder)
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    done = run("restore", tmp_path / "b", "--home", tmp_path / "new", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["versions"] == 1
    told = run("versions", "--verify", "--home", tmp_path / "new")
    assert told.returncode == 0, told.stdout + told.stderr


def test_keys_stay_behind_their_passphrase(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(Hub.study)
    home = setup.init_home(
        tmp_path / "hub",
        study=study,
        address="localhost:1",
        listen="127.0.0.1",
        passphrase=lambda: PASSPHRASE,
    )
    # Nobody is asked for it: a backup runs at night.
    assert make_backup(home, tmp_path / "b").passphrase
    restore(tmp_path / "b", tmp_path / "new")
    assert file_digest(tmp_path / "new" / "keys" / "coordinator.key") == file_digest(home.identity.key)


# --- While others write --------------------------------------------------------------------------------

WRITER = """
import sys
from datetime import datetime
from pathlib import Path
from coordinator.config import Home
from coordinator.review import Reviews
from coordinator.store import Round, Store, Submission
from protocol.canonical import file_digest
home = Home(Path(sys.argv[1]))
store = Store(home.database_url)
reviews = Reviews(home, store)
code = sys.argv[2]
number = 0
while True:
    name = f"w{number}"
    with store.begin() as session:
        session.add(Round(name=name, state="aborted" if number % 5 == 0 else "open", call=b"x", expires=datetime(2030, 1, 1)))
    for site in ("lake", "north", "south", "west"):
        path = home.round_folder(name) / "received" / f"{site}.sealed"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{name} {site}".encode() * 5000)
        found = Submission(round=name, site=site, state="accepted", envelope_digest=file_digest(path), sequence=9)
        store.record_submission(found)
    reviews.comment(reviewer="ann", code=code, text=name)
    number += 1
    print(number, flush=True)
"""


def test_a_backup_beside_a_writer_names_no_file_that_it_has_not(published: Hub, tmp_path: Path) -> None:
    make_backup(published.home, tmp_path / "start")
    restore(tmp_path / "start", tmp_path / "hub")
    home, counts = Home(tmp_path / "hub"), []
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(home.folder), "WEST:9"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline()
        # Its pipe must not fill up.
        threading.Thread(target=writer.stdout.read, daemon=True).start()
        for number in range(4):
            made = make_backup(home, tmp_path / f"b{number}")
            assert made.missing == ()
            counts.append(len(made.rounds))
            restore(tmp_path / f"b{number}", tmp_path / f"n{number}")
    finally:
        writer.kill()
        writer.wait()
    assert counts[0] < counts[-1], "nothing was written meanwhile"
    for number in range(4):
        new = Home(tmp_path / f"n{number}")
        store = Store(new.database_url)
        with store.begin() as session:
            found = list(session.scalars(select(Submission).where(Submission.round.like("w%"))))
        assert found
        for submission in found:
            path = new.round_folder(submission.round) / "received" / f"{submission.site}.sealed"
            assert file_digest(path) == submission.envelope_digest
        assert Reviews(new, store).verify().records > 0


def after_the_database(monkeypatch: pytest.MonkeyPatch, deeds: list[Callable[[], None]]) -> list[int]:
    """Do one deed after each time that the database was copied; returns how often it was."""
    plain, times = backing.dump, []

    def dump(url: Any, target: Path, read: Callable[[Session], None]) -> None:
        plain(url, target, read)
        times.append(1)
        if deeds:
            deeds.pop(0)()

    monkeypatch.setattr(backing, "dump", dump)
    return times


def test_what_a_withdrawal_erases_meanwhile_makes_it_begin_anew(
    published: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_backup(published.home, tmp_path / "start")
    restore(tmp_path / "start", tmp_path / "hub")
    home = Home(tmp_path / "hub")
    store = Store(home.database_url)

    def leave() -> None:
        plan = withdrawal.plan(home, store, "west")
        now = datetime.now(UTC)
        withdrawal.begin(home, store, plan, reason="consent ended", erase_versions=False, now=now)
        found = withdrawal.unfinished(store, "west")
        assert found is not None
        withdrawal.carry_out(home, store, found)

    times = after_the_database(monkeypatch, [leave])
    made = make_backup(home, tmp_path / "b")
    assert (len(times), made.missing) == (2, ())
    restore(tmp_path / "b", tmp_path / "new")
    new = Home(tmp_path / "new")
    assert len(rounds.accepted_releases(new, Store(new.database_url), "r1")) == 3


def test_a_home_that_changes_all_the_time_is_refused_and_nothing_is_left(
    published: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = published.home.round_key_path("r0")
    change = [lambda n=n: key.write_text(str(n)) for n in range(9)]
    key.write_text("")
    try:
        after_the_database(monkeypatch, change)  # type: ignore[arg-type]
        with pytest.raises(FederationError, match="No backup was made"):
            make_backup(published.home, tmp_path / "b")
    finally:
        key.unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_gone_is_named_and_the_rest_is_kept(published: Hub, tmp_path: Path) -> None:
    shutil.copytree(published.folder, tmp_path / "copy")
    home = Home(tmp_path / "copy" / "hub")
    (home.round_folder("r1") / "received" / "lake.sealed").unlink()
    made = make_backup(home, tmp_path / "b")
    assert made.missing == ("rounds/r1/received/lake.sealed",)


# --- Refusals ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(published: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("made") / "backup"
    make_backup(published.home, target)
    return target


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda b: spoil(b / "home" / "keys" / "coordinator.key"), "coordinator.key .* is altered"),
        (lambda b: spoil(b / "database.sqlite"), "database.sqlite .* is altered"),
        (lambda b: (b / "home" / "study.toml").unlink(), "study.toml .* is missing"),
        (lambda b: (b / "database.sqlite").unlink(), "database.sqlite .* is missing"),
        (lambda b: (b / "home" / "new.toml").write_text(""), "new.toml .* is not listed"),
        (lambda b: (b / "backup.json").unlink(), "is no backup"),
        (lambda b: (b / "backup.json").write_text("{}"), "is not valid"),
        (lambda b: change(b, lambda m: m["files"][0].update(path="../x")), "is not valid"),
        (lambda b: change(b, lambda m: m.update(revision="0999")), "revision 0999.*Upgrade"),
    ],
)
def test_a_damaged_backup_is_refused_and_leaves_nothing(
    made: Path, tmp_path: Path, harm: Callable[[Path], object], said: str
) -> None:
    shutil.copytree(made, tmp_path / "b")
    harm(tmp_path / "b")
    with pytest.raises(FederationError, match=said):
        restore(tmp_path / "b", tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def change(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "backup.json"
    value = json.loads(path.read_text())
    how(value)
    path.write_text(json.dumps(value))


def test_nothing_is_overwritten(published: Hub, made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lies in the home folder"):
        make_backup(published.home, published.home.folder / "backups" / "b")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="exists already"):
        make_backup(published.home, tmp_path / "file")
    with pytest.raises(FederationError, match="cannot be written"):
        make_backup(published.home, tmp_path / "file" / "b")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        restore(made, tmp_path / "used")
    (tmp_path / "x.db").write_text("")
    with pytest.raises(UsageError, match=r"x.db is not empty.*--database"):
        restore(made, tmp_path / "new", database=f"sqlite:///{tmp_path / 'x.db'}")
    with pytest.raises(UsageError, match="holds a database of sqlite"):
        restore(made, tmp_path / "new", database="postgresql://u@h/n")
    assert not (tmp_path / "new").exists()
    restore(made, tmp_path / "new", database=f"sqlite:///{tmp_path / 'y.db'}")
    assert Home(tmp_path / "new").config.database == f"sqlite:///{tmp_path / 'y.db'}"
    assert len(Store(Home(tmp_path / "new").database_url).sites()) == 4


# --- PostgreSQL ----------------------------------------------------------------------------------------


@pytest.fixture
def on_postgres(
    postgres: Server,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Hub, Server]]:
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    with postgres.database("hub") as url:
        hub = Hub(tmp_path / "pg")
        path = hub.home.folder / "coordinator.toml"
        path.write_text(f'database = "{url}"\n' + path.read_text())
        hub.fresh()
        (hub.home.folder / "coordinator.db").unlink()
        yield hub, postgres


def test_a_coordinator_on_postgresql_runs_is_backed_up_and_goes_on(
    on_postgres: tuple[Hub, Server], tmp_path: Path
) -> None:
    hub, server = on_postgres
    hub.enrol(*SITES)
    hub.run_round(GIVEN)
    hub.open_round("r2")
    made = make_backup(hub.home, tmp_path / "b")
    assert (made.database, made.versions, made.missing) == ("postgresql", 1, ())
    assert not (hub.home.folder / "coordinator.db").exists()
    with pytest.raises(UsageError, match="is not empty"):
        restore(tmp_path / "b", tmp_path / "new")
    with server.database("second") as url:
        spoiled = tmp_path / "spoiled"
        shutil.copytree(tmp_path / "b", spoiled)
        (spoiled / "database.pgdump").write_bytes(b"PGDMP no")
        change(spoiled, lambda m: m.update(database_sha256=file_digest(spoiled / "database.pgdump")))
        with pytest.raises(FederationError, match="pg_restore could not"):
            restore(spoiled, tmp_path / "new", database=url)
        assert not (tmp_path / "new").exists()
        restore(tmp_path / "b", tmp_path / "new", database=url)
        other = at(hub, tmp_path / "new")
        for site in SITES:
            other.release(site, GIVEN[site], "r2")
        other.collect("r2")
        other.publish("r2")
        assert [v.version for v in other.store.versions()] == [1, 2]
    assert [v.version for v in hub.store.versions()] == [1]


def test_without_pg_dump_it_says_what_is_missing(
    on_postgres: tuple[Hub, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, _ = on_postgres
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FederationError, match=r"pg_dump is not installed.*postgresql-client"):
        make_backup(hub.home, tmp_path / "b")
    assert not (tmp_path / "b").exists()


# --- A memory that went back in time -------------------------------------------------------------------


class Line:
    """One real site and a coordinator; the test carries what Flower would."""

    def __init__(self, folder: Path) -> None:
        study = STUDY
        self.hub = Hub(folder, study=study)
        home, events = self.hub.home, folder / "events.parquet"
        write_events(events)
        site = init_home(
            folder / "north",
            invitation=home.folder / "invitation.json",
            study=home.folder / "study.toml",
            site="north",
            system="ICD10CM",
            events=events,
            anchors=None,
        )
        self.agent = Agent(site)
        setup.enrol(self.hub.store, setup.read_enrolment(home, write_enrolment(site, "")[0]))
        found = self.agent.preview().release.manifest.digest
        self.agent.add_signer("eve", lambda: PASSPHRASE)
        self.agent.approve("eve", found, lambda: PASSPHRASE)

    def ask(self, hub: Hub, name: str, *, opened: bool = False) -> Any:
        """Call the site, and carry back what it seals; its status."""
        if not opened:
            rounds.open_round(hub.home, hub.store, name, days=30, nodes={"north": 1})
        self.agent.exchange.put_call(hub.desk(name).call())
        self.agent.step()
        status = self.agent.exchange.status(name)
        assert status is not None
        if status.state == "sealed":
            target = hub.desk(name).received("north")
            target.write_bytes(self.agent.exchange.read_block(status.sha256, 0, status.size))
        return status

    def accepted(self, hub: Hub, name: str) -> tuple[str, int]:
        (found,) = rounds.take_in(hub.home, hub.store, name)
        return found.state, hub.store.site("north").accepted_sequence


def test_a_round_that_was_open_at_the_backup_asks_again(tmp_path: Path) -> None:
    line = Line(tmp_path / "a")
    rounds.open_round(line.hub.home, line.hub.store, "r1", days=30, nodes={"north": 1})
    make_backup(line.hub.home, tmp_path / "b")
    assert line.ask(line.hub, "r1", opened=True).state == "sealed"
    assert line.accepted(line.hub, "r1") == ("accepted", 1)
    restore(tmp_path / "b", tmp_path / "new")
    other = at(line.hub, tmp_path / "new")
    assert other.store.site("north").accepted_sequence == 0
    assert line.ask(other, "r1", opened=True).state == "sealed"
    assert line.accepted(other, "r1") == ("accepted", 1)


def test_a_site_that_is_ahead_refuses_until_the_coordinator_has_caught_up(tmp_path: Path) -> None:
    line = Line(tmp_path / "a")
    make_backup(line.hub.home, tmp_path / "b")
    assert line.ask(line.hub, "r1").state == "sealed"
    assert line.accepted(line.hub, "r1") == ("accepted", 1)
    line.ask(line.hub, "r2")  # its call tells the site that release 1 was accepted

    restore(tmp_path / "b", tmp_path / "new")
    other = at(line.hub, tmp_path / "new")
    refused = line.ask(other, "r3")
    assert refused.state == "refused"
    assert "its memory went back in time" in refused.detail

    (kept,) = (line.agent.home.folder / "countersigned").glob("*.json")
    learnt = catch_up(other.home, other.store, kept)
    assert (learnt.sites, learnt.round) == ({"north": 1}, "r2")
    assert other.store.round("r2").state == "aborted"
    assert catch_up(other.home, other.store, kept).sites == {}
    with pytest.raises(UsageError, match="exists"):
        rounds.open_round(other.home, other.store, "r2", days=30, nodes={"north": 1})
    assert line.ask(other, "r4").state == "sealed"
    assert line.accepted(other, "r4") == ("accepted", 1)


def test_a_version_that_was_published_since_keeps_its_number(published: Hub, tmp_path: Path) -> None:
    make_backup(published.home, tmp_path / "b0")
    restore(tmp_path / "b0", tmp_path / "live")
    live = at(published, tmp_path / "live")
    make_backup(live.home, tmp_path / "b")
    for name in ("r2", "r3"):
        if name == "r3":
            live.open_round("r3")
        for site in SITES[2:] if name == "r2" else SITES:
            live.release(site, GIVEN[site], name)
        live.collect(name)
        live.publish(name)
    versions = {v: live.home.release_folder(v) / "manifest.json" for v in (2, 3)}

    restore(tmp_path / "b", tmp_path / "new")
    other = at(live, tmp_path / "new")
    with pytest.raises(UsageError, match="Version 2 is unknown here too"):
        catch_up(other.home, other.store, versions[3])
    assert [v.version for v in other.store.versions()] == [1]
    learnt = [catch_up(other.home, other.store, versions[v]) for v in (2, 3)]
    assert [(e.version, e.round) for e in learnt] == [(2, ""), (3, "r3")]
    ahead = {s.name: (s.accepted_sequence, s.accepted_digest) for s in live.store.sites()}
    assert {s.name: (s.accepted_sequence, s.accepted_digest) for s in other.store.sites()} == ahead
    other.run_round(GIVEN, "r4")
    assert [(v.version, v.erased) for v in other.store.versions()] == [
        (1, False),
        (2, True),
        (3, True),
        (4, False),
    ]
    assert (
        verify_folder(other.home.release_folder(4), keys_of(other.home)).previous
        == live.store.versions()[-1].manifest_digest
    )


def test_what_this_coordinator_has_not_signed_is_not_believed(published: Hub, tmp_path: Path) -> None:
    stranger = Hub(tmp_path / "s")
    stranger.enrol("lake")
    stranger.open_round("r1")
    store = published.store
    before = [(s.name, s.accepted_sequence) for s in store.sites()]
    for data in (
        stranger.desk("r1").call(),
        b"{}",
        b"\xff",
        published.desk("r1").call().replace(b"lake", b"west"),
    ):
        (tmp_path / "x.json").write_bytes(data)
        with pytest.raises(ProtocolError):
            catch_up(published.home, store, tmp_path / "x.json")
    assert [(s.name, s.accepted_sequence) for s in store.sites()] == before
