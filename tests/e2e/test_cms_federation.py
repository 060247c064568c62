"""The real stack on real claims: three sites, TLS, sealed releases, one published map.

Two samples of the CMS DE-SynPUF a site: one in ICD-9-CM, one recoded to ICD-10-CM by the GEMs,
one under opaque local ids. Everything runs as the commands that people run.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import sssom_pydantic

from coordinator.index import CodeIndex
from coordinator.store import Store
from protocol.envelope import open_sealed, read_header
from protocol.errors import EnvelopeError, ProtocolError
from protocol.keys import PrivateKeys
from protocol.processes import scripts_folder
from protocol.published import verify_folder
from protocol.release import Release, decode_release
from protocol.statistics import embed, ppmi
from protocol.study import StudySpec, load_study
from site_agent.ledger import Ledger
from tests.cms import Cms, make_cms

pytestmark = pytest.mark.e2e


def command(program: str, *words: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """One command as a person would run it."""
    done = subprocess.run(
        [str(scripts_folder() / program), *map(str, words)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )
    assert "Traceback" not in done.stderr
    if ok:
        assert done.returncode == 0, done.stderr + done.stdout
    return done


class Federation:
    """A finished demo on the CMS files."""

    def __init__(self, data: Cms, folder: Path) -> None:
        self.data, self.folder = data, folder
        done = command("coordinator", "demo", "--data", data.folder, "--output", folder, "--json")
        self.output: dict[str, Any] = json.loads(done.stdout)
        self.hub = folder / "coordinator"
        self.release = self.hub / "releases" / "v1"
        self.study: StudySpec = load_study(self.hub / "study.toml")
        self.trust = PrivateKeys.load(self.hub / "keys" / "coordinator.key").public()

    def site(self, name: str) -> Path:
        return self.folder / "sites" / name

    def released(self, name: str) -> Release:
        """What arrived from a site, opened with the round's key."""
        signer = PrivateKeys.load(self.site(name) / "keys" / "site.key").public()
        keys = PrivateKeys.load(self.hub / "keys" / "rounds" / "demo-1.key")
        with tempfile.TemporaryDirectory() as work:
            plain = Path(work) / "release"
            open_sealed(self.envelope(name), plain, keys=keys, signer=signer)
            return decode_release(plain.read_bytes())

    def envelope(self, name: str) -> Path:
        return self.hub / "rounds" / "demo-1" / "received" / f"{name}.sealed"


@pytest.fixture(scope="module")
def cms(tmp_path_factory: pytest.TempPathFactory) -> Cms:
    return make_cms(tmp_path_factory.mktemp("cms") / "data")


@pytest.fixture(scope="module")
def federation(cms: Cms, tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(cms, tmp_path_factory.mktemp("federation") / "out")


def reference_counts(path: Path, window: int = 30) -> tuple[list[str], Any, Any]:
    """Codes, event pairs and patients a pair by DuckDB's own self-join: an independent count."""
    connection = duckdb.connect()
    events = "(SELECT DISTINCT patient, date, system || ':' || code AS code FROM read_parquet(?))"
    support = connection.execute(
        f"SELECT code, count(DISTINCT patient) FROM {events} GROUP BY code ORDER BY code", [str(path)]
    ).fetchall()
    pairs = connection.execute(
        f"""SELECT a.code, b.code, count(*), count(DISTINCT a.patient)
            FROM {events} a JOIN {events} b ON a.patient = b.patient
             AND abs(a.date - b.date) <= {window} AND (a.code < b.code OR (a.code = b.code AND a.date < b.date))
            GROUP BY 1, 2""",
        [str(path), str(path)],
    ).fetchall()
    return [c for c, _ in support], dict(support), pairs


@pytest.mark.parametrize("name", ["claims9", "claims10", "claimsx"])
def test_what_left_is_exactly_what_the_floors_allow(federation: Federation, name: str) -> None:
    """The released embedding is reproduced from counts that another engine made and that were suppressed by hand."""
    release = federation.released(name)
    _, patients, pairs = reference_counts(federation.data.folder / f"{name}.parquet")
    codes = release.manifest.codes
    assert min(patients[c] for c in codes) >= 20
    assert release.manifest.statistics.smallest_pair_patients >= 11
    row = {c: i for i, c in enumerate(codes)}
    strong = [(row[a], row[b], n) for a, b, n, who in pairs if who >= 11 and a in row and b in row]
    i, j, n = (np.array(v) for v in zip(*strong, strict=True))
    counts = sp.csr_array(
        sp.coo_array((n, (np.minimum(i, j), np.maximum(i, j))), shape=(len(codes), len(codes)))
    )
    (view,) = release.views()
    assert view.matrix.shape[1] == min(128, len(codes) // 20)
    expected = embed(ppmi(counts), view.matrix.shape[1], seed=0)
    np.testing.assert_allclose(view.matrix @ view.matrix.T, expected @ expected.T, atol=2e-3)
    exact = np.array([patients[c] for c in codes])
    # Rounded to a hundred, halves up; the least that is shown is the floor.
    rounded = np.maximum((exact + 50) // 100 * 100, 20)
    np.testing.assert_array_equal(release.arrays["code-patients"], rounded)


def test_nothing_but_the_listed_arrays_left(federation: Federation) -> None:
    for name in federation.data.sites:
        release = federation.released(name)
        assert sorted(release.arrays) == [
            "code-patients",
            "view/cooccurrence/matrix",
            "view/cooccurrence/rows",
        ]
        preview = json.loads(
            command("site-agent", "preview", "--json", "--home", federation.site(name)).stdout
        )
        sent = {a.name: a.sha256 for a in release.manifest.arrays}
        assert {a["name"]: a["sha256"] for a in preview["manifest"]["arrays"]} == sent
        assert tuple(preview["manifest"]["codes"]) == release.manifest.codes


def test_sealed_bytes_hold_no_code_in_the_clear(federation: Federation) -> None:
    database = federation.hub / "flower" / "superlink.db"
    at_rest = database.read_bytes() if database.exists() else b""
    for name in federation.data.sites:
        sealed = federation.envelope(name).read_bytes()
        for code in federation.released(name).manifest.codes[:50]:
            assert code.encode() not in sealed
            assert code.encode() not in at_rest


def test_headers_bind_every_field(federation: Federation) -> None:
    for name in federation.data.sites:
        header, release = read_header(federation.envelope(name)), federation.released(name)
        assert (header.site, header.round, header.consortium) == (name, "demo-1", "cms")
        assert header.study_digest == federation.study.digest
        assert (header.sequence, header.previous) == (1, "")
        assert header.content == release.manifest.digest
        assert header.policy_digest == release.manifest.policy.digest
        assert len(header.ledger_head) == len(header.agent_digest) == 64
        with pytest.raises(EnvelopeError):
            open_sealed(
                federation.envelope(name),
                federation.folder / "x",
                keys=PrivateKeys.generate(),
                signer=PrivateKeys.load(federation.site(name) / "keys" / "site.key").public(),
            )


def test_the_release_is_signed_and_whole(federation: Federation, tmp_path: Path) -> None:
    manifest = verify_folder(federation.release, federation.trust)
    assert {s.site: s.state for s in manifest.sites} == dict.fromkeys(federation.data.sites, "received")
    names = {f.name for f in manifest.files}
    assert {
        "mappings.sssom.tsv",
        "clusters.parquet",
        "evidence.parquet",
        "embeddings.parquet",
        "report.html",
        "index/vectors.safetensors",
        "index/labels.json",
    } <= names
    with pytest.raises(EnvelopeError):
        verify_folder(federation.release, PrivateKeys.generate().public())
    copy = tmp_path / "v1"
    subprocess.run(["cp", "-r", str(federation.release), str(copy)], check=True)
    (copy / "clusters.parquet").write_bytes(b"")
    with pytest.raises(ProtocolError, match=r"clusters.parquet .* is altered"):
        CodeIndex.load(copy, trust=federation.trust)


def test_sssom_validates(federation: Federation, tmp_path: Path) -> None:
    target = tmp_path / "map.sssom.tsv"
    command("coordinator", "export", "1", "--format", "sssom", "--output", target, "--home", federation.hub)
    pack = sssom_pydantic.read(target)
    mappings = list(pack.mappings)
    own = sum(len(federation.released(n).manifest.codes) for n in ("claims9", "claimsx"))
    assert len(mappings) == own
    for mapping in mappings:
        assert mapping.confidence is not None
        assert 0 <= mapping.confidence <= 1
        assert str(mapping.predicate.curie) in {"skos:exactMatch", "skos:closeMatch", "skos:relatedMatch"}


def test_search_by_code_at_coordinator_and_site(federation: Federation) -> None:
    index = CodeIndex.load(federation.release, trust=federation.trust)
    exact = CodeIndex.load(federation.release, trust=federation.trust, exact=True)
    # A graph comes with a release only where it finds nearly all for less than looking at every row costs.
    assert (index.hnsw is not None) == (federation.release / "index" / "hnsw.bin").exists()
    assert exact.hnsw is None
    # By similarity, not by name: codes that an anchor joins have one vector, and ties have no order.
    for query in index.codes[:100]:
        near, best = index.search(query, 10), exact.search(query, 10)
        np.testing.assert_allclose([h.similarity for h in near], [h.similarity for h in best], atol=1e-5)
    code = index.codes[0]
    home = ("--home", federation.site("claimsx"))
    found = json.loads(command("site-agent", "search", code, "--near", "-k", "5", "--json", *home).stdout)
    assert [h["similarity"] for h in found] == pytest.approx(
        [h.similarity for h in index.search(code, 5)], abs=1e-5
    )
    wrong = command("site-agent", "search", "NOPE:1", "--near", *home, ok=False)
    assert wrong.returncode == 2
    assert "is not in this release" in wrong.stderr


def test_sites_got_their_map(federation: Federation) -> None:
    store = Store(f"sqlite:///{federation.hub / 'coordinator.db'}")
    assert sorted(d.site for d in store.deliveries(1)) == sorted(federation.data.sites)
    assert store.round("demo-1").state == "delivered"
    for name in federation.data.sites:
        with (federation.site(name) / "harmonised.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        released = set(federation.released(name).manifest.codes)
        assert {r["code"] for r in rows if r["state"] != "not released"} == released
        assert all(r["standard_code"] for r in rows if r["state"] == "mapped")
        assert all(0 <= float(r["probability"]) <= 1 for r in rows if r["state"] == "mapped")
        events = [e.event for e in Ledger(federation.site(name) / "ledger.jsonl").verify()]
        assert [e for e in events if e in {"prepared", "approved", "sealed"}][:3] == [
            "prepared",
            "approved",
            "sealed",
        ]
        assert {"received", "applied"} <= set(events)


def test_synonyms_are_recovered_better_than_by_the_rivals(federation: Federation) -> None:
    quality = federation.output["published"]["quality"]
    by_name = {row["method"]: row for row in quality}
    smile, svd, chance = (by_name[m] for m in ("SMILE", "SVD + k-means", "chance"))
    assert smile["ami"] > svd["ami"] > chance["ami"]
    assert smile["hits1"] > svd["hits1"] > chance["hits1"]
    assert smile["hits5"] > svd["hits5"] > chance["hits5"]


def test_the_code_table_agrees_with_the_releases(federation: Federation) -> None:
    table = pq.read_table(federation.release / "clusters.parquet").to_pylist()
    held = {(row["code"], site) for row in table for site in row["sites"]}
    sent = {(c, n) for n in federation.data.sites for c in federation.released(n).manifest.codes}
    assert held == sent
