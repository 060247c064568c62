"""Which descriptions leave: known words only, or a person's yes; everything else is withheld whole."""

from __future__ import annotations

import csv
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import DataError
from protocol.messages import MAX_NAME_LENGTH
from protocol.study import parse_study
from site_agent.config import Home
from site_agent.names import NO_NAMES, REVIEW, Names, Vocabulary, choose_names, read_review
from site_agent.sections import SiteConfig
from site_agent.sources import Description

TERMS = ("Diabetes mellitus, type 2", "Acute fracture of the femur", "Crohn's disease", "Ménière disease")


def home(
    tmp_path: Path, *, study: bool = True, site: bool = True, kind: str = "triplets", terms: str = ""
) -> Home:
    """A site whose study and policy release names or not."""
    found = Home(tmp_path)
    systems = [{"prefix": "ICD10CM"}, {"prefix": "NORTH", "local_to": "north"}]
    table = {
        "id": "unit",
        "sites": ["north", "lake"],
        "standard": "ICD10CM",
        "code_systems": systems,
        "privacy": {"names": study},
    }
    data = {"kind": kind, "events": "x", "system": "NORTH", "terminology": terms}
    config = SiteConfig.model_validate({"site": "north", "data": data, "policy": {"names": site}})
    found.__dict__.update(study=parse_study(table, "of the test"), config=config)
    return found


def choose(place: Home, **texts: str) -> Names:
    """Local texts of codes, beside public ones of the standard system."""
    known = {f"ICD10CM:{i}": Description(t, public=True) for i, t in enumerate(TERMS)}
    own = {f"NORTH:{code}": Description(text) for code, text in texts.items()}
    return choose_names(place, list(own), known | own)


def decide(tmp_path: Path, **answers: str) -> None:
    """What a person writes into the column, with a spreadsheet."""
    rows = list(csv.DictReader((tmp_path / REVIEW).open(newline="")))
    with (tmp_path / REVIEW).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(
            r | {"decision": answers.get(r["code"].removeprefix("NORTH:"), r["decision"])} for r in rows
        )


@pytest.mark.parametrize(("study", "site"), [(False, True), (True, False), (False, False)])
def test_off_unless_study_and_site_both_release_names(tmp_path: Path, study: bool, site: bool) -> None:
    assert choose(home(tmp_path, study=study, site=site), A="Diabetes") is NO_NAMES
    assert not (tmp_path / REVIEW).exists()


def test_known_words_leave_and_unknown_ones_wait(tmp_path: Path) -> None:
    found = choose(
        home(tmp_path),
        A="DIABETES  (type  mellitus)",
        B="Fracture, ward Dr. Smith",
        C="Crohn’s disease / acute",
        D="Diabetes mellitus, type 2",
        E="Fracture 2",
        F="",
    )
    assert dict(found.released) == {
        "NORTH:A": "DIABETES (type mellitus)",
        "NORTH:C": "Crohn’s disease / acute",
        "NORTH:D": "Diabetes mellitus, type 2",
    }
    assert (found.withheld, found.undecided) == (2, 2)
    rows = list(csv.DictReader((tmp_path / REVIEW).open(newline="")))
    assert [(r["code"], r["unknown"], r["decision"]) for r in rows] == [
        ("NORTH:B", "ward dr smith", ""),
        ("NORTH:E", "2", ""),
    ]
    assert (tmp_path / REVIEW).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text",
    [
        "diabetes a.smith@north.example",
        "diabetes 2020-01-31",
        "diabetes 31.01.2020",
        "diabetes 1/2/85",
        "diabetes 555-0199",
        "diabetes +41 44 123 45 67",
        "diabetes 1234567",
        "diabetes www.north.example",
        "diabetes m²",
        "diabetes ٣٤٥٦٧",
    ],
)
def test_numbers_dates_and_addresses_are_never_known(text: str) -> None:
    """Not as words of a terminology that holds them, and what can identify not even as a whole term."""
    words = Vocabulary.of([*text.split(), "acute"])
    assert words.unknown(f"acute {text}")
    if any(c in text for c in "@12") and "m²" not in text:
        assert Vocabulary.of([text]).unknown(text)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=8), max_size=6), st.text(max_size=40))
def test_every_released_word_is_a_word_of_the_terminology(terms: list[str], text: str) -> None:
    words = Vocabulary.of(terms)
    if not words.unknown(text):
        letters = {c for t in [*terms, "".join(terms)] for c in t.casefold()}
        spared = set(string.punctuation + string.whitespace) - set("@#$%=^~")
        assert {c for c in text.casefold() if c.isascii() and c.isprintable()} - letters <= spared


def test_a_person_decides(tmp_path: Path) -> None:
    place = home(tmp_path)
    texts = {"A": "Fracture clinic", "B": "Mrs Miller", "C": '=HYPERLINK("x")', "D": 'ward, "3"'}
    assert choose(place, **texts).undecided == 4
    assert "'=HYPERLINK" in (tmp_path / REVIEW).read_text()
    decide(tmp_path, A="yes", B="NO ", C="yes")
    found = choose(place, **texts)
    assert set(found.released) == {"NORTH:A", "NORTH:C"}
    assert found.released["NORTH:C"] == texts["C"]
    assert (found.withheld, found.undecided) == (2, 1)
    # A decision is about this text: another one is asked for again, and the old one is kept.
    changed = choose(place, **(texts | {"A": "Fracture Mr Jones"}))
    assert "NORTH:A" not in changed.released
    assert choose(place, **texts).released == found.released
    decide(tmp_path, C="no")
    assert set(choose(place, **texts).released) == {"NORTH:A"}


def test_a_no_holds_for_known_words_too(tmp_path: Path) -> None:
    (tmp_path / REVIEW).write_text("code,description,unknown,decision\nNORTH:A,Acute disease,,no\n")
    found = choose(home(tmp_path), A="Acute disease", B="Acute diabetes")
    assert set(found.released) == {"NORTH:B"}
    assert (found.withheld, found.undecided) == (1, 0)


def test_a_spreadsheet_of_another_country(tmp_path: Path) -> None:
    (tmp_path / REVIEW).write_text(
        "\ufeffcode;description;unknown;decision\r\nNORTH:A;Ward, west;ward;Yes\r\n", encoding="utf-8"
    )
    assert set(choose(home(tmp_path), A="Ward, west").released) == {"NORTH:A"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("code,description,unknown,decision\nNORTH:A,x,x,maybe\n", "'maybe'"),
        ("code,description,unknown,decision\nNORTH:A,x,x,yes\nNORTH:A,x,x,no\n", "two decisions"),
        ("code,text\nNORTH:A,x\n", "no column 'decision'"),
        (b"\xff\xfe\x00", "codec"),
        ('code,description,unknown,decision\nNORTH:A,"x', "unexpected end"),
    ],
)
def test_a_review_file_that_cannot_be_used(tmp_path: Path, content: str | bytes, reason: str) -> None:
    (tmp_path / REVIEW).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=reason):
        choose(home(tmp_path), A="x")


def test_local_systems_and_fhir_texts_are_no_terminology(tmp_path: Path) -> None:
    codes = ["NORTH:A"]
    local = {"NORTH:A": Description("Smith", public=True)}
    assert not choose_names(home(tmp_path), codes, local).released
    typed = {"NORTH:A": Description("Smith"), "ICD10CM:1": Description("Mr Smith", public=True)}
    assert not choose_names(home(tmp_path, kind="fhir"), codes, typed).released
    assert choose_names(home(tmp_path), codes, typed).released


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("terms.csv", 'concept,Description\n1,"Asthma, cardiac"\n2,Wheezing\n'),
        ("terms.tsv", "id\tterm\tdescription\n1\tx\tAsthma cardiac\n2\ty\tWheezing\n"),
        ("terms.txt", "Asthma, cardiac\nWheezing\n"),
        ("one.csv", "description\nAsthma (cardiac)\nWheezing\n"),
    ],
)
def test_terminology_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    found = choose(home(tmp_path, terms=name), A="Cardiac wheezing", B="Description", C="Concept", D="x")
    assert set(found.released) == {"NORTH:A"}


def test_a_terminology_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no terminology file"):
        choose(home(tmp_path, terms="none.csv"), A="x")
    (tmp_path / "bad").write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match="cannot be read"):
        choose(home(tmp_path, terms="bad"), A="x")


def test_control_characters_and_long_texts(tmp_path: Path) -> None:
    long = "acute " * MAX_NAME_LENGTH
    found = choose(home(tmp_path), A="Acute\u202e\n\x1b disease\u200b", B=long)
    assert dict(found.released) == {"NORTH:A": "Acute disease"}
    assert (found.withheld, found.undecided) == (1, 0)


def test_reviews_of_a_site_without_one(tmp_path: Path) -> None:
    assert read_review(tmp_path / REVIEW) == {}
