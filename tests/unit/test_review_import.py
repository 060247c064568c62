"""Earlier maps taken over: statuses and reasons honoured, every line taken or reported, nothing twice, nothing by halves."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.config import Home
from coordinator.exports.usagi import COLUMNS, _line
from coordinator.exports.writing import export_release
from coordinator.review import Reviews
from coordinator.review.importing import Imported, import_file
from coordinator.store import Store
from protocol.errors import DataError, UsageError
from protocol.signed import sign_message
from tests.hub import Hub, releases

STUDY_MORE = '[[code_systems]]\nprefix = "DRUG"\ncategory = "drug"\n'


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.hub import STUDY

    hub = Hub(tmp_path_factory.mktemp("published"), STUDY + STUDY_MORE)
    hub.enrol("lake", "north", "south", "west")
    hub.run_round(releases(), "r1")
    return hub.home.folder


@pytest.fixture(scope="module")
def athena(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Concept 1000 + k is ICD10CM:Ck; 1059 is invalid; 5000 is of another system."""
    folder = tmp_path_factory.mktemp("athena")
    head = "concept_id concept_name domain_id vocabulary_id standard_concept concept_code valid_end_date invalid_reason"
    rows = [
        [
            str(1000 + k),
            f"concept {k}",
            "Condition",
            "ICD10CM",
            "S",
            f"C{k:02d}",
            "20991231",
            "U" if k == 59 else "",
        ]
        for k in range(60)
    ]
    rows += [["5000", "drug", "Drug", "RxNorm", "S", "1", "20991231", ""]]
    (folder / "CONCEPT.csv").write_text("\n".join("\t".join(r) for r in [head.split(), *rows]) + "\n")
    return folder


@pytest.fixture
def reviews(published: Path, tmp_path: Path) -> Reviews:
    shutil.copytree(published, tmp_path / "hub")
    home = Home(tmp_path / "hub")
    return Reviews(home, Store(home.database_url))


def usagi(path: Path, rows: list[dict[str, str]]) -> Path:
    """A file as Usagi saves it, of a source without a column for the system."""
    columns = [c for c in COLUMNS if not c.startswith("ADD_INFO")]
    lines = [_line(columns)] + [_line([row.get(c, "") for c in columns]) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def reasons(found: Imported) -> dict[int, str]:
    return {x.line: x.reason for x in found.left}


def test_usagi_statuses_and_equivalences(reviews: Reviews, athena: Path, tmp_path: Path) -> None:
    def row(code: str, status: str, concept: str = "1020", **more: str) -> dict[str, str]:
        return {
            "sourceCode": code,
            "mappingStatus": status,
            "conceptId": concept,
            "statusSetBy": "eva",
            **more,
        }

    file = usagi(
        tmp_path / "usagi.csv",
        [
            row("8", "APPROVED", equivalence="EQUAL", comment='said "yes",\nsurely'),
            row("9", "approved", equivalence="WIDER"),
            row("10", "INVALID_TARGET"),
            row("11", "FLAGGED", comment="ask ward 3"),
            row("12", "APPROVED", "0", equivalence="UNMATCHED"),
            row("13", "UNCHECKED"),
            row("14", "AUTO_MAPPED_TO_1"),
            row("20", "SIGNED_OFF"),
            row("21", "APPROVED", "nine"),
            row("22", "APPROVED", "1059"),
            row("23", "APPROVED", "5000"),
            row("24", "APPROVED", "77"),
            row("25", "INVALID_TARGET", statusSetBy=""),
            row("26", "APPROVED", equivalence="ODD"),
            row("27", "APPROVED"),
            row("27", "APPROVED", "1021"),
            row("28", "APPROVED"),
            row("28", "APPROVED"),
            row("", "APPROVED"),
        ],
    )
    with file.open("a") as stream:
        stream.write("29,too,short\n\n")
    found = import_file(reviews, file, "usagi", actor="ann", vocabulary=athena, system="WEST")
    assert found.counts() == {"accept": 3, "none": 1, "reject": 1, "unsure": 1, "note": 0}
    assert {r.line for r in found.taken} | set(reasons(found)) == set(range(2, 22))
    states = {c: (s.state, s.target, s.wrong) for c, s in reviews.standings().items()}
    target = "ICD10CM:C20"
    assert states == {
        "WEST:8": ("accepted", target, ()),
        "WEST:9": ("accepted", target, ()),
        "WEST:10": ("rejected", target, (target,)),
        "WEST:11": ("unsure", "", ()),
        "WEST:12": ("accepted", "", ()),
        "WEST:28": ("accepted", target, ()),
    }
    assert {r.code: r.relation for r in found.records if r.relation} == {"WEST:8": "exact", "WEST:9": "broad"}
    assert {r.code: r.comment for r in found.records}["WEST:8"] == 'said "yes",\nsurely; set by eva in Usagi'
    assert reviews.history("WEST:8")[0].line == 2
    assert reviews.history("WEST:8")[0].version == 1
    said = reasons(found)
    for line, part in {
        7: "UNCHECKED: nobody has decided",
        9: "'SIGNED_OFF' is no status",
        10: "'nine' is no number",
        11: "invalid (U)",
        12: "no code system of the study",
        13: "not in the vocabulary",
        14: "not by a reviewer",
        15: "no equivalence",
        16: "2 targets",
        17: "2 targets",
        19: "line 18 says the same",
        20: "An empty code",
        21: "3 cells",
    }.items():
        assert part in said[line], line
    assert reviews.verify().records == 6


def test_the_same_file_twice_imports_nothing_twice(reviews: Reviews, athena: Path, tmp_path: Path) -> None:
    rows = [
        {"sourceCode": str(k), "mappingStatus": "APPROVED", "conceptId": "1020", "statusSetBy": "eva"}
        for k in (8, 9)
    ]
    file = usagi(tmp_path / "u.csv", rows)
    first = import_file(reviews, file, "usagi", actor="ann", vocabulary=athena, system="WEST")
    assert len(first.records) == 2
    again = import_file(reviews, file, "usagi", actor="ann", vocabulary=athena, system="WEST")
    assert (again.records, again.taken) == ((), ())
    assert {x.reason for x in again.left} == {"imported before, as record 1", "imported before, as record 2"}
    # What somebody took back does not come again with the file.
    reviews.undo(reviewer="ann", number=1)
    assert not import_file(reviews, file, "usagi", actor="ann", vocabulary=athena, system="WEST").taken
    # Another person's import of the same says nothing new where it is settled.
    other = import_file(reviews, file, "usagi", actor="bob", vocabulary=athena, system="WEST")
    assert [r.code for r in other.taken] == ["WEST:8"]
    assert reasons(other) == {3: "settled so already"}
    gone = reviews.undo_import(reviewer="ann", number=2)
    assert [r.undoes for r in gone] == [2]
    with pytest.raises(UsageError, match="taken back already"):
        reviews.undo_import(reviewer="ann", number=2)


def test_a_dry_run_says_the_same_and_records_nothing(reviews: Reviews, athena: Path, tmp_path: Path) -> None:
    file = usagi(tmp_path / "u.csv", [{"sourceCode": "8", "mappingStatus": "APPROVED", "conceptId": "1020"}])
    dry = import_file(reviews, file, "usagi", actor="ann", vocabulary=athena, system="WEST", dry_run=True)
    assert not reviews.log.records()
    wet = import_file(reviews, file, "usagi", actor="ann", vocabulary=athena, system="WEST")
    assert (dry.taken, dry.left, dry.clashes, dry.records) == (wet.taken, wet.left, wet.clashes, ())


def test_contradictions_are_shown_and_taken_only_when_asked(
    reviews: Reviews, athena: Path, tmp_path: Path
) -> None:
    reviews.decide(reviewer="ann", code="WEST:8", target="ICD10CM:C30", verdict="accept")
    reviews.decide(reviewer="ann", code="WEST:9", target="ICD10CM:C20", verdict="reject")
    reviews.assign(by="carla", code="WEST:10", reviewers=["ann"])
    reviews.assign(by="carla", code="WEST:11", reviewers=["ann", "bob"])
    reviews.decide(reviewer="ann", code="WEST:11", target="ICD10CM:C30", verdict="accept")
    rows = [{"sourceCode": str(k), "mappingStatus": "APPROVED", "conceptId": "1020"} for k in (8, 9, 10, 11)]
    file = usagi(tmp_path / "u.csv", rows)
    dry = import_file(reviews, file, "usagi", actor="bob", vocabulary=athena, system="WEST", dry_run=True)
    assert [(c.code, c.state, c.known, c.by) for c in dry.clashes] == [
        ("WEST:8", "accepted", "ICD10CM:C30", (1,)),
        ("WEST:9", "rejected", "ICD10CM:C20", (2,)),
    ]
    # What ann said of a code that bob has not decided is not told; and that one is taken.
    assert [r.code for r in dry.taken] == ["WEST:11"]
    assert reasons(dry)[4] == "assigned to ann"
    import_file(reviews, file, "usagi", actor="bob", vocabulary=athena, system="WEST", with_conflicts=True)
    assert [s.code for s in reviews.conflicts()] == ["WEST:11", "WEST:8", "WEST:9"]
    # An import never replaces what the same person decided by hand.
    mine = import_file(reviews, file, "usagi", actor="ann", vocabulary=athena, system="WEST")
    assert [r.code for r in mine.taken] == ["WEST:10"]


STCM = (
    "source_code,source_concept_id,source_vocabulary_id,source_code_description,target_concept_id,target_vocabulary_id,"
    "valid_start_date,valid_end_date,invalid_reason\n"
    "8,0,west,x,1020,ICD10CM,19700101,20991231,\n"
    "9,0,west,x,1020,ICD10CM,1970-01-01,2099-12-31,D\n"
    "10,0,west,x,1020,ICD10CM,1970-01-01,2001-12-31,\n"
    "11,0,west,x,0,None,1970-01-01,2099-12-31,\n"
    "12,0,nowhere,x,1020,ICD10CM,1970-01-01,2099-12-31,\n"
    "13,0,west,x,1020,ICD10CM,1970-01-01,2099-12-31,U\n"
)


def test_stcm_keeps_invalid_reasons_and_does_not_reuse_them(
    reviews: Reviews, athena: Path, tmp_path: Path
) -> None:
    file = tmp_path / "stcm.csv"
    file.write_text("\ufeff" + STCM)
    found = import_file(reviews, file, "stcm", actor="ann", vocabulary=athena)
    assert found.counts() == {"accept": 1, "none": 0, "reject": 0, "unsure": 0, "note": 3}
    assert {c: s.state for c, s in reviews.standings().items()} == {
        "WEST:8": "accepted",
        "WEST:9": "open",
        "WEST:10": "open",
        "WEST:13": "open",
    }
    notes = {r.code: r.comment for r in found.records if not r.verdict}
    assert notes["WEST:9"] == "an earlier map had this target, invalid reason D"
    assert notes["WEST:10"] == "an earlier map had this target, valid until 2001-12-31"
    assert reasons(found) == {5: "target 0: it is not mapped", 6: "the study has no code system 'nowhere'"}
    assert not import_file(reviews, file, "stcm", actor="ann", vocabulary=athena).taken


SSSOM = """\
#curie_map:
#  WEST: https://example.org/west/
#  ICD10CM: http://hl7.org/fhir/sid/icd-10-cm#
#  DRUG: https://example.org/drug/
#  skos: http://www.w3.org/2004/02/skos/core#
#  semapv: https://w3id.org/semapv/vocab/
#  sssom: https://w3id.org/sssom/
#  orcid: https://orcid.org/
#mapping_set_id: https://example.org/set
#license: https://creativecommons.org/licenses/by/4.0/
subject_id\tpredicate_id\tpredicate_modifier\tobject_id\tmapping_justification\treviewer_id\tconfidence
WEST:8\tskos:exactMatch\t\tICD10CM:C20\tsemapv:ManualMappingCuration\t\t0.8
WEST:9\tskos:exactMatch\tNot\tICD10CM:C20\tsemapv:ManualMappingCuration\t\t
WEST:10\tskos:closeMatch\t\tsssom:NoTermFound\tsemapv:ManualMappingCuration\t\t
ICD10CM:C21\tskos:narrowMatch\t\tWEST:11\tsemapv:MappingReview\torcid:0000-0001\t
WEST:12\tskos:exactMatch\t\tICD10CM:C22\tsemapv:LexicalMatching\t\t0.9
WEST:13\tskos:relatedMatch\t\tICD10CM:C22\tsemapv:ManualMappingCuration\t\t
WEST:14\tskos:broadMatch\tNot\tICD10CM:C22\tsemapv:ManualMappingCuration\t\t
WEST:14\tskos:exactMatch\t\tICD10CM:C22
DRUG:1\tskos:exactMatch\t\tICD10CM:C22\tsemapv:ManualMappingCuration\t\t
WEST:20\tskos:exactMatch\t\tICD10CM:C22\tsemapv:LexicalMatching\torcid:0000-0001\t
WEST:21\tskos:exactMatch\t\tWEST:22\tsemapv:ManualMappingCuration\t\t
"""


def test_sssom_takes_what_people_said(reviews: Reviews, tmp_path: Path) -> None:
    file = tmp_path / "set.sssom.tsv"
    file.write_text(SSSOM)
    found = import_file(reviews, file, "sssom", actor="ann")
    said = {r.code: (r.verdict, r.target, r.relation) for r in found.taken}
    assert said == {
        "WEST:8": ("accept", "ICD10CM:C20", "exact"),
        "WEST:9": ("reject", "ICD10CM:C20", ""),
        "WEST:10": ("accept", "", ""),
        "WEST:11": ("accept", "ICD10CM:C21", "broad"),
        "WEST:20": ("accept", "ICD10CM:C22", "exact"),
    }
    assert {r.code: r.line for r in found.taken}["WEST:8"] == 12
    assert {r.code: r.comment for r in found.records}["WEST:11"] == "said by orcid:0000-0001"
    left = reasons(found)
    assert set(left) == {16, 17, 18, 19, 20, 22}
    assert "nobody has decided" in left[16]
    assert "maps no code" in left[17]
    assert "in another way" in left[18]
    assert "does not follow SSSOM" in left[19]
    assert "a drug cannot mean a condition" in left[20]
    assert "not of ICD10CM" in left[22]


def test_own_exports_come_back_as_nothing_new(reviews: Reviews, athena: Path, tmp_path: Path) -> None:
    """A site's anchors and the model's own mappings are nobody's decisions, whichever way they come back."""
    release, trust = reviews.home.release_folder(1), reviews.home.keys.public()
    for form in ("usagi", "sssom"):
        file = tmp_path / form
        export_release(release, file, form, trust=trust, vocabulary=athena if form == "usagi" else None)
        found = import_file(reviews, file, form, actor="ann", vocabulary=athena)
        assert not found.taken
        assert len(found.left) == 15


def test_usagi_round_trip(reviews: Reviews, athena: Path, tmp_path: Path) -> None:
    """Exported, statuses set in Usagi, imported: each decision is there, and nothing else."""
    file, trust = tmp_path / "u.csv", reviews.home.keys.public()
    export_release(reviews.home.release_folder(1), file, "usagi", trust=trust, vocabulary=athena)
    rows = list(csv.reader(io.StringIO(file.read_text()), escapechar="\\"))
    at = {name: i for i, name in enumerate(rows[0])}
    wanted = {
        "10": ("APPROVED", "1010"),
        "11": ("APPROVED", "1033"),
        "12": ("INVALID_TARGET", "1012"),
        "13": ("FLAGGED", "1013"),
    }
    for row in rows[1:]:
        status, concept = wanted.get(row[at["sourceCode"]], ("", ""))
        if status:
            row[at["mappingStatus"]], row[at["conceptId"]], row[at["statusSetBy"]] = status, concept, "eva"
            row[at["equivalence"]] = "EQUIVALENT" if status == "APPROVED" else "UNREVIEWED"
    file.write_text("\n".join(_line(row) for row in rows) + "\n")
    found = import_file(reviews, file, "usagi", actor="ann", vocabulary=athena)
    assert {r.code: (r.verdict, r.target) for r in found.taken} == {
        "WEST:10": ("accept", "ICD10CM:C10"),
        "WEST:11": ("accept", "ICD10CM:C33"),
        "WEST:12": ("reject", "ICD10CM:C12"),
        "WEST:13": ("unsure", "ICD10CM:C13"),
    }
    assert {r.comment for r in found.records} == {"set by eva in Usagi"}


@pytest.mark.parametrize(
    ("form", "data", "kind", "said"),
    [
        ("usagi", b"a,b\n1,2\n", DataError, "no column 'sourceCode'"),
        ("usagi", b"", DataError, "no column"),
        ("stcm", b"source_code,target_concept_id\n8,\xff\n", DataError, "not UTF-8 in line 2"),
        ("stcm", b"source_code,target_concept_id\n8,1020\n", UsageError, "which code system"),
        ("stcm", STCM.encode(), UsageError, "concept ids"),
        ("sssom", b"not a set\n", DataError, "no SSSOM mapping set"),
        ("sssom", b"\x00\x01\x02", DataError, "no SSSOM mapping set"),
    ],
)
def test_a_file_that_is_not_of_the_format_is_refused_whole(
    form: str, data: bytes, kind: type[Exception], said: str, published: Path, tmp_path: Path
) -> None:
    home = Home(published)
    file = tmp_path / "file"
    file.write_bytes(data)
    reviews = Reviews(home, Store(home.database_url))
    with pytest.raises(kind, match=said):
        import_file(reviews, file, form, actor="ann")  # type: ignore[arg-type]
    assert not reviews.log.records()


def test_nothing_is_recorded_by_halves(
    reviews: Reviews, athena: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import coordinator.review.log as module

    rows = [{"sourceCode": str(k), "mappingStatus": "APPROVED", "conceptId": "1020"} for k in range(8, 14)]
    file, real, count = usagi(tmp_path / "u.csv", rows), sign_message, [0]

    def dies(*args: object) -> bytes:
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "sign_message", dies)
    with pytest.raises(KeyboardInterrupt):
        import_file(reviews, file, "usagi", actor="ann", vocabulary=athena, system="WEST")
    monkeypatch.undo()
    home = Home(reviews.home.folder)
    assert Reviews(home, Store(home.database_url)).verify().records == 0
    assert (
        len(import_file(reviews, file, "usagi", actor="ann", vocabulary=athena, system="WEST").records) == 6
    )


def test_a_large_dirty_file_is_taken_or_reported_line_by_line(
    reviews: Reviews, athena: Path, tmp_path: Path
) -> None:
    """Every line of 4,000; the speed of 100,000 is measured by hand."""
    odd = ["\x00", "\u202e", "=1+1", "x" * 100_000, "a" * 201, 'q"uo', "é", "', drop table"]
    lines = ["source_code,source_vocabulary_id,target_concept_id,invalid_reason,valid_end_date"]
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    for k in range(4000):
        code = odd[k % 100] + str(k) if k % 100 < len(odd) else f"code {k}"
        writer.writerow(
            [code, "WEST" if k % 7 else "", 1000 + k % 70, "D" if k % 50 == 49 else "", "2099-12-31"]
        )
    file = tmp_path / "large.csv"
    file.write_text(lines[0] + "\n" + sink.getvalue(), newline="")
    with pytest.raises(UsageError, match="--system"):
        import_file(reviews, file, "stcm", actor="ann", vocabulary=athena)
    found = import_file(reviews, file, "stcm", actor="ann", vocabulary=athena, system="WEST")
    assert {r.line for r in found.taken} | set(reasons(found)) == set(range(2, 4002))
    assert not {r.line for r in found.taken} & set(reasons(found))
    assert len(found.records) == len(found.taken) > 3000
    assert reviews.verify().records == len(found.records)


def test_the_command_reports_what_was_left(reviews: Reviews, athena: Path, tmp_path: Path) -> None:
    file = tmp_path / "stcm.csv"
    file.write_text(STCM)
    words = ["review", "import", str(file), "--format", "stcm", "--vocabulary", str(athena), "--as", "ann"]
    words += ["--home", str(reviews.home.folder)]
    found = CliRunner().invoke(app, [*words, "--dry-run", "--json"])
    assert json.loads(found.stdout)["taken"] == {"accept": 1, "none": 0, "reject": 0, "unsure": 0, "note": 3}
    nowhere = CliRunner().invoke(app, [*words, "--report", str(file / "left.csv")])
    assert isinstance(nowhere.exception, UsageError)
    assert reviews.verify().records == 0
    found = CliRunner().invoke(app, [*words, "--report", str(tmp_path / "left.csv")])
    assert "Took 1 accept, 3 note; 2 lines were left" in found.output
    assert (tmp_path / "left.csv").read_text().splitlines()[1] == "5,11,target 0: it is not mapped"
    odd = CliRunner().invoke(
        app, ["review", "import", str(file), "--format", "excel", "--home", str(reviews.home.folder)]
    )
    assert isinstance(odd.exception, UsageError)
