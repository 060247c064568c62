"""The text view at a site and at the coordinator, and what its vectors give away."""

from __future__ import annotations

import csv
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow.csv as pacsv
import pytest

from coordinator.text_view import named_codes, read_titles
from coordinator.union import build_union
from protocol.errors import DataError, FitError, StudyError
from protocol.messages import ReleaseManifest
from protocol.release import (
    SourceView,
    VerifiedRelease,
    decode_release,
    describe,
    encode_release,
    view_arrays,
)
from protocol.study import StudySpec
from protocol.text import LexicalEncoder, encode_names, open_encoder
from site_agent.names import REVIEW
from site_agent.prepare import prepare_release
from site_agent.views.text import text_view
from tests.cms import shared_file
from tests.synthetic import release, study, unit_rows, verified
from tests.unit.test_second_release import Site, patients

DIM = 16
TEXT: dict[str, Any] = {"encoder": "lexical", "digest": LexicalEncoder().digest, "dim": DIM, "sites": True}


def spec() -> StudySpec:
    return study(text=TEXT)


# --- At a site ------------------------------------------------------------------------------------------


def test_codes_with_a_name_have_a_row() -> None:
    view = text_view(
        ["ICD10CM:A", "SOUTH:b", "SOUTH:c", "SOUTH:d"],
        {"SOUTH:b": "HTN", "SOUTH:d": "hypertension", "SOUTH:c": "--", "SOUTH:z": "asthma"},
        encoder=LexicalEncoder(DIM),
        study=spec(),
    )
    assert view is not None
    assert view.rows.tolist() == [1, 3]
    assert view.matrix.dtype == np.float32
    np.testing.assert_array_equal(view.matrix[0], view.matrix[1])
    assert text_view(["ICD10CM:A"], {}, encoder=LexicalEncoder(DIM), study=spec()) is None


STUDY = """\
id = "unit"
sites = ["north", "lake", "south"]
standard = "ICD10CM"
[[code_systems]]
prefix = "ICD10CM"
[embedding]
codes_per_dim = 2
"""


def text_section(digest: str = TEXT["digest"], *, sites: bool = True) -> str:
    return f'[text]\nencoder = "lexical"\ndigest = "{digest}"\ndim = {DIM}\nsites = {str(sites).lower()}\n'


def named_patients() -> dict[str, Any]:
    """Half of the codes have a public name, half one with a physician's."""
    table = patients()
    number = np.array([int(c[1:]) for c in table["code"]])
    return table | {"description": np.where(number < 30, "Acute asthma", "Asthma, Dr Smith")}


def allow(site: Site, *, opt_in: bool = True) -> None:
    (site.home.folder / "terms.txt").write_text("Asthma\nAcute pain\n")

    def change(text: str) -> str:
        text = text.replace("[data]", '[data]\nterminology = "terms.txt"')
        lines = [line for line in text.splitlines() if not line.startswith("max_dim")]
        return "\n".join(lines).replace("[policy]", f"[policy]\ntext = {str(opt_in).lower()}")

    site.configure(change)


@pytest.mark.parametrize(
    ("section", "opt_in"), [(text_section(), False), (text_section(sites=False), True), ("", True)]
)
def test_no_vector_leaves_unless_study_and_site_both_say_so(
    tmp_path: Path, section: str, opt_in: bool
) -> None:
    site = Site(tmp_path, STUDY + section)
    allow(site, opt_in=opt_in)
    prepared = site.prepare(named_patients())
    assert [v.name for v in prepared.release.views()] == ["cooccurrence"]
    assert prepared.names_undecided == 0
    assert not (site.home.folder / REVIEW).exists()


def test_only_names_of_known_words_are_encoded_and_the_others_wait(tmp_path: Path) -> None:
    site = Site(tmp_path, STUDY + text_section())
    allow(site)
    prepared = site.prepare(named_patients())
    found = decode_release(encode_release(prepared.release))
    assert found.manifest.descriptions == ()
    (view,) = (v for v in found.views() if v.name == "text")
    assert [int(found.manifest.codes[r][9:]) < 30 for r in view.rows] == [True] * len(view.rows)
    assert len(view.rows) == sum(int(c[9:]) < 30 for c in found.manifest.codes)
    expected = encode_names(LexicalEncoder(DIM), ["Acute asthma"], ["condition"])
    np.testing.assert_array_equal(view.matrix, np.repeat(expected, len(view.rows), axis=0))
    assert prepared.names_undecided == len(found.manifest.codes) - len(view.rows) > 0
    with (site.home.folder / REVIEW).open(newline="") as stream:
        assert {row["description"] for row in csv.DictReader(stream)} == {"Asthma, Dr Smith"}


def test_another_encoder_than_the_studys_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    site = Site(tmp_path, STUDY + text_section("1" * 64))
    allow(site)
    site.events.unlink()
    with pytest.raises(StudyError, match="is not the study's"):
        prepare_release(site.home, sequence=1, previous="")


# --- At the coordinator ---------------------------------------------------------------------------------


def with_parts(
    found: VerifiedRelease, *, texts: tuple[str, ...] = (), view: SourceView | None = None
) -> VerifiedRelease:
    """The release with descriptions, or with a text view."""
    arrays = dict(found.arrays) | (view_arrays(view) if view else {})
    facts = found.manifest.model_dump() | {"descriptions": texts, "arrays": describe(arrays)}
    return VerifiedRelease(
        ReleaseManifest.model_validate(facts), MappingProxyType(arrays), found.round, found.signer
    )


def made(site: str, codes: list[str], anchors: dict[str, str] | None = None) -> VerifiedRelease:
    matrix = unit_rows(np.random.default_rng(len(codes)), len(codes), 3)
    return verified(release(site, codes, matrix, anchors=anchors))


def test_titles_descriptions_and_vectors_meet_in_one_space() -> None:
    encoder, rules = open_encoder(spec().text), spec()
    north = made("north", ["ICD10CM:J45", "ICD10CM:I10"])
    lake = with_parts(made("lake", ["ICD10CM:I10", "ICD9CM:493"]), texts=("", "Asthma"))
    own = text_view(["SOUTH:a", "SOUTH:b"], {"SOUTH:a": "asthma"}, encoder=encoder, study=rules)
    south = with_parts(made("south", ["SOUTH:a", "SOUTH:b"], {"SOUTH:b": "ICD10CM:I10"}), view=own)
    releases = [north, lake, south]
    union = build_union(releases, standard="ICD10CM")
    titles = {"ICD10CM:J45": "Asthma", "ICD10CM:I10": "HTN"}
    found = named_codes(releases, rules, encoder=encoder, titles=titles).rows(union)
    vector = dict(zip(union.codes, found[union.row], strict=True))
    for code in ("ICD9CM:493", "SOUTH:a"):
        np.testing.assert_allclose(vector[code], vector["ICD10CM:J45"], atol=1e-6)
    np.testing.assert_array_equal(vector["SOUTH:b"], vector["ICD10CM:I10"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0)


def test_no_site_can_rename_a_code_that_has_a_title() -> None:
    encoder, rules = open_encoder(spec().text), spec()
    plain = made("north", ["ICD10CM:J45", "ICD10CM:I10"])
    hostile = with_parts(
        plain,
        texts=("Fracture of femur", ""),
        view=SourceView("text", np.array([0]), np.eye(1, encoder.dim, dtype=np.float32)),
    )
    titles = {"ICD10CM:J45": "Asthma"}
    one, other = (named_codes([r], rules, encoder=encoder, titles=titles) for r in (plain, hostile))
    assert one.codes == other.codes == ("ICD10CM:J45",)
    np.testing.assert_array_equal(one.matrix, other.matrix)


def test_a_standard_code_lends_its_title_to_codes_anchored_to_it() -> None:
    releases = [made("south", ["SOUTH:a", "ICD10CM:J45"], {"SOUTH:a": "ICD10CM:I10"})]
    union = build_union(releases, standard="ICD10CM")
    encoder = open_encoder(spec().text)
    found = named_codes(releases, spec(), encoder=encoder, titles={"ICD10CM:I10": "Hypertension"}).rows(union)
    row = dict(zip(union.codes, union.row.tolist(), strict=True))
    assert found[row["SOUTH:a"]].any()
    assert not found[row["ICD10CM:J45"]].any()
    assert not named_codes(releases, spec(), encoder=encoder, titles={}).rows(union).any()


def test_a_view_of_other_dimensions_is_refused() -> None:
    view = SourceView("text", np.array([0]), np.ones((1, 4), dtype=np.float32))
    releases = [with_parts(made("north", ["ICD10CM:A", "ICD10CM:B"]), view=view)]
    with pytest.raises(FitError, match=r"text view of site north has 4 dimensions, the study's has 16"):
        named_codes(releases, spec(), encoder=open_encoder(spec().text), titles={})


def test_titles_of_a_table_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("system,code,title\nICD10CM,E119,Diabetes\nICD9CM,25000,--\nICD10CM,,x\n")
    (tmp_path / "b.csv").write_text('code,title,system\nE11.9,Other,ICD10CM\n25000,"DM, type 2",ICD9CM\n')
    (tmp_path / "notes.txt").write_text("nothing")
    assert read_titles(tmp_path / "a.csv", spec()) == {"ICD10CM:E11.9": "Diabetes"}
    assert read_titles(tmp_path, spec()) == {"ICD10CM:E11.9": "Diabetes", "ICD9CM:250.00": "DM, type 2"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"There is no title of a code.*system, code, title"):
        read_titles(tmp_path / "empty", spec())
    with pytest.raises(DataError, match="no column 'system'"):
        (tmp_path / "c.csv").write_text("code,title\nE119,Diabetes\n")
        read_titles(tmp_path / "c.csv", spec())


# --- What a vector gives away ---------------------------------------------------------------------------


def icd_titles(name: str) -> list[tuple[str, str]]:
    """(short, long) titles."""
    rows = pacsv.read_csv(
        shared_file(f"icd_titles/{name}"),
        convert_options=pacsv.ConvertOptions(column_types={"code": "string", "three_digit": "string"}),
    )
    return list(zip(rows["short_desc"].to_pylist(), rows["long_desc"].to_pylist(), strict=True))


def nearest(released: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    return np.argmax(released @ guesses.T, axis=1)


def test_vectors_are_inverted_by_whoever_can_guess_the_text() -> None:
    """An attack with nothing but the public encoder: encode many guesses, take the nearest.

    Three texts: a public title that is among the guesses, an abbreviated one of which only the long form is, and a title
    with a physician's name, with guesses of the name.
    """
    encoder = LexicalEncoder(128)
    titles = icd_titles("icd9cm_hierarchy.csv.gz")
    rng = np.random.default_rng(0)
    chosen = [titles[i] for i in rng.choice(len(titles), 500, replace=False)]
    longs = sorted({long for _, long in titles})
    guesses = encode_names(encoder, longs, ["condition"] * len(longs))
    at = {title: i for i, title in enumerate(longs)}

    def share(texts: list[str], truth: list[str]) -> float:
        vectors = encode_names(encoder, texts, ["condition"] * len(texts))
        return float(np.mean(nearest(vectors, guesses) == [at[t] for t in truth]))

    exact = share([long for _, long in chosen], [long for _, long in chosen])
    shortened = [(s, long) for s, long in chosen if s != long]
    similar = share([s for s, _ in shortened], [long for _, long in shortened])
    words = sorted({w.title() for _, long in titles for w in long.split() if w.isalpha() and len(w) > 5})
    surnames = [words[i] for i in rng.choice(len(words), 300, replace=False)]
    said = [(f"{long}, Dr {name}", name) for (_, long), name in zip(chosen, surnames[:20], strict=False)]
    hits = 0
    for text, name in said:
        vector = encode_names(encoder, [text], ["condition"])
        title = text.rsplit(",", 1)[0]
        tries = [f"{title}, Dr {guess}" for guess in surnames]
        hits += surnames[nearest(vector, encode_names(encoder, tries, ["condition"] * len(tries)))[0]] == name
    print(
        f"\ninversion among {len(longs):,} guesses: exact text {exact:.0%}, only its long form guessed {similar:.0%}, "
        f"a name among {len(surnames):,} names {hits / len(said):.0%}"
    )
    # The documents warn of this: if an encoder ever gave less away, they would have to say so.
    assert exact > 0.95
    assert similar > 0.3
    assert hits / len(said) > 0.9
