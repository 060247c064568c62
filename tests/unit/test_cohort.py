"""Cohort search from events and a signed release to the command line: what is found, who may read it, and that it is whole."""

from __future__ import annotations

import json
import stat
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from protocol.arrays import encode_arrays
from protocol.codeindex import GRAPH, LABELS, VECTORS
from protocol.errors import DataError, FederationError, UsageError
from protocol.messages import Invitation, PublishedManifest
from protocol.published import list_files, sign_manifest
from protocol.study import load_study
from site_agent.cli import app
from site_agent.cohort import (
    NOTICE,
    Asking,
    CohortStore,
    Filters,
    Window,
    build_cohort,
    describe,
    find_cohort,
    find_subgroups,
    patient_index,
)
from site_agent.cohort import building as building_module
from site_agent.cohort.index import PatientIndex
from site_agent.config import Home
from site_agent.enrolment import init_home
from site_agent.resources import Resources
from site_agent.state import load_state, save_state
from tests.synthetic import keys

HUB = keys("hub")
MACHINE = Resources(256 << 20, 1)
STUDY = """\
id = "unit"
sites = ["north", "lake", "south"]
standard = "ICD10CM"
[[code_systems]]
prefix = "ICD10CM"
[[code_systems]]
prefix = "NORTH"
local_to = "north"
"""
HEART, KIDNEY = ("I50.1", "I50.9", "I25.1"), ("N18.3", "N18.5", "Z49.1")
NAMES = {"I50.1": "Left heart failure", "I50.9": "Heart failure", "N18.5": "Kidney <b>disease</b>"}
LATE = date(2021, 6, 1)
N = 120


def write_events(path: Path) -> None:
    """Patients P000 ... of the heart (even) and of the kidney (odd), two years of events; everyone has R05."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(N):
        codes = HEART if i % 2 == 0 else KIDNEY
        for year in (2020, 2021):
            chosen = rng.choice(codes, 2, replace=False)
            rows += [(f"P{i:03}", date(year, 1 + int(rng.integers(12)), 5), str(code)) for code in chosen]
        rows.append((f"P{i:03}", date(2020, 1, 1), "R05"))
        rows.append((f"P{i:03}", date(2021, 12, 31), "WITHHELD"))
    rows.append(("LONER", date(2020, 1, 1), "WITHHELD"))
    patient, day, code = zip(*rows, strict=True)
    pq.write_table(pa.table({"patient": patient, "date": day, "code": code}), path)


def write_patients(path: Path) -> None:
    """Even patients are 70, odd ones 40; heart patients die, half of them."""
    lines = ["patient,birth,sex,death"]
    for i in range(N):
        birth = "1950-06-01" if i % 2 == 0 else "1981-06-01"
        lines.append(f"P{i:03},{birth},{'F' if i % 4 < 2 else 'M'},{'2021-12-31' if i % 4 == 0 else ''}")
    path.write_text("\n".join([*lines, "STRANGER,1900-01-01,F,"]) + "\n")


def write_release(home: Home, version: int = 1) -> None:
    """A signed release in which each organ's codes point one way; it has R05, but not WITHHELD."""
    folder = home.folder / "results" / f"v{version}"
    (folder / "index").mkdir(parents=True)
    codes = [*HEART, *KIDNEY, "R05"]
    rng = np.random.default_rng(1)
    place = np.array([[1, 0, 0]] * 3 + [[0, 1, 0]] * 3 + [[0, 0, 1]], dtype=float)
    vectors = np.hstack([place, 0.1 * rng.standard_normal((7, 5))])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    curies = [f"ICD10CM:{c}" for c in codes]
    told = {GRAPH: json.dumps({"ef": 0, "recall": 1.0})}
    (folder / VECTORS).write_bytes(encode_arrays({"vectors": vectors.astype(np.float32)}, told))
    (folder / LABELS).write_text(json.dumps(curies))
    table = {
        "code": curies,
        "name": [NAMES.get(c, "") for c in codes],
        "cluster": pa.array(range(7), pa.int32()),
        "standard_code": [*(["ICD10CM:I50.9"] * 3), *curies[3:]],
    }
    pq.write_table(pa.table(table), folder / "clusters.parquet")
    manifest = PublishedManifest(
        study=home.study.stated,
        study_digest=home.study.digest,
        round="r1",
        version=version,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        software="test",
        codes=7,
        clusters=7,
        sites=(),
        files=list_files(folder),
    )
    sign_manifest(folder, manifest, HUB)
    state = load_state(home.folder)
    save_state(home.folder, state.model_copy(update={"result_version": version}))


def make_home(folder: Path, *, patients: bool = True, own_codes: bool = True) -> Home:
    (folder / "study.toml").write_text(STUDY)
    write_events(folder / "events.parquet")
    study = load_study(folder / "study.toml")
    invitation = Invitation(
        study_digest=study.digest,
        address="127.0.0.1:9",
        certificate="x",
        keys=HUB.public(),
        bundle_digest="0" * 64,
    )
    (folder / "invitation.json").write_text(invitation.model_dump_json())
    home = init_home(
        folder / "north",
        site="north",
        invitation=folder / "invitation.json",
        study=folder / "study.toml",
        events=folder / "events.parquet",
        anchors=None,
        system="ICD10CM",
    )
    toml = home.folder / "site.toml"
    told = f"\n[cohort]\nown_codes = {str(own_codes).lower()}\n"
    if patients:
        write_patients(home.folder / "patients.csv")
        told += 'patients = "patients.csv"\n'
    toml.write_text(toml.read_text() + told)
    home = Home(home.folder)
    write_release(home)
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = make_home(tmp_path_factory.mktemp("cohort"))
    build_cohort(made, Window(), machine=MACHINE)
    return made


@pytest.fixture
def store(home: Home) -> CohortStore:
    return CohortStore.open(home)


def labels(store: CohortStore, rows: Any) -> list[str]:
    return [store.label(int(r)) for r in rows]


def test_what_a_build_says_of_itself(store: CohortStore) -> None:
    told = store.manifest
    assert (told.patients, told.without_vector, told.outside) == (N + 1, 1, 0)
    assert (told.codes, told.codes_with_vector, told.dim) == (8, 7, 8)
    assert (told.with_birth, told.with_death, told.sexes) == (N, N // 4, ("F", "M"))
    assert told.events - told.covered == N + 1, "WITHHELD has no vector"
    assert told.release == 1
    lengths = np.linalg.norm(store.vectors, axis=1)
    assert np.allclose(np.sort(lengths), [0.0] + [1.0] * N, atol=1e-6)


def test_codes_that_no_release_holds_have_vectors_of_the_sites_own(store: CohortStore) -> None:
    told = store.manifest
    assert (told.codes_with_own, told.codes_without_any) == (8, 0)
    assert (told.without_any_vector, told.covered_by_any) == (0, told.events), "WITHHELD has one too"
    assert store.joined.shape == (N + 1, told.dim + told.own_dim)
    assert np.allclose(np.linalg.norm(store.joined, axis=1), 1.0, atol=1e-6)
    shared = store.joined[:, : told.dim]
    loner = next(i for i in range(N + 1) if store.label(i) == "LONER")
    length = np.linalg.norm(shared, axis=1)
    assert length[loner] == 0
    assert np.delete(length, loner).min() > 0
    cosine = (shared * store.vectors).sum(axis=1)
    assert np.allclose(cosine, length, atol=1e-6), "the first columns point where the harmonised vector does"


def test_a_site_asks_by_all_its_codes_and_by_those_of_the_release_where_it_wants(
    home: Home, store: CohortStore, tmp_path: Path
) -> None:
    asking, shared = Asking(home, store), Asking(home, store, "harmonised")
    loner, codes, alike = asking.patient("LONER"), asking.codes(["I50.9"]), shared.codes(["I50.9"])
    assert len(loner.vector) == len(codes.vector) == store.joined.shape[1]
    assert len(alike.vector) == len(shared.patient("P000").vector) == store.manifest.dim
    assert find_cohort(store, loner, Filters(), k=5).cosine[0] > 0  # type: ignore[index]
    # A code that the release lacks is one to ask by, under its own name or without its system.
    withheld = [asking.codes([name]) for name in ("WITHHELD", "ICD10CM:WITHHELD")]
    assert withheld[0].codes == withheld[1].codes == ("ICD10CM:WITHHELD",)
    assert not withheld[0].vector[: store.manifest.dim].any()
    with pytest.raises(UsageError, match="not in this release"):
        shared.codes(["WITHHELD"])
    for missing in (asking, shared):
        with pytest.raises(UsageError, match="not in this release"):
            missing.codes(["Z99"])
    # The query of one code points where the patients' vectors are sums of.
    row = store.codes["code"].index("ICD10CM:I50.9")
    assert np.allclose(codes.vector, store.array("code_vectors")[row], atol=1e-6)
    # The wrong kind of index is not searched.
    for query, space in ((loner, "harmonised"), (codes, "harmonised"), (alike, "joined")):
        index = patient_index(store, space=space, exact=True)  # type: ignore[arg-type]
        found, right = (find_cohort(store, query, Filters(), k=9, index=i) for i in (index, None))
        assert found.rows.tolist() == right.rows.tolist()
    plain = make_home(tmp_path, own_codes=False)
    told = build_cohort(plain, Window(), machine=MACHINE)
    assert (told.own_dim, told.codes_with_own, told.codes_without_any) == (0, 0, 1)
    assert (told.without_any_vector, told.covered_by_any) == (1, told.covered)
    bare = CohortStore.open(plain)
    assert not bare.has("joined.bin")
    assert np.array_equal(bare.vectors, store.vectors), "own codes change no harmonised vector"
    assert patient_index(bare, space="joined", exact=True).vectors.shape == bare.vectors.shape
    assert Asking(plain, bare).space == "harmonised"
    assert np.array_equal(Asking(plain, bare).codes(["I50.9"]).vector, alike.vector)
    with pytest.raises(UsageError, match="no vector"):
        Asking(plain, bare).patient("LONER")


def test_counts_without_floors_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path)

    def killed(*_: Any, **__: Any) -> None:
        assert list(home.work.glob("cohort/own/run-*"))
        raise KeyboardInterrupt

    monkeypatch.setattr("site_agent.cohort.own.own_vectors", killed)
    with pytest.raises(KeyboardInterrupt):
        build_cohort(home, Window(), machine=MACHINE)
    assert not list(home.work.glob("cohort/*"))


def test_only_the_owner_may_read_and_every_folder_says_so(home: Home, store: CohortStore) -> None:
    root = home.folder / "cohort"
    for path in [root, *root.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    assert (store.folder / "README.txt").read_text().startswith(NOTICE)
    for path in (root / "current.json", store.folder / "manifest.json"):
        assert json.loads(path.read_text())["notice"] == NOTICE
    assert pq.read_schema(store.folder / "codes.parquet").metadata[b"notice"] == NOTICE.encode()
    assert not list(home.work.glob("cohort*")), "coded events are removed"


def test_a_vector_is_the_weighted_sum_that_the_documents_state(home: Home, store: CohortStore) -> None:
    events = pq.read_table(home.path(home.config.data.events)).to_pylist()
    row = next(i for i in range(N + 1) if store.label(i) == "P000")
    had: dict[str, set[date]] = {}
    everyone: dict[str, set[str]] = {}
    for e in events:
        everyone.setdefault(e["code"], set()).add(e["patient"])
        if e["patient"] == "P000":
            had.setdefault(e["code"], set()).add(e["date"])
    asking = Asking(home, store, "harmonised")
    days = [d for ds in had.values() for d in ds]
    years = max(1.0, ((max(days) - min(days)).days + 1) / 365.25)
    total = np.zeros(8)
    for code, when in had.items():
        if code != "WITHHELD":
            weight = np.log((1 + N + 1) / (1 + len(everyone[code]))) + 1
            total += np.log1p(len(when) / years) * weight * asking.codes([code]).vector
    assert np.allclose(store.vectors[row], total / np.linalg.norm(total), atol=1e-5)


def test_each_kind_of_query_finds_the_patients_it_means(
    home: Home, store: CohortStore, tmp_path: Path
) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"name": "heart", "codes": {"ICD10CM:I50.9": 2, "I25.1": 1}}))
    asking = Asking(home, store)
    queries = [
        asking.patient("P000"),
        asking.codes(["I50.9", "ICD10CM:I50.1"]),
        asking.text("heart failure"),
        asking.profile(profile),
    ]
    for query in queries:
        found = find_cohort(store, query, Filters(), k=40)
        assert len(found.rows) == 40
        assert all(int(name[1:]) % 2 == 0 for name in labels(store, found.rows)), query.said
        assert found.cosine is not None
        assert (np.diff(found.cosine) <= 0).all()
    assert "P000" not in labels(store, find_cohort(store, queries[0], Filters(), k=N).rows)
    shared = Asking(home, store, "harmonised").codes(["I50.9"])
    assert "LONER" not in labels(store, find_cohort(store, shared, Filters(), k=2 * N).rows)


def test_filters(home: Home, store: CohortStore) -> None:
    def found(**given: Any) -> set[str]:
        return set(labels(store, find_cohort(store, None, Filters(**given)).rows))

    even = {f"P{i:03}" for i in range(0, N, 2)}
    assert found(age=(65, None)) == even
    assert found(age=(None, 40)) == {f"P{i:03}" for i in range(1, N, 2)}
    assert found(sexes=("M",)) == {f"P{i:03}" for i in range(N) if i % 4 >= 2}
    assert found(having=("I50*",), lacking=("ICD10CM:N18.3",)) <= even
    assert found(having=("R05",)) == {f"P{i:03}" for i in range(N)}
    assert found(seen=(date(2021, 1, 1), None)) == {f"P{i:03}" for i in range(N)}
    assert found(lacking=("R05",)) == {"LONER"}
    near = find_cohort(store, Asking(home, store).codes(["N18.5"]), Filters(age=(65, None)), k=5)
    assert set(labels(store, near.rows)) <= even, "filters go before nearness"


def test_a_cohort_beside_the_rest(store: CohortStore) -> None:
    filters = Filters(having=("I50.9",))
    cohort = find_cohort(store, None, filters)
    found = describe(store, cohort, filters)
    codes = {c.code: c for c in found.codes}
    assert found.cohort + found.rest == N + 1
    assert codes["ICD10CM:I50.9"].asked
    assert codes["ICD10CM:I50.9"].cohort == found.cohort
    assert codes["ICD10CM:I25.1"].low > 1 > codes["ICD10CM:N18.5"].high
    assert codes["ICD10CM:R05"].low < 1.1
    assert codes["ICD10CM:I50.9"].name == "Heart failure"
    assert found.lives is not None
    assert found.lives.cohort.share[-1] < 1.0 == found.lives.rest.at(100)[0]  # type: ignore[index]
    by_standard = {c.code: c for c in describe(store, cohort, filters, by="standard").codes}
    assert "ICD10CM:I25.1" not in by_standard
    assert by_standard["ICD10CM:I50.9"].cohort == found.cohort
    assert by_standard["ICD10CM:I50.9"].rest == N // 2 - found.cohort, (
        "a patient counts once for one standard code"
    )


def test_subgroups_are_made_of_joined_vectors_or_of_those_that_are_asked_for(store: CohortStore) -> None:
    cohort = find_cohort(store, None, Filters(having=("WITHHELD",)))
    sizes = []
    for space in ("joined", "harmonised"):
        _, groups = find_subgroups(store, cohort, 2, repeats=2, space=space)  # type: ignore[arg-type]
        sizes.append(sum(g.patients for g in groups))
    assert sizes == [N + 1, N], "LONER has no harmonised vector"


def test_subgroups_of_a_mixed_cohort_come_back(store: CohortStore) -> None:
    filters = Filters(having=("R05",))
    cohort = find_cohort(store, None, filters)
    for method in ("k-means", "mixture"):
        grouping, groups = find_subgroups(store, cohort, 2, method=method, repeats=10)  # type: ignore[arg-type]
        assert [g.patients for g in groups] == [N // 2, N // 2]
        assert grouping.stable
        assert grouping.rand > 0.9
        organ = {g.codes[0].code.partition(":")[2][0] for g in groups}
        assert organ <= {"I", "N", "Z"}
        assert len(organ) == 2
    with pytest.raises(UsageError, match="too small to divide"):
        find_subgroups(store, find_cohort(store, None, Filters(lacking=("R05",))), 2)


def test_the_window_decides_what_counts_and_where_time_begins(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    told = build_cohort(home, Window(date(2020, 1, 2), date(2020, 12, 31)), machine=MACHINE)
    store = CohortStore.open(home)
    assert told.outside == 1
    assert told.patients == N
    assert "R05" not in {store.codes["code"][c].partition(":")[2] for c in store.incidence.indices}, (
        "it is on the day before"
    )
    filters = Filters(having=("I50*",))
    lives = describe(store, find_cohort(store, None, filters), filters).lives
    assert lives is not None
    assert "after the window" in lives.begin
    with pytest.raises(DataError, match="No event lies in the window"):
        build_cohort(home, Window(date(1990, 1, 1), date(1990, 1, 2)), machine=MACHINE)
    assert CohortStore.open(home).manifest == store.manifest, "the earlier build stays"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home(tmp_path)
    monkeypatch.setattr(building_module, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build_cohort(home, Window(), machine=MACHINE)
    assert not list((home.folder / "cohort").iterdir())
    assert not list(home.work.glob("cohort/*"))
    with pytest.raises(UsageError, match="no patient vectors"):
        CohortStore.open(home)


def test_a_new_build_takes_the_place_of_the_old(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    build_cohort(home, Window(), machine=MACHINE)
    old = CohortStore.open(home).folder
    (home.folder / "cohort" / ".part-killed").mkdir()
    write_release(home, 2)
    build_cohort(home, Window(), machine=MACHINE)
    new = CohortStore.open(home)
    assert new.manifest.release == 2
    assert [p for p in (home.folder / "cohort").iterdir() if p.is_dir()] == [new.folder]
    assert not old.exists()


def test_with_and_without_a_graph_the_same_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hnswlib")
    home = make_home(tmp_path)
    assert build_cohort(home, Window(), machine=MACHINE).graph["M"] == 32
    store = CohortStore.open(home)
    monkeypatch.setattr("site_agent.cohort.index.EXACT_ROWS", 0)
    query = Asking(home, store, "harmonised").codes(["I50.9"])
    by_graph = patient_index(store, space="harmonised")
    assert by_graph.graph is not None
    found = find_cohort(store, query, Filters(), k=10, index=by_graph)
    right = find_cohort(store, query, Filters(), k=10, index=PatientIndex(store.vectors))
    assert np.allclose(found.cosine, right.cosine)  # type: ignore[arg-type]
    path = store.folder / "hnsw.bin"
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="not as it was written"):
        patient_index(store, space="harmonised")
    assert build_cohort(home, Window(), machine=MACHINE, exact=True).graph == {}
    assert patient_index(CohortStore.open(home)).graph is None


def test_patients_like_a_patient_are_found_by_a_graph_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hnswlib")
    home = make_home(tmp_path)
    build_cohort(home, Window(), machine=MACHINE)
    store = CohortStore.open(home)
    monkeypatch.setattr("site_agent.cohort.index.EXACT_ROWS", 0)
    query, index = Asking(home, store).patient("P003"), patient_index(store)
    assert index.graph is not None
    found, right = (find_cohort(store, query, Filters(), k=5, index=i) for i in (index, None))
    assert np.allclose(found.cosine, right.cosine)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("patient,birth\nP000,1950\n", "has no date in birth"),
        ("patient,birth\nP000,1950-01-01\nP000,1951-01-01\n", "more than one birth"),
        ("person,birth\nP000,1950-01-01\n", "no column patient"),
        (None, "no patients table"),
    ],
)
def test_a_patients_table_that_cannot_be_used(tmp_path: Path, rows: str | None, said: str) -> None:
    home = make_home(tmp_path)
    path = home.folder / "patients.csv"
    path.unlink()
    if rows is not None:
        path.write_text(rows)
    with pytest.raises(DataError, match=said):
        build_cohort(home, Window(), machine=MACHINE)
    assert not list((home.folder / "cohort").iterdir())


def test_errors_say_what_to_do(home: Home, store: CohortStore, tmp_path: Path) -> None:
    asking = Asking(home, store)
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    cases = [
        lambda: asking.patient("P999"),
        lambda: Asking(home, store, "harmonised").codes(["WITHHELD"]),
        lambda: asking.text("xyzzy"),
        lambda: asking.profile(bad),
        lambda: find_cohort(store, None, Filters()),
        lambda: find_cohort(store, None, Filters(having=("X99",))),
        lambda: find_cohort(store, None, Filters(sexes=("X",))),
        lambda: describe(store, find_cohort(store, None, Filters(age=(110, None))), Filters()),
    ]
    for case in cases:
        with pytest.raises(UsageError) as caught:
            case()
        assert caught.value.what
    bare = make_home(tmp_path / "bare" if (tmp_path / "bare").mkdir() is None else tmp_path, patients=False)
    build_cohort(bare, Window(), machine=MACHINE)
    with pytest.raises(UsageError, match="dates of birth"):
        find_cohort(CohortStore.open(bare), None, Filters(age=(50, None)))


def test_a_folder_that_others_may_read_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    build_cohort(home, Window(), machine=MACHINE)
    CohortStore.open(home).folder.chmod(0o750)
    with pytest.raises(UsageError, match="Other users may read"):
        CohortStore.open(home)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["cohort", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands(home: Home, tmp_path: Path) -> None:
    at = ("--home", str(home.folder))
    told = json.loads(run("build", "--json", *at))
    assert (told["patients"], told["notice"]) == (N + 1, NOTICE)
    saved = tmp_path / "found.json"
    found = json.loads(
        run("search", "--text", "heart failure", "-k", "7", "--save", str(saved), "--json", *at)
    )
    assert len(found["patients"]) == 7
    assert json.loads(saved.read_text()) == found
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert found["notice"] == NOTICE
    page = tmp_path / "page.html"
    described = json.loads(run("describe", "--with", "N18.5", "--html", str(page), "--json", *at))
    assert described["survival"]["cohort"]["patients"] == described["cohort"]["patients"]
    html = page.read_text()
    assert NOTICE in html
    assert "Kidney &lt;b&gt;disease" in html
    assert "<script" not in html
    assert html.count("<svg") == 2
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "I50.1" in run("describe", "--code", "I50.9", "-k", "30", *at)
    for space in ("joined", "harmonised"):
        asked = ["--with", "R05", "--repeats", "10", "--space", space, "--json", *at]
        divided = json.loads(run("subgroups", *asked))
        assert (divided["space"], len(divided["groups"]) >= 2) == (space, True)
    assert found["space"] == described["space"] == "joined"
    assert "P0" in run("search", "--patient", "P001", "--age", "30-50", *at)


@pytest.mark.parametrize(
    "arguments",
    [("--age", "old"), ("--from", "yesterday"), ("--text", "heart", "--code", "I50.9"), ()],
)
def test_commands_refuse_what_they_do_not_understand(home: Home, arguments: tuple[str, ...]) -> None:
    with pytest.raises(FederationError) as caught:
        run("search", *arguments, "--home", str(home.folder))
    assert caught.value.exit_code == 2
    assert caught.value.do
