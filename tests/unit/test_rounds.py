"""Rounds: the moves, what people decide, and a driver that may be killed between any two looks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import rounds
from coordinator.flower.desk import RoundDesk, SiteProgress
from coordinator.rounds.driving import DELIVERY_DAYS, Driver
from coordinator.roundstates import MOVES, STATES, check_move
from coordinator.store import Round, Store
from protocol.errors import FederationError, RoundError, StudyError, UsageError
from protocol.messages import Receipt
from protocol.published import verify_folder
from protocol.signed import sign_message
from protocol.study import parse_study
from tests.copying import copy_folder
from tests.hub import Hub, releases


class Sites:
    """A line to sites that seal at once, or when they are told to."""

    def __init__(self, hub: Hub, given: dict[str, Any]) -> None:
        self.hub, self.given = hub, given
        self.away: set[str] = set()
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.down = False

    def nodes(self) -> dict[str, int]:
        self._reach()
        return {s.name: 10 + i for i, s in enumerate(self.hub.store.members())}

    def carry(self, desk: RoundDesk, phase: str, sites: Sequence[str], seconds: float) -> None:
        assert seconds > 0
        self._reach()
        self.asked.append((phase, tuple(sites)))
        for site in sites:
            if site in self.away:
                continue
            if phase == "collect":
                self.hub.release(site, self.given[site], desk.round_id)
                desk.report(SiteProgress(site=site, state="received", bytes_done=9, bytes_total=9))
            else:
                self._receipt(desk, site)

    def rest(self, desk: RoundDesk) -> None:
        self.asked.append(("rest", ()))

    def _receipt(self, desk: RoundDesk, site: str) -> None:
        version = self.hub.store.versions()[-1]
        receipt = Receipt(
            site=site,
            round=desk.round_id,
            version=version.version,
            manifest_digest=version.manifest_digest,
            received=datetime.now(UTC),
        )
        data = sign_message(receipt, self.hub.key_of[site]).decode()
        desk.report(SiteProgress(site=site, state="delivered", receipt=data))

    def _reach(self) -> None:
        if self.down:
            raise FederationError("The services do not run")


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    hub = Hub(tmp_path_factory.mktemp("rounds"))
    hub.enrol(*releases())
    return hub


@pytest.fixture
def hub(enrolled: Hub, tmp_path: Path) -> Hub:
    """A copy of the coordinator for each test."""
    copy_folder(enrolled.home.folder, tmp_path / "hub")
    found = Hub.__new__(Hub)
    found.folder, found.study = tmp_path, enrolled.study
    found.key_of, found.last = enrolled.key_of, {}
    found.home = type(enrolled.home)(tmp_path / "hub")
    return found


def driver(hub: Hub, line: Sites, **options: Any) -> Driver:
    return Driver(hub.home, hub.store, line, **options)


def drive(found: Driver, name: str = "r1", looks: int = 30) -> str:
    for _ in range(looks):
        if found.look(name):
            return found.store.round(name).state
    return found.store.round(name).state


def past_deadline(hub: Hub, name: str = "r1") -> None:
    hub.store.note_round(name, "time passes", expires=datetime.now(UTC).replace(tzinfo=None))


# --- Moves ---------------------------------------------------------------------------------------------


def test_every_move_leads_to_a_state_that_there_is_and_aborted_is_the_end() -> None:
    assert set(MOVES) == set(STATES)
    assert {to for moves in MOVES.values() for to in moves} < set(STATES)
    assert MOVES["aborted"] == ()
    reached, border = {"planned"}, {"planned"}
    while border:
        border = {to for state in border for to in MOVES[state]} - reached
        reached |= border
    assert reached == set(STATES)


@given(st.sampled_from(STATES), st.sampled_from(STATES))
def test_a_move_that_is_not_listed_is_refused_with_the_way_on(state: str, to: str) -> None:
    if to in MOVES[state]:
        check_move("r1", state, to)
    else:
        with pytest.raises(RoundError, match=f"is {state}, and cannot become {to}"):
            check_move("r1", state, to)


def test_a_refused_move_changes_nothing(hub: Hub) -> None:
    hub.open_round()
    before = len(hub.store.round_events("r1"))
    with pytest.raises(RoundError, match="cannot become published"):
        hub.store.move_round("r1", "published")
    assert hub.store.round("r1").state == "open"
    assert len(hub.store.round_events("r1")) == before


# --- The driver ----------------------------------------------------------------------------------------


def test_a_round_goes_from_plan_to_delivery(hub: Hub) -> None:
    line = Sites(hub, releases())
    rounds.plan_round(hub.home, hub.store, "r1", opens=datetime.now(UTC) + timedelta(days=1))
    found = driver(hub, line)
    assert not found.look("r1")
    assert hub.store.round("r1").state == "planned"
    assert line.asked == []
    hub.store.note_round("r1", "a day later", opened=datetime.now(UTC).replace(tzinfo=None))
    assert drive(found) == "delivered"
    states = [e.state for e in hub.store.round_events("r1")]
    order = [s for i, s in enumerate(states) if i == 0 or states[i - 1] != s]
    assert order == [
        *("planned", "open", "collecting", "closed", "fitting", "fitted"),
        *("publishing", "published", "delivered"),
    ]
    verify_folder(hub.home.release_folder(1), hub.home.keys.public())
    assert ("collect", ("lake", "north", "south", "west")) in line.asked


def test_killed_between_any_two_looks_the_map_is_the_same(hub: Hub, tmp_path: Path) -> None:
    """A new driver, with a new store, at every look; the map holds the same bytes as that of one driver."""
    given_releases = releases()
    other = Hub.__new__(Hub)
    other.folder, other.study, other.key_of, other.last = tmp_path / "b", hub.study, hub.key_of, {}
    copy_folder(hub.home.folder, tmp_path / "b" / "hub")
    other.home = type(hub.home)(tmp_path / "b" / "hub")
    for each, anew in ((hub, False), (other, True)):
        line = Sites(each, given_releases)
        each.open_round()
        found = driver(each, line)
        for _ in range(30):
            if found.look("r1"):
                break
            found = driver(each, line) if anew else found
        assert each.store.round("r1").state == "delivered"
    for name in ("embeddings.parquet", "clusters.parquet", "evidence.parquet"):
        left, right = (h.home.release_folder(1) / name for h in (hub, other))
        assert left.read_bytes() == right.read_bytes(), name


@pytest.mark.parametrize("state", ["fitting", "publishing"])
def test_work_that_died_is_begun_anew(hub: Hub, state: str) -> None:
    line = Sites(hub, releases())
    hub.open_round()
    before = "collected" if state == "fitting" else "fitted"
    drive(driver(hub, line, until=before))
    hub.store.move_round("r1", state)  # and here the process was killed
    if state == "publishing":
        (hub.home.release_folder(1)).mkdir(parents=True)
        (hub.home.release_folder(1) / "half").write_text("torn")
    assert drive(driver(hub, line)) == "delivered"
    assert not (hub.home.release_folder(1) / "half").exists()
    verify_folder(hub.home.release_folder(1), hub.home.keys.public())


def test_it_stops_where_it_is_told_to(hub: Hub) -> None:
    line = Sites(hub, releases())
    hub.open_round()
    for until, state in (("collected", "closed"), ("fitted", "fitted"), ("published", "published")):
        assert drive(driver(hub, line, until=until)) == state


def test_unattended_it_leaves_to_people_what_is_theirs_and_delivers_what_they_published(hub: Hub) -> None:
    line = Sites(hub, releases())
    hub.open_round()
    found = driver(hub, line, until="fitted", patient=True)
    assert drive(found) == "fitted"
    assert drive(driver(hub, line, until="published")) == "published"
    assert drive(found) == "delivered"


def test_a_deadline_below_the_quorum_lapses_and_an_extension_takes_it_up(hub: Hub) -> None:
    line = Sites(hub, releases())
    line.away = {"north", "west"}
    hub.open_round()
    found = driver(hub, line)
    assert drive(found, looks=5) == "collecting"
    past_deadline(hub)
    assert drive(found) == "lapsed"
    states = {s.site: s.state for s in rounds.site_states(hub.home, hub.store, "r1")}
    assert states == {"lake": "accepted", "south": "accepted", "north": "late", "west": "late"}
    assert "north, west" in hub.store.round_events("r1")[-1].detail
    line.away = set()
    rounds.extend(hub.home, hub.store, "r1", days=2)
    assert drive(driver(hub, line)) == "delivered"
    assert hub.store.versions()[0].sites == ("lake", "north", "south", "west")


def test_at_its_deadline_a_round_with_enough_sites_goes_on_and_names_who_is_late(hub: Hub) -> None:
    line = Sites(hub, releases())
    line.away = {"north"}
    hub.open_round()
    assert drive(driver(hub, line), looks=5) == "collecting"
    past_deadline(hub)
    assert drive(driver(hub, line)) == "delivered"
    manifest = verify_folder(hub.home.release_folder(1), hub.home.keys.public())
    assert {s.site: s.state for s in manifest.sites}["north"] == "missing"


def test_what_arrived_before_the_deadline_counts_whenever_it_is_looked_at(hub: Hub) -> None:
    hub.open_round()
    past = datetime.now(UTC) - timedelta(hours=2)
    for site, parts in releases().items():
        hub.release(site, parts, expires=datetime.now(UTC) - timedelta(hours=1))
        os.utime(hub.desk().received(site), (past.timestamp(), past.timestamp()))
    past_deadline(hub)
    assert drive(driver(hub, Sites(hub, {})), looks=3) in {"closed", "fitting", "fitted", "published"}


def test_what_comes_after_the_round_was_closed_is_late_and_not_opened(hub: Hub) -> None:
    line = Sites(hub, releases())
    line.away = {"west"}
    hub.open_round()
    drive(driver(hub, line), looks=3)
    rounds.close(hub.home, hub.store, "r1")
    hub.release("west", releases()["west"])
    assert {s.site for s in rounds.take_in(hub.home, hub.store, "r1")} == {"lake", "north", "south"}
    assert hub.store.site("west").accepted_sequence == 0
    states = {s.site: s.state for s in rounds.site_states(hub.home, hub.store, "r1")}
    assert states["west"] == "late"


def test_a_line_that_goes_away_is_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.rounds.driving._RETRY_SECONDS", 0.0)
    line, said = Sites(hub, releases()), []
    line.away = {"west"}
    hub.open_round()
    found = driver(hub, line, say=lambda name, text: said.append(text))
    drive(found, looks=2)
    line.down = True
    drive(found, looks=3)
    assert len([text for text in said if "Waits for the line" in text]) == 1
    line.down, line.away = False, set()
    assert drive(found) == "delivered"


def test_a_line_that_was_never_there_is_told_of_at_once(hub: Hub) -> None:
    line = Sites(hub, releases())
    line.down = True
    hub.open_round()
    with pytest.raises(FederationError, match="do not run"):
        driver(hub, line).look("r1")


def test_a_step_that_failed_is_tried_again_only_when_something_has_changed(hub: Hub) -> None:
    given_releases = releases()
    line, said = Sites(hub, given_releases), []
    hub.open_round()
    found = driver(hub, line, patient=True, say=lambda name, text: said.append(text))
    drive(driver(hub, line, until="collected"))
    path = hub.desk().received("lake")
    path.rename(path.with_suffix(".hidden"))
    assert drive(found, looks=4) == "closed"
    assert len([text for text in said if "Waits for a person" in text]) == 1
    path.with_suffix(".hidden").rename(path)
    rounds.exclude(hub.store, "r1", "west", because="its release waits for a decision")
    assert drive(found) == "delivered"
    assert hub.store.versions()[0].sites == ("lake", "north", "south")


def test_a_site_that_never_takes_its_result_is_named_after_ninety_days(hub: Hub) -> None:
    line = Sites(hub, releases())
    hub.open_round()
    drive(driver(hub, line, until="published"))
    line.away = {"north"}
    found = driver(hub, line)
    assert drive(found, looks=3) == "published"
    with hub.store.begin() as session:
        from coordinator.store import Published

        session.get_one(Published, 1).created -= timedelta(days=DELIVERY_DAYS + 1)
    with pytest.raises(RoundError, match="did not reach north"):
        found.look("r1")


# --- What people decide --------------------------------------------------------------------------------


def test_an_excluded_site_is_neither_asked_nor_used_and_is_named(hub: Hub) -> None:
    line = Sites(hub, releases())
    line.away = {"west"}
    hub.open_round()
    drive(driver(hub, line), looks=2)
    rounds.exclude(hub.store, "r1", "west", because="its machine is gone")
    assert drive(driver(hub, line)) == "delivered"
    manifest = verify_folder(hub.home.release_folder(1), hub.home.keys.public())
    west = next(s for s in manifest.sites if s.site == "west")
    assert west.state == "excluded"
    assert "its machine is gone" in west.detail
    with pytest.raises(RoundError, match="cannot be changed now"):
        rounds.include(hub.store, "r1", "west")


def test_excluding_after_the_fit_asks_for_another_fit(hub: Hub) -> None:
    line = Sites(hub, releases())
    hub.open_round()
    drive(driver(hub, line, until="fitted"))
    rounds.exclude(hub.store, "r1", "west", because="found to be wrong")
    assert hub.store.round("r1").state == "closed"
    assert drive(driver(hub, line, until="published")) == "published"
    assert hub.store.versions()[0].sites == ("lake", "north", "south")


def test_an_aborted_round_leaves_nothing_to_open_and_sites_can_answer_another(hub: Hub) -> None:
    line = Sites(hub, releases())
    hub.open_round()
    drive(driver(hub, line, until="collected"))
    rounds.abort(hub.home, hub.store, "r1", because="wrong study file")
    assert not hub.home.round_key_path("r1").exists()
    assert not list((hub.home.round_folder("r1") / "received").iterdir())
    rounds.abort(hub.home, hub.store, "r1", because="again does no harm")
    with pytest.raises(RoundError, match="aborted"):
        rounds.extend(hub.home, hub.store, "r1", days=9)
    line.given = releases(seed=1)
    hub.last = {s.name: (s.accepted_sequence, s.accepted_digest) for s in hub.store.members()}
    rounds.rerun(hub.home, hub.store, "r1", "r2", nodes=line.nodes())
    assert drive(driver(hub, line), "r2") == "delivered"


def test_a_rerun_keeps_the_exclusions(hub: Hub) -> None:
    hub.open_round()
    rounds.exclude(hub.store, "r1", "north", because="no data this year")
    rounds.rerun(hub.home, hub.store, "r1", "r2", nodes={})
    assert hub.store.exclusions("r2")["north"].because == "no data this year"


def test_close_needs_the_studys_minimum(hub: Hub) -> None:
    line = Sites(hub, releases())
    line.away = {"north", "west"}
    hub.open_round()
    drive(driver(hub, line), looks=2)
    with pytest.raises(RoundError, match="has 2 accepted releases, and the study needs 3"):
        rounds.close(hub.home, hub.store, "r1")


def test_decisions_need_reasons_and_rounds_that_there_are(hub: Hub) -> None:
    hub.open_round()
    for wrong in ("", "  ", "x" * 501):
        with pytest.raises(UsageError, match="reason"):
            rounds.exclude(hub.store, "r1", "north", because=wrong)
        with pytest.raises(UsageError, match="reason"):
            rounds.abort(hub.home, hub.store, "r1", because=wrong)
    with pytest.raises(UsageError, match="not enrolled"):
        rounds.exclude(hub.store, "r1", "nowhere", because="?")
    with pytest.raises(UsageError, match="not excluded"):
        rounds.include(hub.store, "r1", "north")
    with pytest.raises(UsageError, match="already"):
        rounds.extend(hub.home, hub.store, "r1", days=1)
    with pytest.raises(UsageError, match="exists"):
        hub.open_round()
    with pytest.raises(UsageError, match="exists"):
        rounds.plan_round(hub.home, hub.store, "r1", opens=datetime.now(UTC))


def test_a_quorum_that_no_round_could_have_is_no_study() -> None:
    table = {
        "id": "s",
        "sites": ["a", "b", "c"],
        "standard": "X",
        "code_systems": [{"prefix": "X"}],
        "minimum_sites": 2,
    }
    assert parse_study(table | {"rounds": {"quorum": 3}}, "here").quorum == 3
    assert parse_study(table, "here").quorum == 2
    for quorum in (1, 4):
        with pytest.raises(StudyError, match=r"rounds\.quorum"):
            parse_study(table | {"rounds": {"quorum": quorum}}, "here")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(STATES), max_size=12))
def test_law_the_events_tell_where_a_round_stands(tmp_path_factory: Any, moves: list[str]) -> None:
    """Whatever is asked of a round, its last event names its state, and it never leaves the end."""
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('law') / 'c.db'}")
    now = datetime.now(UTC).replace(tzinfo=None)
    store.add_round(Round(name="r", call=b"", state="planned", opened=now, expires=now))
    for to in moves:
        before = store.round("r").state
        try:
            store.move_round("r", to)
        except RoundError:
            assert store.round("r").state == before
        else:
            assert store.round("r").state == to
        assert store.round_events("r")[-1].state == store.round("r").state
        assert not (before == "aborted" and store.round("r").state != "aborted")
    store.engine.dispose()
