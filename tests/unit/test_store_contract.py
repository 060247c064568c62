"""What the store promises, on SQLite and on a real PostgreSQL: also to several writers at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from coordinator.config import Home
from coordinator.database import PASSWORD_VARIABLE
from coordinator.review.log import ReviewLog
from coordinator.store import Delivery, Round, Site, Store, Submission, Withdrawal
from coordinator.tables import utc_now
from coordinator.web.tokens import KnownTokens, Tokens
from protocol.errors import FederationError, RoundError, UsageError
from protocol.keys import PrivateKeys
from tests.hub import Hub
from tests.postgres import PASSWORD, Server, postgres  # noqa: F401
from tests.synthetic import keys
from tests.unit.test_migrations import connections_closed  # noqa: F401

WRITERS = 6


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'x.db'}"
        return
    server: Server = request.getfixturevalue("postgres")
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    with server.database("contract") as name:
        yield name


@pytest.fixture
def store(url: str) -> Store:
    store = Store(url)
    for name in ("north", "a-b", "ab", "a0"):
        store.add_site(Site(name=name, keys=keys(name).public().model_dump_json(), node_key=name))
    for name in ("r1", "r2"):
        store.add_round(Round(name=name, call=b"\x00\xff", expires=datetime(2030, 1, 1, 2, 3, 4, 567890)))
    return store


def at_once(url: str, deed: Callable[[Store, int], Any]) -> list[Any]:
    """The same by several writers, each with connections of its own; what each got, or the error that it met."""
    ready = Barrier(WRITERS)

    def run(number: int) -> Any:
        mine = Store(url)
        ready.wait()
        try:
            return deed(mine, number)
        except (FederationError, IntegrityError) as error:
            return error

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(run, range(WRITERS)))


def accepted(site: str, sequence: int = 1, **changes: Any) -> Submission:
    values = {
        "round": "r1",
        "state": "accepted",
        "manifest_digest": f"{sequence}" * 64,
        "envelope_digest": "e" * 64,
    }
    return Submission(site=site, sequence=sequence, **(values | changes))


def test_names_are_in_the_same_order_everywhere(store: Store) -> None:
    assert [s.name for s in store.sites()] == ["a-b", "a0", "ab", "north"]
    for site in ("ab", "a0", "a-b"):
        store.record_submission(accepted(site))
    assert [s.site for s in store.submissions("r1")] == ["a-b", "a0", "ab"]


def test_bytes_and_times_come_back_as_they_were(store: Store) -> None:
    found = store.round("r1")
    assert (found.call, found.expires) == (b"\x00\xff", datetime(2030, 1, 1, 2, 3, 4, 567890))
    assert found.opened.tzinfo is None
    assert abs(found.opened - utc_now()) < timedelta(hours=1)


def test_one_of_many_enrols_a_site(store: Store, url: str) -> None:
    def deed(mine: Store, number: int) -> None:
        mine.add_site(
            Site(name="new", keys=PrivateKeys.generate().public().model_dump_json(), node_key=str(number))
        )

    got = at_once(url, deed)
    assert sorted(type(g).__name__ for g in got) == ["NoneType"] + ["UsageError"] * (WRITERS - 1)
    assert len(store.site_keys("new")) == 1


def test_one_of_many_moves_a_round(store: Store, url: str) -> None:
    got = at_once(url, lambda mine, number: mine.move_round("r1", "closed", f"by {number}"))
    assert sorted(type(g).__name__ for g in got) == ["NoneType"] + ["RoundError"] * (WRITERS - 1)
    assert [e.state for e in store.round_events("r1")] == ["open", "closed"]


def test_one_of_many_publishes_a_version(store: Store, url: str) -> None:
    for state in ("closed", "fitting", "fitted", "publishing"):
        store.move_round("r1", state)
    got = at_once(url, lambda mine, number: mine.record_published(1, "r1", f"{number}" * 64, ["ab", "north"]))
    assert [g for g in got if g is None] == [None]
    (version,) = store.versions()
    assert version.manifest_digest == f"{got.index(None)}" * 64
    store.record_delivery(1, "ab", "receipt", "d" * 64)
    store.record_delivery(1, "ab", "again", "d" * 64)
    assert [(d.site, d.receipt) for d in store.deliveries(1)] == [("ab", "again")]
    assert Delivery.__tablename__ == "delivery"


def test_each_writer_stores_its_own_submission(store: Store, url: str) -> None:
    names = ("north", "a-b", "ab", "a0")
    got = at_once(
        url,
        lambda mine, n: mine.record_submission(accepted(names[n % 4], 1 + n // 4, round=f"r{1 + n // 4}")),
    )
    assert got == [None] * WRITERS
    assert len(store.submissions("r1")) == 4
    assert len(store.submissions("r2")) == WRITERS - 4


def test_nothing_of_a_failed_transaction_stays(store: Store) -> None:
    with pytest.raises(IntegrityError):
        store.record_submission(accepted("stranger", state="refused"))
    assert store.submissions("r1") == []
    with pytest.raises(UsageError, match="already enrolled"):
        store.add_site(Site(name="ab", keys=keys("ab").public().model_dump_json(), node_key=""))


def test_after_a_withdrawal_nothing_of_the_site_counts(store: Store, url: str) -> None:
    def deed(mine: Store, number: int) -> None:
        if number == WRITERS // 2:
            left = Withdrawal(
                site="north",
                reason="it left",
                node_key="k",
                at=utc_now(),
                erased_bytes=3_000_000_000,
                affected_versions="",
            )
            mine.begin_withdrawal(left)
        else:
            mine.record_submission(accepted("north", round="r1" if number % 2 else "r2"))

    got = at_once(url, deed)
    assert got[WRITERS // 2] is None
    assert {type(g) for g in got} <= {type(None), RoundError, IntegrityError}
    assert {s.state for name in ("r1", "r2") for s in store.submissions(name)} <= {"withdrawn"}
    assert store.site("north").withdrawn is not None
    assert all(k.revoked for k in store.site_keys("north"))
    (found,) = store.withdrawals()
    assert found.erased_bytes == 3_000_000_000
    found.step = "erased"
    store.save_withdrawal(found)
    assert [w.step for w in store.withdrawals()] == ["erased"]


def test_tokens(store: Store, url: str) -> None:
    made = at_once(url, lambda mine, number: Tokens(mine).add(f"p{number}", "analyst", days=number + 1))
    tokens = Tokens(store)
    known, now = KnownTokens(tokens.all()), utc_now()
    assert [known.of(t, now).name for t in made] == [f"p{n}" for n in range(WRITERS)]  # type: ignore[union-attr]
    assert known.of(made[0], now + timedelta(days=2)) is None
    tokens.revoke("p3")
    assert KnownTokens(tokens.all()).of(made[3], utc_now()) is None


def test_the_review_log_is_one_chain_whoever_writes(url: str, tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub")
    home = hub.home
    given = {"kind": "comment", "actor": "ann", "code": "WEST:1", "comment": "x"}

    def deed(mine: Store, number: int) -> int:
        log = ReviewLog(Home(home.folder), mine, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
        return sum(len(log.append(lambda i=i: [given | {"comment": f"{number} {i}"}])) for i in range(4))  # type: ignore[misc]

    assert at_once(url, deed) == [4] * WRITERS
    log = ReviewLog(home, Store(url))
    assert log.verify().records == 4 * WRITERS
    assert {r.comment for r in log.records()} == {f"{n} {i}" for n in range(WRITERS) for i in range(4)}
