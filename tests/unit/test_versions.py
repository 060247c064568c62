"""Versions beside each other: what changed, what is known of why, and that what was published stays as it was."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from coordinator import publish
from coordinator.cli import app
from coordinator.exports.table import Entry, PublishedMap
from coordinator.exports.writing import export_release
from coordinator.library import Library
from coordinator.mapping import Candidate, KnownPair
from coordinator.reviewed import Reviewed
from coordinator.versions.causes import find_causes
from coordinator.versions.clusters import cluster_changes
from coordinator.versions.diff import KINDS, Change, Difference, compare
from coordinator.versions.listing import COLUMNS, difference_csv
from protocol.errors import ProtocolError, RoundError, UsageError
from protocol.messages import BackgroundSource, PublishedManifest, SiteSummary, Tombstone
from protocol.published import sign_manifest
from protocol.study import StudySpec, parse_study
from tests.copying import copy_folder
from tests.hub import Hub, releases
from tests.unit.test_withdrawal import leave

NOW = datetime(2027, 1, 1, tzinfo=UTC)
RUNNER = CliRunner()


# --- Made maps -----------------------------------------------------------------------------------------


def study(**changes: Any) -> StudySpec:
    return parse_study(
        {
            "id": "unit",
            "sites": ["lake", "north", "west"],
            "standard": "ICD10CM",
            "code_systems": [{"prefix": "ICD10CM"}, {"prefix": "WEST", "local_to": "west"}],
            **changes,
        },
        "unit",
    )


def site(name: str, release: int = 1, state: str = "received", detail: str = "") -> SiteSummary:
    if state != "received":
        return SiteSummary(site=name, state=state, detail=detail)
    return SiteSummary(site=name, state="received", sequence=release, manifest_digest=f"{release:064x}")


def row(code: str, target: str = "", probability: float = 0.5, **changes: Any) -> Entry:
    own = code == target
    values: dict[str, Any] = {
        "code": code,
        "sites": ("lake",),
        "cluster": 0,
        "posterior": 1.0,
        "probability": 1.0 if own else probability if target else 0.0,
        "anchored": False,
        "given": own,
        "standard_code": target,
        "similarity": 0.5,
        "candidates": (),
        "evidence": (),
        "name": "",
        "kinship": None,
        "category": "condition",
    }
    return Entry(**(values | changes))


def published(number: int, entries: list[Entry], **changes: Any) -> PublishedMap:
    spec = changes.pop("study", study())
    manifest = PublishedManifest(
        study=spec.stated,
        study_digest=spec.digest,
        round="r1",
        version=number,
        created=NOW,
        software=changes.pop("software", "smile 1"),
        codes=len(entries),
        clusters=len({e.cluster for e in entries}),
        sites=changes.pop("sites", (site("lake"), site("north"), site("west"))),
        files=(),
        **changes,
    )
    return PublishedMap(manifest, spec, tuple(sorted(entries, key=lambda e: e.code)))


def only(found: Difference) -> Change:
    (change,) = found.changes
    return change


def kinds(change: Change) -> list[tuple[str, str]]:
    return [(cause.kind, cause.about) for cause in change.why]


STANDARD = [row("ICD10CM:A", "ICD10CM:A"), row("ICD10CM:B", "ICD10CM:B")]


def test_the_same_map_has_not_changed() -> None:
    one = published(1, [*STANDARD, row("WEST:1", "ICD10CM:A")])
    found = compare(one, one)
    assert found.changes == found.clusters == ()
    assert [c.kind for c in found.causes] == ["refit"]
    assert found.unchanged == 3


def test_a_fit_that_moves_a_code_is_called_a_refit() -> None:
    before = published(1, [*STANDARD, row("WEST:1", "ICD10CM:A", 0.8, sites=("west",))])
    after = published(
        2,
        [*STANDARD, row("WEST:1", "ICD10CM:B", 0.7, sites=("west",))],
        sites=(site("lake", 2), site("north"), site("west")),
    )
    found = compare(before, after)
    change = only(found)
    assert (change.kind, change.before.standard_code, change.after.standard_code) == (
        "target",
        "ICD10CM:A",
        "ICD10CM:B",
    )
    assert change.moved == pytest.approx(-0.1)
    # Another site's release changed, and nothing says that this moved the code.
    assert kinds(change) == [("refit", "")]
    assert [(c.kind, c.about) for c in found.causes] == [("new-release", "lake")]


def test_a_code_of_a_site_that_joined() -> None:
    before = published(1, STANDARD, sites=(site("lake"), site("north"), site("west", state="missing")))
    after = published(2, [*STANDARD, row("WEST:1", "ICD10CM:A", sites=("west",))])
    assert kinds(only(compare(before, after))) == [("site-joined", "west")]
    assert kinds(only(compare(after, before))) == [("site-missing", "west")]


def test_a_code_whose_only_holder_withdrew_takes_mappings_with_it() -> None:
    before = published(
        1, [*STANDARD, row("ICD10CM:C", "ICD10CM:C", sites=("west",)), row("WEST:1", "ICD10CM:C")]
    )
    gone = Tombstone(site="west", at=NOW, reason="Consent ended", versions=(1,))
    after = published(
        2,
        [*STANDARD, row("WEST:1", "ICD10CM:B")],
        sites=(site("lake"), site("north"), site("west", state="withdrawn")),
        withdrawn=(gone,),
    )
    found = {c.code: c for c in compare(before, after).changes}
    assert kinds(found["ICD10CM:C"]) == [("site-withdrew", "west")]
    assert "2027-01-01: Consent ended" in found["ICD10CM:C"].why[0].detail
    # Its target cannot have stayed: that is known, not guessed.
    assert kinds(found["WEST:1"]) == [("site-withdrew", "west")]
    assert "its former standard code ICD10CM:C is gone" in found["WEST:1"].why[0].detail


def test_a_code_that_a_new_release_does_not_hold() -> None:
    before = published(1, [*STANDARD, row("WEST:1", sites=("west",))])
    after = published(2, STANDARD, sites=(site("lake"), site("north"), site("west", 2)))
    change = only(compare(before, after))
    assert kinds(change) == [("new-release", "west")]
    assert "too few patients, or it does not occur any more" in change.why[0].detail


def test_a_refused_release_is_named_with_its_reason() -> None:
    before = published(1, [*STANDARD, row("WEST:1", sites=("west",))])
    after = published(
        2, STANDARD, sites=(site("lake"), site("north"), site("west", state="refused", detail="Too noisy"))
    )
    assert only(compare(before, after)).why[0].detail == "the release of west was refused: Too noisy"


def test_mapped_unmapped_given_and_probability() -> None:
    before = [
        row("WEST:1"),
        row("WEST:2", "ICD10CM:A"),
        row("WEST:3", "ICD10CM:A"),
        row("WEST:4", "ICD10CM:A", 0.5),
    ]
    after = [
        row("WEST:1", "ICD10CM:A"),
        row("WEST:2"),
        row("WEST:3", "ICD10CM:A", 1.0, anchored=True, given=True),
        row("WEST:4", "ICD10CM:A", 0.6),
    ]
    one, two = published(1, [*STANDARD, *before]), published(2, [*STANDARD, *after])
    found = compare(one, two)
    assert [(c.code, c.kind) for c in found.changes] == [
        ("WEST:2", "unmapped"),
        ("WEST:1", "mapped"),
        ("WEST:3", "given"),
        ("WEST:4", "probability"),
    ]
    assert kinds(found.changes[2]) == [("given", "")]
    assert found.counts == dict.fromkeys(KINDS, 0) | {
        "unmapped": 1, "mapped": 1, "given": 1, "probability": 1, "split": 0, "merged": 0, "unchanged": 2,
    }  # fmt: skip
    assert "WEST:4" not in {c.code for c in compare(one, two, step=0.11).changes}


def pair(right: str) -> KnownPair:
    return KnownPair("ICD10CM:B", right, "similar", 0.9, "experts")


def candidate(code: str, *pairs: KnownPair) -> Candidate:
    return Candidate(code=code, name="", share=0.5, similarity=0.5, clues={}, pairs=pairs, sources={})


def test_a_new_known_pair_is_a_reason_where_both_versions_tell_the_pairs() -> None:
    with_knowledge = BackgroundSource(kind="knowledge", detail="1 pair", content="a" * 64)
    more = BackgroundSource(kind="knowledge", detail="2 pairs", content="b" * 64)
    none = published(1, [*STANDARD, row("WEST:1", "ICD10CM:A", candidates=(candidate("ICD10CM:A"),))])
    hidden = published(
        1,
        [*STANDARD, row("WEST:1", "ICD10CM:A", candidates=(candidate("ICD10CM:A"),))],
        background=(with_knowledge,),
    )
    told = published(
        2,
        [*STANDARD, row("WEST:1", "ICD10CM:B", candidates=(candidate("ICD10CM:B", pair("WEST:1")),))],
        background=(more,),
    )
    assert kinds(only(compare(none, told))) == [("known-pairs", "ICD10CM:B")]
    # ICD10CM:B was no candidate before: whether the pair was known then, the release does not say.
    assert kinds(only(compare(hidden, told))) == [("refit", "")]
    assert [c.about for c in compare(hidden, told).causes] == ["knowledge"]
    kept = replace(
        told.entries[-1], standard_code="ICD10CM:B", candidates=(candidate("ICD10CM:B"),), probability=0.9
    )
    later = published(3, [*STANDARD, kept], background=(more,))
    assert kinds(only(compare(told, later))) == [("known-pairs", "ICD10CM:B")]


def test_what_reviewers_say_is_a_change_and_a_reason() -> None:
    said = Reviewed("WEST:1", "ICD10CM:B", "accept", "accepted", "exact", 1, ("reviewer-1",), False, NOW)
    entries = [*STANDARD, row("WEST:1", "ICD10CM:A")]
    before, after = published(1, entries), replace(published(2, entries), reviews={"WEST:1": (said,)})
    change = only(compare(before, after))
    assert (change.kind, kinds(change)) == ("reviewed", [("reviewed", "WEST:1")])
    assert change.why[0].detail == "reviewers say: accept ICD10CM:B"
    assert only(compare(after, before)).why[0].detail == "reviewers took back what they said"
    moved = replace(published(3, [*STANDARD, row("WEST:1", "ICD10CM:B", 0.9)]), reviews={"WEST:1": (said,)})
    assert (only(compare(before, moved)).kind, kinds(only(compare(before, moved)))[0]) == (
        "target",
        ("reviewed", "WEST:1"),
    )
    assert kinds(only(compare(after, moved))) == [("refit", "")]


def test_causes_name_fields_of_the_study_software_and_background() -> None:
    before = published(
        1, STANDARD, background=(BackgroundSource(kind="titles", detail="5", content="a" * 64),)
    )
    after = published(2, STANDARD, study=study(minimum_sites=2), software="smile 2")
    found = {(c.kind, c.about): c.detail for c in find_causes(before.manifest, after.manifest)}
    assert found == {
        ("study", "minimum_sites"): "minimum_sites was 3 and is 2",
        ("background", "titles"): "titles was left out; it was: 5",
        ("software", ""): "made by smile 2, before by smile 1",
    }


def test_local_codes_that_the_study_no_longer_shows() -> None:
    before = published(1, [*STANDARD, row("WEST:1", "ICD10CM:A", sites=("west",))])
    after = published(2, STANDARD, study=study(publish_local_codes="own-site"))
    assert kinds(only(compare(before, after))) == [("study", "publish_local_codes")]


def test_versions_of_two_studies_or_audiences_are_not_compared() -> None:
    one = published(1, STANDARD)
    with pytest.raises(UsageError, match="version 2 of other"):
        compare(one, published(2, STANDARD, study=study(id="other")))
    with pytest.raises(UsageError, match="the other for west"):
        compare(one, published(2, STANDARD, audience="west"))


# --- Laws ----------------------------------------------------------------------------------------------

labels = st.dictionaries(st.sampled_from([f"WEST:{i}" for i in range(12)]), st.integers(0, 4), min_size=1)


@given(labels, labels, st.permutations(range(5)))
@settings(max_examples=100, deadline=None)
def test_law_clusters_are_compared_by_members_and_splits_turned_round_are_mergers(
    old: dict[str, int], new: dict[str, int], order: list[int]
) -> None:
    before = [row(c, cluster=k) for c, k in old.items()]
    after = [row(c, cluster=k) for c, k in new.items()]
    renumbered = [row(c, cluster=order[k]) for c, k in new.items()]
    forth, back = cluster_changes(before, after), cluster_changes(after, before)
    assert {(c.kind, frozenset(c.parts)) for c in cluster_changes(before, renumbered)} == {
        (c.kind, frozenset(c.parts)) for c in forth
    }
    turned = {"split": "merged", "merged": "split"}
    assert {(turned[c.kind], frozenset(c.parts)) for c in back} == {
        (c.kind, frozenset(c.parts)) for c in forth
    }
    for change in forth:
        assert len(change.parts) > 1
        assert {c for part in change.parts for c in part} <= old.keys() & new.keys()


@given(labels, labels)
@settings(max_examples=50, deadline=None)
def test_law_every_code_is_in_one_place(old: dict[str, int], new: dict[str, int]) -> None:
    targets = ("", "ICD10CM:A", "ICD10CM:B", "ICD10CM:A", "ICD10CM:B")
    before = published(1, [row(c, targets[k], k / 5) for c, k in old.items()])
    after = published(2, [row(c, targets[k], k / 5) for c, k in new.items()])
    found, back = compare(before, after), compare(after, before)
    assert len({c.code for c in found.changes}) == len(found.changes)
    assert all(c.why for c in found.changes)
    assert len(found.changes) + found.unchanged == len(old.keys() | new.keys())
    assert {c.code for c in found.changes} == {c.code for c in back.changes}
    assert {c.code for c in found.changes if c.kind == "added"} == {
        c.code for c in back.changes if c.kind == "removed"
    }


# --- A coordinator's versions --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """Two versions: three sites, then four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "write_report", lambda path, *_: path.write_text("report"))
        hub = Hub(tmp_path_factory.mktemp("versions"))
        hub.enrol("lake", "north", "south", "west")
        hub.run_round(releases(("lake", "north", "south")), "r1")
        hub.run_round(releases(), "r2")
    return hub


@pytest.fixture
def hub(template: Hub, tmp_path: Path) -> Hub:
    copy_folder(template.folder, tmp_path / "copy")
    hub = object.__new__(Hub)
    hub.folder, hub.study = tmp_path / "copy", template.study
    hub.key_of, hub.last = template.key_of, dict(template.last)
    hub.home = type(template.home)(tmp_path / "copy" / "hub")
    return hub


def run(hub: Hub, *words: str) -> Any:
    return RUNNER.invoke(app, [*words, "--home", str(hub.home.folder)], env={"COLUMNS": "200"})


def test_versions_form_a_chain(hub: Hub) -> None:
    library = Library(hub.home)
    one, two = (library.open(n).manifest for n in (1, 2))
    assert (one.previous, two.previous) == ("", one.digest)
    for version in library.versions():
        library.check(version)


def test_diff_names_the_site_that_joined(hub: Hub) -> None:
    found = json.loads(run(hub, "diff", "1", "2", "--json").stdout)
    assert {"kind": "site-joined", "about": "west"}.items() <= found["causes"][-1].items()
    added = [c for c in found["changes"] if c["change"] == "added"]
    assert len(added) == found["counts"]["added"] == 15
    assert {w["kind"] for c in added for w in c["why"]} == {"site-joined"}


def test_diff_for_people_and_as_csv(hub: Hub, tmp_path: Path) -> None:
    result = run(hub, "diff", "1", "2", "--csv", str(tmp_path / "changes.csv"))
    assert result.exit_code == 0, result.output
    assert "west has a release in version 2 (missing before)" in result.stdout
    rows = list(csv.DictReader((tmp_path / "changes.csv").open()))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) >= 15
    assert {r["because"] for r in rows if r["change"] == "added"} == {"site-joined"}
    assert run(hub, "diff", "1", "2", "--csv", str(tmp_path)).exception.exit_code == 2


def test_an_unknown_version_is_named(hub: Hub) -> None:
    error = run(hub, "diff", "1", "7").exception
    assert isinstance(error, UsageError)
    assert "published are: 1, 2" in str(error)


def test_versions_are_listed_with_their_state(hub: Hub) -> None:
    leave(hub)
    found = json.loads(run(hub, "versions", "--verify", "--json").stdout)
    assert [(v["version"], v["state"], v["check"]) for v in found] == [
        (1, "stands", "holds"),
        (2, "withdrawn", "holds"),
        (3, "stands", "holds"),
    ]


def test_a_withdrawn_version_is_compared_and_marked_so(hub: Hub) -> None:
    leave(hub)
    found = json.loads(run(hub, "diff", "2", "3", "--json").stdout)
    assert (found["before"]["withdrawn"], found["after"]["withdrawn"]) == (["west"], [])
    assert ("site-withdrew", "west") in {(c["kind"], c["about"]) for c in found["causes"]}
    gone = [c for c in found["changes"] if c["change"] == "removed"]
    assert {c["code"] for c in gone} >= {"WEST:0"}
    assert "was withdrawn" in run(hub, "diff", "2", "3").stdout


def test_an_erased_version_says_so(hub: Hub) -> None:
    leave(hub, erase=True)
    error = run(hub, "diff", "2", "3").exception
    assert isinstance(error, ProtocolError)
    assert "The files of version 2 were erased" in str(error)
    assert [v["check"] for v in json.loads(run(hub, "versions", "--verify", "--json").stdout)][1] == "erased"


def altered(folder: Path) -> None:
    path = folder / "clusters.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_version_that_was_altered_is_refused_everywhere(hub: Hub, tmp_path: Path) -> None:
    folder = hub.home.release_folder(1)
    altered(folder)
    library = Library(hub.home)
    for attempt in (
        lambda: library.open(1),
        lambda: library.read_map(1),
        lambda: export_release(folder, tmp_path / "x", "csv", trust=hub.home.keys.public()),
        lambda: export_release(folder, tmp_path / "x", "sssom", trust=hub.home.keys.public()),
    ):
        with pytest.raises(ProtocolError, match="altered"):
            attempt()
    assert isinstance(run(hub, "diff", "1", "2").exception, ProtocolError)
    checked = run(hub, "versions", "--verify", "--json")
    assert "altered" in json.loads(checked.stdout)[0]["check"]
    assert isinstance(checked.exception, ProtocolError)
    assert library.open(2).manifest.version == 2


def test_a_signature_does_not_let_another_manifest_take_a_version_s_place(hub: Hub) -> None:
    """Even the coordinator's key cannot make a published number mean something else."""
    folder, library = hub.home.release_folder(1), Library(hub.home)
    manifest = library.read_map(1).manifest
    sign_manifest(folder, manifest.model_copy(update={"software": "another"}), hub.home.keys)
    for attempt in (lambda: library.open(1), lambda: library.read_map(1)):
        with pytest.raises(ProtocolError, match="is not the one that was published"):
            attempt()


def test_a_version_is_never_published_over_another(hub: Hub) -> None:
    from coordinator import rounds
    from coordinator.harmonize import load_fit

    found = rounds.accepted_releases(hub.home, hub.store, "r2")
    fitted = load_fit(hub.home.fit_path("r2"), found, hub.home.study)
    edition = publish.make_edition(hub.home, hub.store, "r2", found, fitted, created=NOW)
    before = Library(hub.home).version(2).digest
    with pytest.raises(RoundError, match="no longer follows"):
        publish.publish(hub.home, hub.store, replace(edition, version=2, previous="0" * 64))
    Library(hub.home).check(Library(hub.home).version(2))
    assert Library(hub.home).version(2).digest == before


def test_later_rounds_leave_older_versions_as_they_are(hub: Hub) -> None:
    before = {p: p.read_bytes() for p in hub.home.release_folder(1).rglob("*") if p.is_file()}
    hub.fresh()
    hub.run_round(releases(), "r3")
    assert {p: p.read_bytes() for p in hub.home.release_folder(1).rglob("*") if p.is_file()} == before


def test_hostile_texts_are_harmless(tmp_path: Path) -> None:
    evil = ["WEST:=HYPERLINK(1)", "WEST:[red]x[/]", "WEST:<script>alert(1)</script>"]
    detail = "[/bold] \x1b[31m=1+1 \u202eevil"
    before = published(
        1, STANDARD, sites=(site("lake"), site("north"), site("west", state="refused", detail=detail))
    )
    after = published(
        2, [*STANDARD, *(row(c, "ICD10CM:A", sites=("west",), name="=cmd|' /C calc'!A0") for c in evil)]
    )
    found = compare(before, after)
    cells = [c for r in csv.reader(io.StringIO(difference_csv(found).decode())) for c in r]
    assert not [c for c in cells if c.lstrip()[:1] in {"=", "+", "-", "@"}]
    from coordinator.cli_versions import _show
    from protocol.console import out

    with out.capture() as captured:
        _show(found)
        _show(compare(after, before))
    shown = captured.get()
    assert "[red]x[/]" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
