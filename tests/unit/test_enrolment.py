"""Who is in, and how a site goes on whose machine is lost: with a backup, with an old one, with none."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator import publish, replacing, rounds, setup
from coordinator.cli import app as hub_app
from coordinator.nodes import read_change, take_change
from coordinator.store import Submission
from protocol.envelope import read_header
from protocol.errors import EnvelopeError, FederationError, GateError, KeyFileError, ProtocolError, UsageError
from site_agent import enrolment, keys, lost
from site_agent.agent import Agent
from site_agent.cli import app as site_app
from site_agent.config import Home
from site_agent.results import open_result
from site_agent.run import run_agent
from site_agent.state import load_state
from tests.hub import STUDY, Hub, releases
from tests.synthetic import keys as some_keys
from tests.unit.test_agent import PASSPHRASE, write_events

SMALL = STUDY + "[embedding]\ncodes_per_dim = 10\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(publish, "write_report", lambda path, *_: path.write_text("report"))
    return Hub(tmp_path / "consortium", study=SMALL)


class Site:
    """A real home of site north, whose sealed files the test carries."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        events = hub.folder / "events.parquet"
        if not events.exists():
            write_events(events)
        enrolment.init_home(
            folder,
            site="north",
            invitation=hub.home.folder / "invitation.json",
            study=hub.folder / "study.toml",
            system="ICD10CM",
            events=events,
        )

    @property
    def home(self) -> Home:
        return Home(self.folder)

    @property
    def agent(self) -> Agent:
        return Agent(self.home)

    def enrol(self) -> Path:
        path, _ = enrolment.write_enrolment(self.home, "it@north.example")
        setup.enrol(self.hub.store, setup.read_enrolment(self.hub.home, path))
        return setup.write_welcome(self.hub.home, self.hub.store, "north")

    def confirm(self, welcome: Path) -> None:
        enrolment.take_welcome(self.home, enrolment.read_welcome(self.home, welcome), welcome)

    def approve(self) -> None:
        if not self.agent.signers.folder.exists():
            self.agent.add_signer("tester", lambda: PASSPHRASE)
        digest = self.agent.preview().release.manifest.digest
        self.agent.approve("tester", digest, lambda: PASSPHRASE)

    def answer(self, name: str) -> str:
        """Hand over the call of a round as Flower does; the state that the site is in then."""
        self.agent.exchange.put_call(self.hub.desk(name).call())
        self.agent.step()
        status = self.agent.exchange.status(name)
        assert status is not None
        return f"{status.state}: {status.detail}"

    def carry(self, name: str) -> Submission:
        """Carry the sealed file to the coordinator, and what became of it there."""
        status = self.agent.exchange.status(name)
        assert status is not None
        shutil.copyfile(
            self.agent.exchange.root / "sealed" / f"{status.sha256}.sealed",
            self.hub.desk(name).received("north"),
        )
        return self.hub.collect(name)["north"]


@pytest.fixture
def north(hub: Hub, tmp_path: Path) -> Site:
    site = Site(hub, tmp_path / "north")
    hub.enrol("lake", "south", "west")
    return site


def first_round(hub: Hub, north: Site) -> None:
    """North is enrolled, and its first release is accepted."""
    north.confirm(north.enrol())
    hub.open_round("r1")
    north.approve()
    assert north.answer("r1").startswith("sealed")
    assert north.carry("r1").state == "accepted"


def replace(hub: Hub, site: Site, lost_since: datetime | None = None) -> replacing.Replaced:
    path, _ = enrolment.write_enrolment(site.home, "it@north.example")
    told = setup.read_enrolment(hub.home, path)
    found = replacing.replace(hub.home, hub.store, told, now=datetime.now(UTC), lost_since=lost_since)
    site.confirm(setup.write_welcome(hub.home, hub.store, "north", ledger_head=found.ledger_head))
    return found


# --- The way in ----------------------------------------------------------------------------------------


def test_the_whole_way_by_commands(hub: Hub, north: Site) -> None:
    run = CliRunner().invoke
    assert not enrolment.is_enrolled(north.home)
    done = run(site_app, ["enroll", "--home", str(north.folder), "--contact", "it@north.example", "--json"])
    made = json.loads(done.output)
    args = ["enroll", made["file"], "--home", str(hub.home.folder), "--fingerprint", made["fingerprint"]]
    (told,) = json.loads(run(hub_app, [*args, "--json"]).output)
    welcome = Path(told["welcome"])
    assert welcome.name == "welcome-north.json"
    args = ["enroll", "--confirm", str(welcome), "--home", str(north.folder)]

    ours = hub.home.keys.public().fingerprint
    refused = run(site_app, args, input="n\n")
    assert ours in refused.output
    assert refused.exit_code != 0
    assert run(site_app, [*args, "--fingerprint", "0000 0000 0000 0000 0000"]).exit_code != 0
    assert not enrolment.is_enrolled(north.home)
    assert run(site_app, [*args, "--fingerprint", ours]).exit_code == 0
    assert enrolment.is_enrolled(north.home)
    last = north.agent.ledger.verify()[-1]
    assert (last.event, last.facts["sequence"]) == ("enrolled", 0)


def test_an_enrolled_node_may_connect_at_once_if_the_services_run(
    hub: Hub, north: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: dict[str, str] = {}

    class Superlink:
        def register(self, site: str, key: Path) -> int:
            known[site] = key.read_text().strip()
            return len(known)

    monkeypatch.setattr("coordinator.flower.services.Services.attach", lambda _home: Superlink())
    (hub.home.flower / "services.json").write_text("{}")
    path, keys = enrolment.write_enrolment(north.home, "it@north.example")
    args = ["enroll", str(path), "--home", str(hub.home.folder), "--fingerprint", keys.fingerprint]
    assert CliRunner().invoke(hub_app, args).exit_code == 0
    assert set(known) == {"lake", "north", "south", "west"}
    assert known["north"] == hub.store.site("north").node_key


def test_a_welcome_that_is_not_ours(hub: Hub, north: Site, tmp_path: Path) -> None:
    welcome = north.enrol()
    other = Hub(tmp_path / "other", study=SMALL)
    other.enrol("north")
    with pytest.raises(EnvelopeError):
        enrolment.read_welcome(north.home, setup.write_welcome(other.home, other.store, "north"))
    with pytest.raises(ProtocolError, match="for site lake"):
        enrolment.read_welcome(north.home, setup.write_welcome(hub.home, hub.store, "lake"))
    stranger = Site(hub, tmp_path / "stranger")
    with pytest.raises(ProtocolError, match="for other keys"):
        enrolment.read_welcome(stranger.home, welcome)
    with pytest.raises(UsageError):
        enrolment.read_welcome(north.home, tmp_path / "nothing.json")
    assert not enrolment.is_enrolled(north.home)


@contextmanager
def running(home: Home) -> Iterator[tuple[list[str], threading.Thread]]:
    said: list[str] = []
    stop = threading.Event()
    thread = threading.Thread(
        target=run_agent, args=(Agent(home),), kwargs={"say": said.append, "stop": stop, "agent_only": True}
    )
    thread.start()
    try:
        yield said, thread
    finally:
        stop.set()
        thread.join(30)


def until(condition: object) -> None:
    for _ in range(600):
        if condition():  # type: ignore[operator]
            return
        threading.Event().wait(0.1)
    pytest.fail("it did not happen")


def test_an_agent_that_runs_says_that_it_is_not_enrolled_and_takes_new_keys(hub: Hub, north: Site) -> None:
    with running(north.home) as (said, _):
        until(lambda: said)
        assert said[0] == enrolment.NOT_ENROLLED
    north.confirm(north.enrol())
    hub.open_round("r1")
    north.approve()
    with running(north.home) as (said, _):
        until(lambda: said)
        assert enrolment.NOT_ENROLLED not in said
        done = CliRunner().invoke(site_app, ["keys", "rotate", "--home", str(north.folder), "--json"])
        assert done.exit_code == 0, done.output
        site, found = setup.read_new_keys(hub.store, Path(json.loads(done.output)["file"]))
        hub.store.follow_keys(site.name, found, now=datetime.now(UTC))
        # Another coordinator's key list, taken in while the agent runs.
        north.agent.exchange.put_call(hub.desk("r1").call())
        until(lambda: north.agent.exchange.status("r1"))
        status = north.agent.exchange.status("r1")
        assert status is not None
        assert status.state == "sealed", status.detail
    path = north.agent.exchange.root / "sealed" / f"{status.sha256}.sealed"
    assert read_header(path).signer_key == hub.store.site("north").public_keys.digest
    assert north.carry("r1").state == "accepted"


def test_an_agent_that_runs_follows_the_coordinator(hub: Hub, north: Site) -> None:
    north.confirm(north.enrol())
    hub.open_round("r1")
    with running(north.home):
        from coordinator import keychange

        hub.home, path = keychange.rotate(hub.home, now=datetime.now(UTC).replace(microsecond=0))
        seen = hub.home.keys.public().fingerprint
        args = ["keys", "trust", str(path), "--fingerprint", seen, "--home", str(north.folder)]
        assert CliRunner().invoke(site_app, args).exit_code == 0
        north.agent.exchange.put_call(hub.desk("r1").call())
        until(lambda: north.agent.exchange.status("r1"))


def test_protected_keys_that_change_while_the_agent_runs(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phrase, other = tmp_path / "phrase", tmp_path / "other"
    for path, text in ((phrase, "four words nobody joins"), (other, "another four good words")):
        path.write_text(text)
        path.chmod(0o600)
    north = Site(hub, tmp_path / "north")
    key = north.folder / "keys" / "site.key"
    plain = north.home.keys
    key.unlink()
    plain.save(key, lambda: "four words nobody joins")
    monkeypatch.setenv("SMILE_PASSPHRASE_FILE", str(phrase))
    agent = Agent(north.home)
    before = agent.home.keys.public()
    agent.step()
    keys.rotate(north.home, now=datetime.now(UTC))
    agent.step()
    assert agent.home.keys.public() not in {before}
    # A key under another passphrase, as from a backup: the agent says so, and does not go on with the old one.
    key.unlink()
    plain.save(key, lambda: "another four good words")
    with pytest.raises(KeyFileError, match="have changed, and the new ones cannot be opened"):
        agent.step()


# --- Lost machines -------------------------------------------------------------------------------------


def test_an_old_backup_is_stuck_until_it_is_enrolled_anew(hub: Hub, north: Site, tmp_path: Path) -> None:
    north.confirm(north.enrol())
    backup = tmp_path / "backup"
    shutil.copytree(north.folder, backup)
    hub.open_round("r1")
    north.approve()
    north.answer("r1")
    assert north.carry("r1").state == "accepted"
    hub.open_round("r2")

    shutil.rmtree(north.folder)
    shutil.copytree(backup, north.folder)
    old = north.home.keys
    north.agent.add_signer("tester", lambda: PASSPHRASE)
    assert "does not hold the entry that the coordinator has seen last" in north.answer("r2")

    path, _ = enrolment.write_enrolment(north.home, "")
    with pytest.raises(UsageError, match="enrolled with these keys already"):
        told = setup.read_enrolment(hub.home, path)
        replacing.replace(hub.home, hub.store, told, now=datetime.now(UTC))
    enrolment.begin_anew(north.home)
    assert north.home.keys.public() != old.public()
    found = replace(hub, north)
    assert found.ledger_head
    entries = north.agent.ledger.verify()
    assert entries[-1].facts["lost_ledger"] == found.ledger_head
    assert load_state(north.folder).accepted_sequence == 1

    assert north.answer("r2").startswith("preparing")
    with pytest.raises(GateError, match="no record of what that was made of"):
        north.agent.preview()
    with pytest.raises(UsageError, match="too few for a next release"):
        lost.decide(north.agent, "tester", 999, "the disk is lost", lambda: PASSPHRASE)
    with pytest.raises(KeyFileError):
        lost.decide(north.agent, "tester", 5000, "the disk is lost", lambda: "not the passphrase")
    lost.decide(north.agent, "tester", 5000, "the disk is lost; a year of new events", lambda: PASSPHRASE)
    north.approve()
    assert north.answer("r2").startswith("sealed")
    taken = north.carry("r2")
    assert (taken.state, taken.sequence) == ("accepted", 2), taken.detail
    # The next call countersigns the new ledger.
    hub.open_round("r3")
    assert hub.call("r3").ledger_heads["north"] in {e.head for e in north.agent.ledger.verify()}
    assert "does not hold" not in north.answer("r3")
    # The old machine, if it comes back, is shut out.
    hub.last["north"] = (2, hub.store.site("north").accepted_digest)
    hub.release("north", releases()["north"], "r3", by=old)
    assert "was revoked" in hub.collect("r3")["north"].detail


def test_a_new_home_without_a_backup(hub: Hub, north: Site, tmp_path: Path) -> None:
    first_round(hub, north)
    hub.open_round("r2")
    new = Site(hub, tmp_path / "new")
    path, _ = enrolment.write_enrolment(new.home, "it@north.example")
    with pytest.raises(UsageError, match="already enrolled") as caught:
        setup.enrol(hub.store, setup.read_enrolment(hub.home, path))
    assert "coordinator enroll --replaces" in str(caught.value)
    replace(hub, new)
    # The place in the sequence came with the welcome, before any call; so does the minimum of changed patients.
    assert load_state(new.folder).accepted_digest == hub.store.site("north").accepted_digest
    with pytest.raises(GateError, match="lost-memory"):
        new.agent.preview()
    # With what the old machine remembered, nobody need decide: the same data give the same bytes of counts.
    shutil.copytree(north.folder / "released", new.folder / "released", dirs_exist_ok=True)
    new.approve()
    assert new.answer("r2").startswith("sealed")
    assert new.carry("r2").sequence == 2
    with pytest.raises(UsageError, match="remembers all that it must"):
        lost.decide(new.agent, "tester", 5000, "the disk is lost", lambda: PASSPHRASE)


def test_the_way_back_by_commands(hub: Hub, north: Site, tmp_path: Path) -> None:
    first_round(hub, north)
    shutil.rmtree(north.folder / "released")
    run, at = CliRunner().invoke, ["--home", str(north.folder)]
    made = json.loads(
        run(site_app, ["enroll", "--anew", "--contact", "it@north.example", *at, "--json"]).output
    )
    assert not enrolment.is_enrolled(north.home)
    args = ["enroll", made["file"], "--home", str(hub.home.folder), "--fingerprint", made["fingerprint"]]
    plain = run(hub_app, args)
    assert plain.exit_code != 0
    assert isinstance(plain.exception, UsageError)
    early = run(hub_app, [*args, "--lost-since", "2026-01-01"])
    assert isinstance(early.exception, UsageError)
    (told,) = json.loads(run(hub_app, [*args, "--replaces", "--json"]).output)
    assert (told["site"], told["refused_releases"], told["version_to_deliver"]) == ("north", [], None)
    ours = hub.home.keys.public().fingerprint
    done = run(site_app, ["enroll", "--confirm", told["welcome"], "--fingerprint", ours, *at])
    assert "Its last accepted release is 1" in done.output
    phrase = tmp_path / "phrase"
    phrase.write_text(PASSPHRASE)
    phrase.chmod(0o600)
    args = ["lost-memory", "--by", "tester", "--because", "the disk is lost, a year of new events", *at]
    args += ["--passphrase-file", str(phrase), "--patients-changed"]
    assert isinstance(run(site_app, [*args, "12"]).exception, UsageError)
    assert run(site_app, [*args, "5000"]).exit_code == 0
    assert north.agent.preview().release.manifest.sequence == 2


def test_a_decision_that_nobody_signed_does_not_hold(hub: Hub, north: Site, tmp_path: Path) -> None:
    first_round(hub, north)
    new = Site(hub, tmp_path / "new")
    replace(hub, new)
    release = load_state(new.folder).accepted_digest
    new.agent.ledger.append("memory-lost", by="tester", release=release, decision="{}")
    with pytest.raises(FederationError, match="nobody of this name is a signer"):
        new.agent.preview()
    new.agent.add_signer("tester", lambda: PASSPHRASE)
    with pytest.raises(FederationError):
        new.agent.preview()


def test_what_a_stolen_machine_sent_counts_no_more(hub: Hub, north: Site, tmp_path: Path) -> None:
    first_round(hub, north)
    new = Site(hub, tmp_path / "new")
    with pytest.raises(UsageError, match="still to come"):
        replace(hub, new, datetime.now(UTC) + timedelta(days=1))
    found = replace(hub, new, datetime.now(UTC) - timedelta(hours=1))
    assert [(d.round, d.state) for d in found.doubtful] == [("r1", "refused")]
    hub.open_round("r2")
    assert "north" not in hub.call("r2").ledger_heads


def test_the_newest_version_is_sealed_for_the_new_machine(hub: Hub, tmp_path: Path) -> None:
    hub.enrol("lake", "north", "south", "west")
    hub.run_round(releases())
    new = Site(hub, tmp_path / "new")
    sealed = hub.desk().outgoing("north")
    with pytest.raises(FederationError, match="no longer here"):
        open_result(new.home, sealed)
    assert replace(hub, new).sealed_again == 1
    assert open_result(new.home, sealed).version == 1


def test_a_replacement_that_was_killed_is_gone_on_with(
    hub: Hub, north: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_round(hub, north)
    hub.open_round("r2")
    new = Site(hub, tmp_path / "new")
    told = setup.read_enrolment(hub.home, enrolment.write_enrolment(new.home, "it@north.example")[0])
    head = hub.call("r2").ledger_heads["north"]
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        broken.setattr(replacing, "sign_calls_again", killed)
        replacing.replace(hub.home, hub.store, told, now=datetime.now(UTC))
    assert hub.store.site("north").public_keys == new.home.keys.public()
    assert hub.call("r2").ledger_heads["north"] == head
    assert replacing.replace(hub.home, hub.store, told, now=datetime.now(UTC)).ledger_head == head
    assert "north" not in hub.call("r2").ledger_heads
    with pytest.raises(UsageError, match="enrolled with these keys already"):
        replacing.replace(hub.home, hub.store, told, now=datetime.now(UTC))


def test_a_site_that_never_was_or_has_left_cannot_be_replaced(hub: Hub, north: Site) -> None:
    path, _ = enrolment.write_enrolment(north.home, "")
    told = setup.read_enrolment(hub.home, path)
    with pytest.raises(UsageError, match="not enrolled"):
        replacing.replace(hub.home, hub.store, told, now=datetime.now(UTC))


# --- Node keys and authorities -------------------------------------------------------------------------


def test_a_new_node_key(hub: Hub, north: Site, tmp_path: Path) -> None:
    north.enrol()
    before = hub.store.site("north").node_key
    done = CliRunner().invoke(site_app, ["keys", "new-node-key", "--home", str(north.folder), "--json"])
    path = Path(json.loads(done.output)["file"])
    first = tmp_path / "first.json"
    shutil.copyfile(path, first)
    done = CliRunner().invoke(hub_app, ["keys", "trust-node", str(path), "--home", str(hub.home.folder)])
    assert "is shut out when coordinator serve runs next" in done.output
    now = hub.store.site("north").node_key
    assert now == north.home.node_key.with_name("node.key.pub").read_text().strip() != before
    take_change(hub.store, read_change(hub.home, hub.store, path))

    second = keys.change_node_key(north.home)
    take_change(hub.store, read_change(hub.home, hub.store, second))
    with pytest.raises(UsageError, match="has replaced this node key before"):
        read_change(hub.home, hub.store, first)
    forged = json.loads(second.read_text())
    forged["payload"] = forged["payload"].replace('"site":"north"', '"site":"lake"')
    second.write_text(json.dumps(forged))
    with pytest.raises(EnvelopeError):
        read_change(hub.home, hub.store, second)
    told = setup.Enrolment(
        study_digest=hub.home.study.digest, site="north", keys=some_keys("x").public(), node_key=before
    )
    with pytest.raises(UsageError, match="with these keys already"):
        setup.check_new_keys(hub.store, told)


def test_a_new_authority_comes_by_a_signed_file(hub: Hub, north: Site, tmp_path: Path) -> None:
    run, at = CliRunner().invoke, ["--home", str(hub.home.folder)]
    old = north.home.invitation.certificate
    shown = json.loads(run(hub_app, ["certificate", "show", *at, "--json"]).output)
    assert [f["what"] for f in shown] == ["server", "authority"]
    assert 820 < shown[0]["days_left"] < 826
    refused = run(hub_app, ["certificate", "switch", *at])
    assert refused.exit_code != 0
    path = Path(json.loads(run(hub_app, ["certificate", "new-authority", *at, "--json"]).output)["file"])
    first = tmp_path / "first.json"
    shutil.copyfile(path, first)
    args = ["keys", "trust-authority", str(path), "--home", str(north.folder)]
    assert run(site_app, args).exit_code == 0
    both = north.home.invitation.certificate
    assert both.startswith(old)
    assert both.count("BEGIN CERTIFICATE") == 2
    assert (
        hub.fresh() and json.loads((hub.home.folder / "invitation.json").read_text())["certificate"] == both
    )

    assert run(hub_app, ["certificate", "switch", *at]).exit_code == 0
    assert run(hub_app, ["certificate", "renew", *at]).exit_code == 0
    assert run(site_app, args).exit_code == 0
    assert old + north.home.invitation.certificate == both
    altered = json.loads(first.read_text())
    altered["payload"] = altered["payload"].replace(old[60:70], "AAAAAAAAAA")
    first.write_text(json.dumps(altered))
    with pytest.raises(EnvelopeError):
        keys.trust_authority(north.home, first)


def test_rounds_show_the_contact_of_a_site_that_is_offline(hub: Hub) -> None:
    hub.enrol("north", "lake", "south")
    hub.open_round()
    desk = hub.desk()
    desk.report(desk.progress("north").model_copy(update={"state": "offline"}))
    shown = {s.site: s for s in rounds.site_states(hub.home, hub.store, "r1")}
    assert (shown["north"].state, shown["north"].contact) == ("offline", "it@north.example")
    assert shown["west"].state == "not enrolled"
