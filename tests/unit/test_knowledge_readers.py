"""Every reader of knowledge: the contract, and what is its format's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.knowledge.readers.gem import COMBINATION, NO_TARGET
from coordinator.knowledge.readers.hierarchy import icd_parent
from coordinator.knowledge.readers.omop import INVALID
from coordinator.knowledge.readers.sssom import NO_TERM, UNREAD
from coordinator.knowledge.readers.umls import SUPPRESSED, WIDE
from coordinator.knowledge.systems import Systems, canonical
from coordinator.knowledge.tables import OTHER_WIDTH
from protocol.errors import DataError, UsageError
from tests.knowledge_contract import CHECKS, SYSTEMS, Check, Form

GEM_TEXT = Form(
    settings={"kind": "gem", "from": "ICD9CM", "to": "ICD10CM"},
    files={
        "gem.txt": "25000 E119    10000\n0010  A000    00000\n0010  A009    10000\n"
        "E8120 V4352XA 10000\n9999  NoDx    11000\n80500 S12000A 10111\n80500 S12001A 10112\n"
    },
    rows=frozenset(
        {
            ("ICD9CM:250.00", "ICD10CM:E11.9", "similar", True),
            ("ICD9CM:001.0", "ICD10CM:A00.0", "similar", True),
            ("ICD9CM:001.0", "ICD10CM:A00.9", "similar", True),
            ("ICD9CM:E812.0", "ICD10CM:V43.52XA", "similar", True),
        }
    ),
    main="gem.txt",
    twice="25000 E119    10000",
    bad_code="2500\u20070 E119 10000".replace("\u2007", "\u200b"),
    wrong_header=(" ", ";"),
)
GEM_CSV = Form(
    settings=GEM_TEXT.settings,
    files={
        "gem.csv": '"icd9cm","icd10cm","flags","approximate","no_map"\n"25000","E119","10000",1,0\n'
        '"0010","A000","00000",0,0\n"9999","NoDx","11000",1,1\n'
    },
    rows=frozenset(
        {
            ("ICD9CM:250.00", "ICD10CM:E11.9", "similar", True),
            ("ICD9CM:001.0", "ICD10CM:A00.0", "similar", True),
        }
    ),
    main="gem.csv",
    twice='"25000","E119","10000",1,0',
    bad_code='"25\x070","E119","10000",1,0',
    wrong_header=("flags", "marks"),
)
GROUPS = Form(
    settings={"kind": "groups", "system_column": "vocabulary", "group_column": "phecode"},
    files={"phecode.csv": "code,vocabulary,phecode\n250.00,ICD9CM,250.2\nE119,ICD10CM,250.2\nE11.9,ICD9,\n"},
    rows=frozenset(
        {("ICD9CM:250.00", "PHECODE:250.2", "is-a", True), ("ICD10CM:E11.9", "PHECODE:250.2", "is-a", True)}
    ),
    main="phecode.csv",
    twice="250.00,ICD9CM,250.2",
    itself="250.2,PHECODE,250.2",
    unknown="X1,HOUSE,250.2",
    bad_code="E\x0711,ICD10CM,250.2",
    wrong_header=(",", ";"),
)
CCS = Form(
    settings={
        "kind": "groups",
        "system": "ICD9CM",
        "group_system": "CCS",
        "code_column": "ICD-9-CM CODE",
        "group_column": "CCS CATEGORY",
        "quote": "'",
    },
    files={"ccs.csv": "'ICD-9-CM CODE','CCS CATEGORY'\n'25000 ','49   '\n'0010 ','135'\n"},
    rows=frozenset({("ICD9CM:250.00", "CCS:49", "is-a", True), ("ICD9CM:001.0", "CCS:135", "is-a", True)}),
    main="ccs.csv",
    twice="'25000 ','49   '",
    bad_code="'25\x0700','49'",
    wrong_header=("CCS CATEGORY", "CCS"),
)
HIERARCHY = Form(
    settings={"kind": "hierarchy", "system": "SNOMED"},
    files={"tree.csv": "code,parent,title\n44054006,73211009,Type 2\n73211009,,Diabetes\n"},
    rows=frozenset({("SNOMED:44054006", "SNOMED:73211009", "is-a", True)}),
    main="tree.csv",
    twice="44054006,73211009,Type 2",
    itself="7,7,x",
    bad_code="4\x07,73211009,x",
    wrong_header=("parent", "up"),
)
ICD = Form(
    settings={"kind": "icd", "system": "ICD10CM"},
    files={"codes.csv": "code\nE11.321\nT360X1A\nI10\n"},
    rows=frozenset(
        {
            ("ICD10CM:E11.321", "ICD10CM:E11.32", "is-a", True),
            ("ICD10CM:E11.32", "ICD10CM:E11.3", "is-a", True),
            ("ICD10CM:E11.3", "ICD10CM:E11", "is-a", True),
            ("ICD10CM:T36.0X1A", "ICD10CM:T36.0X1", "is-a", True),
            ("ICD10CM:T36.0X1", "ICD10CM:T36.0", "is-a", True),
            ("ICD10CM:T36.0", "ICD10CM:T36", "is-a", True),
        }
    ),
    main="codes.csv",
    wrong_header=("code", "icd"),
)
PAIRS = Form(
    settings={"kind": "pairs"},
    files={
        "pairs.csv": "code_1,code_2,relation,label,source\nICD9CM:25000,ICD10CM:E11.9,similar,1,Ann\n"
        "RXNORM:6809,ICD10CM:E119,related:treats,,Ben\nICD10CM:E10.9,ICD10CM:E11.9,similar,0,Ann\n"
        "ICD10CM:E10.9,ICD10CM:E11.9,related,1,\n"
    },
    rows=frozenset(
        {
            ("ICD9CM:250.00", "ICD10CM:E11.9", "similar", True),
            ("RXNORM:6809", "ICD10CM:E11.9", "related:treats", True),
            ("ICD10CM:E10.9", "ICD10CM:E11.9", "similar", False),
            ("ICD10CM:E10.9", "ICD10CM:E11.9", "related:related", True),
        }
    ),
    main="pairs.csv",
    twice="ICD9CM:25000,ICD10CM:E11.9,similar,1,Ann",
    itself="ICD10CM:E119,ICD10CM:E11.9,same-as,1,",
    unknown="HOUSE:1,ICD10CM:E11.9,similar,1,",
    bad_code="RXNORM:6\x079,ICD10CM:E11.9,similar,1,",
    wrong_header=("relation,", "kind,"),
)
_SSSOM_HEAD = (
    "#mapping_set_id: https://example.org/set\n#mapping_set_version: '3'\n#license: https://example.org/l\n#curie_map:\n"
    "#  ICD10CM: https://example.org/icd10/\n#  SNOMEDCT: https://example.org/sct/\n#  HOUSE: https://example.org/h/\n"
    "#  semapv: https://w3id.org/semapv/vocab/\n#  skos: http://www.w3.org/2004/02/skos/core#\n"
    "#  sssom: https://w3id.org/sssom/\n"
)
_SSSOM_COLUMNS = (
    "subject_id\tpredicate_id\tpredicate_modifier\tobject_id\tmapping_justification\tconfidence\n"
)


def _mapping(subject: str, predicate: str, obj: str, modifier: str = "", confidence: str = "0.9") -> str:
    cells = [subject, predicate, modifier, obj, "semapv:ManualMappingCuration", confidence]
    return "\t".join(cells)


SSSOM = Form(
    settings={"kind": "sssom"},
    files={
        "set.sssom.tsv": _SSSOM_HEAD
        + _SSSOM_COLUMNS
        + "\n".join(
            [
                _mapping("ICD10CM:E11.9", "skos:exactMatch", "SNOMEDCT:44054006"),
                _mapping("ICD10CM:E11", "skos:narrowMatch", "SNOMEDCT:44054006"),
                _mapping("ICD10CM:E11.2", "skos:broadMatch", "SNOMEDCT:44054006"),
                _mapping("ICD10CM:E11.2", "skos:relatedMatch", "SNOMEDCT:709044004"),
                _mapping("ICD10CM:E10.9", "skos:closeMatch", "SNOMEDCT:44054006", "Not"),
            ]
        )
        + "\n"
    },
    rows=frozenset(
        {
            ("ICD10CM:E11.9", "SNOMED:44054006", "similar", True),
            ("SNOMED:44054006", "ICD10CM:E11", "is-a", True),
            ("ICD10CM:E11.2", "SNOMED:44054006", "is-a", True),
            ("ICD10CM:E11.2", "SNOMED:709044004", "related:related", True),
            ("ICD10CM:E10.9", "SNOMED:44054006", "similar", False),
        }
    ),
    main="set.sssom.tsv",
    twice=_mapping("ICD10CM:E11.9", "skos:exactMatch", "SNOMEDCT:44054006"),
    itself=_mapping("ICD10CM:E11.9", "skos:closeMatch", "ICD10CM:E11.9"),
    unknown=_mapping("HOUSE:1", "skos:exactMatch", "ICD10CM:E11.9"),
    wrong_header=("\t", ","),
)
OBO = Form(
    settings={"kind": "obo"},
    files={
        "onto.obo": "format-version: 1.2\ndata-version: 2026-01\nontology: x\n\n"
        "[Term]\nid: SCTID:1\nname: disease\n\n"
        '[Term]\nid: SCTID:2\nname: diabetes\nis_a: SCTID:1 ! disease\nxref: ICD10CM:E11 "type 2"\n\n'
        "[Term]\nid: SCTID:3\nname: pancreas\nrelationship: part_of SCTID:4 ! body\nrelationship: due_to SCTID:2\n\n"
        "[Term]\nid: SCTID:9\nname: gone\nis_obsolete: true\nxref: ICD10CM:E12\n\n"
        "[Typedef]\nid: part_of\nname: part of\n"
    },
    rows=frozenset(
        {
            ("SNOMED:2", "SNOMED:1", "is-a", True),
            ("SNOMED:2", "ICD10CM:E11", "similar", True),
            ("SNOMED:3", "SNOMED:4", "related:part-of", True),
            ("SNOMED:3", "SNOMED:2", "related:causes", True),
        }
    ),
    main="onto.obo",
    itself="\n[Term]\nid: SCTID:5\nis_a: SCTID:5\n",
    unknown="\n[Term]\nid: SCTID:6\nxref: MESH:D003920\n",
    wrong_header=("[Term]", "[Ding]"),
)
_CONCEPT = "concept_id\tconcept_name\tdomain_id\tvocabulary_id\tconcept_code\tinvalid_reason\n"
OMOP = Form(
    settings={"kind": "omop"},
    files={
        "CONCEPT.csv": _CONCEPT + '201826\tType 2 "diabetes\tCondition\tSNOMED\t44054006\t\n'
        "201820\tDiabetes\tCondition\tSNOMED\t73211009\t\n35206882\tT2DM\tCondition\tICD10CM\tE11.9\t\n"
        "1503297\tmetformin\tDrug\tRxNorm\t6809\t\n21600001\tdrugs\tDrug\tATC\tA10\t\n",
        "CONCEPT_RELATIONSHIP.csv": "concept_id_1\tconcept_id_2\trelationship_id\tinvalid_reason\n"
        "35206882\t201826\tMaps to\t\n201826\t201826\tMaps to\t\n1503297\t201826\tMay treat\t\n"
        "201826\t35206882\tMapped from\t\n1503297\t201820\tMay treat\tD\n201826\t201820\tIs a\t\n",
        "CONCEPT_ANCESTOR.csv": "ancestor_concept_id\tdescendant_concept_id\tmin_levels_of_separation\n"
        "201820\t201826\t1\n201820\t201820\t0\n201820\t35206882\t2\n21600001\t1503297\t1\n",
    },
    rows=frozenset(
        {
            ("ICD10CM:E11.9", "SNOMED:44054006", "same-as", True),
            ("RXNORM:6809", "SNOMED:44054006", "related:treats", True),
            ("SNOMED:44054006", "SNOMED:73211009", "is-a", True),
        }
    ),
    main="CONCEPT_RELATIONSHIP.csv",
    twice="35206882\t201826\tMaps to\t",
    wrong_header=("\t", ","),
)


def _conso(cui: str, aui: str, sab: str, code: str, suppress: str = "N") -> str:
    return (
        "|".join(
            [
                cui,
                "ENG",
                "P",
                "L",
                "PF",
                "S",
                "Y",
                aui,
                "",
                "",
                "",
                sab,
                "PT",
                code,
                "a name",
                "0",
                suppress,
                "",
            ]
        )
        + "|\n"
    )


def _rel(one: tuple[str, str], rel: str, other: tuple[str, str], rela: str = "") -> str:
    return "|".join([*one, "AUI", rel, *other, "AUI", rela, "R1", "", "SAB", "SAB", "", "", "N", ""]) + "|\n"


UMLS = Form(
    settings={"kind": "umls"},
    files={
        "MRCONSO.RRF": _conso("C1", "A1", "ICD10CM", "E11.9")
        + _conso("C1", "A2", "SNOMEDCT_US", "44054006")
        + _conso("C1", "A3", "MSH", "D003924")
        + _conso("C2", "A4", "SNOMEDCT_US", "73211009")
        + _conso("C3", "A5", "RXNORM", "6809")
        + _conso("C3", "A6", "RXNORM", "1", "O"),
        "MRREL.RRF": _rel(("C1", "A2"), "PAR", ("C2", "A4"))
        + _rel(("C2", "A4"), "CHD", ("C1", "A2"))
        + _rel(("C1", "A1"), "RO", ("C3", "A5"), "may_treat"),
    },
    rows=frozenset(
        {
            ("ICD10CM:E11.9", "SNOMED:44054006", "same-as", True),
            ("SNOMED:44054006", "SNOMED:73211009", "is-a", True),
            ("ICD10CM:E11.9", "RXNORM:6809", "related:treats", True),
            ("SNOMED:44054006", "RXNORM:6809", "related:treats", True),
        }
    ),
    main="MRREL.RRF",
    twice=_rel(("C1", "A2"), "PAR", ("C2", "A4")).rstrip("\n"),
    itself=_rel(("C1", "A2"), "PAR", ("C1", "A2")).rstrip("\n"),
    wrong_header=("|", "\t"),
)

FORMS = {
    "gem text": GEM_TEXT,
    "gem csv": GEM_CSV,
    "groups": GROUPS,
    "ccs": CCS,
    "hierarchy": HIERARCHY,
    "icd": ICD,
    "pairs": PAIRS,
    "sssom": SSSOM,
    "obo": OBO,
    "omop": OMOP,
    "umls": UMLS,
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_contract(form: Form, check: Check, tmp_path: Path) -> None:
    check(form, tmp_path / "kept")


def test_gem_scenarios_and_missing_targets_are_counted(tmp_path: Path) -> None:
    found = GEM_TEXT.read(tmp_path / "g")
    assert found.skipped == {NO_TARGET: 1, COMBINATION: 2}
    assert {r.code_2: r.weight for r in found}["ICD10CM:E11.9"] == 0.7
    assert {r.code_2: r.weight for r in found}["ICD10CM:A00.0"] == 1.0


def test_athena_counts_what_it_leaves_out(tmp_path: Path) -> None:
    assert OMOP.read(tmp_path / "o").skipped == {INVALID: 1}


def test_without_ancestors_is_a_is_taken_from_the_relationships(tmp_path: Path) -> None:
    source = OMOP.source(tmp_path / "o")
    (tmp_path / "o" / "CONCEPT_ANCESTOR.csv").unlink()
    rows = list(source.read(SYSTEMS))
    assert ("SNOMED:44054006", "SNOMED:73211009", "is-a") in {(r.code_1, r.code_2, r.relation) for r in rows}


def test_athena_ancestors_of_other_vocabularies_are_kept_where_the_user_says_so(tmp_path: Path) -> None:
    source = OMOP.source(tmp_path / "o").model_copy(
        update={"through": ("ATC",), "related": {"Mapped from": "backward"}}
    )
    rows = {(r.code_1, r.code_2, r.relation) for r in source.read(SYSTEMS)}
    assert ("RXNORM:6809", "ATC:A10", "is-a") in rows
    assert ("SNOMED:44054006", "ICD10CM:E11.9", "related:backward") in rows


@pytest.mark.parametrize("form", [OMOP, UMLS], ids=["omop", "umls"])
def test_a_vocabulary_without_the_study_s_systems_is_refused(form: Form, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no code of the study's code systems"):
        form.source(tmp_path / "o").read(Systems({"HOUSE": "other"}))


def test_a_user_names_the_systems_of_a_file(tmp_path: Path) -> None:
    form = Form(
        settings={**PAIRS.settings, "systems": {"OUR_DX": "ICD10CM"}},
        files={"pairs.csv": "code_1,code_2,relation\nOUR_DX:E119,ICD9CM:25000,same-as\n"},
        rows=frozenset(),
        main="pairs.csv",
    )
    assert [(r.code_1, r.code_2) for r in form.read(tmp_path / "p")] == [("ICD10CM:E11.9", "ICD9CM:250.00")]


def test_sssom_counts_what_it_leaves_out(tmp_path: Path) -> None:
    more = "\n".join(
        [
            _mapping("ICD10CM:E11.9", "skos:exactMatch", "sssom:NoTermFound"),
            _mapping("NOWHERE:1", "skos:exactMatch", "ICD10CM:E11.9"),
            _mapping("ICD10CM:E11.9", "semapv:crossSpeciesExactMatch", "ICD10CM:E10"),
        ]
    )
    found = SSSOM.read(tmp_path / "s", main=SSSOM.with_line(more))
    assert found.skipped == {NO_TERM: 1, UNREAD: 1, "the predicate semapv:crossSpeciesExactMatch": 1}
    assert found.version == "3"
    weights = {(r.code_1, r.label): r.weight for r in found}
    assert weights["ICD10CM:E11.9", True] == pytest.approx(0.9)
    assert weights["ICD10CM:E10.9", False] == pytest.approx(0.9 * 0.8)


def test_obo_states_its_version_and_weighs_cross_references_less(tmp_path: Path) -> None:
    found = OBO.read(tmp_path / "o")
    assert found.version == "2026-01"
    assert {r.weight for r in found if r.relation == "similar"} == {0.8}


def test_a_concept_of_many_codes_is_too_vague(tmp_path: Path) -> None:
    source = UMLS.source(tmp_path / "u").model_copy(update={"most_codes": 1})
    found = source.read(SYSTEMS)
    assert {(r.code_1, r.relation) for r in found} == {("SNOMED:44054006", "is-a")}
    assert found.skipped == {SUPPRESSED: 1, WIDE: 1}
    assert "UMLS" in source.licence


def test_pairs_with_bad_words_are_counted(tmp_path: Path) -> None:
    more = "ICD10CM:E11,ICD10CM:E10,likeness,1,\nICD10CM:E11,ICD10CM:E10,similar,maybe,\nE11,ICD10CM:E10,similar,1,"
    found = PAIRS.read(tmp_path / "p", main=PAIRS.with_line(more))
    assert sum(found.skipped.values()) == 3
    assert {r.source for r in found} == {"told", "told/Ann", "told/Ben"}


def test_a_row_of_another_width_is_counted(tmp_path: Path) -> None:
    assert PAIRS.read(tmp_path / "p", main=PAIRS.with_line("one,two")).skipped == {OTHER_WIDTH: 1}


def test_icd_digits_are_for_icd(tmp_path: Path) -> None:
    form = Form(
        settings={"kind": "icd", "system": "SNOMED"}, files=ICD.files, rows=frozenset(), main=ICD.main
    )
    with pytest.raises(UsageError, match="is of kind icd"):
        form.read(tmp_path / "i")


@pytest.mark.parametrize(
    ("code", "nine", "parent"),
    [
        ("E1121", False, "E112"),
        ("T36XXXA", False, "T36"),
        ("A00", False, ""),
        ("25000", True, "2500"),
        ("E8120", True, "E812"),
        ("E812", True, ""),
        ("V10", True, ""),
    ],
)
def test_icd_parents(code: str, nine: bool, parent: str) -> None:
    assert icd_parent(code, nine=nine) == parent


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("icd-10-cm", "ICD10CM"),
        ("SNOMEDCT_US_2023_09_01", "SNOMED"),
        ("ICD9", "ICD9CM"),
        ("ICD10", None),
        ("rxcui", "RXNORM"),
    ],
)
def test_names_of_systems(name: str, prefix: str | None) -> None:
    assert SYSTEMS.resolve(name) == prefix


def test_a_name_that_cannot_be_a_prefix_is_mended() -> None:
    assert SYSTEMS.prefix("RxNorm Extension") == "RxNorm_Extension"
    assert SYSTEMS.prefix("9lives") == "X9lives"


def test_one_spelling_for_icd() -> None:
    spelled = ["ICD10CM:E119", "ICD10CM:e11.9", "ICD9CM:E8120", "ICD9CM:25000", "ICD10CM:I10", "RXNORM:25000"]
    assert [canonical(c) for c in spelled] == [
        "ICD10CM:E11.9",
        "ICD10CM:E11.9",
        "ICD9CM:E812.0",
        "ICD9CM:250.00",
        "ICD10CM:I10",
        "RXNORM:25000",
    ]
