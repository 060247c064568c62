"""The service's reading endpoints, downloads and errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from coordinator.config import Home
from coordinator.library import Library
from coordinator.store import Store, Withdrawal
from coordinator.tables import Site, utc_now
from protocol.messages import Tombstone
from protocol.published import mark_withdrawn, verify_folder
from tests.big_release import HOSTILE_NAMES
from tests.web import CODE, HOSTILE, Web, copy_home, small_home, web


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return small_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def service(home: Home) -> Iterator[Web]:
    with web(home) as made:
        yield made


@pytest.fixture(scope="module")
def library(home: Home) -> Library:
    return Library(home)


def test_releases_are_listed_and_latest_is_the_newest(service: Web) -> None:
    listed = service.get("/releases").json()
    assert [r["version"] for r in listed["releases"]] == [1, 2]
    assert listed["latest"] == 2
    one, latest = service.get("/releases/2").json(), service.get("/releases/latest").json()
    assert one == latest
    assert one["codes"] == 400
    assert one["created"].endswith("Z")
    assert {s["prefix"] for s in one["systems"] if s["standard"]} == {"ICD10CM"}


def test_pages_together_are_the_list_without_gaps_or_repeats(service: Web, library: Library) -> None:
    codes, cursor = [], ""
    while True:
        page = service.get("/releases/2/mappings", params={"limit": 37, "cursor": cursor}).json()
        codes += [i["code"] for i in page["items"]]
        assert page["total"] == 400
        if page["next"] is None:
            break
        cursor = page["next"]
    assert codes == sorted(e.code for e in library.open(2).map.entries)


@pytest.mark.parametrize(
    ("query", "keeps"),
    [
        ({"system": ["NORTH", "LOINC"]}, lambda e: e.system in {"NORTH", "LOINC"}),
        ({"category": "lab"}, lambda e: e.category == "lab"),
        ({"at_least": 0.8, "given": False}, lambda e: e.probability >= 0.8 and not e.given),
        ({"at_most": 0.5}, lambda e: e.probability <= 0.5),
        ({"standard_code": "ICD10CM:A00000"}, lambda e: e.standard_code == "ICD10CM:A00000"),
        ({"cluster": 3}, lambda e: e.cluster == 3),
        ({"site": "north"}, lambda e: "north" in e.sites),
        ({"site": "nowhere"}, lambda _: False),
    ],
)
def test_filters_keep_what_they_say(
    service: Web, library: Library, query: dict[str, Any], keeps: Any
) -> None:
    page = service.get("/releases/1/mappings", params={"limit": 1000} | query).json()
    wanted = [e.code for e in library.open(1).map.entries if keeps(e)]
    assert [i["code"] for i in page["items"]] == wanted
    assert page["total"] == len(wanted)


def test_a_cursor_is_good_for_its_list_only(service: Web) -> None:
    cursor = service.get("/releases/1/mappings?limit=5").json()["next"]
    for query in (
        "/releases/2/mappings?limit=5",
        "/releases/1/mappings?system=NORTH",
        "/releases/1/clusters?x=1",
    ):
        assert service.get(f"{query}&cursor={cursor}").status_code == 422
    assert service.get("/releases/1/mappings?cursor=%00%ff").status_code == 422


def test_one_code_keeps_the_fit_and_the_people_apart(service: Web, library: Library) -> None:
    found = service.get(f"/releases/2/mappings/{CODE}").json()
    entry = library.open(2).entries[CODE]
    assert found["standard_code"] == entry.standard_code == found["found"]["candidates"][0]["code"]
    assert found["found"]["candidates"][0]["clues"] == pytest.approx(dict(entry.candidates[0].clues))
    assert found["found"]["candidates"][0]["pairs"][0]["source"] == "synonyms.csv"
    assert {e["site"] for e in found["found"]["evidence"]} == {"lake", "south"}
    assert found["review"] == {"state": "open", "target": "", "history": [], "hidden": False}


def test_a_bare_code_is_found_and_an_unknown_one_is_not(service: Web) -> None:
    assert service.get("/releases/2/mappings/000012").json()["code"] == CODE
    missing = service.get("/releases/2/mappings/NORTH:none")
    assert missing.status_code == 404
    assert missing.headers["content-type"] == "application/problem+json"
    assert {"what", "why", "do", "status"} <= missing.json().keys()


def test_clusters_are_paged_and_hold_their_codes(service: Web, library: Library) -> None:
    numbers, cursor = [], ""
    while cursor is not None:
        page = service.get(
            "/releases/1/clusters", params={"limit": 60, "cursor": cursor, "smallest": 2}
        ).json()
        numbers += [c["cluster"] for c in page["items"]]
        cursor = page["next"]
    clusters = library.open(1).clusters
    assert numbers == sorted(n for n, entries in clusters.items() if len(entries) >= 2)
    one = service.get(f"/releases/1/clusters/{numbers[0]}").json()
    assert [i["code"] for i in one["items"]] == [e.code for e in clusters[numbers[0]]]
    assert service.get("/releases/1/clusters/99999").status_code == 404


def test_neighbours_of_a_code_and_of_its_vector_agree(service: Web, library: Library) -> None:
    release = library.open(2)
    vector = release.index.vectors[release.index.codes.index(CODE)]
    by_code = service.get("/releases/2/neighbours", params={"code": CODE, "k": 5}).json()["items"]
    body = {"vector": [float(x) * 7 for x in vector], "k": 6}
    by_vector = service.post("/releases/2/neighbours", body, by="ann").json()["items"]
    assert by_vector[0]["code"] == CODE
    assert [n["code"] for n in by_vector[1:]] == [n["code"] for n in by_code]
    assert np.all(np.diff([n["similarity"] for n in by_code]) <= 0)
    only = service.get("/releases/2/neighbours", params={"code": CODE, "system": "LOINC"}).json()["items"]
    assert {n["category"] for n in only} == {"lab"}


@pytest.mark.parametrize("vector", [[0.0] * 8, [1.0], [1e300] * 8, ["x"] * 8, []])
def test_a_vector_that_is_none_is_refused(service: Web, vector: list[Any]) -> None:
    assert service.post("/releases/2/neighbours", {"vector": vector}, by="ann").status_code == 422


def test_search_finds_by_text(service: Web) -> None:
    found = service.get("/releases/2/search", params={"text": "kidney", "k": 5}).json()["items"]
    assert found
    assert all("kidney" in f["name"].lower() for f in found)


def test_translation_backwards_gives_every_source(service: Web, library: Library) -> None:
    sources = library.open(2).sources
    code = max(sources, key=lambda c: len(sources[c]))
    found = service.get("/releases/2/translate", params={"code": code, "reverse": True}).json()["results"][0]
    assert [i["code"] for i in found["items"]] == [e.code for e in sources[code]]
    assert len(found["items"]) > 1
    forward = service.post("/releases/2/translate", {"codes": [CODE, "X:1", code]}, by="ann").json()[
        "results"
    ]
    assert [r["known"] for r in forward] == [True, False, True]
    assert forward[0]["items"][0]["standard_code"] == library.open(2).entries[CODE].standard_code
    sure = service.get("/releases/2/translate", params={"code": CODE, "at_least": 1.0}).json()["results"][0]
    assert sure["items"] == []


def test_what_never_changes_is_not_sent_twice(service: Web) -> None:
    first = service.get(f"/releases/2/neighbours?code={CODE}")
    again = service.get(
        f"/releases/2/neighbours?code={CODE}", headers={"If-None-Match": first.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")
    other = service.get(
        f"/releases/1/neighbours?code={CODE}", headers={"If-None-Match": first.headers["etag"]}
    )
    assert other.status_code == 200


def test_the_difference_of_versions_is_paged(service: Web) -> None:
    first = service.get("/releases/2/diff?from=1&limit=10").json()
    assert first["total"] > 20
    assert (
        sum(first["counts"][k] for k in ("target", "added", "removed", "mapped", "unmapped"))
        <= first["total"]
    )
    second = service.get("/releases/2/diff?from=1&limit=10&offset=10").json()
    assert not {c["code"] for c in first["changes"]} & {c["code"] for c in second["changes"]}
    assert service.get("/releases/2/diff?from=7").status_code == 404
    assert service.get("/releases/2/diff?from=1&kind=nothing").status_code == 422


# --- Downloads -----------------------------------------------------------------------------------------


def test_a_downloaded_release_verifies_offline(service: Web, home: Home, tmp_path: Any) -> None:
    for listed in service.get("/releases/1/files").json()["files"]:
        data = service.get(listed["path"])
        assert hashlib.sha256(data.content).hexdigest() == listed["sha256"]
        assert data.headers["etag"] == f'"{listed["sha256"]}"'
        assert data.headers["content-disposition"].startswith("attachment")
        path = tmp_path / listed["name"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.content)
    assert verify_folder(tmp_path, home.keys.public()).version == 1


def test_a_download_goes_on_where_it_broke_off(service: Web) -> None:
    path = "/releases/1/files/clusters.parquet"
    whole = service.get(path)
    etag, data = whole.headers["etag"], whole.content
    part = service.get(path, headers={"Range": "bytes=100-", "If-Range": etag})
    assert (part.status_code, part.content) == (206, data[100:])
    assert part.headers["content-range"] == f"bytes 100-{len(data) - 1}/{len(data)}"
    assert service.get(path, headers={"Range": "bytes=-7"}).content == data[-7:]
    assert service.get(path, headers={"Range": "bytes=3-5"}).content == data[3:6]
    assert service.get(path, headers={"Range": "bytes=0-999999999"}).content == data
    # Another file's part must not be joined to this one.
    assert service.get(path, headers={"Range": "bytes=100-", "If-Range": '"other"'}).content == data
    over = service.get(path, headers={"Range": f"bytes={len(data)}-"})
    assert (over.status_code, over.headers["content-range"]) == (416, f"bytes */{len(data)}")
    for odd in ("bytes=5-3", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=a-b", "bytes=" + "9" * 50 + "-"):
        assert service.get(path, headers={"Range": odd}).content == data
    assert service.get(path, headers={"If-None-Match": f'"x", W/{etag}'}).status_code == 304
    assert service.get(path, headers={"If-Match": '"x"'}).status_code == 412
    head = service.client.head(f"/api/v1{path}", headers=service.headers("ann"))
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(data)), b"")


@pytest.mark.parametrize(
    "name",
    [
        "../../keys/coordinator.key",
        "%2e%2e/%2e%2e/coordinator.db",
        "/etc/passwd",
        "index/../../manifest.json",
        "nothing",
        "",
    ],
)
def test_only_files_of_the_release_can_be_had(service: Web, name: str) -> None:
    assert service.get(f"/releases/1/files/{name}").status_code in {404, 405}


def test_every_format_is_made_once_and_served_as_a_file(service: Web, home: Home) -> None:
    formats = service.get("/releases/1/exports").json()["formats"]
    for line in formats:
        found = service.get(line["path"])
        if not line["available"]:
            assert (found.status_code, found.json()["why"]) == (409, line["why"])
            continue
        assert found.headers["etag"] == f'"{hashlib.sha256(found.content).hexdigest()}"'
    kept = sorted((home.folder / "releases" / "v1-exports").rglob("*.*"))
    before = [p.stat().st_mtime_ns for p in kept]
    assert service.get("/releases/1/exports/csv", headers={"Range": "bytes=0-9"}).status_code == 206
    assert [p.stat().st_mtime_ns for p in kept] == before
    assert service.get("/releases/1/exports/other").status_code == 404


# --- Hostile names, withdrawn versions, spoilt files ---------------------------------------------------


def test_hostile_names_come_as_data_and_never_as_a_page(service: Web) -> None:
    for i, name in enumerate(HOSTILE_NAMES):
        system = ("NORTH", "SOUTH", "LOINC")[i % 3]
        found = service.get(f"/releases/2/mappings/{system}:{i:06d}")
        assert found.headers["content-type"] == "application/json"
        assert found.headers["x-content-type-options"] == "nosniff"
        shown = found.json()["name"]
        assert shown == name or (len(name) > 500 and shown == name[:500] + "…")
    page = service.get("/releases/2/mappings?limit=1000")
    assert len(page.content) < 1_000_000
    echoed = service.get("/releases/2/mappings/<script>alert(1)</script>")
    assert (echoed.status_code, echoed.headers["content-type"]) == (404, "application/problem+json")


def test_what_a_request_says_is_cut_before_it_is_repeated(service: Web) -> None:
    found = service.post("/reviews/decisions", {"code": "N:" + "x" * 590, "verdict": "accept"})
    assert found.status_code == 404
    assert len(found.content) < 1000
    surrogate = service.client.post(
        "/api/v1/releases/2/translate",
        content=b'{"codes": ["\\ud800"]}',
        headers=service.headers("ann") | {"Content-Type": "application/json"},
    )
    assert surrogate.status_code == 422


def test_a_withdrawn_version_is_gone_and_says_why(home: Home, tmp_path: Any) -> None:
    spoilt = copy_home(home, tmp_path)
    with web(spoilt) as service:
        exported = service.get("/releases/1/exports/csv")
        assert exported.status_code == 200
        withdraw(spoilt, 1)
        service.client.app.state.shelf.forget()
        for path in (
            "",
            "/mappings",
            f"/mappings/{CODE}",
            "/files",
            "/files/manifest.json",
            "/exports/csv",
            "/diff?from=2",
        ):
            gone = service.get(f"/releases/1{path}")
            assert gone.status_code == 410, path
            assert "south has left the study: moved house" in gone.json()["why"]
        outcome = service.get("/fhir/ConceptMap/v1")
        assert (outcome.status_code, outcome.json()["issue"][0]["code"]) == (410, "deleted")
        assert service.get("/fhir/ConceptMap?version=1").json()["entry"][0]["resource"]["status"] == "retired"
        assert service.get("/releases").json()["releases"][0]["withdrawn"]
        assert service.get("/releases/latest").json()["version"] == 2


def withdraw(home: Home, version: int) -> None:
    """Mark a version as `coordinator withdraw` does."""
    store, at = Store(home.database_url), utc_now()
    with store.begin() as session:
        session.add(Site(name="south", keys="{}", node_key="n"))
    store.begin_withdrawal(
        Withdrawal(site="south", reason="moved house", node_key="n", affected_versions=str(version), at=at)
    )
    tombstone = Tombstone(site="south", at=at.astimezone(), reason="moved house", versions=(version,))
    mark_withdrawn(home.release_folder(version), tombstone, home.keys)


def test_an_altered_release_is_not_served_and_older_ones_are(home: Home, tmp_path: Any) -> None:
    spoilt = copy_home(home, tmp_path)
    path = spoilt.release_folder(2) / "report.html"
    path.write_text(path.read_text() + " ")
    with web(spoilt) as service:
        found = service.get("/releases/2/mappings")
        assert found.status_code == 503
        assert "report.html" in found.json()["what"]
        assert str(spoilt.folder) not in found.text
        assert service.get("/readyz").status_code == 503
        assert service.get("/healthz").status_code == 200
        assert service.get("/releases/1/mappings").status_code == 200


def test_a_mistake_of_the_service_shows_no_traceback(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret path /root/x")

    monkeypatch.setattr("coordinator.web.reading.translated", broken)
    with web(home) as service:
        found = service.get(f"/releases/2/translate?code={CODE}")
    assert found.status_code == 500
    assert "secret" not in found.text
    assert found.headers["x-content-type-options"] == "nosniff"


def test_a_database_that_cannot_be_used_is_said_and_passes(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))

    with web(home) as service:
        with monkeypatch.context() as patch:
            patch.setattr(Session, "scalars", away)
            found = service.get("/rounds", by="cyd")
            assert found.status_code == 503
            assert "could not be used" in found.json()["what"]
        assert service.get("/rounds", by="cyd").status_code == 200


def test_no_version_yet_is_said(tmp_path: Any) -> None:
    empty = small_home(tmp_path, codes=10, versions=0)
    with web(empty) as service:
        assert service.get("/releases").json() == {"latest": None, "releases": []}
        assert service.get("/releases/latest/mappings").status_code == 404
        assert service.get("/readyz").status_code == 200


def test_the_description_names_every_endpoint_and_its_errors(service: Web) -> None:
    made = service.client.get("/openapi.json").json()
    assert "/api/v1/releases/{version}/mappings" in made["paths"]
    for path, operations in made["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            if path.startswith(("/api/", "/fhir/Concept")):
                assert operation["description"], path
                assert operation["security"] == [{"token": []}]
    text = json.dumps(made)
    assert "HTTPValidationError" not in text
    # No page that loads its scripts from elsewhere.
    for path in ("/docs", "/redoc"):
        assert service.client.get(path, headers=service.headers("ann")).status_code == 404


def test_hostile_code_is_the_first_of_north(service: Web) -> None:
    assert service.get(f"/releases/1/mappings/{HOSTILE}").json()["name"] == HOSTILE_NAMES[0]
