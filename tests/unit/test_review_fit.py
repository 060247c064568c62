"""What people settled enters the next fit as pairs, outlives it, and stands apart from the model in the release."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sssom_pydantic as sssom

from coordinator.background import Background
from coordinator.candidates import rank_nearest
from coordinator.decided import Cells
from coordinator.estimate import Supplement, estimate
from coordinator.exports.usagi import write_usagi
from coordinator.exports.vocabulary import Concept, Vocabulary
from coordinator.harmonize import fit_releases
from coordinator.knowledge.build import Build
from coordinator.knowledge.decided import with_settled
from coordinator.knowledge.merge import PAIRS
from coordinator.library import Library, OpenRelease
from coordinator.review import Reviews
from coordinator.settled import NOTHING_SETTLED, Settled, without_anchors
from coordinator.union import build_union
from protocol.errors import ProtocolError
from protocol.published import verify_folder
from protocol.release import VerifiedRelease
from protocol.study import StudySpec
from tests.copying import copy_folder
from tests.hub import Hub, releases
from tests.synthetic import release, unit_rows, verified

REJECTED, ACCEPTED, NONE = "WEST:10", "WEST:11", "WEST:12"
ANCHORED, DENIED, OPEN = "WEST:1", "WEST:2", "WEST:13"
A, B, C = "ICD10CM:C10", "ICD10CM:C40", "ICD10CM:C30"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """Version 1, decisions on it, and version 2 from a second round."""
    made = Hub(tmp_path_factory.mktemp("refit"))
    made.enrol("lake", "north", "south", "west")
    made.run_round(releases(), "r1")
    reviews = Reviews(made.home, made.store)
    reviews.decide(reviewer="ann", code=REJECTED, target=A, verdict="reject", comment="not to be published")
    reviews.decide(reviewer="ann", code=ACCEPTED, target=B, verdict="accept")
    reviews.decide(reviewer="bob", code=NONE, target="", verdict="accept")
    reviews.decide(reviewer="ann", code=ANCHORED, target=C, verdict="accept")
    reviews.decide(reviewer="ann", code=DENIED, target="ICD10CM:C02", verdict="reject")
    reviews.decide(reviewer="ann", code=OPEN, target=A, verdict="accept")
    reviews.decide(reviewer="bob", code=OPEN, target=B, verdict="accept")
    made.run_round(releases(), "r2")
    return made


@pytest.fixture(scope="module")
def second(hub: Hub) -> OpenRelease:
    return Library(hub.home).open(2)


def test_a_rejected_target_is_not_the_next_one_and_an_accepted_one_is(hub: Hub, second: OpenRelease) -> None:
    first = Library(hub.home).open(1)
    assert first.entry(REJECTED).standard_code == A
    assert A not in {c.code for c in second.entry(REJECTED).candidates}
    assert second.entry(REJECTED).standard_code
    assert first.entry(ACCEPTED).standard_code != B
    assert second.entry(ACCEPTED).standard_code == B
    assert (second.entry(NONE).standard_code, second.entry(NONE).candidates) == ("", ())


def test_people_overrule_anchors(hub: Hub, second: OpenRelease) -> None:
    assert Library(hub.home).open(1).entry(ANCHORED).given
    assert (second.entry(ANCHORED).standard_code, second.entry(ANCHORED).given) == (C, False)
    assert not second.entry(DENIED).given
    assert second.entry(DENIED).standard_code != "ICD10CM:C02"
    assert "2 anchors of sites were not used" in (second.folder / "report.html").read_text()


def test_what_is_in_conflict_says_nothing_to_a_fit(second: OpenRelease) -> None:
    assert second.entry(OPEN).standard_code not in {A, B}


def test_the_model_s_own_belief_is_kept_apart(second: OpenRelease) -> None:
    """The accepted target leads, with the share that the data give it, and its pair names who says so."""
    found = second.entry(ACCEPTED).candidates
    assert found[0].share < 0.01 < found[1].share
    assert [p.source for p in found[0].pairs] == ["review"]


def test_exports_follow_people_in_what_a_target_is(second: OpenRelease) -> None:
    """An accepted mapping is exact, however improbable, and no threshold takes it away."""
    kept = {e.code: e for e in second.map.at_least(0.9).entries}
    assert (kept[ACCEPTED].standard_code, kept[ACCEPTED].predicate) == (B, "skos:exactMatch")
    assert (kept[REJECTED].standard_code, second.entry(REJECTED).accepted) == ("", None)
    assert replace(kept[ACCEPTED], accepted="broad").predicate == "skos:broadMatch"


def test_the_release_says_what_the_fit_was_given(second: OpenRelease) -> None:
    (source,) = (s for s in second.manifest.background if s.kind == "reviews")
    assert source.detail.startswith(
        "3 codes with a standard code that reviewers accepted (1 of them with none), 2 targets"
    )


def test_reviews_stand_in_a_file_of_their_own(second: OpenRelease) -> None:
    rows = {r["code"]: r for r in pq.read_table(second.folder / "reviews.parquet").to_pylist()}
    assert {c: (r["verdict"], r["target"], r["state"]) for c, r in rows.items() if c != OPEN} == {
        REJECTED: ("reject", A, "rejected"),
        ACCEPTED: ("accept", B, "accepted"),
        NONE: ("accept", "", "accepted"),
        ANCHORED: ("accept", C, "accepted"),
        DENIED: ("reject", "ICD10CM:C02", "rejected"),
    }
    assert rows[OPEN]["state"] == "conflict"
    assert rows[NONE]["reviewed_by"] == ["reviewer-2"]
    assert second.map.reviews[ACCEPTED][0].reviewed_by == ("reviewer-1",)
    for path in second.folder.rglob("*"):
        if path.is_file():
            assert b"not to be published" not in path.read_bytes()


def test_sssom_keeps_people_apart_from_the_model(second: OpenRelease) -> None:
    rows = sssom.read(second.folder / "mappings.sssom.tsv").mappings
    said = [r for r in rows if r.justification.curie == "semapv:MappingReview"]
    assert {(r.subject.curie, r.object.curie, r.predicate_modifier) for r in said} == {
        (REJECTED, A, "Not"),
        (ACCEPTED, B, None),
        (NONE, "sssom:NoTermFound", None),
        (ANCHORED, C, None),
        (DENIED, "ICD10CM:C02", "Not"),
    }
    assert all(r.confidence is None and r.reviewers and r.review_date for r in said)
    others = [r for r in rows if r.justification.curie != "semapv:MappingReview"]
    assert len(others) == 15
    assert all(r.confidence is not None and not r.reviewers for r in others)


def test_usagi_statuses_come_from_reviews(second: OpenRelease) -> None:
    concepts = {
        f"ICD10CM:C{k:02d}": Concept(1000 + k, f"c{k}", "Condition", "ICD10CM", standard=True)
        for k in range(60)
    }
    concepts[C] = replace(concepts[C], invalid="D")
    data = write_usagi(second.map, Vocabulary(concepts)).decode()
    rows = list(csv.DictReader(io.StringIO(data), escapechar="\\"))
    kinds = {
        f"WEST:{r['sourceCode']}": (r["mappingStatus"], r["equivalence"], r["statusSetBy"], r["conceptId"])
        for r in rows
    }
    assert kinds[ACCEPTED] == ("APPROVED", "EQUIVALENT", "reviewer-1", "1040")
    assert kinds[NONE] == ("APPROVED", "UNMATCHED", "reviewer-2", "0")
    assert kinds[ANCHORED] == ("INVALID_TARGET", "UNREVIEWED", "reviewer-1", "1030")
    assert kinds[OPEN][:2] == ("FLAGGED", "UNREVIEWED")
    # The next target of a code whose target was rejected is nobody's decision yet.
    assert kinds[REJECTED][0] == "UNCHECKED"
    decided = second.map.reviews[ACCEPTED][0].decided
    assert {r["statusSetOn"] for r in rows if r["sourceCode"] == "11"} == {
        str(int(decided.timestamp() * 1000))
    }
    # Where a version was fitted before the decision, its own target is shown as rejected.
    said = replace(second.map.reviews[REJECTED][0], target=second.entry(REJECTED).standard_code)
    data = write_usagi(replace(second.map, reviews={REJECTED: (said,)}), Vocabulary(concepts)).decode()
    assert (
        next(r for r in csv.DictReader(io.StringIO(data), escapechar="\\") if r["sourceCode"] == "10")[
            "mappingStatus"
        ]
        == "INVALID_TARGET"
    )


def test_decisions_outlive_refits_and_versions(hub: Hub) -> None:
    reviews = Reviews(hub.fresh(), hub.store)
    assert reviews.standing(ACCEPTED).target == B
    assert reviews.history(ACCEPTED)[0].version == 1
    reviews.decide(reviewer="ann", code=ACCEPTED, target=B, verdict="accept", version=2)
    assert [r.version for r in reviews.history(ACCEPTED)] == [1, 2]
    assert reviews.verify().records == 8


def test_fits_can_do_without_reviews(hub: Hub) -> None:
    from coordinator.fitting import fit_round

    path = hub.home.folder / "coordinator.toml"
    before = path.read_text()
    path.write_text('reviews = "none"\n' + before)
    try:
        found = {r.code: r for r in fit_round(hub.fresh(), hub.store, "r2").mappings.rows}
    finally:
        path.write_text(before)
    assert found[REJECTED].standard_code == A
    assert found[ANCHORED].given


def test_a_fit_is_not_made_with_a_log_that_was_altered(hub: Hub, tmp_path: Path) -> None:

    from sqlalchemy import text

    from coordinator.config import Home
    from coordinator.fitting import fit_round
    from coordinator.store import Store

    copy_folder(hub.home.folder, tmp_path / "hub")
    home = Home(tmp_path / "hub")
    with Store(home.database_url).begin() as session:
        session.execute(text("delete from review_record where number = 2"))
    with pytest.raises(ProtocolError, match="review log"):
        fit_round(home, Store(home.database_url), "r2")


# --- Without a hub -------------------------------------------------------------------------------------

N = 80
LOCAL = [f"SOUTH:{i:03d}" for i in range(N)]
STANDARD = [f"ICD10CM:Q{i:02d}" for i in range(N)]


def small(n_anchors: int) -> tuple[StudySpec, list[VerifiedRelease]]:
    rng = np.random.default_rng(3)
    study = StudySpec.model_validate(
        {
            "id": "unit",
            "sites": ["south", "north"],
            "standard": "ICD10CM",
            "minimum_sites": 2,
            "code_systems": [{"prefix": "ICD10CM"}, {"prefix": "SOUTH", "local_to": "south"}],
        }
    )
    rows = unit_rows(rng, N, 6)
    turn, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    anchors = dict(zip(LOCAL[:n_anchors], STANDARD, strict=False))
    mine = release("south", LOCAL, rows @ turn, spec=study, anchors=anchors)
    return study, [verified(mine), verified(release("north", STANDARD, rows, spec=study))]


def test_hidden_anchors_are_not_told_by_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the fits that calibration learns from, nothing of a hidden code is settled; of all other codes everything is."""
    from coordinator import harmonize as module

    study, given = small(60)
    settled = Settled({code: STANDARD[i] for i, code in enumerate(LOCAL)})
    seen: list[tuple[set[str], set[str]]] = []
    real = estimate

    def spy(fewer: Sequence[VerifiedRelease], *rest: object, **more: object) -> object:
        supplement = next(r for r in rest if isinstance(r, Supplement))
        kept = {r.manifest.codes[a.row] for r in fewer for a in r.manifest.anchors}
        seen.append((kept, set(supplement.settled.accepted)))
        return real(fewer, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "estimate", spy)
    found = fit_releases(given, study, background=Background(settled=settled))
    assert found.calibration.n == 60
    assert seen[0] == (set(LOCAL[:60]), set(LOCAL))
    for kept, told in seen[1:]:
        hidden = set(LOCAL[:60]) - kept
        assert len(hidden) == 12
        assert told == set(LOCAL) - hidden
    # Every code has the target that people settled; the probability is the model's own.
    rows = {r.code: r for r in found.mappings.rows}
    assert all(rows[code].standard_code == STANDARD[i] for i, code in enumerate(LOCAL))


def test_reviews_enter_the_joint_fit_too() -> None:
    study, given = small(20)
    joint = study.model_copy(update={"fit": study.fit.model_copy(update={"method": "variational"})})
    settled = Settled({LOCAL[40]: STANDARD[2], LOCAL[41]: ""}, frozenset({(LOCAL[42], STANDARD[42])}))
    rows = {
        r.code: r for r in fit_releases(given, joint, background=Background(settled=settled)).mappings.rows
    }
    assert rows[LOCAL[40]].standard_code == STANDARD[2]
    assert rows[LOCAL[41]].standard_code == ""
    assert rows[LOCAL[42]].standard_code not in {"", STANDARD[42]}


def test_people_go_before_knowledge_files() -> None:
    pair = {"code_1": "A:1", "code_2": "S:1", "kind": "similar", "weight": 0.9, "sources": ["file"]}
    known = Build(
        pa.Table.from_pylist([{**pair, "label": True}, {**pair, "code_1": "A:2", "label": True}], PAIRS), {}
    )
    joined = with_settled(known, Settled({"A:3": "S:3", "A:4": ""}, frozenset({("A:1", "S:1")})))
    assert joined is not None
    rows = {(r["code_1"], r["code_2"]): (r["label"], r["sources"]) for r in joined.pairs.to_pylist()}
    assert rows == {
        ("A:1", "S:1"): (False, ["review"]),
        ("A:2", "S:1"): (True, ["file"]),
        ("A:3", "S:3"): (True, ["review"]),
    }
    assert with_settled(known, NOTHING_SETTLED) is known
    assert with_settled(None, NOTHING_SETTLED) is None


def test_anchors_that_people_deny_are_taken_out() -> None:
    _, given = small(5)
    settled = Settled(
        {LOCAL[0]: STANDARD[9], LOCAL[1]: STANDARD[1], LOCAL[2]: ""}, frozenset({(LOCAL[3], STANDARD[3])})
    )
    over = settled.overruled(given)
    assert [code for code, _ in over] == [LOCAL[0], LOCAL[2], LOCAL[3]]
    assert [a.row for a in without_anchors(given, over)[0].manifest.anchors] == [1, 4]
    assert without_anchors(given, ()) == tuple(given)


def test_rows_of_decisions_follow_the_spelling_of_the_release() -> None:
    spec = {"sites": ["south", "north"], "standard": "ICD10CM", "minimum_sites": 2, "id": "unit"}
    study = StudySpec.model_validate({**spec, "code_systems": [{"prefix": "ICD10CM"}, {"prefix": "ICD9CM"}]})
    rows = unit_rows(np.random.default_rng(0), 2, 3)
    given = [
        verified(release("south", ["ICD9CM:25000", "ICD9CM:4019"], rows, spec=study)),
        verified(release("north", ["ICD10CM:E119", "ICD10CM:I10"], rows, spec=study)),
    ]
    union = build_union(given, standard="ICD10CM", require_links=False)
    cells = Settled({"ICD9CM:250.00": "ICD10CM:E11.9", "ICD9CM:401.9": ""}).cells(union)
    at = {code: int(row) for code, row in zip(union.codes, union.row, strict=True)}
    assert cells.same.tolist() == [[at["ICD9CM:25000"], at["ICD10CM:E119"]]]
    assert cells.none.tolist() == [at["ICD9CM:4019"]]


def test_ranking_by_vectors_heeds_decisions() -> None:
    points = unit_rows(np.random.default_rng(1), 8, 3)
    standard, kinds = np.arange(4), np.zeros(8, dtype=np.intp)
    plain = rank_nearest(points, standard, kinds)
    first, last = plain.rows[4, 0], plain.rows[4, 3]
    cells = Cells(np.array([[4, last]]), np.array([[5, plain.rows[5, 0]]]), np.array([6]))
    found = rank_nearest(points, standard, kinds, None, cells)
    assert found.rows[4].tolist()[:2] == [last, first]
    assert found.strength[4] == pytest.approx(float(points[4] @ points[last]))
    assert found.rows[5].tolist() == [*plain.rows[5, 1:4], -1, -1, -1]
    assert found.rows[6].tolist() == [-1] * 6
    assert found.rows[7].tolist() == plain.rows[7].tolist()


def test_a_settled_log_has_one_digest_whatever_its_order() -> None:
    one = Settled({"A:1": "S:1", "A:2": "S:2"}, frozenset({("A:3", "S:1"), ("A:3", "S:2")}))
    other = replace(
        one, accepted={"A:2": "S:2", "A:1": "S:1"}, wrong=frozenset({("A:3", "S:2"), ("A:3", "S:1")})
    )
    assert one.digest == other.digest != Settled({"A:1": "S:1"}).digest


def test_the_release_still_verifies(second: OpenRelease, hub: Hub) -> None:
    verify_folder(second.folder, hub.home.keys.public())
    (second.folder / "reviews.parquet").chmod(0o644)
    data = (second.folder / "reviews.parquet").read_bytes()
    (second.folder / "reviews.parquet").write_bytes(data + b" ")
    with pytest.raises(ProtocolError):
        verify_folder(second.folder, hub.home.keys.public())
    (second.folder / "reviews.parquet").write_bytes(data)
