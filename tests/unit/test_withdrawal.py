"""A site leaves: nothing of it can be read any more, and the map is as if it had never joined."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from coordinator import nodes, publish, rounds, setup, withdrawal
from coordinator.harmonize import load_fit
from coordinator.keychange import change_round_key
from coordinator.store import Submission, Withdrawal
from protocol.envelope import read_sealed
from protocol.errors import (
    EnvelopeError,
    FederationError,
    KeyFileError,
    ProtocolError,
    RoundError,
    UsageError,
)
from protocol.keys import PrivateKeys
from protocol.published import marks, verify_folder
from protocol.signed import sign_message
from tests.copying import copy_folder
from tests.hub import STUDY, Hub, releases
from tests.synthetic import keys

FULL = os.environ.get("SMILE_BATTERY") == "full"
SITES = ("lake", "north", "south", "west")
LATER = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
OWN_SITE = STUDY.replace("minimum_sites", 'publish_local_codes = "own-site"\nminimum_sites')


def leave(hub: Hub, site: str = "west", *, erase: bool = False, tell: Any = None) -> Withdrawal:
    """What `coordinator withdraw` does."""
    store = hub.store
    planned = withdrawal.plan(hub.home, store, site, erase_versions=erase)
    begun = withdrawal.begin(
        hub.home, store, planned, reason="The board has ended its consent", erase_versions=erase, now=LATER
    )
    return withdrawal.carry_out(hub.home, store, begun, now=LATER, tell=tell)


def joined(folder: Path, study: str = STUDY) -> Hub:
    """Four sites, one round, version 1."""
    hub = Hub(folder, study)
    hub.enrol(*SITES)
    hub.run_round(releases())
    return hub


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the law reads the report, whose figures take most of the time."""
    if not request.node.name.startswith("test_law"):
        monkeypatch.setattr(publish, "write_report", lambda path, *_: path.write_text("report"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "write_report", lambda path, *_: path.write_text("report"))
        return joined(tmp_path_factory.mktemp("template"))


@pytest.fixture
def hub(template: Hub, tmp_path: Path) -> Hub:
    """A consortium at work: a copy, for each test to do with as it likes."""
    copy_folder(template.folder, tmp_path / "copy")
    hub = object.__new__(Hub)
    hub.folder, hub.study, hub.key_of, hub.last = (
        tmp_path / "copy",
        STUDY,
        template.key_of,
        dict(template.last),
    )
    hub.home = setup.Home(hub.folder / "hub")
    return hub


# --- The law -------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize("study", [STUDY, OWN_SITE], ids=["consortium", "own-site"])
def test_law_refitted_without_is_as_if_it_had_never_joined(tmp_path: Path, study: str) -> None:
    """Version and time are given to both, so what differs is the tombstone, and nothing but the tombstone."""
    left, never = joined(tmp_path / "left", study), Hub(tmp_path / "never", study)
    done = leave(left)
    never.enrol(*SITES[:3])
    never.run_round({s: r for s, r in releases().items() if s != "west"})
    never.publish(created=LATER)

    fit = "fits/r1.safetensors"
    assert (left.home.folder / fit).read_bytes() == (never.home.folder / fit).read_bytes()
    assert done.new_version == 2
    for name in ("v2", "v2-sites") if study == OWN_SITE else ("v2",):
        ours, theirs = (files(h.home.folder / "releases" / name) for h in (left, never))
        assert ours.keys() == theirs.keys() and len(ours) >= 8
        assert not any(path.startswith("west/") for path in ours)
        for path in ours:
            if path.endswith("manifest.json"):
                same_but_for_the_tombstone(json.loads(ours[path]), json.loads(theirs[path]))
            elif path.endswith("report.html"):
                told, missing = (f.decode() for f in (ours[path], theirs[path]))
                assert told.replace("Withdrawn from the study on 2027-01-02", "").replace(
                    "withdrawn", ""
                ) == (missing.replace("No release arrived in this round", "").replace("missing", ""))
            elif path.endswith("model-card.md"):
                told, missing = (f.decode() for f in (ours[path], theirs[path]))
                row = "| west | missing |  |  |  | No release arrived in this round |"
                stone = "- west withdrew on 2027-01-02: nothing of it is in this version. The board has ended its consent\n"
                assert told.replace(stone, "") == missing.replace(
                    row, "| west | withdrawn |  |  |  | Withdrawn from the study on 2027-01-02 |"
                )
            else:
                assert ours[path] == theirs[path], path


def same_but_for_the_tombstone(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The fields that may differ, one by one; `signed_by` and `signature` since two coordinators signed."""
    ours, theirs = ours["manifest"], theirs["manifest"]
    (stone,) = ours.pop("withdrawn")
    assert theirs.pop("withdrawn") == []
    assert stone == {
        "site": "west",
        "at": "2027-01-02T03:04:05Z",
        "reason": "The board has ended its consent",
        "versions": [1],
    }
    assert [s["state"] for s in ours["sites"]] == ["received"] * 3 + ["withdrawn"]
    assert [s["state"] for s in theirs["sites"]] == ["received"] * 3 + ["missing"]
    for manifest in (ours, theirs):
        del manifest["sites"][3]["state"], manifest["sites"][3]["detail"]
        for page in (f for f in manifest["files"] if f["name"] in {"report.html", "model-card.md"}):
            del page["sha256"], page["bytes"]
        # Of the version before, which the site was in.
        assert len(manifest.pop("previous")) == 64
    assert ours == theirs


def test_law_holds_over_rounds(tmp_path: Path) -> None:
    """What a later round is held against is made anew too: it was judged beside the site that left."""
    left, never = joined(tmp_path / "left"), Hub(tmp_path / "never")
    never.enrol(*SITES[:3])
    others = {s: r for s, r in releases().items() if s != "west"}
    never.run_round(others)
    # Lake moves some codes, which is held against its last release; then west stays away from a round.
    codes, matrix, given = others["lake"]
    changed = {**others, "lake": (codes, matrix[[1, 0, *range(2, len(matrix))]], given)}
    for hub, all_ in ((left, {**changed, "west": releases()["west"]}), (never, changed)):
        hub.run_round(all_, "r2")
        hub.run_round(changed, "r3")
    done = leave(left)
    never.publish("r3", LATER)
    assert (done.fits, done.versions, done.new_version) == (("r1", "r2", "r3"), (1, 2), 4)
    for name in done.fits:
        fit = f"fits/{name}.safetensors"
        assert (left.home.folder / fit).read_bytes() == (never.home.folder / fit).read_bytes(), name
    ours, theirs = (files(h.home.release_folder(4)) for h in (left, never))
    assert [n for n in ours if ours[n] != theirs[n]] == ["manifest.json", "model-card.md", "report.html"]


def test_a_fit_with_the_site_differs(hub: Hub) -> None:
    """The law above would say nothing if the site had no influence."""
    with_it = files(hub.home.release_folder(1))
    leave(hub)
    assert with_it["embeddings.parquet"] != files(hub.home.release_folder(2))["embeddings.parquet"]


# --- What is erased ------------------------------------------------------------------------------------


def secrets_of(keys: PrivateKeys) -> list[bytes]:
    return [base64.b64encode(part) for part in (keys.sealing, keys.signing)]


def test_nothing_that_the_site_sealed_can_be_read_again(hub: Hub) -> None:
    hub.open_round("r2")
    hub.seal("west", hub.home_release("west"), "r2", sequence=9)
    hub.collect("r2")  # refused and kept apart
    assert list((hub.home.folder / "quarantine").rglob("west-*"))
    old = PrivateKeys.load(hub.home.round_key_path("r1"))
    hub.desk().part("west", "e" * 64).write_bytes(b"half of a transfer")
    leave(hub)
    everything = files(hub.home.folder)
    assert not [p for p in everything if "west" in p and not p.startswith("releases/v1/")]
    assert not [p for p, data in everything.items() for s in secrets_of(old) if s in data]
    assert PrivateKeys.load(hub.home.round_key_path("r1")).public() == hub.call().recipient
    assert "west" not in hub.desk().sites()
    assert "west" not in hub.call().expected


def test_a_copy_of_the_sealed_release_stays_shut(hub: Hub, tmp_path: Path) -> None:
    copy = shutil.copy(hub.desk().received("west"), tmp_path / "from-the-superlink")
    leave(hub)
    for path in (hub.home.folder / "keys").rglob("*.key"):
        with pytest.raises(EnvelopeError, match="another key"):
            read_sealed(Path(copy), keys=PrivateKeys.load(path), signer=keys("west").public())


def test_the_other_releases_stay_as_they_were_signed(hub: Hub) -> None:
    before = {s: hub.desk().received(s).read_bytes() for s in SITES[:3]}
    leave(hub)
    change_round_key(hub.home, hub.store, hub.store.round("r1"), without="nobody")
    assert {s: hub.desk().received(s).read_bytes() for s in SITES[:3]} == before
    assert [r.manifest.site for r in rounds.accepted_releases(hub.home, hub.store, "r1")] == list(SITES[:3])


def test_a_content_key_opens_its_own_envelope_only(hub: Hub) -> None:
    leave(hub)
    given, taken = (rounds.rewrapped_path(hub.home, "r1", s) for s in ("lake", "north"))
    given.write_bytes(taken.read_bytes())
    with pytest.raises(EnvelopeError, match="does not open"):
        rounds.accepted_releases(hub.home, hub.store, "r1")


def test_results_that_were_not_delivered_are_not_delivered_any_more(hub: Hub) -> None:
    old = {s: hub.desk().outgoing(s).read_bytes() for s in SITES}
    leave(hub)
    assert not hub.desk().outgoing("west").exists()
    assert all(hub.desk().outgoing(s).read_bytes() != old[s] for s in SITES[:3])


def test_sums_with_the_site_are_erased(hub: Hub) -> None:
    for name, site in (("sum-1", "west"), ("sum-2", "lake")):
        answer = hub.home.folder / "sums" / name / f"{name}-1-consent" / "received" / f"{site}.sealed"
        answer.parent.mkdir(parents=True)
        answer.write_bytes(b"x")
        (hub.home.folder / "pooled" / name).mkdir(parents=True)
    leave(hub)
    left = [
        p.relative_to(hub.home.folder).as_posix()
        for k in ("sums", "pooled")
        for p in (hub.home.folder / k).glob("*")
    ]
    assert left == ["sums/sum-2", "pooled/sum-2"]


# --- Versions ------------------------------------------------------------------------------------------


def test_a_withdrawn_version_does_not_verify(hub: Hub) -> None:
    leave(hub)
    trust, folder = hub.home.keys.public(), hub.home.release_folder(1)
    with pytest.raises(ProtocolError, match=r"withdrawn on 2027-01-02\. site west has left.*newest version"):
        verify_folder(folder, trust)
    assert verify_folder(folder, trust, withdrawn=True).version == 1
    assert verify_folder(hub.home.release_folder(2), trust).withdrawn[0].versions == (1,)
    assert [(v.version, v.withdrawn is not None, v.erased) for v in hub.store.versions()] == [
        (1, True, False),
        (2, False, False),
    ]


def test_a_mark_that_the_coordinator_did_not_sign_is_no_mark(hub: Hub) -> None:
    folder = hub.home.release_folder(1)
    stone = publish.Tombstone(site="west", at=LATER, reason="x", versions=(1,))
    (folder / "withdrawn-west.json").write_bytes(sign_message(stone, keys("stranger")))
    with pytest.raises(EnvelopeError, match="signature"):
        verify_folder(folder, hub.home.keys.public())


def test_what_the_service_exported_from_a_version_is_erased(hub: Hub) -> None:
    kept = hub.home.release_folder(1).with_name("v1-exports") / "map.csv"
    kept.parent.mkdir()
    kept.write_text("WEST:3")
    leave(hub)
    assert not kept.parent.exists()


def test_versions_can_be_erased(tmp_path: Path) -> None:
    hub = joined(tmp_path, OWN_SITE)
    size = sum(map(len, files(hub.home.release_folder(1)).values()))
    assert leave(hub, erase=True).erased_bytes > size
    assert list(files(hub.home.release_folder(1))) == ["withdrawn-west.json"]
    assert not publish.site_copies(hub.home.release_folder(1)).exists()
    (stone,) = marks(hub.home.release_folder(1), hub.home.keys.public())
    assert stone.reason == "The board has ended its consent"
    with pytest.raises(ProtocolError, match="was withdrawn"):
        verify_folder(hub.home.release_folder(1), hub.home.keys.public())
    assert hub.store.versions()[0].erased


def test_a_version_without_the_site_stays(hub: Hub) -> None:
    """Only those are withdrawn that were fitted with its release."""
    others = {s: r for s, r in releases().items() if s != "west"}
    hub.run_round(others, "r2")
    done = leave(hub)
    assert (done.versions, done.new_version, done.refit_round, done.fits) == ((1,), 3, "r2", ("r1", "r2"))
    verify_folder(hub.home.release_folder(2), hub.home.keys.public())


def test_too_few_sites_remain(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.enrol(*SITES)
    hub.run_round({s: r for s, r in releases().items() if s != "lake"})
    planned = withdrawal.plan(hub.home, hub.store, "west")
    assert (planned.refits, planned.remaining, planned.needed) == (False, 2, 3)
    done = leave(hub)
    assert done.outcome.startswith(
        "There is no new version. Round r1 has 2 accepted releases, the study needs 3"
    )
    assert [v.version for v in hub.store.versions()] == [1]
    with pytest.raises(ProtocolError, match="was withdrawn"):
        verify_folder(hub.home.release_folder(1), hub.home.keys.public())
    assert not hub.home.fit_path("r1").exists()


def test_before_any_version(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.enrol(*SITES)
    hub.open_round()
    for site in ("lake", "west"):
        hub.release(site, releases()[site])
    hub.collect()
    done = leave(hub)
    assert (done.new_version, done.outcome) == (
        0,
        "No version was fitted with it, so none had to be made anew.",
    )
    # Those that had not released yet seal to the new key, and the round goes on.
    for site in ("north", "south"):
        hub.release(site, releases()[site])
    states = {s: v.state for s, v in hub.collect().items()}
    assert states == {"lake": "accepted", "north": "accepted", "south": "accepted", "west": "withdrawn"}
    assert verify_folder(hub.publish(), hub.home.keys.public()).withdrawn[0].versions == ()


# --- The site from now on ------------------------------------------------------------------------------


def test_what_still_comes_is_erased_unopened(hub: Hub) -> None:
    waiting = hub.desk().received("west").read_bytes()
    leave(hub)
    hub.desk().received("west").write_bytes(waiting)
    assert {s.site: s.state for s in hub.store.submissions("r1")}["west"] == "withdrawn"
    hub.collect()
    assert not hub.desk().received("west").exists()
    assert {s.site: s.state for s in hub.store.submissions("r1")}["west"] == "withdrawn"


def test_a_release_that_was_opened_meanwhile_is_not_recorded(hub: Hub) -> None:
    """Another process had verified it when the site was shut out."""
    store = hub.store
    (row,) = [s for s in store.submissions("r1") if s.site == "west"]
    leave(hub)
    late = Submission(
        round="r1", site="west", state="accepted", sequence=2, manifest_digest=row.manifest_digest
    )
    with pytest.raises(RoundError, match="west has withdrawn"):
        store.record_submission(late)


def test_a_version_that_was_fitted_meanwhile_is_not_published(hub: Hub) -> None:
    store = hub.store
    found = rounds.accepted_releases(hub.home, store, "r1")
    fitted = load_fit(hub.home.fit_path("r1"), found, hub.home.study)
    edition = publish.make_edition(hub.home, store, "r1", found, fitted, created=LATER)
    planned = withdrawal.plan(hub.home, store, "west")
    begun = withdrawal.begin(hub.home, store, planned, reason="x", erase_versions=False, now=LATER)
    with pytest.raises(RoundError, match="Site west has withdrawn since the round was fitted"):
        publish.publish(hub.home, store, edition)
    assert withdrawal.carry_out(hub.home, store, begun, now=LATER).new_version == 2
    assert [s.state for s in verify_folder(hub.home.release_folder(2), hub.home.keys.public()).sites][
        3
    ] == "withdrawn"


def test_it_is_not_called_any_more(hub: Hub) -> None:
    leave(hub)
    hub.open_round("r2")
    assert sorted(hub.call("r2").expected) == list(SITES[:3])
    assert sorted(hub.desk("r2").sites()) == list(SITES[:3])
    states = {s.site: (s.state, s.detail) for s in rounds.site_states(hub.home, hub.store, "r2")}
    assert states["west"] == ("withdrawn", "since 2027-01-02")


def test_it_joins_again_with_new_keys_only(hub: Hub) -> None:
    leave(hub)
    with pytest.raises(UsageError, match=r"withdrew on 2027-01-02.*--again"):
        hub.enrol("west")
    with pytest.raises(UsageError, match="with these keys already"):
        hub.enrol("west", again=True)
    hub.enrol("west", again=True, suffix="-new")
    assert [s.name for s in hub.store.members()] == list(SITES)
    hub.last.pop("west")
    hub.run_round(releases(), "r2", created=LATER)
    assert verify_folder(hub.home.release_folder(3), hub.home.keys.public()).sites[3].state == "received"
    hub.open_round("r3")
    hub.release("west", releases()["west"], "r3", by=keys("west"))
    refused = hub.collect("r3")["west"]
    assert (refused.state, "was revoked" in refused.detail) == ("refused", True)


def test_twice(hub: Hub) -> None:
    leave(hub)
    with pytest.raises(UsageError, match="withdrew on 2027-01-02"):
        leave(hub)
    with pytest.raises(UsageError, match="'east' is not enrolled"):
        leave(hub, "east")


def test_a_second_site_leaves(tmp_path: Path) -> None:
    """What was wrapped to a new key once is wrapped to the next one."""
    hub = joined(tmp_path, STUDY.replace("minimum_sites = 3", "minimum_sites = 2"))
    leave(hub)
    done = leave(hub, "lake")
    assert (done.versions, done.new_version) == ((1, 2), 3)
    manifest = verify_folder(hub.home.release_folder(3), hub.home.keys.public())
    assert [(t.site, t.versions) for t in manifest.withdrawn] == [("west", (1,)), ("lake", (1, 2))]
    assert [s.state for s in manifest.sites] == ["withdrawn", "received", "received", "withdrawn"]


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501])
def test_a_reason_is_needed(hub: Hub, reason: str) -> None:
    planned = withdrawal.plan(hub.home, hub.store, "west")
    with pytest.raises(UsageError, match="1 to 500 characters"):
        withdrawal.begin(hub.home, hub.store, planned, reason=reason, erase_versions=False, now=LATER)
    assert hub.store.site("west").withdrawn is None


def test_the_plan_changes_nothing(hub: Hub) -> None:
    before = files(hub.home.folder / "rounds") | files(hub.home.folder / "releases")
    planned = withdrawal.plan(hub.home, hub.store, "west", erase_versions=True)
    assert (planned.rounds, planned.versions, planned.remaining, planned.refits) == (("r1",), (1,), 3, True)
    assert planned.bytes > sum(map(len, files(hub.home.release_folder(1)).values()))
    assert files(hub.home.folder / "rounds") | files(hub.home.folder / "releases") == before


def test_one_at_a_time(hub: Hub) -> None:
    with (
        rounds.exclusive(hub.home),
        pytest.raises(RoundError, match="Another process runs a fit"),
        rounds.exclusive(hub.home),
    ):
        raise AssertionError("two at a time")


class Superlink:
    """Answers as Flower's services do: a node that was unregistered can never be registered again."""

    def __init__(self) -> None:
        self.out: set[str] = set()

    def register(self, site: str, key: Path) -> int:
        if key.read_text().strip() in self.out:
            raise KeyFileError(f"The node key {key} cannot be enrolled for {site}", why="it was withdrawn")
        self.out.add(key.read_text().strip())
        return 7

    def withdraw(self, node_id: int) -> None:
        assert node_id == 7


def test_its_node_is_shut_out_once_the_services_run(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    superlink = Superlink()
    monkeypatch.setattr("coordinator.flower.services.Services.attach", lambda _home: superlink)
    leave(hub)
    assert nodes.deny_nodes(hub.home, hub.store) == []  # they do not run
    (hub.home.flower / "services.json").write_text("{}")
    assert nodes.deny_nodes(hub.home, hub.store) == ["west"]
    assert superlink.out == {"node west"}
    assert nodes.deny_nodes(hub.home, hub.store) == []
    (row,) = hub.store.withdrawals()
    row.node_denied = False  # killed before it was stored
    hub.store.save_withdrawal(row)
    assert nodes.deny_nodes(hub.home, hub.store) == ["west"]
    assert not list((hub.home.flower / "nodes").glob("*"))


# --- Interrupted ---------------------------------------------------------------------------------------

STEPS = ("rekeyed", "erased", "marked", "refitted")


@pytest.mark.parametrize("step", STEPS)
def test_gone_on_with_after_any_step(hub: Hub, step: str) -> None:
    class KilledError(Exception):
        pass

    def tell(name: str) -> None:
        if name == step:
            raise KilledError

    with pytest.raises(KilledError):
        leave(hub, tell=tell)
    finished(hub)


def finished(hub: Hub) -> None:
    """Go on in what would be another process, and look."""
    hub.fresh()
    store = hub.store
    waiting = withdrawal.unfinished(store, "west")
    assert waiting is not None
    withdrawal.carry_out(hub.home, store, waiting, now=LATER)
    assert withdrawal.unfinished(store, "west") is None
    assert [v.version for v in store.versions()] == [1, 2]
    manifest = verify_folder(hub.home.release_folder(2), hub.home.keys.public())
    assert [s.state for s in manifest.sites] == ["received"] * 3 + ["withdrawn"]
    assert not [p for p in files(hub.home.folder) if p.endswith((".next", ".old", "-next"))]
    assert not [p for p in files(hub.home.folder) if "west" in p and not p.startswith("releases/v1/")]


CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.link", "os.mkdir", "os.truncate"}


def killed_at(number: int, work: Callable[[], object]) -> bool:
    """Run in a child that dies, without any cleaning up, before its n-th change of a folder; whether it died."""
    child = os.fork()
    if child == 0:
        left = [number]

        def hook(event: str, _arguments: object) -> None:
            if event in CHANGES:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        sys.addaudithook(hook)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, 9}
    return code == 9


@pytest.mark.parametrize("before", range(0, 30, 1 if FULL else 5))
def test_killed_while_a_round_changes_its_key(hub: Hub, before: int) -> None:
    home, store = hub.home, hub.store
    planned = withdrawal.plan(home, store, "west")
    withdrawal.begin(hub.home, store, planned, reason="x", erase_versions=False, now=LATER)
    store.engine.dispose()

    def work() -> None:
        fresh = hub.store
        change_round_key(hub.fresh(), fresh, fresh.round("r1"), without="west")

    assert killed_at(before, work) or before > 15
    hub.fresh()
    store = hub.store
    old = [PrivateKeys.load(p) for p in hub.home.folder.glob("keys/rounds/*.key")]
    change_round_key(hub.home, store, store.round("r1"), without="west")
    assert [r.manifest.site for r in rounds.accepted_releases(hub.home, store, "r1")] == list(SITES[:3])
    everything = files(hub.home.folder)
    assert not [p for p, data in everything.items() for k in old for s in secrets_of(k) if s in data]
    assert [p for p in everything if p.startswith("keys/rounds")] == ["keys/rounds/r1.key"]


@pytest.mark.parametrize("before", range(0, 40, 1 if FULL else 8))
def test_killed_while_it_erases_and_marks(hub: Hub, before: int) -> None:
    def work() -> None:
        def tell(name: str) -> None:
            if name == "marked":
                os._exit(0)  # the numerics do not live through a fork

        leave(hub, tell=tell)

    assert killed_at(before, work) or before > 15
    if withdrawal.unfinished(hub.store, "west") is None:
        leave(hub)  # it died before the site was shut out
        return
    finished(hub)


def test_a_damaged_release_of_another_site_keeps_the_old_key(hub: Hub) -> None:
    path = hub.desk().received("lake")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FederationError, match=r"signature|altered"):
        leave(hub)
    PrivateKeys.load(hub.home.round_key_path("r1"))
    waiting = withdrawal.unfinished(hub.store, "west")
    assert waiting is not None and waiting.step == "begun"
    assert hub.store.site("west").withdrawn is not None


def test_a_round_whose_key_was_erased_before(hub: Hub) -> None:
    hub.home.round_key_path("r1").unlink()
    done = leave(hub)
    assert done.outcome.startswith("There is no new version. The key of round r1 was erased")
    assert not hub.desk().received("west").exists()
