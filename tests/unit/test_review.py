"""Reviews on a published version: decisions, two blind reviewers, undo, the queue, and the log that holds them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.config import Home
from coordinator.keychange import rotate
from coordinator.library import OpenRelease
from coordinator.review import Reviews
from coordinator.review.log import VerifiedLog
from coordinator.review.record import MAX_COMMENT, Decision
from coordinator.store import Store
from protocol.canonical import canonical_json
from protocol.errors import DataError, FederationError, KeyFileError, ProtocolError, UsageError
from protocol.signed import Signed, peek
from tests.hub import Hub, releases
from tests.postgres import Server, postgres  # noqa: F401

ONE, TWO, THREE = "WEST:10", "WEST:11", "WEST:12"
A, B = "ICD10CM:C10", "ICD10CM:C11"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a coordinator with one version; each test copies it."""
    hub = Hub(tmp_path_factory.mktemp("published"))
    hub.enrol("lake", "north", "south", "west")
    hub.run_round(releases(), "r1")
    return hub.home.folder


@dataclass
class Desk:
    home: Home
    reviews: Reviews
    times: list[datetime] = field(default_factory=list)

    @property
    def release(self) -> OpenRelease:
        return self.reviews.library.open()

    def again(self) -> Reviews:
        """As another process would open it."""
        home = Home(self.home.folder)
        return Reviews(home, Store(home.database_url))

    def sql(self, *statements: str, **values: object) -> None:
        with Store(self.home.database_url).begin() as session:
            for statement in statements:
                session.execute(text(statement), values)

    def fill(self) -> None:
        """Four records."""
        self.reviews.decide(reviewer="ann", code=ONE, target=A, verdict="accept")
        self.reviews.comment(reviewer="ann", code=ONE, text="sure")
        self.reviews.decide(reviewer="bob", code=TWO, target=B, verdict="reject", comment="no")
        self.reviews.undo(reviewer="bob", number=3)


def opened(folder: Path) -> Desk:
    home = Home(folder)
    return Desk(home, Reviews(home, Store(home.database_url)))


@pytest.fixture
def desk(published: Path, tmp_path: Path) -> Desk:
    shutil.copytree(published, tmp_path / "hub")
    return opened(tmp_path / "hub")


# --- Decisions -----------------------------------------------------------------------------------------


def test_one_reviewer_decides_and_may_change_their_mind(desk: Desk) -> None:
    reviews = desk.reviews
    assert reviews.standing(ONE).state == "open"
    made = reviews.decide(
        reviewer="ann", code=ONE, target=A, verdict="accept", comment="seen\x1b[2J the\u202e label"
    )
    entry = desk.release.entry(ONE)
    assert (made.version, made.manifest_digest) == (1, desk.release.manifest.digest)
    assert (made.model_target, made.model_probability) == (
        entry.standard_code,
        min(entry.probability, 1.0),
    )
    assert made.comment == "seen[2J the label"
    assert (reviews.standing(ONE).state, reviews.standing(ONE).target) == ("accepted", A)
    reviews.decide(reviewer="ann", code=ONE, target=A, verdict="reject")
    assert (reviews.standing(ONE).state, reviews.standing(ONE).wrong) == ("rejected", (A,))
    reviews.decide(reviewer="ann", code=ONE, target="", verdict="accept")
    assert (reviews.standing(ONE).state, reviews.standing(ONE).target) == ("accepted", "")
    assert reviews.standing(ONE).wrong == (A,)
    reviews.decide(reviewer="ann", code=ONE, target=B, verdict="unsure")
    assert reviews.standing(ONE).state == "unsure"
    assert [r.number for r in reviews.history(ONE)] == [1, 2, 3, 4]
    assert desk.again().standings() == reviews.standings()


def test_the_same_decision_twice_is_one_record(desk: Desk) -> None:
    one, two = (desk.reviews.decide(reviewer="ann", code=ONE, target=A, verdict="accept") for _ in range(2))
    assert one == two
    assert len(desk.reviews.log.records()) == 1


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"code": "WEST:nowhere"}, UsageError, "no code WEST:nowhere"),
        ({"code": "ICD10CM:C10"}, UsageError, "a standard code"),
        ({"code": "NOWHERE:1"}, FederationError, "NOWHERE"),
        ({"code": "plain"}, DataError, "PREFIX:code"),
        ({"code": "WEST:a\u202eb"}, DataError, "control character"),
        ({"target": "WEST:11"}, UsageError, "not of the standard system"),
        ({"target": "", "verdict": "reject"}, UsageError, "Nothing is rejected"),
        ({"verdict": "maybe"}, UsageError, "no verdict"),
        ({"version": 7}, UsageError, "no version 7"),
        ({"reviewer": ""}, UsageError, "cannot name a person"),
        ({"reviewer": "an\u200bn"}, UsageError, "cannot name a person"),
        ({"comment": "x" * (MAX_COMMENT + 1)}, UsageError, "too long"),
    ],
)
def test_what_cannot_be_decided_is_not_recorded(
    published: Path, changes: dict[str, Any], kind: type[FederationError], said: str
) -> None:
    reviews = opened(published).reviews
    given: dict[str, Any] = {"reviewer": "ann", "code": ONE, "target": A, "verdict": "accept", **changes}
    with pytest.raises(kind, match=said):
        reviews.decide(**given)
    assert not reviews.log.records()


def test_two_blind_reviewers_and_an_adjudicator(desk: Desk) -> None:
    reviews = desk.reviews
    reviews.assign(by="carla", code=ONE, reviewers=["ann", "bob"])
    with pytest.raises(UsageError, match="assigned to ann and bob"):
        reviews.decide(reviewer="dan", code=ONE, target=A, verdict="accept")
    reviews.decide(reviewer="ann", code=ONE, target=A, verdict="accept", comment="clear")
    assert reviews.standing(ONE).state == "open"
    blind = reviews.seen_by("bob", ONE)
    assert (blind.state, blind.decisions) == ("open", ())
    assert {r.actor for r in reviews.history_seen_by("bob", ONE)} == {"carla"}
    assert [t.code for t in reviews.queue(desk.release, reviewer="bob")][:1] != []
    assert ONE in [t.code for t in reviews.queue(desk.release, reviewer="bob")]
    assert ONE not in [t.code for t in reviews.queue(desk.release, reviewer="ann")]
    assert ONE not in [t.code for t in reviews.queue(desk.release, reviewer="dan")]
    reviews.decide(reviewer="bob", code=ONE, target=B, verdict="accept")
    assert reviews.seen_by("bob", ONE).state == "conflict"
    assert [s.code for s in reviews.conflicts()] == [ONE]
    assert reviews.queue(desk.release)[0].code == ONE
    with pytest.raises(UsageError, match="one of those who disagree"):
        reviews.adjudicate(adjudicator="ann", code=ONE, target=A, verdict="accept")
    made = reviews.adjudicate(adjudicator="carla", code=ONE, target=B, verdict="accept")
    assert (reviews.standing(ONE).state, reviews.standing(ONE).target) == ("accepted", B)
    with pytest.raises(UsageError, match="adjudicated by record"):
        reviews.decide(reviewer="ann", code=ONE, target=B, verdict="reject")
    with pytest.raises(UsageError, match="not in conflict"):
        reviews.adjudicate(adjudicator="carla", code=ONE, target=A, verdict="accept")
    with pytest.raises(UsageError, match="made by somebody else"):
        reviews.undo(reviewer="ann", number=made.number)
    reviews.undo(reviewer="root", number=made.number, coordinator=True)
    assert reviews.standing(ONE).state == "conflict"
    reviews.decide(reviewer="ann", code=ONE, target=B, verdict="accept")
    assert (reviews.standing(ONE).state, reviews.standing(ONE).target) == ("accepted", B)


def test_undo_and_its_undo(desk: Desk) -> None:
    reviews = desk.reviews
    reviews.decide(reviewer="ann", code=ONE, target=A, verdict="accept")
    later = reviews.decide(reviewer="ann", code=ONE, target=B, verdict="accept")
    undone = reviews.undo(reviewer="ann", number=later.number)
    assert reviews.standing(ONE).target == A
    with pytest.raises(UsageError, match="taken back already"):
        reviews.undo(reviewer="ann", number=later.number)
    reviews.undo(reviewer="ann", number=undone.number)
    assert reviews.standing(ONE).target == B
    with pytest.raises(UsageError, match="no record 99"):
        reviews.undo(reviewer="ann", number=99)


def test_the_queue_shows_the_most_doubtful_first_and_pages(desk: Desk) -> None:
    reviews, release = desk.reviews, desk.release
    every = reviews.queue(release, limit=1000)
    assert [t.code for t in every] == [
        e.code for e in sorted(release.map.mappings, key=lambda e: (abs(e.probability - 0.5), e.code))
    ]
    assert [t.code for t in reviews.queue(release, limit=4, offset=3)] == [t.code for t in every][3:7]
    reviews.decide(reviewer="ann", code=ONE, target=A, verdict="accept")
    assert [t.code for t in reviews.queue(release, state="accepted")] == [ONE]
    assert ONE not in [t.code for t in reviews.queue(release, limit=1000)]
    assert len(reviews.queue(release, state="all", limit=1000)) == len(every)
    assert reviews.queue(release, systems=["ICD10CM"]) == []
    assert reviews.progress(release).counts["accepted"] == reviews.progress(release).settled == 1
    for wrong in ({"state": "odd"}, {"limit": 0}, {"limit": 5000}, {"offset": -1}, {"systems": ["NONE"]}):
        with pytest.raises(UsageError):
            reviews.queue(release, **wrong)


def test_many_codes_are_assigned_at_once_or_none(desk: Desk) -> None:
    made = desk.reviews.assign_all(by="carla", codes=[ONE, TWO], reviewers=["ann"])
    assert [r.number for r in made] == [1, 2]
    with pytest.raises(UsageError, match="standard code"):
        desk.reviews.assign_all(by="carla", codes=[THREE, "ICD10CM:C10"], reviewers=["ann"])
    with pytest.raises(UsageError, match="different people"):
        desk.reviews.assign(by="carla", code=THREE, reviewers=["ann", "ann"])
    assert desk.reviews.standing(THREE).assigned == ()
    desk.reviews.assign(by="carla", code=ONE, reviewers=[])
    assert desk.reviews.standing(ONE).assigned == ()


# --- The log -------------------------------------------------------------------------------------------


def test_a_log_as_it_was_written_is_verified(desk: Desk) -> None:
    assert desk.reviews.verify() == VerifiedLog(0, "")
    desk.fill()
    found = desk.again().verify()
    assert (found.records, found.doubtful) == (4, ())
    assert found.head == desk.reviews.log.records()[-1].digest


def rewrite(desk: Desk, number: int, **changes: object) -> None:
    """Change a stored record as somebody with the database, but without the key, could."""
    with Store(desk.home.database_url).begin() as session:
        data = session.execute(
            text("select signed from review_record where number = :n"), {"n": number}
        ).scalar_one()
    record, outer = peek(bytes(data), Decision), Signed.model_validate_json(bytes(data))
    payload = canonical_json(record.model_copy(update=changes)).decode()
    forged = canonical_json(outer.model_copy(update={"payload": payload}))
    desk.sql("update review_record set signed = :d where number = :n", d=forged, n=number)


TAMPERING: dict[str, Callable[[Desk], Any]] = {
    "altered": lambda d: rewrite(d, 3, verdict="accept"),
    "altered first": lambda d: rewrite(d, 1, actor="eve"),
    "altered last": lambda d: rewrite(d, 4, undoes=1),
    "of another study": lambda d: rewrite(d, 4, study="other"),
    "dropped": lambda d: d.sql("delete from review_record where number = 2"),
    "dropped last": lambda d: d.sql("delete from review_record where number = 4"),
    "dropped last with the head": lambda d: d.sql(
        "delete from review_record where number = 4", "delete from review_head"
    ),
    "all dropped": lambda d: d.sql("delete from review_record", "delete from review_head"),
    "renumbered": lambda d: d.sql(
        "update review_record set number = 99 where number = 2",
        "update review_record set number = 2 where number = 3",
        "update review_record set number = 3 where number = 99",
    ),
    "no record": lambda d: d.sql("update review_record set signed = 'x' where number = 2"),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_a_log_that_was_tampered_with_is_refused(how: str, desk: Desk) -> None:
    desk.fill()
    TAMPERING[how](desk)
    with pytest.raises(ProtocolError):
        desk.again().verify()
    # Nothing is built on it either.
    with pytest.raises(ProtocolError):
        desk.again().standings()
    with pytest.raises(ProtocolError):
        desk.again().decide(reviewer="ann", code=THREE, target=A, verdict="accept")


def test_records_outlive_new_keys_and_lost_ones_are_told(desk: Desk) -> None:
    desk.fill()
    rotate(desk.home, now=datetime.now(UTC))
    with pytest.raises(KeyFileError, match="keys were changed"):
        desk.reviews.decide(reviewer="ann", code=THREE, target=A, verdict="accept")
    after = desk.again()
    assert after.verify().records == 4
    after.decide(reviewer="ann", code=THREE, target=A, verdict="accept")
    assert desk.again().verify().doubtful == ()
    last = after.log.records()[-1]
    lost = Home(desk.home.folder)
    rotate(lost, now=datetime.now(UTC), lost_since=last.at - timedelta(microseconds=1))
    found = desk.again().verify()
    assert (found.records, found.doubtful) == (5, (5,))


def test_time_never_runs_back_in_the_log(desk: Desk) -> None:
    now = [datetime(2030, 1, 1, tzinfo=UTC)]
    reviews = Reviews(desk.home, Store(desk.home.database_url), clock=lambda: now[0])
    reviews.comment(reviewer="ann", code=ONE, text="one")
    now[0] -= timedelta(days=1)
    assert reviews.comment(reviewer="ann", code=ONE, text="two").at == datetime(2030, 1, 1, tzinfo=UTC)
    reviews.verify()


def write_at_once(home: Home, each: int = 6) -> None:
    """Four writers, each with an own connection; two of them share one code."""
    homes = [Reviews(Home(home.folder), Store(home.database_url)) for _ in range(4)]
    ready = threading.Barrier(4)

    def write(i: int) -> None:
        ready.wait()
        for k in range(each):
            homes[i].comment(reviewer=f"person {i}", code=ONE, text=f"{i} {k}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    last = Reviews(Home(home.folder), Store(home.database_url))
    assert last.verify().records == 4 * each
    said = [(r.actor, r.comment) for r in last.log.records()]
    assert len(set(said)) == 4 * each


def test_concurrent_writers_do_not_fork_the_log(desk: Desk) -> None:
    write_at_once(desk.home)


def test_concurrent_writers_on_postgresql(
    desk: Desk,
    postgres: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGPASSWORD", "correct-horse-battery")
    with postgres.database("reviews") as url:
        path = desk.home.folder / "coordinator.toml"
        line = f'database = "{url.replace("postgresql://", "postgresql+psycopg://")}"\n'
        path.write_text(line + path.read_text().replace('database = ""', ""))
        home = Home(desk.home.folder)
        write_at_once(home)
        Store(home.database_url).engine.dispose()


# --- Commands ------------------------------------------------------------------------------------------


def test_commands_say_what_they_did(desk: Desk) -> None:
    def run(*words: str, code: int = 0) -> str:
        found = CliRunner().invoke(app, ["review", *words, "--home", str(desk.home.folder)])
        assert found.exit_code == code, found.output
        return found.output

    assert ONE in run("queue")
    assert "accepted as" in run("decide", ONE, "accept", "--as", "ann", "--comment", "[red]hm")
    run("decide", ONE, "reject", "--as", "bob")
    assert ONE in run("conflicts")
    run("adjudicate", ONE, "accept", "--as", "carla")
    run("undo", "3", "--as", "carla")
    run("assign", "--first", "2", "--to", "ann", "--to", "bob")
    assert "[red]hm" in run("show", ONE, "--all")
    assert "All 6 records" in run("log", "--verify")
    out = desk.home.folder / "reviews.csv"
    run("export", str(out))
    assert out.read_text().splitlines()[1].startswith(f"{ONE},")
    desk.sql("delete from review_record where number = 1")
    found = CliRunner().invoke(app, ["review", "log", "--verify", "--home", str(desk.home.folder)])
    assert isinstance(found.exception, ProtocolError)
