"""Search by what people type, and the search commands of both parties."""

from __future__ import annotations

import json
import string
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from coordinator.cli import app as coordinator_app
from coordinator.library import Library
from protocol.codeindex import CodeIndex
from protocol.errors import EnvelopeError, UsageError
from protocol.keys import PrivateKeys
from protocol.textindex import Found, TextIndex
from site_agent.cli_search import read_texts
from tests.hub import Hub, releases


@dataclass(frozen=True)
class Label:
    code: str
    name: str
    cluster: int
    standard_code: str = ""


HOSTILE = '<script>alert(1)</script> =cmd|"/c calc"!A1 \u202eevil\x00'
ENTRIES = [
    Label("ICD10CM:E10.9", "Type 1 diabetes mellitus without complications", 1),
    Label("ICD10CM:E11", "Type 2 diabetes mellitus", 2),
    Label("ICD10CM:E11.9", "Type 2 diabetes mellitus without complications", 2),
    Label("ICD10CM:E11.65", "Type 2 diabetes mellitus with hyperglycemia", 2),
    Label("ICD10CM:I21", "Acute myocardial infarction", 3),
    Label("ICD10CM:I21.9", "Acute myocardial infarction, unspecified", 3),
    Label("ICD10CM:N18", "Chronic kidney disease", 4),
    Label("ICD9CM:250.00", "Diabetes mellitus without mention of complication, type II", 2),
    Label("ICD9CM:410", "Heart attack", 3),
    Label("ICD9CM:E11.9", "Something else with the same number", 5),
    Label("LOINC:4548-4", "Hémoglobine A1c", 6),
    Label("NORTH:HEART FAILURE CLINIC", "", 7),
    Label("NORTH:X1", "", 3),
    Label("NORTH:X2", "", 8, "ICD10CM:N18"),
    Label("NORTH:X3", "Kidney", 9),
    Label("NORTH:BAD", HOSTILE, 10),
    Label("NORTH:LONG", "lorem " * 20_000, 11),
]


@pytest.fixture(scope="module")
def index() -> TextIndex:
    return TextIndex.build(ENTRIES)


def codes(found: list[Found]) -> list[str]:
    return [f.code for f in found]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("ICD10CM:E11.9", "ICD10CM:E11.9"),
        ("icd10cm e119", "ICD10CM:E11.9"),
        ("e1165", "ICD10CM:E11.65"),
        ("E11.65", "ICD10CM:E11.65"),
        ("  i21 ", "ICD10CM:I21"),
        ("heart attack", "ICD9CM:410"),
        ("ATTACK heart", "ICD9CM:410"),
        ("attack", "ICD9CM:410"),
        ("myoc inf", "ICD10CM:I21"),
        ("hemoglobine", "LOINC:4548-4"),
        ("HÉMOGLOBINE A1C", "LOINC:4548-4"),
        ("he\u0301moglobine", "LOINC:4548-4"),
        ("mycardial infraction", "ICD10CM:I21"),
        ("heart attak", "ICD9CM:410"),
        ("chronic kidny disease", "ICD10CM:N18"),
        ("type 2 diab", "ICD10CM:E11"),
        ("diabetes type 1", "ICD10CM:E10.9"),
        ("failure clinic", "NORTH:HEART FAILURE CLINIC"),
        ("diabetes hyperglycemia xyzzy", "ICD10CM:E11.65"),
        ("script", "NORTH:BAD"),
        ("lorem", "NORTH:LONG"),
    ],
)
def test_the_best_is_first(index: TextIndex, text: str, first: str) -> None:
    assert index.find(text, 5)[0].code == first


def test_order_is_code_then_beginning_then_name_then_words_then_typo(index: TextIndex) -> None:
    written = index.find("ICD10CM:E11")
    assert [f.score for f in written][:1] == [1.0]
    assert {f.code for f in written[1:3]} == {"ICD10CM:E11.9", "ICD10CM:E11.65"}
    assert {f.where for f in written} == {"code"}
    other = {
        text: index.find(text)[0].score
        for text in ("icd10cme11", "icd10cm:e", "heart attack", "attack", "attak")
    }
    assert list(other.values()) == sorted(other.values(), reverse=True)
    assert written[0].score > other["icd10cme11"]


def test_a_bare_code_of_two_systems_finds_both(index: TextIndex) -> None:
    assert codes(index.find("E11.9"))[:2] == ["ICD10CM:E11.9", "ICD9CM:E11.9"]
    # Its pieces are no words: nobody who types it wants every name with a 9.
    assert all(f.where == "code" for f in index.find("E11.9"))


def test_synonyms_are_found_by_the_names_of_others(index: TextIndex) -> None:
    found = {f.code: f for f in index.find("heart attack")}
    assert found["ICD9CM:410"].where == "name"
    assert found["NORTH:X1"] == Found("NORTH:X1", "", found["NORTH:X1"].score, "synonym", "ICD9CM:410")
    assert found["ICD10CM:I21"].where == "synonym"
    assert found["ICD10CM:I21"].score < found["ICD9CM:410"].score
    # A code of another cluster, by the name of the standard code that it is mapped to.
    mapped = {f.code: f for f in index.find("chronic kidney disease")}["NORTH:X2"]
    assert (mapped.where, mapped.by) == ("synonym", "ICD10CM:N18")


def test_limits(index: TextIndex) -> None:
    found = index.find("heart attack", systems={"NORTH"})
    assert found[0].code == "NORTH:X1"
    assert all(f.code.startswith("NORTH:") for f in found)
    assert codes(index.find("diabetes", 2)) == codes(index.find("diabetes", 9))[:2]
    assert index.find("diabetes", 0) == []
    assert index.find("diabetes", systems={"NONE"}) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\0",
        "\x00" * 1000,
        '"',
        "'",
        '" OR "',
        "NEAR(a b, 3)",
        "a* OR b* AND NOT c",
        "^a {x y}: -z",
        "'; DROP TABLE codes; --",
        "%",
        "\\",
        "(((((",
        "\ud800",
        "🩺" * 200,
        "é" * 100_000,
        "diabetes " * 20_000,
        " ".join(string.ascii_letters) * 1000,
        "ﷺ" * 500,
        HOSTILE,
    ],
    ids=lambda t: ascii(t[:20]),
)
def test_hostile_texts_find_codes_or_nothing(index: TextIndex, text: str) -> None:
    for found in index.find(text, 5):
        assert isinstance(found, Found)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.integers(0, 20), st.sets(st.sampled_from(["ICD10CM", "NORTH", "NONE"])))
def test_laws(text: str, k: int, systems: set[str]) -> None:
    found = LAWS.find(text, k, systems=systems)
    assert len(found) <= k
    assert len(set(codes(found))) == len(found)
    assert all(0 < f.score <= 1 for f in found)
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    assert all(not systems or f.code.partition(":")[0] in systems for f in found)
    assert all((f.where == "synonym") == bool(f.by) for f in found)
    assert found == LAWS.find(text, k, systems=systems)


LAWS = TextIndex.build(ENTRIES)


@given(st.sampled_from(ENTRIES), st.randoms())
def test_every_code_and_every_name_finds_itself(entry: Label, random: object) -> None:
    first = LAWS.find(entry.code, 3)
    assert first[0].code == entry.code
    assert first[0].score == 1.0
    if entry.name and len(entry.name) < 100:
        assert entry.code in codes(LAWS.find(entry.name.upper(), 10))


def test_search_from_many_threads_is_that_of_one(index: TextIndex) -> None:
    texts = ["heart attack", "diabetes", "E11", "kidny", "type 2"] * 40
    alone = [index.find(t, 10) for t in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda t: index.find(t, 10), texts)) == alone


def test_an_empty_map_is_searched(index: TextIndex) -> None:
    empty = TextIndex.build([])
    assert empty.find("diabetes") == []
    nameless = TextIndex.build([Label("A:1", "", 0), Label("A:2", "", 0)])
    assert codes(nameless.find("a:2")) == ["A:2"]
    assert nameless.find("diabetes") == []
    assert index.name("ICD9CM:410") == "Heart attack"
    assert index.name("A:1") == ""


# --- Open releases and commands ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    made = Hub(tmp_path_factory.mktemp("hub"))
    made.enrol(*releases())
    made.run_round(releases(), "r1")
    return made


def run(hub: Hub, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(coordinator_app, ["search", *words, "--home", str(hub.home.folder)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_an_open_release_finds_codes(hub: Hub) -> None:
    release = Library(hub.fresh()).open()
    assert release.find("ICD10CM:C07")[0].code == "ICD10CM:C07"
    assert codes(release.find("c07", systems=["WEST"])) == []
    assert len(release.find("c0", 30, categories=["condition"])) >= 9
    with pytest.raises(UsageError, match="no code system 'NONE'"):
        release.find("c0", systems=["NONE"])
    with pytest.raises(UsageError, match="no category 'drug'"):
        release.find("c0", categories=["drug"])


def test_a_site_finds_what_the_coordinator_finds(hub: Hub) -> None:
    release = Library(hub.fresh()).open()
    study, texts = read_texts(release.folder, hub.home.keys.public())
    assert study == release.map.study
    for text in ("c07", "west", "c0 c1", "ICD10CM:C11"):
        assert texts.find(text, 10) == release.find(text, 10)
    with pytest.raises(EnvelopeError):
        read_texts(release.folder, PrivateKeys.generate().public())


def test_the_command_searches_texts_and_neighbours(hub: Hub) -> None:
    code, text = run(hub, "c0", "--json", "-k", "3", "--release", "1")
    assert code == 0
    assert [sorted(f) for f in json.loads(text)] == [["by", "code", "name", "score", "where"]] * 3
    code, text = run(hub, "ICD10CM:C07", "--near", "--json", "--k", "4", "--system", "WEST")
    near = json.loads(text)
    assert [sorted(h) for h in near] == [["code", "name", "similarity"]] * 4
    assert all(h["code"].startswith("WEST:") for h in near)
    index = CodeIndex.load(hub.home.release_folder(1), trust=hub.home.keys.public(), exact=True)
    best = index.search("ICD10CM:C07", 4, systems={"WEST"})
    assert [h["similarity"] for h in near] == pytest.approx([h.similarity for h in best], abs=1e-5)
    code, text = run(hub, "c07")
    assert "ICD10CM:C07" in text
    code, text = run(hub, "[bold]nothing\x1b[31m")
    assert code == 0
    assert "Nothing in this release" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("NOPE:1", "--near"), "is not in this release"),
        (("c0", "--system", "NOPE"), "no code system"),
        (("c0", "--category", "drug"), "no category"),
        (("c0", "--release", "7"), "no version 7"),
    ],
)
def test_the_command_refuses_what_is_not_there(hub: Hub, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(hub, *words)


def test_published_names_are_shown_harmless(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from protocol.searching import search

    texts = TextIndex.build(ENTRIES)
    search("script", 5, None, texts, frozenset(), json=False)
    shown = capsys.readouterr().out
    assert "NORTH:BAD" in shown
    assert not {"\u202e", "\x00", "\x1b"} & set(shown)
    search("lorem", 5, None, texts, frozenset(), json=False)
    assert len(capsys.readouterr().out) < 3_000
