"""New keys on either side: who follows whom, what still opens, and what is refused from then on."""

from __future__ import annotations

import os
import re
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator import keychange, publish, rounds, setup
from coordinator.cli import app as hub_app
from coordinator.config import Home as HubHome
from protocol.errors import EnvelopeError, FederationError, KeyFileError, ProtocolError, UsageError
from protocol.keylist import KeyList, VerifiedKeys, first_key_list, next_key_list
from protocol.keys import PrivateKeys
from protocol.messages import Invitation
from protocol.published import verify_folder
from protocol.rotation import OwnKeys, read_key_list
from protocol.signed import parse
from site_agent import keys as site_keys
from site_agent.cli_keys import app as keys_app
from site_agent.config import Home
from site_agent.enrolment import init_home, write_enrolment
from tests.hub import STUDY, Hub, releases
from tests.synthetic import keys
from tests.unit.test_agent import write_events

FULL = os.environ.get("SMILE_BATTERY") == "full"
NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
PHRASE = "four words nobody joins"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    # No test here reads the report, whose figures take most of the time.
    monkeypatch.setattr(publish, "write_report", lambda path, *_: path.write_text("report"))
    return Hub(tmp_path / "consortium")


@pytest.fixture
def north(hub: Hub, tmp_path: Path) -> Home:
    """A real home of site north, enrolled; the three others are played."""
    write_events(tmp_path / "events.parquet", 10)
    home = init_home(
        tmp_path / "north",
        site="north",
        invitation=hub.home.folder / "invitation.json",
        study=hub.folder / "study.toml",
        system="ICD10CM",
        events=tmp_path / "events.parquet",
    )
    path, _ = write_enrolment(home, "it@north.example")
    setup.enrol(hub.store, setup.read_enrolment(hub.home, path))
    hub.key_of["north"] = home.keys
    hub.enrol("lake", "south", "west")
    return home


def again(home: Home) -> Home:
    """The home as the next command reads it."""
    return Home(home.folder)


def rotated(home: Home, lost_since: datetime | None = None) -> tuple[Home, Path]:
    path = site_keys.rotate(home, now=datetime.now(UTC), lost_since=lost_since)
    return again(home), path


def follow(hub: Hub, path: Path, now: datetime | None = None) -> tuple[VerifiedKeys, Path]:
    """What `coordinator keys trust` does after the question."""
    site, found = setup.read_new_keys(hub.store, path)
    hub.store.follow_keys(site.name, found, now=now or datetime.now(UTC))
    return found, setup.receipt_for(hub.home, found)


# --- A site changes its keys ---------------------------------------------------------------------------


def test_the_coordinator_follows_and_the_old_key_is_erased_then(hub: Hub, north: Home) -> None:
    old = north.keys
    home, path = rotated(north)
    assert home.keys.public() != old.public()
    assert site_keys.opening_keys(home, old.public().digest).public() == old.public()
    _, receipt = follow(hub, path)
    assert hub.store.site("north").public_keys == home.keys.public()
    assert site_keys.confirm(home, receipt) == 1
    assert sorted(p.name for p in (home.folder / "keys").iterdir()) == ["key-list.json", "site.key"]
    with pytest.raises(KeyFileError, match="no longer here"):
        site_keys.opening_keys(home, old.public().digest)


def test_a_release_sealed_before_the_rotation_still_opens_in_its_round(hub: Hub, north: Home) -> None:
    hub.open_round()
    hub.release("north", releases()["north"])
    _, path = rotated(north)
    follow(hub, path)
    assert hub.collect()["north"].state == "accepted"


def test_a_round_that_opens_later_wants_the_new_key(hub: Hub, north: Home) -> None:
    home, path = rotated(north)
    follow(hub, path)
    hub.open_round()
    hub.release("north", releases()["north"])
    found = hub.collect()["north"]
    assert found.state == "refused"
    assert "had replaced before the round was opened" in found.detail
    hub.release("north", releases()["north"], by=home.keys)
    assert hub.collect()["north"].state == "accepted"


def test_the_new_key_before_the_list_came(hub: Hub, north: Home) -> None:
    home, path = rotated(north)
    hub.open_round()
    hub.release("north", releases()["north"], by=home.keys)
    found = hub.collect()["north"]
    assert found.state == "refused"
    assert "coordinator keys trust key-list-north.json" in found.detail
    follow(hub, path)
    hub.release("north", releases()["north"], by=home.keys)
    assert hub.collect()["north"].state == "accepted"


def test_a_revoked_key_is_refused_at_once(hub: Hub, north: Home) -> None:
    hub.open_round()
    hub.release("north", releases()["north"])
    _, path = rotated(north, lost_since=datetime.now(UTC) - timedelta(hours=1))
    follow(hub, path)
    found = hub.collect()["north"]
    assert found.state == "refused"
    assert "was revoked" in found.detail


def test_what_came_after_the_loss_counts_no_more(hub: Hub, north: Home) -> None:
    for site in ("lake", "north", "south", "west"):
        if site == "lake":
            hub.open_round()
        hub.release(site, releases()[site])
    hub.collect()
    _, path = rotated(north, lost_since=datetime.now(UTC) - timedelta(hours=1))
    site, found = setup.read_new_keys(hub.store, path)
    doubtful = hub.store.follow_keys(site.name, found, now=datetime.now(UTC))
    assert [(s.round, s.state) for s in doubtful] == [("r1", "refused")]
    fitted = rounds.accepted_releases(hub.home, hub.store, "r1")
    assert [r.manifest.site for r in fitted] == ["lake", "south", "west"]


def test_what_came_before_the_loss_stands(hub: Hub, north: Home) -> None:
    hub.open_round()
    for site in ("lake", "north", "south"):
        hub.release(site, releases()[site])
    hub.collect()
    _, path = rotated(north, lost_since=datetime.now(UTC) + timedelta(milliseconds=-1))
    site, found = setup.read_new_keys(hub.store, path)
    assert hub.store.follow_keys(site.name, found, now=datetime.now(UTC)) == []
    assert len(rounds.accepted_releases(hub.home, hub.store, "r1")) == 3


# --- Forward only --------------------------------------------------------------------------------------


def listed(path: Path) -> KeyList:
    return read_key_list(path)


def test_stale_and_forked_lists(hub: Hub, north: Home, tmp_path: Path) -> None:
    thief = PrivateKeys.load(north.folder / "keys" / "site.key")
    home, path = rotated(north)
    stale = path.read_bytes()
    home, path = rotated(home)
    follow(hub, path)
    before = [k.digest for k in hub.store.site_keys("north")]

    path.write_bytes(stale)
    with pytest.raises(EnvelopeError, match="has version 2, but 3 was seen before"):
        setup.read_new_keys(hub.store, path)
    forged = first_key_list("north", thief, now=NOW)
    last = thief
    for number in range(3):
        new = keys(f"thief {number}")
        forged, last = next_key_list(forged, last, now=NOW, new=new), new
    path.write_text(forged.model_dump_json())
    with pytest.raises(EnvelopeError, match="disagree at version 3"):
        setup.read_new_keys(hub.store, path)
    assert [k.digest for k in hub.store.site_keys("north")] == before


def test_a_skipped_version(hub: Hub, north: Home) -> None:
    home, _ = rotated(north)
    _, path = rotated(home)
    cut = listed(path)
    path.write_text(KeyList(versions=(cut.versions[0], cut.versions[2])).model_dump_json())
    with pytest.raises(ProtocolError):
        setup.read_new_keys(hub.store, path)


def test_two_rotations_are_followed_at_once(hub: Hub, north: Home) -> None:
    old = north.keys
    home, _ = rotated(north)
    home, path = rotated(home)
    _, receipt = follow(hub, path)
    assert len(hub.store.site_keys("north")) == 3
    assert site_keys.opening_keys(home, old.public().digest).public() == old.public()
    assert site_keys.confirm(home, receipt) == 2


def test_the_keys_of_another_site(hub: Hub, north: Home, tmp_path: Path) -> None:
    first = first_key_list("north", north.keys, now=NOW)
    taken = next_key_list(first, north.keys, now=NOW, new=hub.key_of["lake"])
    (tmp_path / "list.json").write_text(taken.model_dump_json())
    with pytest.raises(UsageError, match="are those of site lake"):
        setup.read_new_keys(hub.store, tmp_path / "list.json")


def test_a_list_of_a_stranger(hub: Hub, north: Home, tmp_path: Path) -> None:
    stranger = first_key_list("north", keys("stranger"), now=NOW)
    (tmp_path / "list.json").write_text(stranger.model_dump_json())
    with pytest.raises(EnvelopeError, match="another key than the enrolled one"):
        setup.read_new_keys(hub.store, tmp_path / "list.json")
    with pytest.raises(UsageError, match="There is no key list"):
        setup.read_new_keys(hub.store, tmp_path / "none.json")


def test_receipts_that_do_not_hold(hub: Hub, north: Home) -> None:
    home, path = rotated(north)
    _, receipt = follow(hub, path)
    home, _ = rotated(home)
    with pytest.raises(EnvelopeError, match="not for the last version"):
        site_keys.confirm(home, receipt)
    receipt.write_bytes(receipt.read_bytes().replace(b'\\"version\\":2', b'\\"version\\":3'))
    with pytest.raises(EnvelopeError, match="signature"):
        site_keys.confirm(home, receipt)
    assert len(site_keys.own_keys(home).previous()) == 2


# --- Interrupted ---------------------------------------------------------------------------------------


def changes_until(number: int, work: object) -> int:
    """Run in a child that is killed before its n-th change of a folder; the child's exit code."""
    child = os.fork()
    if child == 0:
        left = [number]

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            made = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
            if made or event in {"os.rename", "os.remove", "os.link", "os.chmod"}:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        sys.addaudithook(hook)
        try:
            work()  # type: ignore[operator]
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("phrase", [None, PHRASE], ids=["plain", "passphrase"])
def test_killed_at_every_change(tmp_path: Path, phrase: str | None) -> None:
    """Whenever it is killed: there is one key that signs, it is listed last, and no other key is lost."""
    given = None if phrase is None else (lambda: phrase)
    died = 0
    # One guess of a passphrase takes a quarter of a second.
    for number in range(0, 40, 1 if FULL or phrase is None else 5):
        folder = tmp_path / str(number)
        own = OwnKeys(folder / "site.key", "north")
        PrivateKeys.generate().save(own.key, given)
        old = PrivateKeys.load(own.key, given)
        code = changes_until(number, lambda own=own: own.rotate(given, now=NOW))
        assert code in {0, 9}
        died += code == 9
        own.settle()
        present = PrivateKeys.load(own.key, given)
        found = own.key_list()
        if found is None:
            assert present.public() == old.public()
            assert [p.name for p in folder.iterdir() if not p.name.startswith(".part-")] == ["site.key"]
        else:
            assert own.trust(present.public()).current == present.public() != old.public()
            assert own.opening(old.public().digest, given).public() == old.public()
            assert not (folder / "next.key").exists()
        if code == 0:
            break
    assert code == 0 and died >= 2


# --- The coordinator changes its keys ------------------------------------------------------------------


def test_sites_follow_the_coordinator(hub: Hub, north: Home) -> None:
    hub.run_round({s: releases()[s] for s in ("lake", "north", "south")})
    old = hub.home.keys.public()
    hub.home, path = keychange.rotate(hub.home, now=NOW)
    new = hub.home.keys.public()
    assert new != old
    assert not hub.home.identity.previous()

    listed, found = site_keys.read_coordinator_list(north, path)
    assert found.current == new
    site_keys.follow_coordinator(north, listed, found)
    home = again(north)
    assert home.invitation.keys == new
    assert site_keys.coordinator_keys(home).key(old.digest) == old
    # What is sent or read from now on is signed with the new keys; what was there is not made anew.
    assert hub.call().round == "r1"
    assert verify_folder(hub.home.release_folder(1), new).version == 1
    assert parse((hub.home.folder / "invitation.json").read_bytes(), Invitation).keys == new
    assert {r.manifest.site for r in rounds.accepted_releases(hub.home, hub.store, "r1")} == {
        "lake",
        "north",
        "south",
    }


def test_a_copy_from_before_still_verifies_at_a_site(hub: Hub, north: Home, tmp_path: Path) -> None:
    folder = hub.run_round({s: releases()[s] for s in ("lake", "north", "south")})
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    hub.home, path = keychange.rotate(hub.home, now=NOW)
    site_keys.follow_coordinator(north, *site_keys.read_coordinator_list(north, path))
    assert verify_folder(copy, site_keys.coordinator_keys(again(north))).version == 1
    with pytest.raises(EnvelopeError):
        verify_folder(copy, hub.home.keys.public())


def test_what_a_lost_coordinator_key_signed_does_not_verify(hub: Hub, north: Home, tmp_path: Path) -> None:
    folder = hub.run_round({s: releases()[s] for s in ("lake", "north", "south")})
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    hub.home, path = keychange.rotate(hub.home, now=NOW, lost_since=NOW)
    site_keys.follow_coordinator(north, *site_keys.read_coordinator_list(north, path))
    with pytest.raises(EnvelopeError, match="was revoked"):
        verify_folder(copy, site_keys.coordinator_keys(again(north)))
    assert verify_folder(folder, site_keys.coordinator_keys(again(north))).version == 1


def test_a_stale_list_of_the_coordinator(hub: Hub, north: Home) -> None:
    hub.home, path = keychange.rotate(hub.home, now=NOW)
    stale = path.read_bytes()
    hub.home, path = keychange.rotate(hub.home, now=NOW)
    site_keys.follow_coordinator(north, *site_keys.read_coordinator_list(north, path))
    path.write_bytes(stale)
    with pytest.raises(EnvelopeError, match="2, but 3 was seen before"):
        site_keys.read_coordinator_list(again(north), path)


def test_a_list_of_another_party(hub: Hub, north: Home) -> None:
    _, path = rotated(north)
    with pytest.raises(ProtocolError, match="is the key list of north, not of the coordinator"):
        site_keys.read_coordinator_list(north, path)


def test_signing_again_changes_nothing_twice(hub: Hub, north: Home) -> None:
    hub.run_round({s: releases()[s] for s in ("lake", "north", "south")})
    hub.home, _ = keychange.rotate(hub.home, now=NOW)
    before = {p: p.read_bytes() for p in hub.home.folder.rglob("*.json") if p.is_file()}
    keychange.sign_again(hub.home, hub.store)
    assert {p: p.read_bytes() for p in hub.home.folder.rglob("*.json") if p.is_file()} == before


# --- Passphrases ---------------------------------------------------------------------------------------


@pytest.fixture
def phrase_file(tmp_path: Path) -> Path:
    path = tmp_path / "phrase"
    path.write_text(PHRASE + "\n")
    path.chmod(0o600)
    return path


def test_a_protected_coordinator(tmp_path: Path, phrase_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    home = setup.init_home(
        tmp_path / "hub", study=study, address="localhost:1", listen="127.0.0.1", passphrase=lambda: PHRASE
    )
    with pytest.raises(KeyFileError, match=r"protected by a passphrase.*SMILE_PASSPHRASE_FILE"):
        _ = home.keys
    monkeypatch.setenv("SMILE_PASSPHRASE_FILE", str(phrase_file))
    hub = object.__new__(Hub)
    hub.folder, hub.study, hub.key_of, hub.last = tmp_path, STUDY, {}, {}
    hub.home = HubHome(home.folder)
    hub.enrol("lake")
    hub.open_round()
    for path in (hub.home.identity.key, hub.home.round_key_path("r1")):
        with pytest.raises(KeyFileError, match="protected by a passphrase"):
            PrivateKeys.load(path)
    hub.release("lake", releases()["lake"])
    assert hub.collect()["lake"].state == "accepted"
    hub.home, _ = keychange.rotate(hub.home, now=NOW)
    with pytest.raises(KeyFileError, match="protected by a passphrase"):
        PrivateKeys.load(hub.home.identity.key)


def test_a_plain_key_in_place_of_a_protected_one(
    hub: Hub, phrase_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMILE_PASSPHRASE_FILE", str(phrase_file))
    with pytest.raises(KeyFileError, match="has no passphrase, but is expected to have one"):
        _ = HubHome(hub.home.folder).keys


# --- The commands --------------------------------------------------------------------------------------


def test_the_commands_hand_each_other_their_files(hub: Hub, north: Home) -> None:
    runner, place = CliRunner(), ["--home", str(hub.home.folder)]
    own = ["--home", str(north.folder)]
    done = runner.invoke(keys_app, ["rotate", *own, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    home = again(north)
    fingerprint = home.keys.public().fingerprint
    listed = str(north.folder / "key-list-north.json")
    with pytest.raises(FederationError, match="none of those given"):
        runner.invoke(
            hub_app, ["keys", "trust", listed, *place, "--fingerprint", "0000 0000"], catch_exceptions=False
        )
    assert hub.store.site("north").public_keys == north.keys.public()
    runner.invoke(
        hub_app, ["keys", "trust", listed, *place, "--fingerprint", fingerprint], catch_exceptions=False
    )
    assert hub.store.site("north").public_keys == home.keys.public()
    receipt = str(hub.home.folder / "key-receipt-north.json")
    done = runner.invoke(keys_app, ["confirm", receipt, *own, "--json"], catch_exceptions=False)
    assert '"erased": 1' in done.stdout

    done = runner.invoke(hub_app, ["keys", "rotate", *place], catch_exceptions=False)
    assert "new fingerprint" in done.stdout
    new = hub.fresh().keys.public()
    done = runner.invoke(
        keys_app,
        ["trust", str(hub.home.folder / "key-list-coordinator.json"), *own],
        input="n\n",
        catch_exceptions=True,
    )
    assert isinstance(done.exception, UsageError)
    assert again(north).invitation.keys != new
    runner.invoke(keys_app, ["trust", str(hub.home.folder / "key-list-coordinator.json"), *own], input="y\n")
    assert again(north).invitation.keys == new
    done = runner.invoke(keys_app, ["show", *own, "--json"], catch_exceptions=False)
    assert new.fingerprint in done.stdout
    done = runner.invoke(hub_app, ["keys", "show", *place, "--json"], catch_exceptions=False)
    assert '"version": 2' in done.stdout


def test_withdrawing_by_the_command(hub: Hub, north: Home) -> None:
    runner, place = CliRunner(), ["--home", str(hub.home.folder)]
    hub.run_round(releases())
    done = runner.invoke(hub_app, ["withdraw", "west", "--because", "it closed", *place], input="n\n")
    assert "round r1 is fitted with 3 sites" in re.sub(r"[^a-z0-9]+", " ", done.stdout)
    assert isinstance(done.exception, UsageError)
    assert hub.store.site("west").withdrawn is None
    done = runner.invoke(
        hub_app, ["withdraw", "west", "--because", "it closed", *place, "--yes"], catch_exceptions=False
    )
    assert "coordinator round deliver r1" in done.stdout
    done = runner.invoke(hub_app, ["sites", *place], catch_exceptions=False)
    assert "withdrawn" in done.stdout
    with pytest.raises(UsageError, match="--json needs --yes"):
        runner.invoke(
            hub_app, ["withdraw", "lake", "--because", "x", *place, "--json"], catch_exceptions=False
        )
