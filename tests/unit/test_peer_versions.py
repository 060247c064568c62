"""Peers of another protocol, on either side and by every way in: refused, with both versions named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, Message, RecordDict

from coordinator import rounds, setup
from protocol import version
from protocol.canonical import canonical_json
from protocol.envelope import read_header
from protocol.errors import EnvelopeError, VersionError
from protocol.messages import Invitation, Receipt, RoundCall
from protocol.rotation import KeyReceipt
from protocol.signed import open_signed, parse, sign_message
from protocol.version import PROTOCOL, SOFTWARE, check_protocol
from site_agent.config import Home
from site_agent.exchange import SiteStatus
from tests.hub import Hub, releases
from tests.synthetic import keys
from tests.unit.test_agent import Bench
from tests.unit.test_flower_inprocess import CALL, ROUND, Federation, lie, status_reply

PEERS = {2: "smile-federation 0.2.0", 0: None}


def of_protocol(data: bytes, number: int) -> bytes:
    """What a peer of another protocol would have written; 0 is one from before there were numbers."""
    found = {k: v for k, v in json.loads(data).items() if k not in {"protocol", "software"}}
    stated = (
        {} if number == 0 else {"protocol": number, "software": PEERS[number], "since_then": "a new field"}
    )
    return canonical_json(found | stated)


def names_both(text: str, number: int) -> bool:
    """Whether a person can read from it which versions met."""
    theirs = f"protocol {number} ({PEERS[number] or 'an unnamed version'})"
    return theirs in text and f"protocol {PROTOCOL} ({SOFTWARE})" in text


@pytest.mark.parametrize("number", PEERS)
def test_signed_messages_and_the_invitation(number: int) -> None:
    hub = keys("hub")
    receipt = KeyReceipt(party="north", version=1, head="a" * 64)
    with pytest.raises(VersionError) as caught:
        open_signed(of_protocol(sign_message(receipt, hub), number), KeyReceipt, hub.public())
    assert names_both(str(caught.value), number)
    invitation = Invitation(
        study_digest="a" * 64, address="h:1", certificate="x", keys=hub.public(), bundle_digest="a" * 64
    )
    with pytest.raises(VersionError) as caught:
        parse(of_protocol(canonical_json(invitation), number), Invitation)
    assert names_both(str(caught.value), number)


def test_the_older_one_is_told_to_upgrade() -> None:
    with pytest.raises(VersionError, match=r"the older of the two is the site\. Upgrade"):
        check_protocol({"protocol": 0, "software": "s"}, "The site", here="this coordinator")
    with pytest.raises(VersionError, match=r"the older of the two is this coordinator\. Upgrade"):
        check_protocol({"protocol": 7}, "The site", here="this coordinator")


@pytest.mark.parametrize("number", [True, "1", None, 1.0, [1]])
def test_only_the_whole_number_counts(number: Any) -> None:
    with pytest.raises(VersionError):
        check_protocol({"protocol": number}, "The site")


def test_a_peer_cannot_write_on_the_terminal() -> None:
    with pytest.raises(VersionError) as caught:
        check_protocol({"protocol": 9, "software": "\x1b[2J\n" + "x" * 500}, "The site")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_the_number_cannot_be_changed_under_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = keys("hub")
    data = sign_message(KeyReceipt(party="north", version=1, head="a" * 64), hub)
    monkeypatch.setattr(version, "PROTOCOL", 2)  # a reader of protocol 2 who takes this for one of its own
    with pytest.raises(EnvelopeError, match="signature does not hold"):
        open_signed(canonical_json(json.loads(data) | {"protocol": 2}), KeyReceipt, hub.public())


# --- A site meets a coordinator ------------------------------------------------------------------------


@pytest.mark.parametrize("number", PEERS)
def test_a_site_refuses_a_call_and_its_status_says_so(tmp_path: Path, number: int) -> None:
    bench = Bench(tmp_path)
    bench.call()
    (data,) = bench.agent.exchange.calls()
    bench.agent.exchange.drop_call(data)
    bench.agent.exchange.put_call(of_protocol(data, number))
    (news,) = bench.agent.step()
    status = bench.status()
    assert status.state == "refused"
    assert names_both(status.detail, number)
    assert names_both(news, number)
    assert bench.agent.step() == []
    # After the upgrade the coordinator calls again.
    bench.agent.exchange.put_call(data)
    bench.agent.step()
    assert bench.status().state == "preparing"


def test_an_unproved_call_takes_nothing_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.agent.exchange.set_status(SiteStatus(round="r1", state="sealed", sha256="a" * 64, size=3))
    bench.call()
    (data,) = bench.agent.exchange.calls()
    bench.agent.exchange.drop_call(data)
    bench.agent.exchange.put_call(of_protocol(data, 2))
    assert "Refused a call" in bench.agent.step()[0]
    assert bench.status().state == "sealed"


@pytest.mark.parametrize("number", PEERS)
def test_in_the_conversation_a_site_answers_another_coordinator(tmp_path: Path, number: int) -> None:
    federation = Federation(tmp_path, "a")
    stated = {"protocol": number, "software": PEERS[number] or ""} if number else {}
    record = ConfigRecord({**stated, "room": "round", "round": ROUND, "call": CALL, "since": "x"})
    message = Message(RecordDict({"config": record}), dst_node_id=11, message_type="query.call")
    (name,) = federation.grid.push_messages([message])
    (reply,) = federation.grid.pull_messages([name])
    assert names_both(str(reply.error.reason), number)
    assert federation.exchange["a"].calls() == [CALL]  # for the agent, which tells its own people


# --- A coordinator meets a site ------------------------------------------------------------------------


@pytest.mark.parametrize("number", PEERS)
def test_round_status_says_that_a_site_is_of_another_version(tmp_path: Path, number: int) -> None:
    federation = Federation(tmp_path, "a")
    stated = (
        {"protocol": number, "software": PEERS[number]} if number else {"protocol": None, "software": None}
    )
    lie(federation, "call", status_reply(**stated, mood="a new field"))
    assert federation.run() == {"a": "refused"}
    assert names_both(federation.desk.progress("a").detail, number)
    assert "this coordinator" in federation.desk.progress("a").detail


@pytest.mark.parametrize("number", PEERS)
def test_enrolments_releases_and_receipts(tmp_path: Path, number: int) -> None:
    hub = Hub(tmp_path)
    hub.enrol("north", "lake", "south")
    path = tmp_path / "enrolment.json"
    told = setup.Enrolment(
        study_digest=hub.home.study.digest, site="west", keys=keys("west").public(), node_key="n", contact=""
    )
    path.write_bytes(of_protocol(sign_message(told, keys("west")), number))
    with pytest.raises(VersionError) as caught:
        setup.read_enrolment(hub.home, path)
    assert names_both(str(caught.value), number)

    hub.open_round()
    hub.release("north", releases()["north"])
    envelope = hub.desk().received("north")
    data = envelope.read_bytes()
    size = int.from_bytes(data[8:12], "big")
    head = of_protocol(data[12 : 12 + size], number)
    envelope.write_bytes(data[:8] + len(head).to_bytes(4, "big") + head + data[12 + size :])
    with pytest.raises(VersionError):
        read_header(envelope)
    found = hub.collect()["north"]
    assert found.state == "refused"
    assert names_both(found.detail, number)
    shown = {s.site: s for s in rounds.site_states(hub.home, hub.store, "r1")}["north"]
    assert names_both(shown.detail, number)
    assert hub.store.site("north").accepted_sequence == 0
    with pytest.raises(VersionError):
        open_signed(of_protocol(hub.desk().call(), number), RoundCall, hub.home.keys.public())
    assert "protocol" not in Receipt.model_fields  # it travels in the signed wrapper


def test_a_site_home_says_which_versions_met(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    path = bench.agent.home.folder / "invitation.json"
    path.write_bytes(of_protocol(path.read_bytes(), 2))
    with pytest.raises(VersionError) as caught:
        _ = Home(bench.agent.home.folder).invitation
    assert names_both(str(caught.value), 2)
