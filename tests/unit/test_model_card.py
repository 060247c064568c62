"""Model card and DOI metadata of a version: what they say, and that no text of others is markup in them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from coordinator import publish, rounds
from coordinator.calibration import Calibration, learn
from coordinator.config import Citation, Home
from coordinator.edition import Edition
from coordinator.harmonize import load_fit
from coordinator.recogniser.verdict import Audit, Recognised
from coordinator.report.data import Quality, QualityRow
from coordinator.report.text import safe_text
from coordinator.reviewed import Reviewed
from coordinator.versions import CARD, DATACITE
from coordinator.versions.card import model_card, write_card
from coordinator.versions.markdown import escaped
from protocol.messages import BackgroundSource, SiteSummary, Tombstone
from protocol.published import verify_folder
from tests.copying import copy_folder
from tests.hub import STUDY, Hub, releases

SCHEMA = Path(__file__).parents[1] / "vectors" / "datacite" / "datacite-v4.5.json"
NOW = datetime(2027, 1, 2, tzinfo=UTC)
EVIL = "<script>alert(1)</script> ![x](http://evil) [y](javascript:1) | `=1+1` \u202e www.evil.example a@b.example\n# x"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "write_report", lambda path, *_: path.write_text("report"))
        hub = Hub(tmp_path_factory.mktemp("card"))
        hub.enrol("lake", "north", "south", "west")
        hub.run_round(releases(("lake", "north", "south")), "r1")
        hub.run_round(releases(), "r2")
    return hub


@pytest.fixture(scope="module")
def edition(hub: Hub) -> Edition:
    """What version 3 would be made of."""
    found = rounds.accepted_releases(hub.home, hub.store, "r2")
    fitted = load_fit(hub.home.fit_path("r2"), found, hub.home.study)
    return publish.make_edition(hub.home, hub.store, "r2", found, fitted, created=NOW)


def card(edition: Edition) -> str:
    return model_card(edition, edition.harmonized.mappings)


def metadata(edition: Edition, folder: Path) -> dict[str, Any]:
    write_card(folder, edition, edition.harmonized.mappings)
    found: dict[str, Any] = json.loads((folder / DATACITE).read_text())
    return found


def holds(found: dict[str, Any]) -> None:
    """Raise unless DataCite's own schema takes it."""
    jsonschema_rs.validator_for(json.loads(SCHEMA.read_text())).validate(found)


def test_every_version_has_both_files_and_signs_them(hub: Hub) -> None:
    manifest = verify_folder(hub.home.release_folder(2), hub.home.keys.public())
    assert {CARD, DATACITE} <= {f.name for f in manifest.files}
    assert "version 2" in (hub.home.release_folder(2) / CARD).read_text()


def test_the_card_says_how_far_a_vector_tells_its_site(edition: Edition) -> None:
    audit = Audit((Recognised("aligned", "kernel", 0.402, 0.033, 0.101, 185, 390),))
    text = card(replace(edition, harmonized=replace(edition.harmonized, audit=audit)))
    assert "| aligned | kernel | 0.402 | 0.101 | 0.301 | 185 |" in text
    assert "tells its site" not in card(
        replace(edition, harmonized=replace(edition.harmonized, audit=Audit()))
    )


def test_the_card_has_every_section_with_its_numbers(edition: Edition) -> None:
    text = card(edition)
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Intended use",
        "## Data",
        "## Method",
        "## Metrics",
        "## Limits",
        "## How to cite",
    ]
    for s in edition.sites:
        assert (
            f"| {s.site} | received | {s.statistics.patients:,} | {s.statistics.codes_released:,} |" in text
        )
    assert "codes of fewer than 20 patients and pairs of fewer than 11 (25 at a site" in text
    assert "two-stage fit, of the sites' views (cooccurrence), round r2" in text
    rows = edition.harmonized.mappings.rows
    given = sum(r.given for r in rows if r.code.startswith("WEST:"))
    assert f"| given by a site | {given} |" in text


def test_the_card_tells_how_hidden_anchors_were_found_again(edition: Edition) -> None:
    assert "Too few anchors could be hidden" in card(edition)
    import numpy as np

    rng = np.random.default_rng(0)
    strength = rng.normal(0, 2, 400)
    right = rng.random(400) < 1 / (1 + np.exp(-strength))
    learnt = learn(strength, right, np.arange(400) % 5)
    text = card(replace(edition, harmonized=replace(edition.harmonized, calibration=learnt)))
    assert f"Of 400 anchors that were hidden from further fits, {right.mean():.1%}" in text
    assert f"calibration error {learnt.error:.3f} (95 % interval {learnt.error_low:.3f}" in text
    assert text.count("\n| 4") >= 5  # bins of 40


def test_quality_is_there_where_truth_was_given(edition: Edition) -> None:
    rows = (
        QualityRow("SMILE", 10, 0.5, 0.01, 0.6, 0.02, 0.8, 0.03, published=True),
        QualityRow("chance", 10, hits1=0.1),
    )
    text = card(replace(edition, quality=Quality("AMI over 10 codes.", rows)))
    assert "| SMILE (published) | 0.500 ± 0.010 | 0.600 ± 0.020 | 0.800 ± 0.030 |" in text
    assert "| chance |  | 0.100 |  |" in text
    assert "No truth was given" in card(edition)


def test_reviews_are_counted(edition: Edition) -> None:
    def said(code: str, target: str, state: str) -> Reviewed:
        return Reviewed(code, target, "accept", state, "", 1, ("reviewer-1",), False, NOW)

    told = replace(
        edition,
        reviews=(
            said("WEST:1", "ICD10CM:C01", "conflict"),
            said("WEST:1", "ICD10CM:C02", "conflict"),
            said("WEST:9", "ICD10CM:C09", "accepted"),
            said("OTHER:1", "ICD10CM:C09", "accepted"),
        ),
    )
    assert "People have reviewed 2 codes: 1 accepted, 1 conflict." in card(told)
    assert "Nobody has reviewed" in card(edition)


def test_withdrawn_small_and_refused_sites_are_limits(edition: Edition) -> None:
    small = edition.sites[0].model_copy(
        update={"statistics": edition.sites[0].statistics.model_copy(update={"patients": 2000})}
    )
    told = replace(
        edition,
        sites=(small, SiteSummary(site="north", state="refused", detail="Too noisy"), *edition.sites[2:]),
        withdrawn=(Tombstone(site="east", at=NOW, reason="Consent ended", versions=(1,)),),
    )
    text = card(told)
    assert "east withdrew on 2027-01-02: nothing of it is in this version. Consent ended" in text
    assert "Small sites (lake; fewer than 6,000 patients)" in text
    assert "| north | refused |  |  |  | Too noisy |" in text


def test_an_own_site_copy_counts_what_its_reader_may_see(tmp_path: Path) -> None:
    hub = Hub(tmp_path, STUDY.replace("minimum_sites", 'publish_local_codes = "own-site"\nminimum_sites'))
    hub.enrol("lake", "north", "south", "west")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "write_report", lambda path, *_: path.write_text("report"))
        folder = hub.run_round(releases())
    own = publish.site_copies(folder) / "west"
    assert "A map of 60 medical codes" in (folder / CARD).read_text()
    assert "A map of 75 medical codes" in (own / CARD).read_text()


# --- DOI metadata --------------------------------------------------------------------------------------


def test_the_schema_itself_refuses_what_is_wrong(edition: Edition, tmp_path: Path) -> None:
    found = metadata(edition, tmp_path)
    for change in ({"creators": []}, {"publicationYear": "soon"}, {"types": {"resourceTypeGeneral": "Map"}}):
        with pytest.raises(jsonschema_rs.ValidationError):
            holds(found | change)


def test_metadata_hold_against_the_schema(edition: Edition, tmp_path: Path) -> None:
    found = metadata(edition, tmp_path)
    holds(found)
    for mandatory in ("creators", "titles", "publisher", "publicationYear", "types", "schemaVersion"):
        assert found[mandatory]
    assert found["types"]["resourceTypeGeneral"] == "Dataset"
    assert (found["publicationYear"], found["version"]) == ("2027", "3")
    assert found["creators"] == [{"name": "Consortium of study unit", "nameType": "Organizational"}]
    assert found["rightsList"][0]["rightsIdentifier"] == "CC-BY-4.0"
    assert [(r["relationType"], r["relatedIdentifier"]) for r in found["relatedIdentifiers"]] == [
        ("IsNewVersionOf", "https://smile-federation.invalid/unit/releases/v2")
    ]
    assert "doi" not in found


def test_the_first_version_follows_none(edition: Edition, tmp_path: Path) -> None:
    found = metadata(replace(edition, version=1, previous=""), tmp_path)
    holds(found)
    assert found["relatedIdentifiers"] == []


def test_creators_and_publisher_come_from_the_configuration(
    hub: Hub, edition: Edition, tmp_path: Path
) -> None:
    copy_folder(hub.home.folder, tmp_path / "hub")
    with (tmp_path / "hub" / "coordinator.toml").open("a") as stream:
        stream.write(
            '[citation]\ncreators = ["Curie, Marie", "Lake Hospital"]\npublisher = "University of Lake"\n'
        )
    cited = replace(edition, citation=Home(tmp_path / "hub").config.citation)
    found = metadata(cited, tmp_path)
    holds(found)
    assert found["creators"] == [
        {"name": "Curie, Marie", "nameType": "Personal", "familyName": "Curie", "givenName": "Marie"},
        {"name": "Lake Hospital", "nameType": "Organizational"},
    ]
    assert found["publisher"] == {"name": "University of Lake"}
    assert "Curie, Marie; Lake Hospital (2027)." in card(cited)


# --- Texts of others -----------------------------------------------------------------------------------

RENDER = MarkdownIt("gfm-like", {"linkify": False})


def elements(text: str) -> set[str]:
    return {token.tag for token in RENDER.parse(text) for token in (token, *(token.children or ()))} - {""}


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_law_an_escaped_text_is_text(text: str) -> None:
    plain = safe_text(text, 500)
    shown = RENDER.parse(escaped(text))
    if not plain:
        return
    assert [t.type for t in shown] == ["paragraph_open", "inline", "paragraph_close"]
    children = shown[1].children or []
    assert {c.type for c in children} <= {"text", "text_special"}
    assert "".join(c.content for c in children) == plain


@pytest.mark.parametrize(
    "text",
    [
        "# x",
        "1. x",
        "12) x",
        "* x",
        "- x",
        "+ x",
        "> x",
        "~~~",
        "```",
        "---",
        "===",
        "| a | b |",
        "[a]: b",
        "&lt;",
        "a\\",
    ],
)
def test_what_begins_a_block_begins_none(text: str) -> None:
    assert elements(escaped(text)) == {"p"}


def test_hostile_texts_are_harmless_in_the_card(edition: Edition, tmp_path: Path) -> None:
    evil = replace(
        edition,
        study=edition.study.model_copy(update={"title": EVIL[:200]}),
        sites=(*edition.sites[:3], SiteSummary(site="west", state="refused", detail=EVIL)),
        withdrawn=(Tombstone(site="east", at=NOW, reason=EVIL, versions=(1,)),),
        citation=Citation(creators=(EVIL, ""), publisher=EVIL),
        harmonized=replace(
            edition.harmonized,
            background=(BackgroundSource(kind="titles", detail=EVIL, content="a" * 64),),
            calibration=Calibration(0.0, 0.0, 0.0, 0, 0.0),
        ),
    )
    text = card(evil)
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert "<script" not in html
    assert "<img" not in html
    assert "<a " not in html
    assert "\u202e" not in text
    assert elements(text) == elements(card(edition))
    holds(metadata(evil, tmp_path))
