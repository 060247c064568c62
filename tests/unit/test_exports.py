"""One contract that every export passes: every mapping once, nothing lost, safe to open, read back by other readers."""

from __future__ import annotations

import csv
import io
import json
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sssom_pydantic
from hypothesis import given
from hypothesis import strategies as st

from coordinator.edition import Edition
from coordinator.exports import crm, stcm, usagi
from coordinator.exports.cells import guarded, unguarded
from coordinator.exports.fhir import EQUIVALENCE, RELATIONSHIP, fhir_code
from coordinator.exports.formats import COPIED, FORMATS, RELATED, WITH_CONCEPTS
from coordinator.exports.plain import write_csv
from coordinator.exports.predicates import CLOSE, EXACT, Predicate, predicate
from coordinator.exports.reading import read_map
from coordinator.exports.sssom import write_sssom
from coordinator.exports.table import PublishedMap
from coordinator.exports.tables import clusters_table, evidence_table
from coordinator.exports.writing import concepts_of, export_release
from coordinator.mapping import NO_CLUES, Candidate, Evidence, Kinship, KnownPair, Mapping, MappingSet
from coordinator.naming import one_line
from protocol.errors import ProtocolError, UsageError
from protocol.messages import PublishedManifest
from protocol.published import list_files, sign_manifest, verify_folder
from protocol.sections import CodeSystem
from protocol.study import StudySpec
from tests.synthetic import keys

CREATED = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
STUDY = StudySpec(
    id="unit",
    title="=cmd|' /C calc'!A0",
    sites=("north", "lake", "south"),
    standard="SNOMED",
    code_systems=(
        CodeSystem(prefix="SNOMED", uri="http://snomed.info/sct"),
        CodeSystem(prefix="ICD10CM", uri="http://hl7.org/fhir/sid/icd-10-cm"),
        CodeSystem(prefix="NORTH", local_to="north"),
    ),
)
HOSTILE = (
    "=1+1", "-5", "+x", "@SUM(A1)", "'quoted", "''=", 'say "hi", ok', '"', '"""', "back\\slash", "ends\\", 'a\\"b', "a,b\\",
    "two  blanks", "per%20cent", "שלום (א)", "<script>alert(1)</script>", "a;b|c", "#not a comment", "＝1", "\u00a0=1",
    "null", "NA", "0012", "1e5", "x" * 100_000,
)  # fmt: skip
KINSHIP: dict[str, Kinship] = {"ICD10CM:J45": "ancestor"}
HOSTILE_NAMES = ("=HYPERLINK(1)", "\tname", 'a "b" c', "line\rbreak", "\u202eevil", "n" * 100_000, "-")
NAMES = {
    f"NORTH:{code}": one_line(HOSTILE_NAMES[k % len(HOSTILE_NAMES)]) for k, code in enumerate(HOSTILE[3:])
} | {
    "SNOMED:1": "Type 2 diabetes",
    "SNOMED:3": "=1+1",
    "ICD10CM:E11.9": "Diabetes, 'type 2'",
    "ICD10CM:I10": "<b>Hypertension</b>",
}


def candidate(code: str) -> Candidate:
    known = (KnownPair("ICD10CM:E11.9", code, "not similar", 0.5, "=a; b"),) if code == "SNOMED:2" else ()
    clues = {"latent": 1.25, "support": -0.5} if known else NO_CLUES
    return Candidate(code, NAMES.get(code, ""), 0.25 if known else 0.0, 0.5, clues, known, NO_CLUES)


def row(code: str, target: str, probability: float, *, anchored: bool = False) -> Mapping:
    standard = code.startswith("SNOMED:")
    return Mapping(
        code=code,
        sites=("lake", "north"),
        cluster=7,
        posterior=0.75,
        probability=1.0 if anchored or standard else probability,
        anchored=anchored,
        given=anchored or standard,
        standard_code=target,
        strength=0.0,
        similarity=-0.25 if not anchored else 1.0,
        candidates=tuple(candidate(c) for c in dict.fromkeys((target, "SNOMED:2", "SNOMED:3")))
        if target
        else (),
        evidence=(Evidence("lake", 2, -0.5),),
        name=NAMES.get(code, ""),
        category="condition",
        kinship=KINSHIP.get(code),
    )


def mappings() -> MappingSet:
    rows = [row(f"SNOMED:{k}", f"SNOMED:{k}", 1.0) for k in range(1, 5)]
    rows += [
        row("ICD10CM:E11.9", "SNOMED:1", 0.0, anchored=True),
        row("ICD10CM:E10.9", "SNOMED:2", 0.9),
        row("ICD10CM:I10", "SNOMED:3", 0.8999),
        row("ICD10CM:J45", "SNOMED:4", 0.4999),
        row("ICD10CM:Z99", "", 0.0),
        row("ICD10CM:A00", "SNOMED:9", 0.5),  # its standard code is no concept
        row("NORTH:nowhere", "", 0.0),
    ]
    rows += [row(f"NORTH:{c}", "SNOMED:1", 0.7, anchored=k % 2 == 0) for k, c in enumerate(HOSTILE)]
    rows.sort(key=lambda r: r.code)
    return MappingSet(tuple(rows), np.eye(len(rows), 4, dtype=np.float32))


def publish(folder: Path, found: MappingSet, study: StudySpec = STUDY) -> PublishedManifest:
    folder.mkdir()
    edition = Edition(study, "r1", 3, CREATED, harmonized=None, releases=(), sites=())
    write_sssom(folder / "mappings.sssom.tsv", found, edition)
    pq.write_table(clusters_table(found), folder / "clusters.parquet")
    pq.write_table(evidence_table(found), folder / "evidence.parquet")
    pq.write_table(pa.table({"code": [r.code for r in found.rows]}), folder / "embeddings.parquet")
    manifest = PublishedManifest(
        study=study.stated,
        study_digest=study.digest,
        round="r1",
        version=3,
        audience="consortium",
        created=CREATED,
        software="test",
        codes=len(found.rows),
        clusters=1,
        sites=(),
        files=list_files(folder),
    )
    sign_manifest(folder, manifest, keys("coordinator"))
    return manifest


def athena(folder: Path) -> Path:
    folder.mkdir()
    names = [*HOSTILE_NAMES, *["plain"] * 20]
    rows = [
        ("101", "SNOMED", "1", "S", "20991231", ""),
        ("102", "SNOMED", "2", "S", "20991231", ""),
        ("103", "SNOMED", "3", "", "20200630", "U"),
        ("104", "SNOMED", "4", "S", "20991231", ""),
        ("111", "ICD10CM", "E11.9", "", "20991231", ""),
        ("112", "ICD10CM", "E109", "", "20991231", ""),
        ("113", "ICD10CM", "I10", "", "20991231", ""),
        ("114", "ICD10CM", "J45", "", "20991231", ""),
        ("115", "ICD10CM", "A00", "", "20991231", ""),
        ("116", "ICD10CM", "Z99", "", "20991231", ""),
        ("999", "Other", "1", "S", "20991231", ""),
    ]
    head = "concept_id concept_name domain_id vocabulary_id standard_concept concept_code valid_end_date invalid_reason"
    lines = ["\t".join(head.split())]
    for (number, vocabulary, code, standard, end, invalid), name in zip(rows, names, strict=False):
        plain = name.replace("\t", "\x0b").replace(
            "\r", "\x0b"
        )  # the file's own signs cannot be in its cells
        lines.append("\t".join([number, plain, "Condition", vocabulary, standard, code, end, invalid]))
    (folder / "CONCEPT.csv").write_text("\n".join(lines) + "\n", newline="")
    return folder


@dataclass(frozen=True)
class Release:
    folder: Path
    vocabulary: Path
    published: PublishedMap

    def export(self, form: str, output: Path) -> Path:
        vocabulary = self.vocabulary if form in WITH_CONCEPTS else None
        export_release(self.folder, output, form, trust=keys("coordinator").public(), vocabulary=vocabulary)
        return output


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    manifest = publish(folder / "v3", mappings())
    return Release(folder / "v3", athena(folder / "athena"), read_map(folder / "v3", manifest))


@dataclass(frozen=True)
class Seen:
    """What an independent reader finds of one code; None where the format has no place for it."""

    target: str
    probability: float | None
    anchored: bool | None
    predicate: Predicate | None = None


Rows = Sequence[tuple[str, Seen]]


def read_sssom(path: Path) -> Rows:
    found = []
    for m in sssom_pydantic.read(path).mappings:
        target = "" if m.object.curie == "sssom:NoTermFound" else urllib.parse.unquote(m.object.curie)
        given_ = m.justification.identifier == "ManualMappingCuration"
        found.append(
            (
                urllib.parse.unquote(m.subject.curie),
                Seen(target, m.confidence, given_, Predicate(m.predicate.curie) if target else None),
            )
        )
    return found


def read_fhir(path: Path, kept: str) -> Rows:
    prefixes = {s.uri or f"{STUDY.base_uri}/unit/codes/{s.prefix}/": s.prefix for s in STUDY.code_systems}
    found = []
    for group in json.loads(path.read_text())["group"]:
        for element in group["element"]:
            code = f"{prefixes[group['source']]}:{urllib.parse.unquote(element['code'])}"
            (target,) = element.get("target", [{}])
            if "code" not in target:
                assert element.get("noMap") or target["equivalence"] == "unmatched"
                found.append((code, Seen("", 0.0, False)))
                continue
            part = target[kept]
            values = {p.get("url", p.get("code")).rpartition("/")[2]: list(p.values())[-1] for p in part}
            seen = Seen(
                f"{prefixes[group['target']]}:{urllib.parse.unquote(target['code'])}",
                values["probability"],
                values["anchored"],
                Predicate(values["predicate"]),
            )
            found.append((code, seen))
    return found


def read_plain_csv(path: Path) -> Rows:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [
        (
            unguarded(r["code"]),
            Seen(
                r["standard_code"],
                float(r["probability"]),
                r["anchored"] == "true",
                Predicate(r["predicate"]) if r["predicate"] else None,
            ),
        )
        for r in rows
        if not r["code"].startswith("SNOMED:")
    ]


def read_plain_parquet(path: Path) -> Rows:
    rows = duckdb.sql(
        f"select code, standard_code, probability, anchored, predicate from read_parquet('{path}') where code not like 'SNOMED:%'"
    ).fetchall()
    return [(c, Seen(t, round(p, 4), a, Predicate(k) if k else None)) for c, t, p, a, k in rows]


def read_stcm(path: Path) -> Rows:
    table = duckdb.read_csv(
        str(path), header=True, all_varchar=True, quotechar='"', escapechar='"', delimiter=",", na_values=""
    )
    rows = table.project("source_vocabulary_id, source_code, target_concept_id").fetchall()
    return [(f"{v}:{unguarded(c)}", Seen(_of_concept(t), None, None)) for v, c, t in rows]


def read_crm(path: Path) -> Rows:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    kinds = {"eq": Predicate.EXACT, "up": Predicate.BROAD, "down": Predicate.NARROW, "": None}
    return [
        (
            {"111": "ICD10CM:E11.9", "112": "ICD10CM:E10.9", "113": "ICD10CM:I10", "114": "ICD10CM:J45"}[
                r["concept_id_1"]
            ],
            Seen(
                _of_concept(r["concept_id_2"]),
                float(r["confidence"]),
                r["mapping_tool"] == "MM_U",
                kinds[r["relationship_predicate_id"]],
            ),
        )
        for r in rows
    ]


def read_usagi(path: Path) -> Rows:
    rows = usagi_rows(path)
    return [
        (
            f"{r['ADD_INFO:codeSystem']}:{unguarded(r['sourceCode'])}",
            Seen(
                r["ADD_INFO:standardCode"],
                float(r["matchScore"]),
                r["ADD_INFO:anchored"] == "true",
                Predicate(r["ADD_INFO:predicate"]) if r["ADD_INFO:predicate"] else None,
            ),
        )
        for r in rows
    ]


def usagi_rows(path: Path) -> list[dict[str, str]]:
    """As Usagi's ReadCSVFileWithHeader reads: line by line, cells split by its `safeSplit`."""
    lines = [_usagi_cells(line) for line in path.read_text().split("\n") if line]
    return [dict(zip(lines[0], cells, strict=True)) for cells in lines[1:]]


def _usagi_cells(line: str) -> list[str]:
    cells, start, literal, escape = [], 0, False, False
    for i, c in enumerate(line):
        if c == '"' and not escape:
            literal = not literal
        if c == "," and not literal and not escape:
            cells.append(line[start:i])
            start = i + 1
        escape = c == "\\" and not escape
    cells.append(line[start:])
    found = []
    for cell in cells:
        inner = cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell
        found.append(inner.replace('\\"', '"').replace("\\\\", "\\"))
    return found


def _of_concept(number: str) -> str:
    return f"SNOMED:{int(number) - 100}" if int(number) else ""


READERS: dict[str, Callable[[Path], Rows]] = {
    "sssom": read_sssom,
    "stcm": read_stcm,
    "crm": read_crm,
    "usagi": read_usagi,
    "fhir-r4": lambda path: read_fhir(path, "extension"),
    "fhir-r5": lambda path: read_fhir(path, "property"),
    "csv": read_plain_csv,
    "parquet": read_plain_parquet,
}
MAPS = sorted(READERS)


def expected(release: Release, form: str) -> dict[str, Seen]:
    """What the format must hold of the release."""
    found = {}
    for e in release.published.mappings:
        target = e.standard_code
        if form in {"stcm", "crm"} and target == "SNOMED:9":
            target = ""  # it is no concept
        if form == "crm" and (not target or e.system == "NORTH"):
            continue
        seen = Seen(target, e.confidence, e.anchored, e.predicate)
        if form == "stcm":
            seen = Seen(target, None, None)
        if form == "crm" and seen.predicate in {Predicate.CLOSE, Predicate.RELATED}:
            seen = replace(seen, predicate=None)  # OHDSI has eq, up and down
        found[e.code] = seen
    return found


def test_every_format_is_held_to_the_contract() -> None:
    # Those of the graph are no maps: test_graph_published.py
    assert {*READERS, "clusters", "embeddings", *RELATED} == set(FORMATS)


@pytest.mark.parametrize("form", MAPS)
def test_every_mapping_once_and_nothing_lost(form: str, release: Release, tmp_path: Path) -> None:
    seen = READERS[form](release.export(form, tmp_path / "out"))
    assert len(seen) == len(dict(seen))
    want = expected(release, form)
    for code in want.keys() | dict(seen).keys():
        assert dict(seen).get(code) == want.get(code), code[:80]


@pytest.mark.parametrize("form", MAPS)
def test_order_is_that_of_codes_whatever_the_table_s(form: str, release: Release, tmp_path: Path) -> None:
    there = mappings()
    turned = MappingSet(tuple(reversed(there.rows)), there.embedding[::-1])
    publish(tmp_path / "v3", turned)
    other = Release(tmp_path / "v3", release.vocabulary, release.published)
    one, two = release.export(form, tmp_path / "one"), other.export(form, tmp_path / "two")
    assert one.read_bytes() == two.read_bytes() or form == "sssom"  # that is written when it is published
    codes = [code for code, _ in READERS[form](one)]
    assert codes == sorted(codes) or form == "crm"  # which is by concept ids


@pytest.mark.parametrize("form", [f for f in MAPS if f != "parquet"])
def test_it_is_utf8_without_a_mark_and_ends_in_a_line(form: str, release: Release, tmp_path: Path) -> None:
    data = release.export(form, tmp_path / "out").read_bytes()
    assert data.decode().endswith("\n")
    assert not data.startswith(b"\xef\xbb\xbf")


def _cells(form: str, path: Path) -> list[str]:
    if form == "usagi":
        return [cell for r in usagi_rows(path) for cell in r.values()]
    text = path.read_text()
    if form == "sssom":
        text = "\n".join(line for line in text.split("\n") if not line.startswith("#"))
    return [
        c
        for r in csv.reader(io.StringIO(text, newline=""), delimiter="\t" if form == "sssom" else ",")
        for c in r
    ]


@pytest.mark.parametrize("form", ["sssom", "stcm", "crm", "usagi", "csv"])
def test_no_cell_is_a_formula(form: str, release: Release, tmp_path: Path) -> None:
    for cell in _cells(form, release.export(form, tmp_path / "out")):
        number = cell.removeprefix("-").replace(".", "", 1).isdigit()
        assert number or not cell.lstrip()[:1] or cell.lstrip()[0] not in "=+-@＝＋－＠", cell[:80]
        assert not cell.startswith(("\t", "\r", "\n"))


@pytest.mark.parametrize("form", MAPS)
def test_an_altered_release_is_not_exported(form: str, release: Release, tmp_path: Path) -> None:
    publish(tmp_path / "v3", mappings())
    (tmp_path / "v3" / "clusters.parquet").write_bytes(b"PAR1")
    with pytest.raises(ProtocolError, match="altered"):
        Release(tmp_path / "v3", release.vocabulary, release.published).export(form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_headers_are_those_of_the_formats(release: Release, tmp_path: Path) -> None:
    for form, columns in (("stcm", stcm.COLUMNS), ("crm", crm.COLUMNS), ("usagi", usagi.COLUMNS)):
        assert release.export(form, tmp_path / form).read_text().split("\n")[0] == ",".join(columns)


@pytest.mark.parametrize("form", sorted(COPIED))
def test_files_of_the_release_are_copied(form: str, release: Release, tmp_path: Path) -> None:
    assert release.export(form, tmp_path / "out").read_bytes() == (release.folder / COPIED[form]).read_bytes()


# FHIR ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["fhir-r4", "fhir-r5"])
@pytest.mark.parametrize("named", [False, True])
def test_fhir_validates(form: str, named: bool, release: Release, tmp_path: Path) -> None:
    pytest.importorskip("fhir.resources")
    from fhir.resources import conceptmap as r5
    from fhir.resources.R4B import conceptmap as r4

    vocabulary = release.vocabulary if named else None
    out = tmp_path / "map.json"
    export_release(release.folder, out, form, trust=keys("coordinator").public(), vocabulary=vocabulary)
    resource = (r4 if form == "fhir-r4" else r5).ConceptMap.model_validate_json(out.read_bytes())
    assert resource.status == "draft"
    elements = [e for g in resource.group for e in g.element]
    assert len(elements) == len(release.published.mappings)
    displays = {e.code: e.display for e in elements}
    assert (displays["J45"] is not None) == named


def test_fhir_says_what_the_target_is_to_the_code() -> None:
    """SKOS has the code as subject; R4 looks from the target, R5 from the source."""
    assert EQUIVALENCE[Predicate.BROAD] == "wider"
    assert RELATIONSHIP[Predicate.BROAD] == "source-is-narrower-than-target"
    assert EQUIVALENCE[Predicate.NARROW] == "narrower"
    assert RELATIONSHIP[Predicate.NARROW] == "source-is-broader-than-target"
    assert EQUIVALENCE.keys() == RELATIONSHIP.keys() == set(Predicate)
    # The value sets, which fhir.resources does not check: concept-map-equivalence and concept-map-relationship.
    r4 = "relatedto equivalent equal wider subsumes narrower specializes inexact unmatched disjoint"
    r5 = "related-to equivalent source-is-narrower-than-target source-is-broader-than-target not-related-to"
    assert set(EQUIVALENCE.values()) <= set(r4.split())
    assert set(RELATIONSHIP.values()) <= set(r5.split())


def test_fhir_comments_wherever_the_standard_demands_one(release: Release, tmp_path: Path) -> None:
    """R4 cmd-1 and R5 cmd-1: narrower and inexact, or broader sources, need a comment; here every target has one."""
    for form in ("fhir-r4", "fhir-r5"):
        resource = json.loads(release.export(form, tmp_path / form).read_text())
        targets = [t for g in resource["group"] for e in g["element"] for t in e.get("target", [])]
        assert all(t["comment"] for t in targets)
        # R5 cmd-4 and its like: what has no map has no target.
        assert all("target" not in e for g in resource["group"] for e in g["element"] if e.get("noMap"))


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_code_has_one_fhir_code(code: str) -> None:
    shown = fhir_code(code)
    assert urllib.parse.unquote(shown) == code
    assert shown == " ".join(shown.split())


# OMOP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", sorted(WITH_CONCEPTS))
def test_concept_ids_need_the_vocabularies(form: str, release: Release, tmp_path: Path) -> None:
    trust = keys("coordinator").public()
    with pytest.raises(UsageError, match=f"The format {form} needs the OMOP vocabularies"):
        export_release(release.folder, tmp_path / "out", form, trust=trust)
    with pytest.raises(UsageError, match=r"There is no CONCEPT\.csv"):
        export_release(release.folder, tmp_path / "out", form, trust=trust, vocabulary=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_without_the_standard_system_is_refused(release: Release, tmp_path: Path) -> None:
    athena(tmp_path / "athena")
    path = tmp_path / "athena" / "CONCEPT.csv"
    path.write_text("\n".join(line for line in path.read_text().split("\n") if "SNOMED" not in line))
    with pytest.raises(UsageError, match="holds none of the map's 5 standard codes"):
        concepts_of(release.published, tmp_path / "athena")


def test_what_is_no_concept_is_counted(release: Release, tmp_path: Path) -> None:
    trust = keys("coordinator").public()
    done = export_release(release.folder, tmp_path / "o", "stcm", trust=trust, vocabulary=release.vocabulary)
    assert done.mappings == len(HOSTILE) + 7
    assert (done.unmapped, done.no_source, done.no_target) == (2, len(HOSTILE) + 1, 1)


def test_stcm_keeps_reasons_why_a_target_is_invalid(release: Release, tmp_path: Path) -> None:
    with release.export("stcm", tmp_path / "o").open(newline="") as stream:
        rows = {r["source_code"]: r for r in csv.DictReader(stream)}
    assert (rows["I10"]["invalid_reason"], rows["I10"]["valid_end_date"]) == ("U", "2020-06-30")
    assert (rows["J45"]["invalid_reason"], rows["J45"]["valid_end_date"]) == ("", "2099-12-31")
    assert (rows["Z99"]["target_concept_id"], rows["Z99"]["target_vocabulary_id"]) == ("0", "None")
    assert (rows["A00"]["target_concept_id"], rows["A00"]["target_vocabulary_id"]) == ("0", "SNOMED")
    # E10.9 is written without its dot in the vocabulary.
    assert rows["E10.9"]["source_concept_id"] == "112"
    assert all(len(r["source_code_description"]) <= 255 for r in rows.values())


def test_crm_of_one_concept_in_two_spellings_has_the_surer(release: Release) -> None:
    vocabulary = concepts_of(release.published, release.vocabulary)
    twice = tuple(
        replace(e, code="ICD10CM:J459" if k else "ICD10CM:J45.9", probability=0.2 + 0.1 * k)
        for k, e in enumerate([release.published.mappings[0]] * 2)
    )
    concepts = {**vocabulary.concepts, "ICD10CM:J45.9": vocabulary.concepts["ICD10CM:J45"]}
    twice = tuple(replace(e, standard_code="SNOMED:1", anchored=False, given=False) for e in twice)
    data = crm.write_crm(replace(release.published, entries=twice), replace(vocabulary, concepts=concepts))
    (found,) = csv.DictReader(io.StringIO(data.decode()))
    assert found["confidence"] == "0.3"


def _edges(path: Path, head: str, rows: Sequence[str]) -> None:
    path.write_text("\n".join("\t".join(line.split(",")) for line in [head, *rows]) + "\n")


def test_a_hierarchy_makes_broad_and_narrow(release: Release, tmp_path: Path) -> None:
    folder = athena(tmp_path / "athena")
    _edges(
        folder / "CONCEPT_RELATIONSHIP.csv",
        "concept_id_1,concept_id_2,relationship_id,invalid_reason",
        ["111,500,Maps to,", "112,500,Maps to,", "113,501,Maps to,", "114,104,Maps to,", "114,500,Maps to,D"],
    )
    head = "ancestor_concept_id,descendant_concept_id,min_levels_of_separation,max_levels_of_separation"
    # E10.9 -> 102 lies above its own 500; I10 -> 103 below its own 501; J45 -> 104 is its own, whatever lies above it.
    _edges(
        folder / "CONCEPT_ANCESTOR.csv",
        head,
        ["102,500,2,2", "501,103,1,1", "104,500,1,1", "101,500,1,1", "500,500,0,0"],
    )
    out = tmp_path / "o"
    trust = keys("coordinator").public()
    export_release(release.folder, out, "crm", trust=trust, vocabulary=folder)
    seen = {code: s.predicate for code, s in read_crm(out)}
    assert seen == {
        "ICD10CM:E11.9": Predicate.EXACT,  # a site gave it
        "ICD10CM:E10.9": Predicate.BROAD,
        "ICD10CM:I10": Predicate.NARROW,
        "ICD10CM:J45": None,
    }
    for form in ("csv", "fhir-r4", "fhir-r5"):
        export_release(release.folder, out, form, trust=trust, vocabulary=folder)
        found = dict(READERS[form](out))
        assert found["ICD10CM:E10.9"].predicate is Predicate.BROAD
        assert found["ICD10CM:J45"].predicate is Predicate.RELATED
    (folder / "CONCEPT_ANCESTOR.csv").unlink()
    export_release(release.folder, out, "csv", trust=trust, vocabulary=folder)
    assert dict(read_plain_csv(out))["ICD10CM:E10.9"].predicate is Predicate.EXACT


def test_usagi_statuses(release: Release, tmp_path: Path) -> None:
    rows = {r["sourceCode"]: r for r in usagi_rows(release.export("usagi", tmp_path / "o"))}
    kinds = {
        code: (r["mappingStatus"], r["equivalence"], r["statusSetBy"], r["conceptId"])
        for code, r in rows.items()
    }
    assert kinds["E11.9"] == ("APPROVED", "EQUIVALENT", "site anchor", "101")
    assert kinds["E10.9"] == ("UNCHECKED", "UNREVIEWED", "", "102")
    assert kinds["I10"] == ("INVALID_TARGET", "UNREVIEWED", "", "103")
    assert kinds["A00"] == ("INVALID_TARGET", "UNREVIEWED", "", "0")
    assert kinds["Z99"] == ("UNCHECKED", "UNMATCHED", "", "0")
    created = str(int(CREATED.timestamp() * 1000))
    assert {r["statusSetOn"] for r in rows.values()} == {"0", created}


def test_usagi_does_not_take_two_systems_for_two_targets(release: Release) -> None:
    vocabulary = concepts_of(release.published, release.vocabulary)
    first = release.published.mappings[0]
    entries = tuple(replace(first, code=code) for code in ("ICD10CM:J45", "NORTH:J45"))
    concepts = {**vocabulary.concepts, "NORTH:J45": vocabulary.concepts["ICD10CM:J45"]}
    data = usagi.write_usagi(
        replace(release.published, entries=entries), replace(vocabulary, concepts=concepts)
    )
    names = [_usagi_cells(line)[:2] for line in data.decode().split("\n")[1:-1]]
    assert names[0][0] == names[1][0]
    assert names[0][1] != names[1][1]


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1))
def test_usagi_reads_every_cell_back(cells: list[str]) -> None:
    assert _usagi_cells(usagi._line(cells)) == cells


# Cells and predicates --------------------------------------------------------------------------------------------


@given(st.text())
def test_a_guard_is_taken_off_again(text: str) -> None:
    assert unguarded(guarded(text)) == text
    assert guarded(text).lstrip()[:1] not in {"=", "+", "-", "@"}


def test_the_rule_of_predicates() -> None:
    assert predicate(0.0, given=True, kinship="ancestor") is Predicate.EXACT
    assert predicate(0.99, given=False, kinship="ancestor") is Predicate.BROAD
    assert predicate(0.99, given=False, kinship="descendant") is Predicate.NARROW
    assert predicate(EXACT, given=False) is Predicate.EXACT
    assert predicate(float(np.float32(EXACT)), given=False) is Predicate.EXACT
    assert predicate(EXACT - 1e-4, given=False) is Predicate.CLOSE
    assert predicate(CLOSE, given=False) is Predicate.CLOSE
    assert predicate(CLOSE - 1e-4, given=False) is Predicate.RELATED


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_probable_is_never_weaker(one: float, other: float) -> None:
    order = [Predicate.RELATED, Predicate.CLOSE, Predicate.EXACT]
    low, high = sorted((one, other))
    assert order.index(predicate(low, given=False)) <= order.index(predicate(high, given=False))


def test_the_plain_table_holds_standard_codes_and_evidence(release: Release) -> None:
    rows = list(csv.DictReader(io.StringIO(write_csv(release.published).decode())))
    assert len(rows) == len(release.published.entries)
    found: dict[str, Any] = {r["code"]: r for r in rows}["ICD10CM:I10"]
    assert json.loads(found["evidence"]) == [{"site": "lake", "members": 2, "cosine": -0.5}]
    assert json.loads(found["alternatives"]) == ["SNOMED:2"]


def test_names_of_the_release_are_in_every_format_that_has_a_place_for_them(
    release: Release, tmp_path: Path
) -> None:
    hostile = f"NORTH:{HOSTILE[3 + 6]}"
    assert NAMES[hostile] == "-"
    by_code = {
        f"{r['ADD_INFO:codeSystem']}:{unguarded(r['sourceCode'])}": r
        for r in usagi_rows(release.export("usagi", tmp_path / "u"))
    }
    assert unguarded(by_code["ICD10CM:I10"]["sourceName"]) == NAMES["ICD10CM:I10"]
    assert by_code[hostile]["sourceName"] == "'-"
    with release.export("stcm", tmp_path / "s").open(newline="") as stream:
        described = {
            unguarded(r["source_code"]): r["source_code_description"] for r in csv.DictReader(stream)
        }
    assert described["I10"] == NAMES["ICD10CM:I10"]
    assert max(map(len, described.values())) <= 256
    plain = {e.code: e for e in release.published.entries}["ICD10CM:I10"]
    assert (plain.name, plain.standard_name, plain.category) == (NAMES["ICD10CM:I10"], "=1+1", "condition")
    rows = {r["code"]: r for r in csv.DictReader(io.StringIO(write_csv(release.published).decode()))}
    assert (rows["ICD10CM:I10"]["name"], rows["ICD10CM:I10"]["standard_name"]) == (
        NAMES["ICD10CM:I10"],
        "'=1+1",
    )
    found = json.loads(release.export("fhir-r5", tmp_path / "f").read_text())["group"]
    shown = {e["code"]: e for g in found for e in g["element"]}["I10"]
    assert (shown["display"], shown["target"][0]["display"]) == (NAMES["ICD10CM:I10"], "=1+1")
    labels = {m.subject.curie: m for m in sssom_pydantic.read(release.folder / "mappings.sssom.tsv").mappings}
    assert labels["ICD10CM:I10"].subject.name == NAMES["ICD10CM:I10"]
    assert labels["ICD10CM:I10"].object.name == "'=1+1"


def test_an_unknown_format_is_refused(release: Release, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no format 'xls'"):
        release.export("xls", tmp_path / "o")
    assert verify_folder(release.folder, keys("coordinator").public()).version == 3


def test_a_map_of_another_software_is_refused(release: Release, tmp_path: Path) -> None:
    manifest = publish(tmp_path / "v3", mappings())
    sign_manifest(tmp_path / "v3", manifest.model_copy(update={"study": {}}), keys("coordinator"))
    other = replace(release, folder=tmp_path / "v3")
    with pytest.raises(ProtocolError, match=r"The map in .* cannot be read"):
        other.export("csv", tmp_path / "o")
    other.export("clusters", tmp_path / "o")  # the file itself may still be had


def test_a_file_that_cannot_be_written_is_said(release: Release, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for form in ("csv", "sssom"):
        with pytest.raises(UsageError, match=r"The export .* cannot be written"):
            release.export(form, tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("form", [f for f in MAPS if f != "sssom"])
def test_what_is_less_probable_than_asked_has_no_target(form: str, release: Release, tmp_path: Path) -> None:
    trust, vocabulary = keys("coordinator").public(), release.vocabulary if form in WITH_CONCEPTS else None
    out = tmp_path / "o"
    done = export_release(release.folder, out, form, trust=trust, vocabulary=vocabulary, at_least=0.9)
    found = dict(READERS[form](out))
    assert found["ICD10CM:E11.9"].target == "SNOMED:1"  # a site gave it
    assert found["ICD10CM:E10.9"].target == "SNOMED:2"
    if form != "crm":
        assert found["ICD10CM:I10"].target == ""
        assert found.keys() == {e.code for e in release.published.mappings}
    assert done is not None
    assert done.unmapped == sum(
        not e.given and (not e.standard_code or e.probability < 0.899999) for e in release.published.mappings
    )
    if form == "csv":
        rows = {r["code"]: r for r in csv.DictReader(io.StringIO(out.read_text(), newline=""))}
        assert json.loads(rows["ICD10CM:I10"]["alternatives"])[0] == "SNOMED:3"


def test_a_copied_file_cannot_be_changed_on_the_way(release: Release, tmp_path: Path) -> None:
    trust = keys("coordinator").public()
    for asked in ({"at_least": 0.5}, {"vocabulary": release.vocabulary}):
        with pytest.raises(UsageError, match="The format sssom is a file of the release, copied as it is"):
            export_release(release.folder, tmp_path / "o", "sssom", trust=trust, **asked)
