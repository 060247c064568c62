"""The transport over an in-process grid: real apps and real serialisation, no sockets and no processes."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode import start_client_internal as loop
from flwr.supernode.nodestate import NodeStateFactory

from coordinator.flower import post, server_app
from coordinator.flower.bundle import build_bundle, bundle_digest, write_bundle
from coordinator.flower.desk import RoundDesk
from protocol.errors import RoundError, UsageError
from protocol.version import PROTOCOL
from site_agent.exchange import Exchange, SiteStatus
from site_agent.flower.app import make_app
from site_agent.flower.runner import answer
from site_agent.flower.supernode import Turns
from tests.local_grid import LocalGrid

ROUND = "round-1"
CALL = b'{"signed":"call"}'
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Federation:
    """A desk, a grid and one exchange folder for each site."""

    def __init__(self, folder: Path, *sites: str) -> None:
        self.nodes = {site: 11 + i for i, site in enumerate(sites)}
        self.exchange = {site: Exchange(folder / site / "exchange") for site in sites}
        self.desk = RoundDesk(folder / "rounds" / ROUND)
        self.desk.open(CALL, self.nodes)
        self.grid = LocalGrid({self.nodes[s]: make_app(self.exchange[s], s) for s in sites})
        self._folder = folder

    def status(self, site: str, state: str, **fields: Any) -> None:
        self.exchange[site].set_status(SiteStatus(round=ROUND, state=state, **fields))  # type: ignore[arg-type]

    def seal(self, site: str, data: bytes) -> None:
        path = self._folder / f"{site}.release"
        path.write_bytes(data)
        digest, size = self.exchange[site].put_sealed(path)
        self.status(site, "sealed", sha256=digest, size=size)

    def run(self, phase: str = "collect", *, looks: int = 10_000, **config: str | float) -> dict[str, str]:
        """One run, until all sites are at an end or the deadline comes, at the last of some looks."""
        base = {"deadline-seconds": 60.0, "poll-seconds": 0.0, "block-bytes": 1000, "sites": ""}
        given = {name.replace("_", "-"): value for name, value in config.items()}
        run_config = {"desk": str(self.desk.folder), "phase": phase, **base, **given}
        look, count = server_app.Visit.look, itertools.count(1)

        def counted(visit: server_app.Visit) -> Any:
            ready = look(visit)
            if next(count) >= looks:
                visit.deadline = time.monotonic()
            return ready

        with mock.patch.object(server_app.Visit, "look", counted):
            server_app.app(grid=self.grid, context=Context(1, 0, {}, RecordDict(), run_config))  # type: ignore[arg-type]
        return {site: self.desk.progress(site).state for site in self.nodes}

    def actions(self, site: str) -> list[str]:
        return [action for node, action in self.grid.log if node == self.nodes[site]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post.Post, "pause", lambda self: time.sleep(0.001))
    monkeypatch.setattr(post, "DISK_RESERVE", 0)
    monkeypatch.setattr(post, "WINDOW", 2)  # what the messages below are counted with


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Federation]:
    return lambda *sites: Federation(tmp_path, *sites)


@contextmanager
def agent(step: Callable[[], None]) -> Iterator[None]:
    """A site's agent at work: `step` again and again, in a thread."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.002):
            step()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- Collecting ----------------------------------------------------------------------------------------


def test_collect_brings_every_sealed_file(make: Callable[..., Federation]) -> None:
    federation = make("a", "b", "c")
    data = {"a": os.urandom(4567), "b": os.urandom(1000), "c": os.urandom(1)}

    def step() -> None:
        for site, exchange in federation.exchange.items():
            if exchange.status(ROUND) is None and exchange.calls() == [CALL]:
                federation.status(site, "awaiting-approval", detail="two people must look")
            elif federation.desk.progress(site).state == "awaiting-approval":
                federation.seal(site, data[site])

    with agent(step):
        states = federation.run()
    assert states == dict.fromkeys(data, "received")
    assert {s: federation.desk.received(s).read_bytes() for s in data} == data
    progress = federation.desk.progress("a")
    assert (progress.bytes_done, progress.bytes_total) == (4567, 4567)
    assert not list(federation.desk.folder.rglob("*.part"))
    log = (federation.desk.folder / "transport.log").read_text()
    assert "a: awaiting-approval two people must look" in log
    assert "run 1: ended" in log


def test_transfers_go_one_site_at_a_time(make: Callable[..., Federation]) -> None:
    federation = make("a", "b")
    for site in ("a", "b"):
        federation.seal(site, os.urandom(3500))
    federation.run()
    blocks = [node for node, action in federation.grid.log if action == "query.block"]
    assert blocks == [11] * 4 + [12] * 4


def test_a_site_that_has_not_answered_is_not_lost(make: Callable[..., Federation]) -> None:
    federation = make("offline", "waiting", "silent", "refused")
    federation.grid.down.add(federation.nodes["offline"])
    federation.status("waiting", "awaiting-approval", detail="the board meets on Monday")
    federation.status("refused", "refused", detail="too few patients")
    states = federation.run(looks=2)
    assert states == {
        "offline": "offline",
        "waiting": "awaiting-approval",
        "silent": "invited",
        "refused": "refused",
    }
    assert federation.actions("offline") == []
    assert federation.desk.progress("waiting").detail == "the board meets on Monday"
    assert federation.desk.progress("refused").detail == "too few patients"


def test_a_site_that_comes_back_is_asked_again(make: Callable[..., Federation]) -> None:
    federation = make("a")
    federation.seal("a", b"data")
    federation.grid.down.add(11)
    assert federation.run(looks=2) == {"a": "offline"}
    federation.grid.down.clear()
    assert federation.run() == {"a": "received"}


def test_only_the_named_sites_are_asked_and_received_ones_are_left_alone(
    make: Callable[..., Federation],
) -> None:
    federation = make("a", "b")
    for site in ("a", "b"):
        federation.seal(site, b"data")
    assert federation.run(sites="b") == {"a": "invited", "b": "received"}
    federation.grid.log.clear()
    federation.run()
    assert federation.actions("b") == []
    with pytest.raises(UsageError):
        federation.run(sites="nobody")
    with pytest.raises(UsageError):
        federation.run(phase="gossip")


def test_a_broken_transfer_goes_on_from_the_bytes_held(make: Callable[..., Federation]) -> None:
    federation = make("a")
    data = os.urandom(10_000)
    federation.seal("a", data)
    site_app = federation.grid.nodes[11]
    asked: list[int] = []

    def breaks(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.block":
            asked.append(int(message.content["config"]["offset"]))  # type: ignore[arg-type]
            if len(asked) == 5:
                return Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)
        return site_app(message, context)

    federation.grid.nodes[11] = breaks
    assert federation.run() == {"a": "received"}
    assert asked == [0, 1000, 2000, 3000, 4000, 5000, *range(4000, 10_000, 1000)]
    assert federation.desk.received("a").read_bytes() == data


def test_parts_of_an_earlier_run_are_used_or_dropped(make: Callable[..., Federation]) -> None:
    federation = make("a")
    data = os.urandom(5000)
    federation.seal("a", data)
    federation.desk.part("a", sha(data)).write_bytes(data[:3000])
    assert federation.run() == {"a": "received"}
    assert federation.actions("a").count("query.block") == 2

    other = make("a")
    other.desk.received("a").unlink()
    other.desk.part("a", "0" * 64).write_bytes(b"of a file that the site has replaced")
    damaged = other.desk.folder / "received" / f"a.{sha(data)}.part"
    damaged.write_bytes(bytes(3000))
    assert other.run() == {"a": "received"}  # a second turn, from the start
    assert other.desk.received("a").read_bytes() == data


# --- Hostile sites -------------------------------------------------------------------------------------


def lie(federation: Federation, action: str, reply: Callable[[Message], Message]) -> None:
    """Let site a answer one action with something else."""
    honest = federation.grid.nodes[11]

    def hostile(message: Message, context: Context) -> Message:
        if message.metadata.message_type == f"query.{action}":
            return reply(message)
        return honest(message, context)

    federation.grid.nodes[11] = hostile


def status_reply(**fields: Any) -> Callable[[Message], Message]:
    good = {"round": ROUND, "state": "sealed", "detail": "", "sha256": "a" * 64, "size": 10, "receipt": ""}
    good |= {"protocol": PROTOCOL, "software": "another 1"}
    record = ConfigRecord({k: v for k, v in (good | fields).items() if v is not None})
    return lambda message: Message(RecordDict({"config": record}), reply_to=message)


def block_reply(
    data: bytes, stype: str = "raw", shape: tuple[int, ...] = (1,)
) -> Callable[[Message], Message]:
    record = RecordDict({"block": ArrayRecord({"data": Array("uint8", shape, stype, data)})})
    return lambda message: Message(record, reply_to=message)


@pytest.mark.parametrize(
    "reply",
    [
        status_reply(round="round-2"),
        status_reply(state="asleep"),
        status_reply(detail="x" * 2001),
        status_reply(receipt="x" * 20_000),
        status_reply(sha256="../../etc/passwd"),
        status_reply(sha256="", size=10),
        status_reply(size=0),
        status_reply(size=-1),
        status_reply(size=5 << 30),
        status_reply(size="10"),
        status_reply(size=None),
        status_reply(extra="field"),
        lambda message: Message(RecordDict(), reply_to=message),
        block_reply(b"no config at all"),
    ],
)
def test_a_malformed_answer_refuses_its_site_alone(
    make: Callable[..., Federation], reply: Callable[[Message], Message]
) -> None:
    federation = make("a", "b")
    federation.seal("b", b"honest")
    lie(federation, "call", reply)
    assert federation.run() == {"a": "refused", "b": "received"}


@pytest.mark.parametrize(
    "reply",
    [
        block_reply(bytes(9)),
        block_reply(bytes(11)),
        block_reply(bytes(4 << 20)),
        block_reply(b""),
        block_reply(bytes(10), stype="numpy.ndarray"),
        lambda message: Message(RecordDict(), reply_to=message),
    ],
)
def test_a_block_of_another_size_or_kind_refuses_its_site(
    make: Callable[..., Federation], reply: Callable[[Message], Message]
) -> None:
    federation = make("a", "b")
    federation.seal("a", b"0123456789")
    federation.seal("b", b"honest")
    lie(federation, "block", reply)
    assert federation.run() == {"a": "refused", "b": "received"}
    assert "block of 10 bytes" in federation.desk.progress("a").detail


def test_another_digest_than_announced_refuses_the_site(make: Callable[..., Federation]) -> None:
    federation = make("a", "b")
    federation.seal("a", b"0123456789")
    federation.seal("b", b"honest")
    lie(federation, "block", block_reply(b"9876543210"))
    assert federation.run() == {"a": "refused", "b": "received"}
    assert "another digest" in federation.desk.progress("a").detail
    assert not federation.desk.received("a").exists()
    assert not list(federation.desk.folder.rglob("*.part"))


def test_transfers_that_keep_failing_end(make: Callable[..., Federation]) -> None:
    federation = make("a")
    federation.seal("a", b"0123456789")
    lie(
        federation,
        "block",
        lambda m: Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "no\x1b[2J"), reply_to=m),
    )
    assert federation.run() == {"a": "refused"}
    assert federation.actions("a").count("query.block") == server_app.ATTEMPTS
    assert federation.desk.progress("a").detail == "no [2J"


def test_a_reply_that_cannot_be_parsed_or_is_another_nodes_refuses_its_site(
    make: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make("a", "b", "c")
    for site in ("a", "b", "c"):
        federation.seal(site, b"data")
    pull = LocalGrid.pull_messages

    def hostile(self: LocalGrid, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(pull(self, message_ids))
        for reply in replies:
            if reply.metadata.src_node_id == 11:
                raise KeyError("an object that was announced is not there")
            if reply.metadata.src_node_id == 12:
                reply.metadata.__dict__["_src_node_id"] = 13
        return replies

    monkeypatch.setattr(LocalGrid, "pull_messages", hostile)
    assert federation.run() == {"a": "refused", "b": "refused", "c": "received"}


def test_a_superlink_that_stumbles_is_asked_again(
    make: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make("a")
    federation.seal("a", os.urandom(3000))
    fails = itertools.cycle([False, True, True, False, True, False, False])

    def stumbling(name: str) -> None:
        method = getattr(LocalGrid, name)

        def call(self: LocalGrid, *args: Any) -> Any:
            if next(fails):
                raise httpx.ReadTimeout("database is locked")
            return method(self, *args)

        monkeypatch.setattr(LocalGrid, name, call)

    for name in ("get_node_ids", "push_messages", "pull_messages"):
        stumbling(name)
    assert federation.run() == {"a": "received"}


# --- Delivering ----------------------------------------------------------------------------------------


def applies(federation: Federation, site: str) -> Callable[[], None]:
    """An agent that takes results and acknowledges them."""

    def step() -> None:
        for path in federation.exchange[site].results():
            digest = sha(path.read_bytes())
            path.unlink()
            federation.status(site, "delivered", sha256=digest, receipt=json.dumps({"site": site}))

    return step


def test_deliver_brings_results_and_receipts(make: Callable[..., Federation]) -> None:
    federation = make("a", "b", "c")
    data = {"a": os.urandom(5432), "b": b"x"}
    for site, content in data.items():
        federation.desk.outgoing(site).write_bytes(content)
    with agent(applies(federation, "a")), agent(applies(federation, "b")):
        states = federation.run("deliver")
    assert states == {"a": "delivered", "b": "delivered", "c": "invited"}
    progress = federation.desk.progress("a")
    assert json.loads(progress.receipt) == {"site": "a"}
    assert (progress.bytes_done, progress.bytes_total) == (5432, 5432)
    assert federation.actions("c") == []
    federation.grid.log.clear()
    federation.run("deliver")
    assert federation.actions("a") == ["query.call"]  # its receipt is asked for, nothing is sent again


def test_deliver_goes_on_from_what_the_site_holds(make: Callable[..., Federation]) -> None:
    federation = make("a")
    data = os.urandom(5000)
    federation.desk.outgoing("a").write_bytes(data)
    federation.exchange["a"].put_result_block(sha(data), 5000, 0, data[:3000])
    assert federation.run("deliver", looks=3) == {"a": "sending"}  # held, but nobody has acknowledged it
    assert federation.actions("a").count("query.deliver") == 4  # two say what is held, two are new
    assert [p.read_bytes() for p in federation.exchange["a"].results()] == [data]


def test_an_old_receipt_is_not_taken_for_a_new_result(make: Callable[..., Federation]) -> None:
    federation = make("a")
    federation.desk.outgoing("a").write_bytes(b"second version")
    federation.status("a", "delivered", sha256=sha(b"first version"), receipt="{}")
    with agent(applies(federation, "a")):
        assert federation.run("deliver") == {"a": "delivered"}
    assert federation.actions("a").count("query.deliver") == 1


def test_a_site_that_keeps_nothing_is_sent_the_result_again(make: Callable[..., Federation]) -> None:
    federation = make("a")
    federation.desk.outgoing("a").write_bytes(bytes(5000))
    record = RecordDict({"config": ConfigRecord({"held": 0})})
    lie(federation, "deliver", lambda message: Message(record, reply_to=message))
    assert federation.run("deliver", looks=4) == {"a": "sending"}
    assert "a: sending The site does not keep" in (federation.desk.folder / "transport.log").read_text()
    assert federation.actions("a").count("query.deliver") == 18  # three turns of three times two blocks


def test_a_site_may_refuse_a_result(make: Callable[..., Federation]) -> None:
    federation = make("a")
    federation.desk.outgoing("a").write_bytes(b"result")
    federation.status("a", "refused", sha256=sha(b"result"), detail="the signature does not hold")
    assert federation.run("deliver") == {"a": "refused"}


@pytest.mark.parametrize("held", [-1, 7, True, "3"])
def test_a_site_that_lies_about_what_it_holds_is_refused(make: Callable[..., Federation], held: Any) -> None:
    federation = make("a")
    federation.desk.outgoing("a").write_bytes(b"result")
    record = RecordDict({"config": ConfigRecord({"held": held})})
    lie(federation, "deliver", lambda message: Message(record, reply_to=message))
    assert federation.run("deliver") == {"a": "refused"}


# --- The site's side -----------------------------------------------------------------------------------


def ask(federation: Federation, action: str, config: dict[str, Any]) -> Message:
    content = RecordDict({"config": ConfigRecord({"protocol": PROTOCOL, "room": "round"} | config)})
    (name,) = federation.grid.push_messages(
        [Message(content, dst_node_id=11, message_type=f"query.{action}")]
    )
    (reply,) = federation.grid.pull_messages([name])
    return reply


@pytest.mark.parametrize(
    ("action", "config", "sentence"),
    [
        ("call", {"round": "../x", "call": b""}, "round's name"),
        ("call", {"round": ROUND, "room": "attic"}, "a room that there is not"),
        ("call", {"round": ROUND}, "has no call"),
        ("call", {"round": ROUND, "call": "text"}, "has no call"),
        ("call", {"round": ROUND, "call": bytes(70_000)}, "70000 bytes"),
        ("block", {"sha256": "a" * 64, "offset": 0, "size": 10}, "no sealed file"),
        ("block", {"sha256": "/etc/passwd", "offset": 0, "size": 10}, "64 hex digits"),
        ("block", {"sha256": "a" * 64, "offset": 0, "size": 64 << 20}, "cannot be read"),
        ("deliver", {"sha256": "a" * 64, "offset": 0, "total": 10}, "has no block"),
    ],
)
def test_a_site_answers_a_hostile_coordinator_with_a_sentence(
    make: Callable[..., Federation], tmp_path: Path, action: str, config: dict[str, Any], sentence: str
) -> None:
    error = ask(make("a"), action, config).error
    assert sentence in str(error.reason)
    assert str(tmp_path) not in str(error.reason)


def test_an_unforeseen_error_says_nothing_of_the_site(
    make: Callable[..., Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        raise OSError(28, "No space left on device", "/srv/site/exchange/secret")

    monkeypatch.setattr(Exchange, "put_call", fails)
    error = ask(make("a"), "call", {"round": ROUND, "call": CALL}).error
    assert error.reason == "Site a could not answer; the reason is in its log."


def test_a_bundle_that_is_not_listed_is_refused(make: Callable[..., Federation]) -> None:
    federation = make("a", "b", "c")
    for site in ("a", "b", "c"):
        federation.seal(site, b"data")
    allow = {11: frozenset({sha(b"bundle")}), 12: frozenset({sha(b"another")}), 13: frozenset[str]()}
    for node, allowed in allow.items():
        site_app = federation.grid.nodes[node]
        federation.grid.nodes[node] = lambda m, c, app=site_app, allowed=allowed: answer(  # type: ignore[misc]
            app, m, c, b"bundle", allowed
        )
    assert federation.run() == {"a": "received", "b": "refused", "c": "refused"}
    assert federation.desk.progress("c").detail == f"The site does not list the bundle {sha(b'bundle')}"


def test_a_supernode_whose_work_has_ended_ends_its_process() -> None:
    code = """
import threading, time
from site_agent.flower import supernode
threading.Thread(target=time.sleep, args=(1000,)).start()
supernode.flower_supernode = lambda: None
supernode.main()
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 1


class Supernode:
    """The state of a real SuperNode with our turns, between a SuperLink and a runner that the test plays."""

    def __init__(self, patience: float = 60.0) -> None:
        self.store = ObjectStoreFactory().store()
        self.state = NodeStateFactory(ObjectStoreFactory()).state()
        self.state.set_node_id(11)
        self.turns = Turns(patience)
        self.sent: list[str] = []

    def message(self, run: int) -> Message:
        self.state.store_run(Run.create_empty(run))
        message = Message(RecordDict(), dst_node_id=11, message_type="query.call")
        message.metadata.__dict__.update(_run_id=run, _src_node_id=1)
        message.metadata.__dict__["_message_id"] = message.object_id
        return message

    def pull(self, message: Message, *, ended: bool = False) -> int | None:
        def confirm(run: int, message_id: str) -> None:
            if ended:
                raise RunNotRunningException

        return self.turns.pull(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (message, get_object_tree(message)),
            get_run=mock.Mock(),
            get_fab=mock.Mock(),
            pull_object=lambda run, object_id: get_all_nested_objects(message)[object_id].deflate(),
            confirm_message_received=confirm,
            trusted_entities=None,
        )

    def reply(self, message: Message) -> str:
        reply = Message(RecordDict(), reply_to=message)
        loop._insert_message(reply, self.state, self.store)
        return reply.metadata.message_id

    def push(self) -> None:
        def send(message: Message, tree: object, seconds: float) -> tuple[set[str], str]:
            self.sent.append(message.metadata.message_id)
            if message.metadata.run_id == 1:
                raise RunNotRunningException
            return set(), ""

        self.turns.push(state=self.state, object_store=self.store, send=send, push_object=mock.Mock())


def test_a_message_whose_run_ends_on_the_way_leaves_no_task_behind() -> None:
    node = Supernode()
    message = node.message(run=1)
    assert node.pull(message, ended=True) is None
    assert [task.status.status for task in node.state.get_tasks()] == ["finished"]
    assert not node.state.get_messages_legacy()
    with pytest.raises(NoObjectInStoreError):
        node.store.get_object_tree(message.object_id)


def test_the_reply_to_the_last_message_is_waited_for_whatever_else_lies_there() -> None:
    node = Supernode()
    stale = node.reply(node.message(run=1))
    message = node.message(run=2)
    assert node.pull(message) == 2
    replies = []
    answering = threading.Timer(0.7, lambda: replies.append(node.reply(message)))
    answering.start()
    node.push()
    answering.join()
    assert node.sent == [stale, *replies]


def test_a_reply_that_never_comes_is_not_waited_for_forever() -> None:
    node = Supernode(patience=0.3)
    assert node.pull(node.message(run=2)) == 2
    node.push()
    assert node.sent == []
    message = node.message(run=3)
    assert node.pull(message) == 3
    reply = node.reply(message)
    node.push()
    assert node.sent == [reply]


# --- The bundle and the desk ---------------------------------------------------------------------------


def test_the_bundle_is_the_same_everywhere(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "deep" / "er" / "two"
    for folder in (first, second):
        write_bundle(folder)
    os.utime(first / "pyproject.toml", (0, 0))
    digest = bundle_digest(first)
    assert bundle_digest(first) == bundle_digest(second) == digest
    write_bundle(first)
    assert bundle_digest(first) == digest == sha(build_bundle(second))
    names = {p.relative_to(first).parts[0] for p in first.rglob("*")}
    assert not names & {"coordinator", "site_agent", "protocol"}
    (second / "smile_round" / "server.py").write_text("app = None\n")
    assert bundle_digest(second) != digest


def test_a_desk_keeps_to_its_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        RoundDesk(tmp_path / "Round One")
    desk = RoundDesk(tmp_path / "r-1")
    with pytest.raises(RoundError, match="no call"):
        desk.call()
    for sites in ({"../x": 1}, {"a": -1}, {"a": 1 << 64}):
        with pytest.raises(UsageError):
            desk.open(CALL, sites)
    with pytest.raises(UsageError, match="65537 bytes"):
        desk.open(bytes(65_537), {"a": 1})
    desk.open(CALL, {"a": (1 << 64) - 1})
    assert desk.sites() == {"a": (1 << 64) - 1}
    for method in (desk.received, desk.outgoing, desk.progress):
        with pytest.raises(UsageError):
            method("../x")
