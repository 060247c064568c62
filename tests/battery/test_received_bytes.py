"""No received byte reaches a parser that can run or crash before its signature and digest hold.

The coordinator's intake, the site's taking-in of results, the search index and the Flower app run under
`watching` on good and on hostile bytes. Each test prints its figure (pytest -s); SMILE_BATTERY=full runs more mutants.
"""

from __future__ import annotations

import hashlib
import io
import json
import marshal
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")
pytest.importorskip("hnswlib")

import hnswlib
import torch
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from protocol import codeindex
from protocol.bundle import encode_bundle
from protocol.codeindex import HNSW as HNSW_FILE
from protocol.codeindex import LABELS, VECTORS, CodeIndex
from protocol.envelope import EnvelopeHeader, seal
from protocol.errors import ProtocolError
from protocol.keys import PrivateKeys
from protocol.messages import PublishedManifest
from protocol.published import MANIFEST, list_files, sign_manifest, verify_folder
from protocol.release import encode_release
from protocol.version import PROTOCOL, SOFTWARE
from site_agent.agent import Agent
from site_agent.enrolment import init_home
from site_agent.exchange import Exchange
from site_agent.flower.app import make_app
from site_agent.flower.runner import answer
from tests.battery.watching import HNSW, SIGNATURE, Watch, reported, watched_environment, watching
from tests.hub import Hub, releases
from tests.local_grid import travel
from tests.unit.test_envelope_vectors import BAD, bad_bytes

FULL = os.environ.get("SMILE_BATTERY") == "full"
MUTANTS = 2000 if FULL else 60


class Bomb:
    """An object whose unpickling calls a function."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (os.system, ("echo received bytes were run",))


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def torch_file(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def hnsw_file(folder: Path) -> bytes:
    index = hnswlib.Index(space="cosine", dim=4)
    index.init_index(max_elements=3)
    index.add_items(np.eye(3, 4, dtype=np.float32))
    index.save_index(str(folder / "three.bin"))
    return (folder / "three.bin").read_bytes()


CODE = "__import__('os').system('echo received bytes were run')"
HOSTILE: dict[str, bytes] = {
    "pickle": pickle.dumps(Bomb()),
    "npy of objects": npy(np.array([Bomb()], dtype=object)),
    "npy that asks for 8 GiB": npy(np.zeros(1)).replace(b"(1,)", b"(1073741824,)"),
    "torch": torch_file({"weights": torch.zeros(2)}),
    "marshal": marshal.dumps(compile(CODE, "received", "eval")),
    "source": CODE.encode(),
    "yaml": f'!!python/object/apply:os.system ["{CODE}"]'.encode(),
    "zip": b"PK\x03\x04" + bytes(100),
    "nothing": b"",
}


# --- The watch itself ----------------------------------------------------------------------------------


def _import(folder: Path) -> None:
    (folder / "received_module.py").write_text("value = 1\n")
    sys.path.insert(0, str(folder))
    try:
        __import__("received_module")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("received_module", None)


WAYS: dict[str, Callable[[Path], object]] = {
    "pickle.loads": lambda _: pickle.loads(pickle.dumps(1)),  # noqa: S301
    "pickle.find_class": lambda _: pickle._loads(pickle.dumps(Path)),  # type: ignore[attr-defined]
    "pickle.Unpickler": lambda _: pickle.Unpickler(io.BytesIO(pickle.dumps(1))).load(),  # noqa: S301
    "np.load": lambda _: np.load(io.BytesIO(npy(np.zeros(1)))),
    "np.lib.format.read_array": lambda _: np.lib.format.read_array(io.BytesIO(npy(np.zeros(1)))),
    "torch.load": lambda _: torch.load(io.BytesIO(torch_file(1))),
    "marshal.loads": lambda _: marshal.loads(marshal.dumps(1)),  # noqa: S302
    "yaml.safe_load": lambda _: yaml.safe_load("1"),
    "exec": lambda _: exec("1"),  # noqa: S102
    "eval": lambda _: eval("1"),  # noqa: S307
    "compile": lambda _: compile("1", "x", "eval"),
    "import": _import,
    "os.system": lambda _: os.system("true"),  # noqa: S605
    HNSW: lambda folder: (
        hnsw_file(folder),
        hnswlib.Index("cosine", 4).load_index(str(folder / "three.bin")),
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_watch_sees(name: str, tmp_path: Path) -> None:
    with watching() as watch:
        WAYS[name](tmp_path)
    assert name in watch.names()
    WAYS[name](tmp_path)  # and lets go
    assert watch.names().count(name) == Watch(watch.events).names().count(name)


def test_the_watch_sees_a_signature_that_holds_and_no_other() -> None:
    keys = PrivateKeys.generate()
    with watching() as watch:
        keys.public().verify(keys.sign(b"data"), b"data")
        with pytest.raises(ProtocolError):
            keys.public().verify(keys.sign(b"data"), b"other")
    assert watch.events == [(SIGNATURE, keys.public().digest)]


def test_a_watched_process_reports_what_touches_a_mark(tmp_path: Path) -> None:
    log = tmp_path / "log"
    names = watched_environment(tmp_path / "site", log, [b"a-mark"])
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], env={}, check=True)"
    acts = [
        "import pickle; pickle.loads(pickle.dumps('a-mark'))",
        "import pickle, io; pickle.load(io.BytesIO(pickle.dumps('a-mark')))",
        "exec('x = 1 # a-mark')",
        "import marshal; marshal.loads(marshal.dumps('a-mark'))",
        "import numpy, io; numpy.load(io.BytesIO(b'a-mark'), allow_pickle=True)",
    ]
    for act in ("pass", *acts):
        subprocess.run(
            [sys.executable, "-P", "-c", child, act],
            env={**os.environ, **names},
            check="numpy" not in act,
            capture_output=True,
        )
    found = reported(log)
    assert len(found["watched"]) == 2 * len(acts) + 2
    assert {"pickle.loads", "pickle.load", "compile", "marshal.loads", "numpy.load"} <= found.keys()


# --- A federation --------------------------------------------------------------------------------------


class Federation:
    """A coordinator, its first published release, and a site that has taken it in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub = Hub(folder)
        self.hub.enrol("lake", "north", "south", "west")
        self.release = self.hub.run_round(releases())
        events = folder / "events.csv"
        events.write_text("patient,date,code\n")
        self.home = init_home(
            folder / "site",
            site="north",
            invitation=self.hub.home.folder / "invitation.json",
            study=folder / "study.toml",
            events=events,
            system="ICD10CM",
        )
        self.agent = Agent(self.home)
        self.version = 0
        # Once without being watched: modules that are imported late are imported now.
        assert any("arrived and holds" in news for news in self.take_in(self.result()))
        self.load()
        self.refuse(b"no envelope")
        self.hub.open_round("warm")
        self.hub.release("lake", releases()["lake"], "warm")
        self.hub.collect("warm")

    def result(self, plain: bytes | None = None, content: str = "", by: PrivateKeys | None = None) -> bytes:
        """A result for the site, sealed and signed: of these bytes, or a fresh version of the release."""
        self.version += 1
        if plain is None:
            copy = self.copy(f"fresh-{self.version}")
            plain, content = encode_bundle(copy), verify_folder(copy, self.hub.home.keys.public()).digest
        keys, to = by or self.hub.home.keys, self.home.keys.public()
        header = EnvelopeHeader(
            kind="result",
            suite=to.suite,
            consortium=self.home.study.id,
            study_digest=self.home.study.digest,
            round="r1",
            site="north",
            recipient_key=to.digest,
            signer_key=keys.public().digest,
            sequence=self.version,
            previous="",
            content=content or "c" * 64,
            agent_digest="0" * 64,
            policy_digest="0" * 64,
            ledger_head="",
            expires=datetime.now(UTC) + timedelta(days=1),
        )
        path = self.folder / "result.sealed"
        seal(io.BytesIO(plain), path, header, to=to, keys=keys)
        return path.read_bytes()

    def copy(self, name: str) -> Path:
        """The published release again, as the site's next version."""
        target = self.folder / name
        shutil.copytree(self.release, target)
        document = json.loads((target / MANIFEST).read_text())["manifest"]
        manifest = PublishedManifest.model_validate_json(json.dumps(document | {"version": self.version}))
        (target / MANIFEST).unlink()
        files = {"files": list_files(target)}
        sign_manifest(target, manifest.model_copy(update=files), self.hub.home.keys)
        return target

    def take_in(self, data: bytes) -> list[str]:
        sha256 = hashlib.sha256(data).hexdigest()
        self.agent.exchange.put_result_block(sha256, len(data), 0, data)
        return self.agent.step()

    def refuse(self, data: bytes) -> None:
        news = self.take_in(data)
        assert len(news) == 1
        assert news[0].startswith("Refused a result")

    def load(self, **named: Any) -> CodeIndex:
        folder = max((self.home.folder / "results").iterdir(), key=lambda p: int(p.name[1:]))
        return CodeIndex.load(folder, trust=self.hub.home.keys.public(), **named)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def round_of(federation: Federation, request: pytest.FixtureRequest) -> str:
    """A fresh round of the coordinator."""
    name = f"r-{len(federation.hub.store.rounds())}"
    federation.hub.open_round(name)
    return name


# --- The coordinator's intake --------------------------------------------------------------------------


def test_intake_of_good_releases_loads_nothing(federation: Federation, round_of: str) -> None:
    for site, parts in releases().items():
        federation.hub.release(site, parts, round_of)
    with watching() as watch:
        found = federation.hub.collect(round_of)
    assert {s.state for s in found.values()} == {"accepted"}
    assert watch.names() == [SIGNATURE] * 4
    print(f"4 releases taken in: {len(watch.dangerous())} calls of a loader (bar: 0)")


def test_intake_of_every_bad_vector_loads_nothing(federation: Federation, round_of: str) -> None:
    path = federation.hub.desk(round_of).received("lake")
    for vector in BAD:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bad_bytes(vector))
        with watching() as watch:
            assert federation.hub.collect(round_of)["lake"].state == "refused"
        assert watch.events == [], vector["name"]
    print(f"{len(BAD)} bad envelopes at the intake: 0 calls of a loader (bar: 0)")


@pytest.mark.parametrize("name", HOSTILE)
def test_intake_of_a_signed_release_that_is_something_else(
    name: str, federation: Federation, round_of: str
) -> None:
    """The site itself is hostile: its signature holds, what it sealed is no release."""
    seal_bytes(federation, round_of, HOSTILE[name])
    with watching() as watch:
        assert federation.hub.collect(round_of)["lake"].state == "refused"
    assert set(watch.names()) == {SIGNATURE}


def test_intake_of_mutants_of_a_release(federation: Federation, round_of: str) -> None:
    good = encode_release(federation.hub.home_release("lake"))
    rng = random.Random(7)  # noqa: S311
    states: dict[str, int] = {}
    for _ in range(MUTANTS):
        seal_bytes(federation, round_of, mutant(good, rng))
        with watching() as watch:
            state = federation.hub.collect(round_of)["lake"].state
        states[state] = states.get(state, 0) + 1
        assert watch.dangerous() == []
    assert states.get("refused", 0) > MUTANTS // 2
    print(f"{MUTANTS} mutants sealed and signed: {states}, 0 calls of a loader (bar: 0)")


def seal_bytes(federation: Federation, name: str, plain: bytes) -> None:
    hub = federation.hub
    call, signer = hub.call(name), hub.key_of["lake"]
    header = EnvelopeHeader(
        kind="release",
        suite=call.recipient.suite,
        consortium="unit",
        study_digest=call.study_digest,
        round=name,
        site="lake",
        recipient_key=call.recipient.digest,
        signer_key=signer.public().digest,
        sequence=hub.last.get("lake", (0, ""))[0] + 1,
        previous=hub.last.get("lake", (0, ""))[1],
        content="c" * 64,
        agent_digest="a" * 64,
        policy_digest="b" * 64,
        ledger_head="",
        expires=datetime.now(UTC) + timedelta(days=1),
    )
    seal(io.BytesIO(plain), hub.desk(name).received("lake"), header, to=call.recipient, keys=signer)


def mutant(data: bytes, rng: random.Random) -> bytes:
    """Bits turned, a piece cut out or replaced by something hostile."""
    kind, at = rng.randrange(3), rng.randrange(len(data))
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[at + rng.randrange(1, 200) :]
    return data[:at] + rng.choice(list(HOSTILE.values())) + data[at:]


# --- The site's taking-in of results -------------------------------------------------------------------


def test_taking_in_a_good_result_loads_nothing(federation: Federation) -> None:
    data = federation.result()
    with watching() as watch:
        news = federation.take_in(data)
    assert "arrived and holds" in news[0]
    # The envelope's signature, then the manifest's; the receipt is signed, not verified.
    assert watch.names() == [SIGNATURE] * 2


def test_taking_in_every_bad_vector_loads_nothing(federation: Federation) -> None:
    for vector in BAD:
        data = bad_bytes(vector)
        if not data:
            continue
        with watching() as watch:
            federation.refuse(data)
        assert watch.events == [], vector["name"]


@pytest.mark.parametrize("name", [n for n, data in HOSTILE.items() if data])
def test_taking_in_hostile_bytes(name: str, federation: Federation) -> None:
    for data in (HOSTILE[name], federation.result(HOSTILE[name], by=PrivateKeys.generate())):
        with watching() as watch:
            federation.refuse(data)
        assert watch.events == []
    signed = federation.result(HOSTILE[name])
    with watching() as watch:
        federation.refuse(signed)
    assert watch.names() == [SIGNATURE]


def test_taking_in_mutants_of_a_result(federation: Federation) -> None:
    federation.version += 1
    copy = federation.copy("mutated")
    good, content = encode_bundle(copy), verify_folder(copy, federation.hub.home.keys.public()).digest
    rng, taken = random.Random(8), 0  # noqa: S311
    for _ in range(MUTANTS // 3):
        data = federation.result(mutant(good, rng), content)
        with watching() as watch:
            taken += "arrived and holds" in federation.take_in(data)[0]
        assert watch.dangerous() == []
    # A mutant may differ in a space of manifest.json: what is signed is its content, and every listed file.
    for folder in (federation.home.folder / "results").iterdir():
        verify_folder(folder, federation.hub.home.keys.public())
    assert taken < MUTANTS // 6
    print(
        f"{taken} of {MUTANTS // 3} mutants of a result taken in, all verified; 0 calls of a loader (bar: 0)"
    )


# --- The index -----------------------------------------------------------------------------------------


@pytest.fixture
def published(federation: Federation, tmp_path: Path) -> Path:
    target = tmp_path / "v1"
    shutil.copytree(federation.release, target)
    return target


def test_hnswlib_gets_the_bytes_whose_digest_held(federation: Federation, published: Path) -> None:
    with watching() as watch:
        index = CodeIndex.load(published, trust=federation.hub.home.keys.public())
    listed = {f.name: f.sha256 for f in list_files(published)}
    assert watch.events == [
        (SIGNATURE, federation.hub.home.keys.public().digest),
        (HNSW, listed[HNSW_FILE]),
    ]
    assert index.search(index.codes[0], k=3)


ALTERED: dict[str, Callable[[Path], object]] = {
    "hnsw": lambda r: (r / HNSW_FILE).write_bytes(b"\xff" * 200),
    "one bit of hnsw": lambda r: flip(r / HNSW_FILE, 40),
    "vectors": lambda r: flip(r / VECTORS, -1),
    "labels": lambda r: (r / LABELS).write_text("[]"),
    "pickle as labels": lambda r: (r / LABELS).write_bytes(HOSTILE["pickle"]),
    "one bit of the manifest": lambda r: flip(r / MANIFEST, 200),
    "no manifest": lambda r: (r / MANIFEST).unlink(),
    "a file more": lambda r: (r / "index" / "more.py").write_text(CODE),
    "a file more with a name that no release has": lambda r: (r / "my notes.txt").write_text("x"),
    "signed by another": lambda r: sign_again(r, PrivateKeys.generate()),
}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def sign_again(release: Path, keys: PrivateKeys) -> None:
    document = json.loads((release / MANIFEST).read_text())["manifest"]
    manifest = PublishedManifest.model_validate_json(json.dumps(document))
    sign_manifest(release, manifest.model_copy(update={"files": list_files(release)}), keys)


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_release_reaches_no_loader(name: str, federation: Federation, published: Path) -> None:
    ALTERED[name](published)
    with watching() as watch, pytest.raises(ProtocolError):
        CodeIndex.load(published, trust=federation.hub.home.keys.public())
    assert watch.dangerous() == []


def test_a_file_that_is_exchanged_after_the_check_is_not_loaded(
    federation: Federation, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_then_exchange(*arguments: Any, **named: Any) -> PublishedManifest:
        manifest = verify_folder(*arguments, **named)
        (published / HNSW_FILE).write_bytes(b"\xff" * 200)
        return manifest

    monkeypatch.setattr(codeindex, "verify_folder", check_then_exchange)
    with watching() as watch, pytest.raises(ProtocolError, match="changed while it was read"):
        CodeIndex.load(published, trust=federation.hub.home.keys.public())
    assert watch.dangerous() == []


def test_a_file_that_is_exchanged_at_the_last_moment_is_not_what_is_loaded(
    federation: Federation, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = hashlib.sha256((published / HNSW_FILE).read_bytes()).hexdigest()
    inner = codeindex._load_hnsw

    def exchange_then_load(*arguments: Any) -> Any:
        (published / HNSW_FILE).write_bytes(b"\xff" * 200)
        return inner(*arguments)

    monkeypatch.setattr(codeindex, "_load_hnsw", exchange_then_load)
    with watching() as watch:
        CodeIndex.load(published, trust=federation.hub.home.keys.public())
    assert watch.events[-1] == (HNSW, honest)


def test_exact_search_needs_no_loader_at_all(federation: Federation, published: Path) -> None:
    # A coordinator may sign what it likes: here an index that would crash.
    (published / HNSW_FILE).write_bytes(b"\xff" * 200)
    sign_again(published, federation.hub.home.keys)
    with watching() as watch:
        index = CodeIndex.load(published, trust=federation.hub.home.keys.public(), exact=True)
        assert len(index.search(index.codes[0], k=3)) == 3
    assert watch.names() == [SIGNATURE]


# --- Flower's messages ---------------------------------------------------------------------------------


@pytest.fixture
def _task() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def ask(app: Any, name: str, config: dict[str, Any], array: Array | None = None) -> Message:
    """A question to the site's app, through Flower's own serialisation."""
    content = RecordDict({"config": ConfigRecord(config)})
    if array is not None:
        content["block"] = ArrayRecord({"data": array})
    message = travel(Message(content, dst_node_id=1, message_type=f"query.{name}"))
    context = Context(1, 1, {}, RecordDict(), {})
    return travel(
        answer(app, message, context, b"bundle", frozenset({hashlib.sha256(b"bundle").hexdigest()}))
    )


@pytest.mark.usefixtures("_task")
def test_flowers_messages_reach_no_loader(tmp_path: Path) -> None:
    """Flower parses an .npy where an app asks for the array's values; ours never does, whatever the type says."""
    app = make_app(Exchange(tmp_path / "exchange"), "north")
    ask(app, "call", {"room": "round", "round": "r1", "call": b"warm"})
    data = HOSTILE["npy of objects"]
    stated = {"protocol": PROTOCOL, "software": SOFTWARE}
    config = {
        **stated,
        "room": "round",
        "sha256": hashlib.sha256(data).hexdigest(),
        "total": len(data),
        "offset": 0,
    }
    with watching() as watch:
        for stype in ("numpy.ndarray", "pickle", "raw"):
            reply = ask(app, "deliver", config, Array("uint8", (len(data),), stype, data))
            assert reply.has_error() == (stype != "raw")
        for hostile in HOSTILE.values():
            ask(app, "call", {"room": "round", "round": "r1", "call": hostile})
    assert watch.events == []
    with watching() as watch, pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        Array("uint8", (1,), "numpy.ndarray", data).numpy()
    assert "np.load" in watch.names()  # this is the call that our code does not make


@pytest.mark.usefixtures("_task")
def test_the_bundle_is_hashed_and_nothing_else(tmp_path: Path) -> None:
    app = make_app(Exchange(tmp_path / "exchange"), "north")
    message = Message(RecordDict(), dst_node_id=1, message_type="query.call")
    context = Context(1, 1, {}, RecordDict(), {})
    answer(app, message, context, b"warm", frozenset())
    with watching() as watch:
        for hostile in HOSTILE.values():
            reply = answer(app, message, context, hostile, frozenset())
            assert (
                reply.error.reason
                == f"The site does not list the bundle {hashlib.sha256(hostile).hexdigest()}"
            )
    assert watch.events == []
