"""A build of knowledge: merging, contradictions, the cache, the report, coverage, the command line and the model's form."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from coordinator import rounds
from coordinator.cli import app
from coordinator.knowledge import build as building
from coordinator.knowledge import cache
from coordinator.knowledge.build import Build, build, load_build
from coordinator.knowledge.config import load_knowledge_file
from coordinator.knowledge.merge import CATEGORIES, CYCLE, NOT_IS_A, PAIRS, UNKNOWN, merge
from coordinator.knowledge.relations import prior_of, relations_of, standard_anchors
from coordinator.knowledge.stats import coverage
from coordinator.setup import init_home
from coordinator.union import UnionVocabulary
from protocol.errors import DataError, FederationError, FitError, UsageError
from protocol.study import StudySpec, parse_study

STUDY = {
    "id": "s",
    "title": "t",
    "sites": ["a", "b", "c"],
    "standard": "ICD10CM",
    "minimum_sites": 3,
    "code_systems": [
        {"prefix": "ICD10CM"},
        {"prefix": "ICD9CM"},
        {"prefix": "RXNORM", "category": "drug"},
        {"prefix": "LOINC", "category": "lab"},
    ],
}
TREE = "code,parent\n" + "".join(
    f"{c},{p}\n"
    for c, p in [("A1", "A"), ("A2", "A"), ("A11", "A1"), ("A21", "A2"), ("A111", "A11"), ("A211", "A21")]
)
"""A11 and A21 are first cousins; A111 and A211 second ones."""


@pytest.fixture
def study() -> StudySpec:
    return parse_study(STUDY, "here")


def _write(folder: Path, *sources: str, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    path = folder / "knowledge.toml"
    path.write_text("\n".join(f"[[source]]\n{source}" for source in sources))
    return path


def _pairs_source(name: str = "experts") -> str:
    return f'kind = "pairs"\nname = "{name}"\npath = "{name}.csv"\n'


TREE_SOURCE = 'kind = "hierarchy"\nname = "tree"\npath = "tree.csv"\nsystem = "ICD10CM"\n'


def _table(made: Build) -> dict[tuple[str, str, str], tuple[bool, float, list[str]]]:
    return {
        (r["code_1"], r["code_2"], r["kind"]): (r["label"], r["weight"], r["sources"])
        for r in made.pairs.to_pylist()
    }


def test_a_build_joins_sources_and_keeps_each_pair_s(tmp_path: Path, study: StudySpec) -> None:
    experts = (
        "code_1,code_2,relation,label\nICD10CM:E11.9,ICD9CM:250.00,same-as,1\nRXNORM:6809,ICD10CM:E119,related:treats,1\n"
        "RXNORM:1,RXNORM:2,similar,0\nRXNORM:1,LOINC:2,similar,1\nMESH:1,ICD10CM:E11.9,similar,1\nICD9CM:1,ICD9CM:2,is-a,0\n"
    )
    others = "code_1,code_2,relation\nICD9CM:25000,ICD10CM:E119,similar\n"
    path = _write(
        tmp_path / "k",
        _pairs_source(),
        _pairs_source("others") + "weight = 0.4\n",
        experts=experts,
        others=others,
    )
    made = build(load_knowledge_file(path), study, tmp_path / "out")
    assert _table(made) == {
        ("ICD10CM:E11.9", "ICD9CM:250.00", "similar"): (True, 1.0, ["experts", "others"]),
        ("ICD10CM:E11.9", "RXNORM:6809", "related:treats"): (True, 1.0, ["experts"]),
        ("RXNORM:1", "RXNORM:2", "similar"): (False, 1.0, ["experts"]),
    }
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["pairs"] == {"not similar": 1, "related:treats": 1, "similar": 1}
    assert report["codes"] == {"ICD10CM": 1, "ICD9CM": 1, "RXNORM": 3}
    assert report["sources"][0]["skipped"] == {CATEGORIES: 1, NOT_IS_A: 1, UNKNOWN: 1}
    assert report["sources"][0]["unknown"] == {"MESH": 1}
    assert load_build(tmp_path / "out").pairs.equals(made.pairs)
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| MESH | 1 |" in page
    assert "## others" in page


def test_a_hierarchy_gives_cousins_and_second_cousins(tmp_path: Path, study: StudySpec) -> None:
    path = _write(tmp_path / "k", TREE_SOURCE, tree=TREE)
    found = _table(build(load_knowledge_file(path), study, tmp_path / "out"))
    assert found["ICD10CM:A11", "ICD10CM:A21", "similar"] == (True, 0.3, ["tree (kin)"])
    # A2 is the parent of A21 and, through A, an uncle of A11.
    assert found["ICD10CM:A11", "ICD10CM:A2", "similar"][0]
    assert found["ICD10CM:A11.1", "ICD10CM:A21.1", "similar"] == (False, 0.3, ["tree (kin)"])


def test_sources_that_disagree_are_told_and_left_out(tmp_path: Path, study: StudySpec) -> None:
    experts = (
        "code_1,code_2,relation,label\nICD10CM:A111,ICD10CM:A211,similar,1\nICD10CM:A1,ICD10CM:A2,similar,0\n"
    )
    path = _write(tmp_path / "k", TREE_SOURCE, _pairs_source(), tree=TREE, experts=experts)
    made = build(load_knowledge_file(path), study, tmp_path / "out")
    assert made.report["contradictions"] == 2
    assert ("ICD10CM:A11.1", "ICD10CM:A21.1", "similar") not in _table(made)
    assert (
        "ICD10CM:A11.1 and ICD10CM:A21.1: similar says experts; not says tree (kin)" in made.report["shown"]
    )
    assert "not says experts" in (tmp_path / "out" / "report.md").read_text()


def test_cycles_and_own_parents_are_counted(tmp_path: Path, study: StudySpec) -> None:
    path = _write(tmp_path / "k", TREE_SOURCE, tree=TREE + "B,C\nC,B\nD,D\n")
    made = build(load_knowledge_file(path), study, tmp_path / "out")
    source = made.report["sources"][0]
    assert source["skipped"] == {"a code that is its own parent": 1, CYCLE: 2}
    assert "cycles: 2 links" in source["notes"][0]
    clean = build(
        load_knowledge_file(_write(tmp_path / "k", TREE_SOURCE, tree=TREE)), study, tmp_path / "clean"
    )
    assert clean.pairs.equals(made.pairs)


def test_large_families_are_sampled_with_the_seed(tmp_path: Path, study: StudySpec) -> None:
    tree = "code,parent\n" + "".join(f"K{i:02d},K\n" for i in range(60))
    source = TREE_SOURCE + "most_per_family = 50\n"
    folder = tmp_path / "k"
    one = build(load_knowledge_file(_write(folder, source, tree=tree)), study, tmp_path / "1")
    lines = tree.splitlines()
    turned = "\n".join([lines[0], *reversed(lines[1:])]) + "\n"
    two = build(load_knowledge_file(_write(folder, source, tree=turned)), study, tmp_path / "2")
    assert one.pairs.num_rows == 50
    assert one.pairs.equals(two.pairs)
    path = _write(folder, source, tree=tree)
    path.write_text("seed = 1\n" + path.read_text())
    assert not build(load_knowledge_file(path), study, tmp_path / "3").pairs.equals(one.pairs)


ROWS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.sampled_from("efg"),
        st.booleans(),
        st.sampled_from("xyz"),
        st.floats(0.1, 1.0),
    ),
    max_size=12,
)


def _said(rows: list[tuple[str, str, bool, str, float]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * 5
    one, other, label, source, weight = (list(c) for c in columns)
    return pa.table(
        {
            "code_1": pa.array([f"A:{c}" for c in one], pa.string()),
            "code_2": pa.array([f"A:{c}" for c in other], pa.string()),
            "kind": pa.array(["similar"] * len(rows), pa.string()),
            "label": pa.array(label, pa.bool_()),
            "weight": pa.array(weight, pa.float64()),
            "source": pa.array(source, pa.string()),
        }
    )


@settings(max_examples=60, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_merging_knows_no_order_and_no_repetition(rows, random) -> None:
    shuffled = random.sample(rows, len(rows)) + rows[:3]
    once, twice = merge([_said(rows)]), merge([_said(shuffled[:4]), _said(shuffled[4:])])
    assert once.pairs.schema == PAIRS
    assert once.pairs.equals(twice.pairs)
    assert once.contradictions.equals(twice.contradictions)
    labels: dict[tuple[str, str], set[bool]] = {}
    for one, other, label, _, _ in rows:
        labels.setdefault((f"A:{one}", f"A:{other}"), set()).add(label)
    assert {(r["code_1"], r["code_2"]) for r in once.pairs.to_pylist()} == {
        k for k, v in labels.items() if len(v) == 1
    }
    assert once.contradictions.num_rows == 2 * sum(len(v) == 2 for v in labels.values())


# --- The cache -----------------------------------------------------------------------------------------


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    real = building.pairs_of

    def counting(assertions, systems, name, options):
        read.append(name)
        return real(assertions, systems, name, options)

    monkeypatch.setattr(building, "pairs_of", counting)
    return read


def test_an_unchanged_build_reads_nothing(
    tmp_path: Path, study: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "k", TREE_SOURCE, tree=TREE)
    read = _counted(monkeypatch)
    assert build(load_knowledge_file(path), study, tmp_path / "out").fresh
    again = build(load_knowledge_file(path), study, tmp_path / "out")
    assert not again.fresh
    assert read == ["tree"]
    assert build(load_knowledge_file(path), study, tmp_path / "out", force=True).fresh
    # The files may move: what they hold decides.
    moved = _write(tmp_path / "elsewhere", TREE_SOURCE, tree=TREE)
    assert not build(load_knowledge_file(moved), study, tmp_path / "out").fresh
    assert read == ["tree", "tree"]


@pytest.mark.parametrize("change", ["file", "settings", "study", "output"])
def test_any_change_builds_again(change: str, tmp_path: Path, study: StudySpec) -> None:
    path, out = _write(tmp_path / "k", TREE_SOURCE, tree=TREE), tmp_path / "out"
    build(load_knowledge_file(path), study, out)
    if change == "file":
        _write(tmp_path / "k", TREE_SOURCE, tree=TREE + "A3,A\n")
    elif change == "settings":
        _write(tmp_path / "k", TREE_SOURCE + "shared_depth = 1\n", tree=TREE)
    elif change == "study":
        systems = [*STUDY["code_systems"], {"prefix": "HOUSE"}]
        study = parse_study({**STUDY, "code_systems": systems}, "here")
    else:
        (out / "report.md").write_text("nothing to see")
    assert build(load_knowledge_file(path), study, out).fresh


def test_a_build_that_stops_half_way_is_none(
    tmp_path: Path, study: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = _write(tmp_path / "k", TREE_SOURCE, tree=TREE), tmp_path / "out"
    build(load_knowledge_file(path), study, out)
    monkeypatch.setattr(building.Report, "as_markdown", lambda _self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(load_knowledge_file(path), study, out, force=True)
    with pytest.raises(UsageError, match="is no folder of knowledge"):
        load_build(out)
    monkeypatch.undo()
    assert build(load_knowledge_file(path), study, out).fresh


# --- Mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "are not valid"),
        ("[[source", "cannot be read"),
        ('[[source]]\nkind = "owl"\nname = "x"\npath = "x"', "are not valid"),
        (f"[[source]]\n{TREE_SOURCE}[[source]]\n{TREE_SOURCE}", "two sources are named tree"),
        (f"[[source]]\n{TREE_SOURCE}colour = 1\n", "colour"),
        ('[[source]]\nkind = "groups"\nname = "x"\npath = "x"\n', "either system or system_column"),
    ],
)
def test_a_wrong_knowledge_file_is_told(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "knowledge.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_knowledge_file(path)


def test_no_knowledge_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no file"):
        load_knowledge_file(tmp_path / "x.toml")


def test_sources_without_a_pair_are_an_error(tmp_path: Path, study: StudySpec) -> None:
    path = _write(tmp_path / "k", _pairs_source(), experts="code_1,code_2,relation\nMESH:1,MESH:2,similar\n")
    with pytest.raises(DataError, match="give no pair") as caught:
        build(load_knowledge_file(path), study, tmp_path / "out")
    assert "MESH" in caught.value.why
    assert not (tmp_path / "out").exists()


def test_another_folder_is_not_written_into(tmp_path: Path, study: StudySpec) -> None:
    path = _write(tmp_path / "k", TREE_SOURCE, tree=TREE)
    with pytest.raises(UsageError, match="is not empty"):
        build(load_knowledge_file(path), study, tmp_path / "k")
    with pytest.raises(UsageError, match="is a file"):
        build(load_knowledge_file(path), study, path)


def test_a_damaged_build_is_told(tmp_path: Path, study: StudySpec) -> None:
    path, out = _write(tmp_path / "k", TREE_SOURCE, tree=TREE), tmp_path / "out"
    build(load_knowledge_file(path), study, out)
    (out / "pairs.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        load_build(out)
    assert not cache.is_current(out, cache.input_key(load_knowledge_file(path), study))


# --- Coverage and the model ----------------------------------------------------------------------------


def _build(*rows: tuple[str, str, str, bool, float]) -> Build:
    table = pa.Table.from_pylist(
        [
            {"code_1": a, "code_2": b, "kind": k, "label": y, "weight": w, "sources": ["x"]}
            for a, b, k, y, w in sorted(rows)
        ],
        schema=PAIRS,
    )
    return Build(table, {})


KNOWN = _build(
    ("ICD10CM:E11.9", "ICD9CM:250.00", "similar", True, 1.0),
    ("ICD10CM:E11.9", "ICD9CM:250.02", "similar", True, 0.3),
    ("ICD10CM:E11.9", "ICD10CM:I10", "similar", False, 0.3),
    ("ICD10CM:E11.9", "RXNORM:6809", "related:treats", True, 1.0),
    ("ICD10CM:E11.9", "ICD10CM:Z99", "similar", True, 1.0),
)


def _union(codes: dict[str, int], standard: dict[int, str]) -> UnionVocabulary:
    ordered = tuple(sorted(codes))
    n = 1 + max(*codes.values(), *standard)
    return UnionVocabulary(
        codes=ordered,
        row=np.array([codes[c] for c in ordered], dtype=np.int64),
        n_rows=n,
        standard=standard,
        anchored=np.zeros(len(ordered), dtype=bool),
        sites=("a",),
        holds=np.ones((len(ordered), 1), dtype=bool),
        warnings=(),
    )


def test_coverage_counts_pairs_among_the_codes() -> None:
    found = {
        c.system: c for c in coverage(KNOWN, ["ICD10CM:E119", "ICD9CM:25000", "ICD9CM:401", "RXNORM:6809"])
    }
    assert found["ICD9CM"].codes == 2
    assert found["ICD9CM"].similar == 1
    assert found["RXNORM"].related == 1
    assert found["RXNORM"].similar == 0
    assert found["all"].any == 3
    assert found["all"].negative == 0
    assert found["all"].most == 1
    assert found["all"].mean_degree == pytest.approx(0.5)


def test_rows_take_the_pairs_of_their_codes() -> None:
    union = _union(
        # Row 0 joins a local code to E11.9, which no site released; both spellings of 250.00 stand apart.
        {
            "LOCAL:dm": 0,
            "ICD9CM:25000": 1,
            "ICD9CM:250.00": 2,
            "ICD10CM:I10": 3,
            "RXNORM:6809": 4,
            "ICD9CM:250.02": 0,
        },
        {0: "ICD10CM:E11.9", 3: "ICD10CM:I10"},
    )
    found = relations_of(KNOWN, union)
    similar = {(*p, bool(y)) for p, y in zip(found.similar.pairs.tolist(), found.similar.labels, strict=True)}
    assert similar == {(0, 1, True), (0, 2, True), (0, 3, False)}
    assert found.related.pairs.tolist() == [[0, 4]]
    assert found.must_link.toarray()[0, 1] == 1.0
    np.testing.assert_array_equal(found.must_link.toarray(), found.must_link.toarray().T)
    assert found.contradictory == 0


def test_rows_on_which_codes_disagree_are_left_out() -> None:
    union = _union({"ICD9CM:250.00": 1, "ICD10CM:I10": 1, "ICD10CM:E11.9": 0}, {0: "ICD10CM:E11.9"})
    found = relations_of(KNOWN, union)
    assert found.contradictory == 1
    assert not len(found.similar.pairs)
    assert found.must_link.nnz == 0


def test_the_least_weight_leaves_kin_out() -> None:
    union = _union({"ICD9CM:250.02": 1, "ICD9CM:250.00": 2, "ICD10CM:E11.9": 0}, {0: "ICD10CM:E11.9"})
    assert len(relations_of(KNOWN, union).similar.pairs) == 2
    assert relations_of(KNOWN, union, least_weight=0.5).similar.pairs.tolist() == [[0, 2]]


def test_a_union_that_knowledge_does_not_touch_has_no_pairs() -> None:
    found = relations_of(KNOWN, _union({"LOCAL:1": 0, "LOCAL:2": 1}, {0: "ICD10CM:A"}))
    assert not len(found.similar.pairs)
    assert not len(found.related.pairs)


@pytest.mark.parametrize("method", ["propagate", "spectral"])
def test_the_prior_follows_the_pairs(method) -> None:
    union = _union(
        {"ICD9CM:250.00": 2, "ICD10CM:E11.9": 0, "ICD10CM:I10": 1}, {0: "ICD10CM:E11.9", 1: "ICD10CM:I10"}
    )
    categories, of_cluster = np.zeros(3, dtype=int), np.zeros(4, dtype=int)
    anchors = standard_anchors(union, categories, of_cluster)
    assert anchors.tolist() == [0, 1, -1]
    prior = prior_of(
        relations_of(KNOWN, union), categories, of_cluster, anchors=anchors, method=method
    ).toarray()
    np.testing.assert_array_equal(prior[:2], np.eye(4)[:2])
    assert prior[2].argmax() == 0
    assert prior[2, 0] > 0.5


def test_too_few_clusters_make_no_anchors() -> None:
    union = _union({"ICD10CM:E11.9": 0, "ICD10CM:I10": 1}, {0: "ICD10CM:E11.9", 1: "ICD10CM:I10"})
    assert standard_anchors(union, np.zeros(2, dtype=int), np.zeros(1, dtype=int)).tolist() == [-1, -1]


def test_no_such_prior() -> None:
    union = _union({"ICD10CM:E11.9": 0}, {0: "ICD10CM:E11.9"})
    with pytest.raises(FitError, match="There is no prior"):
        prior_of(relations_of(KNOWN, union), np.zeros(1, int), np.zeros(1, int), method="magic")  # type: ignore[arg-type]


# --- The command line ----------------------------------------------------------------------------------


def _study_file(folder: Path) -> Path:
    systems = "".join(
        f'[[code_systems]]\nprefix = "{s["prefix"]}"\n'
        + (f'category = "{s["category"]}"\n' if "category" in s else "")
        for s in STUDY["code_systems"]
    )
    path = folder / "study.toml"
    path.write_text(
        f'id = "s"\ntitle = "t"\nsites = ["a", "b", "c"]\nstandard = "ICD10CM"\nminimum_sites = 3\n{systems}'
    )
    return path


def test_the_commands_build_and_count(tmp_path: Path) -> None:
    path, out = _write(tmp_path / "k", TREE_SOURCE, tree=TREE), tmp_path / "out"
    call = ["knowledge", "build", str(path), "--study", str(_study_file(tmp_path)), "--output", str(out)]
    first = CliRunner().invoke(app, [*call, "--json"], catch_exceptions=False)
    assert json.loads(first.stdout)["fresh"] is True
    second = CliRunner().invoke(app, call, catch_exceptions=False)
    assert "Nothing has changed" in second.stdout
    stats = CliRunner().invoke(app, ["knowledge", "stats", str(out), "--json"], catch_exceptions=False)
    assert json.loads(stats.stdout)["pairs"] == json.loads(first.stdout)["pairs"]
    assert "not similar" in CliRunner().invoke(app, ["knowledge", "stats", str(out)]).stdout


def test_stats_of_no_build(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["knowledge", "stats", str(tmp_path)])
    assert isinstance(found.exception, FederationError)


def test_stats_of_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, out = tmp_path / "hub", tmp_path / "out"
    init_home(home, study=_study_file(tmp_path), address="localhost:9443", listen="127.0.0.1")
    path = _write(tmp_path / "k", TREE_SOURCE, tree=TREE)
    runner = CliRunner()
    call = ["knowledge", "build", str(path), "--home", str(home), "--output", str(out)]
    assert runner.invoke(app, call, catch_exceptions=False).exit_code == 0
    release = SimpleNamespace(manifest=SimpleNamespace(codes=["ICD10CM:A11", "ICD10CM:A21", "LOINC:1"]))
    monkeypatch.setattr(rounds, "accepted_releases", lambda *_: [release])
    stats = ["knowledge", "stats", str(out), "--round", "r1", "--home", str(home)]
    found = json.loads(runner.invoke(app, [*stats, "--json"], catch_exceptions=False).stdout)
    assert [(c["system"], c["codes"], c["similar"]) for c in found["coverage"]] == [
        ("ICD10CM", 2, 2),
        ("LOINC", 1, 0),
        ("all", 3, 2),
    ]
    assert "Codes of round r1" in runner.invoke(app, stats, catch_exceptions=False).stdout
