"""Secure sums over an in-process grid: the real ServerApp, site app, exchange folder and agents."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.app import Context, Message, RecordDict

from coordinator.flower import post, server_app
from coordinator.flower.desk import RoundDesk
from coordinator.sums.asking import Asked, margins_of, read_codes
from coordinator.sums.drive import restart, run_sum
from coordinator.sums.opening import open_sum
from coordinator.sums.outcome import read_outcome
from coordinator.sums.record import SumRecord, SumStore
from protocol.errors import FederationError, GateError, RoundError, UsageError
from protocol.keys import PrivateKeys
from protocol.sums import STEPS, PooledSum, Step, agreed_cells
from site_agent.budget import BudgetLedger, noise_multiplier, sensitivity
from site_agent.flower import app
from site_agent.flower.app import make_app
from site_agent.ledger import Ledger
from site_agent.sums import SumAgent
from site_agent.sums.approval import preview_sum, revoke_sum
from site_agent.sums.folder import SumFolder
from tests.local_grid import LocalGrid
from tests.sum_federation import CODES, SITES, STUDY, Consortium, kept_pairs, margins

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
NODES = {site: 11 + i for i, site in enumerate(SITES)}


class Line:
    """The grid between the coordinator and the sites; each agent works whenever its site is asked something."""

    def __init__(self, consortium: Consortium) -> None:
        self.consortium = consortium
        self.gone: dict[str, Step] = {}
        self.agents = dict(consortium.agents())
        self.fresh = False
        self.seen: list[bytes] = []
        self.news: list[str] = []
        apps = {
            s: make_app(a.exchange.__class__(consortium.homes[s].exchange), s) for s, a in self.agents.items()
        }

        def node(site: str) -> Callable[[Message, Context], Message]:
            def reply(message: Message, context: Context) -> Message:
                if self.fresh:
                    self.agents[site] = SumAgent(self.consortium.homes[site])
                self.news += [f"{site}: {n}" for n in self.agents[site].step()]
                return apps[site](message, context)

            return reply

        self.grid = LocalGrid({NODES[s]: node(s) for s in SITES})

    def back(self, *sites: str) -> None:
        """Sites that were gone answer again."""
        for site in sites:
            del self.gone[site]
            self.grid.down.discard(NODES[site])

    def __call__(
        self, desk: RoundDesk, sites: tuple[str, ...], *, looks: int = 8, block: int = 1 << 20
    ) -> None:
        number = int(desk.round_id.rpartition("-")[2])
        self.grid.down |= {NODES[s] for s, step in self.gone.items() if number >= STEPS.index(step)}
        config = {
            "desk": str(desk.folder),
            "phase": "sum",
            "deadline-seconds": 60.0,
            "poll-seconds": 0.0,
            "block-bytes": block,
            "sites": ",".join(sites),
        }
        look, count = server_app.Visit.look, itertools.count(1)

        def counted(visit: server_app.Visit) -> Any:
            ready = look(visit)
            if next(count) >= looks:
                visit.deadline = time.monotonic()
            return ready

        with mock.patch.object(server_app.Visit, "look", counted):
            server_app.app(grid=self.grid, context=Context(1, 0, {}, RecordDict(), config))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post.Post, "pause", lambda self: time.sleep(0.001))
    monkeypatch.setattr(post, "DISK_RESERVE", 0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes in which the roster is trusted and a sum of margins is counted and approved."""
    folder = tmp_path_factory.mktemp("prepared") / "all"
    consortium = Consortium(folder)
    open_margins(consortium)
    line = Line(consortium)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(post.Post, "pause", lambda self: time.sleep(0.001))
        patch.setattr(post, "DISK_RESERVE", 0)
        with pytest.raises(RoundError, match="0 of 3 sites take part"):
            run_sum(consortium.hub, "m1", line)
    assert "no roster is trusted here yet" in status(consortium, "m1")["lake"]
    for site in SITES:
        consortium.trust(site)
        consortium.approve(site, "m1")
    return folder


@pytest.fixture
def consortium(prepared: Path, tmp_path: Path) -> Consortium:
    """A copy of the prepared homes, at another place."""
    return Consortium.copied(prepared, tmp_path / "all")


def open_margins(consortium: Consortium, name: str = "m1") -> SumRecord:
    asked = Asked("margins", read_codes(consortium.codes, consortium.study))
    return open_sum(consortium.hub, name, asked, enrolled=enrolled(consortium), nodes=NODES)


def open_cells(consortium: Consortium, name: str = "c1") -> SumRecord:
    asked = margins_of(consortium.hub, "m1")
    return open_sum(consortium.hub, name, asked, enrolled=enrolled(consortium), nodes=NODES)


def enrolled(consortium: Consortium) -> dict[str, Any]:
    return {s.name: s.public_keys for s in consortium.store.sites()}


def status(consortium: Consortium, name: str) -> dict[str, str]:
    store = SumStore(consortium.hub.folder / "sums" / name)
    record = store.load()
    step = store.step(record)
    assert step is not None
    desk = store.desk(record, step)
    return {s: f"{desk.progress(s).state}: {desk.progress(s).detail}" for s in SITES}


def plain_margins(consortium: Consortium, sites: Iterable[str] = SITES) -> Any:
    return sum(margins(consortium.plain()[s]) for s in sites)


def values(consortium: Consortium, name: str) -> Any:
    return read_outcome(consortium.hub, name)[1]["values"]


def test_margins_then_cells_are_the_plain_sums(consortium: Consortium) -> None:
    line = Line(consortium)
    result = run_sum(consortium.hub, "m1", line)
    assert result.sites == SITES
    assert result.faulty == ()
    np.testing.assert_array_equal(values(consortium, "m1"), plain_margins(consortium))

    open_cells(consortium)
    with pytest.raises(RoundError, match="0 of 3"):
        run_sum(consortium.hub, "c1", line)
    assert status(consortium, "c1")["lake"].startswith("awaiting-approval: Nothing is counted yet")
    for site in SITES:
        consortium.approve(site, "c1")
    run_sum(consortium.hub, "c1", line)
    _, arrays, vocabulary = read_outcome(consortium.hub, "c1")
    assert vocabulary == CODES
    pooled: dict[tuple[str, str], int] = {}
    for counts in consortium.plain().values():
        for pair, n in kept_pairs(counts).items():
            pooled[pair] = pooled.get(pair, 0) + n
    rows = plain_margins(consortium)[len(CODES) : -1].tolist()
    expected = {
        (CODES[j], CODES[k]): pooled.get((CODES[j], CODES[k]), 0)
        for j in range(len(CODES))
        for k in range(j, len(CODES))
        if rows[j] * rows[k] >= 10 * sum(rows)
    }
    found = zip(arrays["row"], arrays["column"], arrays["values"].tolist(), strict=True)
    assert {(CODES[j], CODES[k]): n for j, k, n in found} == expected
    assert len(expected) > 100
    assert sum(expected.values()) > 1000


def test_the_coordinator_receives_no_sites_own_counts(consortium: Consortium) -> None:
    own = {s: margins(c).astype("<i8") for s, c in consortium.plain().items()}
    run_sum(consortium.hub, "m1", Line(consortium))
    received = [p.read_bytes() for p in consortium.hub.folder.rglob("*.sealed")]
    assert len(received) == 3 * len(STEPS)
    for vector in own.values():
        raw = vector.tobytes()
        assert len(raw) == 648
        for data in received:
            assert raw not in data
            # Not even two cells of it stand there one after the other, where they say something.
            pieces = [raw[i : i + 16] for i in range(0, len(raw) - 16, 8)]
            assert not [p for p in pieces if p.count(0) < 14 and p in data]
    for path in consortium.hub.folder.rglob("m1-1-4/received/*.sealed"):
        masked = np.frombuffer(path.read_bytes()[-648:], "<u8")
        assert np.median(masked.astype(float)) > 2.0**62  # uniform modulo 2^64, as a masked vector is


def test_secrets_are_gone_once_the_outcome_arrived(consortium: Consortium) -> None:
    run_sum(consortium.hub, "m1", Line(consortium))
    for site, home in consortium.homes.items():
        agent = SumAgent(home)
        memory = agent.folder.memory()
        assert memory.states == {}
        assert [e.members for e in memory.ledger.entries] == [SITES]
        left = [p.name for p in (home.folder / "sums" / "m1").glob("*.safetensors")]
        assert left == ["days.safetensors"]  # fingerprints, to tell how many patients change
        assert not (home.folder / "sums" / "m1" / "offer.json").exists()
        events = [e.event for e in Ledger(home.folder / "ledger.jsonl").verify()]
        assert events[-5:] == ["sum-offered", "sum-joined", "sum-masked", "sum-closed", "sum-received"], site


def test_with_three_sites_none_may_go_before_its_vector_came(consortium: Consortium) -> None:
    """The floor is three: a sum of two would expose both to each other."""
    line = Line(consortium)
    line.gone["north"] = "mask"
    with pytest.raises(RoundError, match="2 of 3 sites remain"):
        run_sum(consortium.hub, "m1", line)
    line.back("north")
    assert run_sum(consortium.hub, "m1", line).sites == SITES
    np.testing.assert_array_equal(values(consortium, "m1"), plain_margins(consortium))


@pytest.mark.parametrize("step", ["received", "unmask", "close"])
def test_with_three_sites_one_may_go_after_the_vectors(consortium: Consortium, step: Step) -> None:
    line = Line(consortium)
    line.gone["north"] = step
    assert run_sum(consortium.hub, "m1", line).sites == SITES
    np.testing.assert_array_equal(values(consortium, "m1"), plain_margins(consortium))
    assert SumAgent(consortium.homes["north"]).folder.memory().states
    line.back("north")
    run_sum(consortium.hub, "m1", line)  # tells the outcome to whom it was not told yet
    assert SumAgent(consortium.homes["north"]).folder.memory().states == {}


def test_with_two_gone_the_sum_waits_and_goes_on_when_one_is_back(consortium: Consortium) -> None:
    line = Line(consortium)
    line.gone |= {"north": "received", "lake": "unmask"}
    with pytest.raises(RoundError, match="good shares of"):
        run_sum(consortium.hub, "m1", line)
    line.back("north")  # which has not signed the list yet
    assert run_sum(consortium.hub, "m1", line).sites == SITES
    np.testing.assert_array_equal(values(consortium, "m1"), plain_margins(consortium))


def test_both_sides_may_be_killed_after_every_step(consortium: Consortium) -> None:
    line = Line(consortium)
    line.fresh = True
    done: list[str] = []

    class KilledError(Exception):
        pass

    def once(desk: RoundDesk, sites: tuple[str, ...]) -> None:
        if desk.round_id in done:
            raise KilledError  # the coordinator dies at once when it comes to the same step again
        done.append(desk.round_id)
        line(desk, sites)
        raise KilledError

    for _ in range(3 * len(STEPS)):
        try:
            result: PooledSum = run_sum(consortium.hub, "m1", once)
            break
        except KilledError:
            pass
    else:
        pytest.fail("the sum did not end")
    assert len(done) == len(STEPS)
    assert result.sites == SITES
    np.testing.assert_array_equal(values(consortium, "m1"), plain_margins(consortium))


def test_large_material_and_answers_move_in_blocks_and_go_on_where_they_broke(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(consortium)
    monkeypatch.setattr(server_app, "SMALL", 100)
    monkeypatch.setattr(app, "SMALL", 100)

    def short(desk: RoundDesk, sites: tuple[str, ...]) -> None:
        for looks in (1, 2, 3, 8):
            line(desk, tuple(s for s in sites if not desk.received(s).exists()), looks=looks, block=1000)

    run_sum(consortium.hub, "m1", short)
    actions = [action for _, action in line.grid.log]
    assert actions.count("query.block") > 3 * len(STEPS)
    assert actions.count("query.deliver") > 3 * len(STEPS)
    np.testing.assert_array_equal(values(consortium, "m1"), plain_margins(consortium))


def test_a_yes_that_is_taken_back_stops_the_sum(consortium: Consortium) -> None:
    revoke_sum(consortium.homes["lake"], "m1", "officer")
    with pytest.raises(RoundError, match="2 of 3 sites take part"):
        run_sum(consortium.hub, "m1", Line(consortium))
    assert status(consortium, "m1")["lake"].startswith(
        "awaiting-approval: The counts of this sum wait for approval"
    )


def test_counts_that_were_altered_after_approval_do_not_leave(consortium: Consortium) -> None:
    folder = SumAgent(consortium.homes["lake"]).folder
    vector = folder.vector("m1")
    assert vector is not None
    folder.keep_vector("m1", vector + 1)
    with pytest.raises(RoundError, match="2 of 3 sites remain"):
        run_sum(consortium.hub, "m1", Line(consortium))
    assert "not those that were approved" in status(consortium, "m1")["lake"]


def test_a_coordinator_cannot_swap_a_sites_key(consortium: Consortium) -> None:
    store = SumStore(consortium.hub.folder / "sums" / "m1")
    record = store.load()
    keys = {**record.proposal.roster.keys, "north": PrivateKeys.generate().public()}
    roster = record.proposal.roster.model_copy(update={"keys": keys})
    store.save(record.model_copy(update={"proposal": record.proposal.model_copy(update={"roster": roster})}))
    for step in store.folder.glob("m1-*"):
        shutil.rmtree(step)
    line = Line(consortium)
    for agent in line.agents.values():
        for call in agent.exchange.calls():  # the honest one of before
            agent.exchange.drop_call(call)
    with pytest.raises(RoundError, match="0 of 3"):
        run_sum(consortium.hub, "m1", line)
    found = status(consortium, "m1")
    assert "refused" in found["lake"]
    assert "names another key of north than ours" in found["north"]


def test_the_same_sum_is_not_run_twice_over_the_same_data(consortium: Consortium) -> None:
    line = Line(consortium)
    run_sum(consortium.hub, "m1", line)
    open_margins(consortium, "m2")
    with pytest.raises(RoundError):
        run_sum(consortium.hub, "m2", line)
    for site in SITES:
        consortium.approve(site, "m2")
    with pytest.raises(RoundError):
        run_sum(consortium.hub, "m2", line)
    store = SumStore(consortium.hub.folder / "sums" / "m2")
    assert "has been summed over the same data and sites" in status(consortium, "m2")["lake"], store.load()


def test_a_sum_over_data_in_which_few_patients_changed_is_refused(consortium: Consortium) -> None:
    line = Line(consortium)
    run_sum(consortium.hub, "m1", line)
    open_margins(consortium, "m2")
    with pytest.raises(RoundError):
        run_sum(consortium.hub, "m2", line)
    first = consortium.approve("lake", "m2")
    # Anchors and codes alone do not make other data.
    consortium.write_events("lake", [(w, d, c.replace("C01", "C02")) for w, d, c in consortium.rows["lake"]])
    recoded = preview_sum(consortium.homes["lake"], "m2")
    assert recoded.data == first.data
    assert recoded.values != first.values
    consortium.write_events("lake", [*consortium.rows["lake"], (7, 400, "ICD10CM:C01")])
    with pytest.raises(GateError, match="1 patients have changed since sum m1, and 1,000 are needed"):
        preview_sum(consortium.homes["lake"], "m2")


def test_a_restart_has_new_keys_and_the_same_sum(consortium: Consortium) -> None:
    line = Line(consortium)
    line.gone["north"] = "share"
    with pytest.raises(RoundError, match="2 of 3 sites remain"):
        run_sum(consortium.hub, "m1", line)
    line.back("north")
    store = SumStore(consortium.hub.folder / "sums" / "m1")
    with pytest.raises(RoundError, match="2 sites would remain"):
        restart(store, store.load(), ["north"])
    with pytest.raises(UsageError, match="no site"):
        restart(store, store.load(), ["nobody"])
    restart(store, store.load(), [])
    result = run_sum(consortium.hub, "m1", line)
    np.testing.assert_array_equal(values(consortium, "m1"), plain_margins(consortium))
    assert result.sites == SITES


@pytest.fixture
def private(tmp_path: Path) -> Consortium:
    """A consortium whose study asks for noise, with a sum of margins counted and approved."""
    rule = "minimum_expected = 1\n[differential_privacy]\nenabled = true\n"
    rule += "epsilon = 11.0\nrelease_epsilon = 6.0\ncodes_per_patient = 5\n"
    consortium = Consortium(tmp_path / "private", study=STUDY + rule)
    open_margins(consortium)
    with pytest.raises(RoundError, match="0 of 3 sites take part"):
        run_sum(consortium.hub, "m1", Line(consortium))
    for site in SITES:
        consortium.trust(site)
        assert consortium.approve(site, "m1").noise
    return consortium


def test_a_private_sum_has_noise_of_the_stated_size_and_is_charged_once(private: Consortium) -> None:
    vectors = [SumFolder(home.folder / "sums").vector("m1") for home in private.homes.values()]
    exact = np.sum([v for v in vectors if v is not None], axis=0)
    result = run_sum(private.hub, "m1", Line(private))
    assert result.differential_privacy == "epsilon 6 at delta 1e-06, 5 codes a patient"
    found, n = values(private, "m1"), len(CODES)
    np.testing.assert_array_equal(exact[:n], exact[n : 2 * n])
    # A patient gives five of its codes at most: less than all that patients have, but for rare codes no more than that.
    assert exact[:n].sum() == sum(5 * p.patients for p in private.plain().values())
    np.testing.assert_array_equal(found[:n], found[n : 2 * n])
    scale = noise_multiplier(6.0, 1e-6) * sensitivity("margins", 5) * math.sqrt(len(SITES))
    noise = found[n:] - exact[n:]
    # Of 41 draws: six standard errors of a standard deviation.
    assert 0.34 * scale < noise.std() < 1.66 * scale
    for home in private.homes.values():
        entries = Ledger(home.folder / "budget.jsonl").verify()
        assert [e.facts["statistic"] for e in entries] == ["margins"]


def test_a_budget_that_is_spent_ends_sums(private: Consortium) -> None:
    line = Line(private)
    run_sum(private.hub, "m1", line)
    for site in SITES:
        BudgetLedger(private.homes[site].folder / "budget.jsonl").spend(
            private.study.differential_privacy, statistic="cells", session="0" * 64
        )
    open_cells(private)
    with pytest.raises(RoundError):
        run_sum(private.hub, "c1", line)
    for site in SITES:
        private.approve(site, "c1")
    with pytest.raises(RoundError):
        run_sum(private.hub, "c1", line)
    assert "budget of this site does not reach" in status(private, "c1")["lake"]
    for home in private.homes.values():
        assert len(Ledger(home.folder / "budget.jsonl").verify()) == 2


def test_a_hostile_answer_is_put_aside_and_named(consortium: Consortium) -> None:
    line = Line(consortium)

    def meddle(desk: RoundDesk, sites: tuple[str, ...]) -> None:
        line(desk, sites)
        if desk.round_id == "m1-1-2" and not desk.received("lake").with_suffix(".quarantine").exists():
            shutil.copy(desk.received("north"), desk.received("lake"))

    with pytest.raises(RoundError, match="2 of 3 sites remain"):
        run_sum(consortium.hub, "m1", meddle)
    assert "signed by another site" in status(consortium, "m1")["lake"]
    run_sum(consortium.hub, "m1", line)
    np.testing.assert_array_equal(values(consortium, "m1"), plain_margins(consortium))


def test_agreed_cells_are_those_of_exact_integers() -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 400, 60)
    found = agreed_cells(rows, 10)
    total, r = int(rows.sum()), rows.tolist()
    exact = [(j, k) for j in range(60) for k in range(j, 60) if r[j] * r[k] >= 10 * total]
    assert list(zip(found.row.tolist(), found.column.tolist(), strict=True)) == exact
    with pytest.raises(FederationError, match="No pair of codes"):
        agreed_cells([0, 0], 10)
    with pytest.raises(FederationError, match="More than"):
        agreed_cells(np.full(6000, 10_000), 1)
