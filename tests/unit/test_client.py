"""The notebook's client: what it loads, whom it believes, what it answers, and what it never does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator import publish
from coordinator.client import MapRelease, UnverifiedWarning, load_release
from coordinator.client import remote as remote_module
from coordinator.config import Home
from coordinator.library import Library
from coordinator.reviewed import Reviewed
from coordinator.store import Store
from coordinator.web.serving import WebService
from coordinator.web.settings import WebSettings
from coordinator.web.tokens import Tokens
from protocol.errors import EnvelopeError, ProtocolError, UsageError
from protocol.keys import PrivateKeys, PublicKeys
from protocol.messages import Invitation
from tests.copying import copy_folder
from tests.hub import Hub, releases
from tests.unit.test_withdrawal import leave

NOW = datetime(2027, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Two versions: three sites, then four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "write_report", lambda path, *_: path.write_text("report"))
        hub = Hub(tmp_path_factory.mktemp("client"))
        hub.enrol("lake", "north", "south", "west")
        hub.run_round(releases(("lake", "north", "south")), "r1")
        hub.run_round(releases(), "r2")
    return hub.home


@pytest.fixture
def copy(home: Home, tmp_path: Path) -> Path:
    """The folder of version 2, to be altered."""
    shutil.copytree(home.release_folder(2), tmp_path / "v2")
    return tmp_path / "v2"


def keys_of(home: Home) -> PublicKeys:
    return Invitation.model_validate_json((home.folder / "invitation.json").read_bytes()).keys


@pytest.fixture(scope="module")
def release(home: Home) -> MapRelease:
    return load_release(home.release_folder(2), trust=home.folder / "invitation.json")


# --- Whom it believes ----------------------------------------------------------------------------------


def test_every_way_to_say_whom_to_trust(home: Home, tmp_path: Path) -> None:
    keys, folder = keys_of(home), home.release_folder(1)
    (tmp_path / "keys.json").write_text(keys.model_dump_json())
    for trust in (
        keys,
        home.folder / "invitation.json",
        str(home.folder / "invitation.json"),
        tmp_path / "keys.json",
        keys.fingerprint,
        keys.fingerprint.replace(" ", "").upper(),
        keys.digest,
    ):
        found = load_release(folder, trust=trust)
        assert (found.version, found.verified) == (1, True)


def test_without_trust_nothing_is_loaded(home: Home) -> None:
    with pytest.raises(UsageError, match="Nobody said whose signature"):
        load_release(home.release_folder(1))


def test_another_coordinator_s_keys_are_refused(home: Home) -> None:
    other = PrivateKeys.generate().public()
    with pytest.raises(EnvelopeError, match="signature does not hold"):
        load_release(home.release_folder(1), trust=other)
    with pytest.raises(EnvelopeError, match="was not signed by the keys"):
        load_release(home.release_folder(1), trust=other.fingerprint)


@pytest.mark.parametrize("trust", ["", "nothing.json", "Unverified", "ab12"])
def test_what_says_nothing_of_trust_is_refused(home: Home, trust: str) -> None:
    with pytest.raises(UsageError, match=r"says whom to trust|neither an invitation"):
        load_release(home.release_folder(1), trust=trust)


def test_unverified_is_said_aloud_and_still_finds_damage(copy: Path) -> None:
    with pytest.warns(UnverifiedWarning, match="may be forged"):
        found = load_release(copy, trust="unverified")
    assert not found.verified
    assert "UNVERIFIED" in repr(found)
    assert "nobody checked" in found._repr_html_()
    (copy / "report.html").write_text("another")
    with pytest.raises(ProtocolError, match="altered"):
        load_release(copy, trust="unverified")


def test_an_altered_release_is_refused(copy: Path, home: Home) -> None:
    (copy / "extra.txt").write_text("not listed")
    with pytest.raises(ProtocolError, match="not listed"):
        load_release(copy, trust=keys_of(home))


# --- Where it looks ------------------------------------------------------------------------------------


def test_a_home_a_folder_of_versions_and_a_version(home: Home) -> None:
    assert load_release(home.folder).version == 2
    assert load_release(home.folder, version=1).version == 1
    assert load_release(home.folder, trust=keys_of(home)).version == 2
    many = home.folder / "releases"
    assert load_release(many, trust=keys_of(home)).version == 2
    assert load_release(str(many), trust=keys_of(home), version=1).version == 1
    with pytest.raises(UsageError, match="it holds versions 1, 2"):
        load_release(many, trust=keys_of(home), version=3)
    with pytest.raises(UsageError, match="holds version 2, not 1"):
        load_release(many / "v2", trust=keys_of(home), version=1)
    with pytest.raises(UsageError, match="is not the folder of a published release"):
        load_release(home.folder / "keys", trust=keys_of(home))


def test_a_withdrawn_version_is_refused_and_an_older_one_found(home: Home, tmp_path: Path) -> None:
    copy_folder(home.folder.parent, tmp_path / "copy")
    hub = object.__new__(Hub)
    hub.folder, hub.home, hub.last = tmp_path / "copy", Home(tmp_path / "copy" / "hub"), {}
    leave(hub)
    many = hub.home.folder / "releases"
    with pytest.raises(ProtocolError, match="was withdrawn"):
        load_release(many / "v2", trust=keys_of(home))
    assert load_release(many, trust=keys_of(home)).version == 3
    shutil.rmtree(many / "v3")
    assert load_release(many, trust=keys_of(home)).version == 1


# --- What it answers -----------------------------------------------------------------------------------


def test_what_it_says_of_itself(release: MapRelease, home: Home) -> None:
    assert release.version == 2
    assert release.sites == ("lake", "north", "south", "west")
    assert release.digest == Library(home).version(2).digest
    assert len(release) == len(release.codes) == 75
    assert "WEST:0" in release
    assert "WEST:99" not in release
    assert repr(release).startswith("<MapRelease 2 of study unit, ")
    assert release.card().startswith("# Harmonised codes of study unit, version 2")


def test_translate(release: MapRelease) -> None:
    given, found = release.translate("WEST:0"), release.translate("WEST:9")
    assert (given.target, given.probability, given.given, given.predicate) == (
        "ICD10CM:C00",
        1.0,
        True,
        "skos:exactMatch",
    )
    assert not found.given
    assert found.target
    assert 0 < found.probability < 1
    assert found.target not in {c.code for c in found.alternatives}
    assert found.alternatives
    assert release.translate("C00").code == "ICD10CM:C00"
    with pytest.raises(UsageError, match="not in this release"):
        release.translate("WEST:99")


def test_reverse_is_complete(release: MapRelease) -> None:
    mapped = [c for c in release.codes if c.startswith("WEST:")]
    for target in {release.translate(c).target for c in mapped}:
        expected = {c for c in mapped if release.translate(c).target == target}
        found = release.reverse(target)
        assert {t.code for t in found} == expected
        assert [t.probability for t in found] == sorted((t.probability for t in found), reverse=True)
    assert release.reverse("C00") == release.reverse("ICD10CM:C00")
    unused = next(c for c in release.codes if c not in {release.translate(m).target for m in mapped})
    assert release.reverse(unused) == ()
    with pytest.raises(UsageError, match="not in this release"):
        release.reverse("ICD10CM:Z99")


def test_neighbours_are_those_of_the_vectors(release: MapRelease) -> None:
    own = release.vector("WEST:3")
    cosines = {c: float(release.vector(c) @ own) for c in release.codes if c != "WEST:3"}
    expected = sorted(cosines.values(), reverse=True)[:5]
    assert [n.similarity for n in release.neighbours("WEST:3", 5)] == pytest.approx(expected, abs=1e-5)
    assert {n.code.partition(":")[0] for n in release.neighbours("ICD10CM:C03", 5, systems=["WEST"])} == {
        "WEST"
    }
    assert release.neighbours(own, 1)[0].code in {"WEST:3", "ICD10CM:C03"}
    with pytest.raises(UsageError, match="code system"):
        release.neighbours("WEST:3", systems=["NONE"])


def test_what_people_say_stands_apart(home: Home) -> None:
    opened = Library(home).open(2)
    said = Reviewed(
        "WEST:9", "ICD10CM:C01", "accept", "accepted", "exact", 2, ("reviewer-1", "reviewer-2"), False, NOW
    )
    told = MapRelease(replace(opened, map=replace(opened.map, reviews={"WEST:9": (said,)})), verified=True)
    found, plain = told.translate("WEST:9"), MapRelease(opened, verified=True).translate("WEST:9")
    assert (found.reviews, plain.reviews) == ((said,), ())
    assert replace(found, reviews=()) == plain
    assert "accept ICD10CM:C01" in found._repr_html_()
    states = told.to_pandas().set_index("code")["review"]
    assert (states["WEST:9"], states["WEST:8"]) == ("accepted", "")


def test_search_and_cluster(release: MapRelease) -> None:
    assert release.search("C03", 1)[0].code == "ICD10CM:C03"
    members = release.cluster("WEST:3")
    assert {m.cluster for m in members} == {release.translate("WEST:3").cluster}
    assert "WEST:3" in {m.code for m in members}


def test_to_pandas(release: MapRelease) -> None:
    table = release.to_pandas()
    assert list(table["code"]) == list(release.codes)
    row = table.set_index("code").loc["WEST:9"]
    one = release.translate("WEST:9")
    assert (row["standard_code"], row["probability"], row["predicate"]) == (
        one.target,
        one.probability,
        one.predicate,
    )
    assert row["sites"] == ("west",)
    assert str(table["given"].dtype) == "bool"
    some = release.to_pandas(["WEST:9", "C03", "WEST:9"])
    assert list(some["code"]) == ["WEST:9", "ICD10CM:C03", "WEST:9"]


def test_without_pandas_it_says_what_to_do(release: MapRelease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        release.to_pandas()


def test_compare(home: Home, release: MapRelease) -> None:
    found = load_release(home.folder, version=1).compare(release)
    assert (found.before.number, found.after.number) == (1, 2)
    assert ("site-joined", "west") in {(c.kind, c.about) for c in found.causes}


def test_what_a_notebook_shows_has_no_markup_of_others(release: MapRelease) -> None:
    evil = replace(
        release.translate("WEST:9"), name="<script>alert(1)</script>", target_name="<img src=x onerror=y>"
    )
    shown = evil._repr_html_()
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;" in shown


def test_importing_it_is_light() -> None:
    code = (
        "import sys, coordinator.client; "
        "print([m for m in ('torch', 'sklearn', 'flwr', 'matplotlib', 'pandas', 'fastapi', 'scipy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- Over the network ----------------------------------------------------------------------------------


class Service:
    """The three answers of a coordinator's service that the client asks for, from a folder; it keeps what it was asked."""

    def __init__(self, home: Home) -> None:
        self.home, self.asked, self.tokens = home, [], set()
        self.listing: Any = None
        self.swap: dict[str, bytes] = {}
        self.status = 200

        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.asked.append(self.path)
                service.tokens.add(self.headers.get("Authorization", ""))
                body = service.answer(self.path) if service.status == 200 else b'{"what": "\\u001b[31mNo"}'
                self.send_response(service.status if body is not None else 404)
                if service.status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str) -> bytes | None:
        if path == "/api/v1/releases":
            lines = [{"version": n, "withdrawn": None} for n in (1, 2)]
            return json.dumps(self.listing or {"latest": 2, "releases": lines}).encode()
        number, _, name = path.removeprefix("/api/v1/releases/").partition("/files/")
        file = self.home.release_folder(int(number)) / name
        return self.swap.get(name) or (file.read_bytes() if file.is_file() else None)


@pytest.fixture
def service(home: Home) -> Iterator[Service]:
    found = Service(home)
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_version_is_downloaded_once_and_verified(service: Service, home: Home, tmp_path: Path) -> None:
    trust, cache = keys_of(home).fingerprint, tmp_path / "cache"
    first = load_release(service.url, trust=trust, token="secret", cache=cache)
    assert (first.version, first.verified) == (2, True)
    assert first.folder == cache / first.digest
    assert service.tokens == {"Bearer secret"}
    service.asked.clear()
    again = load_release(service.url + "/", trust=trust, cache=cache)
    assert service.asked == ["/api/v1/releases", "/api/v1/releases/2/files/manifest.json"]
    assert again.translate("WEST:0") == first.translate("WEST:0")
    assert load_release(service.url, trust=trust, cache=cache, version=1).version == 1
    # What was downloaded is a release folder like any other.
    assert load_release(first.folder, trust=trust).digest == first.digest
    assert sorted(p.name for p in cache.iterdir()) == sorted(
        {first.digest, load_release(home.folder, version=1).digest}
    )


def test_no_question_leaves_the_machine(service: Service, home: Home, tmp_path: Path) -> None:
    found = load_release(service.url, trust=keys_of(home), cache=tmp_path)
    service.asked.clear()
    found.translate("WEST:0")
    found.neighbours("WEST:0")
    found.search("C03")
    found.to_pandas()
    assert service.asked == []


def test_nothing_is_downloaded_before_the_signature_holds(service: Service, tmp_path: Path) -> None:
    other = PrivateKeys.generate().public()
    for trust in (other, other.fingerprint):
        with pytest.raises(EnvelopeError):
            load_release(service.url, trust=trust, cache=tmp_path)
    with pytest.raises(UsageError, match="Nobody said whose signature"):
        load_release(service.url, cache=tmp_path)
    assert {p.rpartition("/")[2] for p in service.asked} == {"releases", "manifest.json"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [b"short", b"x" * 10_000_000])
def test_a_file_that_the_manifest_does_not_name_is_refused(
    service: Service, home: Home, tmp_path: Path, bad: bytes
) -> None:
    service.swap["clusters.parquet"] = bad
    with pytest.raises(ProtocolError, match="not the one that the manifest names"):
        load_release(service.url, trust=keys_of(home), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_older_version_is_not_taken_for_a_newer_one(service: Service, home: Home, tmp_path: Path) -> None:
    service.swap["manifest.json"] = (home.release_folder(1) / "manifest.json").read_bytes()
    with pytest.raises(ProtocolError, match="gave version 1 for version 2"):
        load_release(service.url, trust=keys_of(home), cache=tmp_path)


def test_a_copy_that_was_altered_in_the_cache_is_fetched_again(
    service: Service, home: Home, tmp_path: Path
) -> None:
    first = load_release(service.url, trust=keys_of(home), cache=tmp_path)
    (first.folder / "clusters.parquet").write_bytes(b"altered")
    service.asked.clear()
    again = load_release(service.url, trust=keys_of(home), cache=tmp_path)
    assert again.translate("WEST:0").target == "ICD10CM:C00"
    assert "/api/v1/releases/2/files/clusters.parquet" in service.asked


def test_a_withdrawn_version_is_refused_although_it_is_in_the_cache(
    service: Service, home: Home, tmp_path: Path
) -> None:
    load_release(service.url, trust=keys_of(home), cache=tmp_path)
    lines = [{"version": 1, "withdrawn": None}, {"version": 2, "withdrawn": "2027-01-01T00:00:00"}]
    service.listing = {"latest": 1, "releases": lines}
    with pytest.raises(ProtocolError, match=r"Version 2 .* was withdrawn"):
        load_release(service.url, trust=keys_of(home), cache=tmp_path, version=2)
    assert load_release(service.url, trust=keys_of(home), cache=tmp_path).version == 1
    with pytest.raises(UsageError, match="published are: 1, 2"):
        load_release(service.url, trust=keys_of(home), cache=tmp_path, version=9)


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "SMILE_TOKEN"), (429, "Wait a minute"), (500, "tell the coordinator"), (302, "elsewhere")],
)
def test_a_refusal_says_what_to_do(
    service: Service, home: Home, tmp_path: Path, status: int, says: str
) -> None:
    service.status = status
    with pytest.raises(ProtocolError, match=says) as caught:
        load_release(service.url, trust=keys_of(home), cache=tmp_path)
    assert str(status) in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("listing", [[], "text", {"releases": [{"version": "2"}], "latest": "2"}])
def test_what_is_no_service_is_said_so(service: Service, home: Home, tmp_path: Path, listing: Any) -> None:
    service.listing = listing or [1]
    with pytest.raises(
        (ProtocolError, UsageError), match=r"not a coordinator's service|There is no published"
    ):
        load_release(service.url, trust=keys_of(home), cache=tmp_path)


def test_a_token_never_travels_in_the_clear(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="would travel in the clear"):
        load_release("http://hub.example", trust="unverified", token="secret", cache=tmp_path)


def test_the_token_may_come_from_the_environment(
    service: Service, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMILE_TOKEN", "from-outside")
    load_release(service.url, trust=keys_of(home), cache=tmp_path)
    assert service.tokens == {"Bearer from-outside"}


def test_a_service_that_is_away(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="cannot be reached"):
        load_release("http://127.0.0.1:9", trust="unverified", cache=tmp_path)
    with pytest.raises(UsageError, match="not the address of a service"):
        load_release("https://", trust="unverified", cache=tmp_path)


def test_an_endless_answer_ends(
    service: Service, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "_MOST_LISTED", 10)
    with pytest.raises(ProtocolError, match="too large"):
        load_release(service.url, trust=keys_of(home), cache=tmp_path)


def test_the_coordinator_s_own_service(home: Home, tmp_path: Path) -> None:
    """The real one: what it publishes is loaded with a token, and refused without."""
    copy_folder(home.folder, tmp_path / "hub")
    hub = Home(tmp_path / "hub")
    token = Tokens(Store(hub.database_url)).add("ada", "analyst")
    running = WebService(hub, settings=WebSettings(port=0))
    running.start()
    try:
        trust = keys_of(home).fingerprint
        found = load_release(running.url, trust=trust, token=token, cache=tmp_path / "cache")
        older = load_release(running.url, trust=trust, token=token, cache=tmp_path / "cache", version=1)
        with pytest.raises(ProtocolError, match="SMILE_TOKEN") as caught:
            load_release(running.url, trust=trust, cache=tmp_path / "cache")
    finally:
        running.stop()
    assert "You have not signed in" in str(caught.value)
    assert (found.version, older.version) == (2, 1)
    assert found.translate("WEST:0") == load_release(home.folder).translate("WEST:0")


def test_vectors_are_copies(release: MapRelease) -> None:
    vector = release.vector("WEST:0")
    vector[:] = 0
    assert np.linalg.norm(release.vector("WEST:0")) == pytest.approx(1, abs=1e-5)
