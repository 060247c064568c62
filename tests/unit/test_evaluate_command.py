"""`coordinator evaluate`: a release with planted truth, the scores that it must get, and files that are refused."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.exports.tables import clusters_table
from coordinator.mapping import Mapping, MappingSet
from coordinator.scoring import scores
from coordinator.scoring.truth import LabelledPair, Published, read_published, read_truth
from protocol.errors import DataError, FederationError, ProtocolError
from protocol.messages import Invitation, PublishedManifest
from protocol.published import list_files, sign_manifest
from tests.synthetic import keys, study, unit_rows

N_CONCEPTS, N_ANCHORED = 30, 6
STANDARD = [f"ICD10CM:A{i:02d}" for i in range(N_CONCEPTS)]
LOCAL = [f"SOUTH:{i}-{copy}" for i in range(N_CONCEPTS) for copy in "ab"]
CODES = [*STANDARD, *LOCAL]
CONCEPT = [*range(N_CONCEPTS), *(i for i in range(N_CONCEPTS) for _ in "ab")]


def mapping(code: str, cluster: int, *, anchored: bool) -> Mapping:
    return Mapping(
        code,
        ("south",),
        cluster,
        0.9,
        0.9,
        anchored,
        anchored,
        STANDARD[cluster],
        0.9,
        (),
        (),
        "",
        "condition",
        None,
        1.0,
    )


def published(folder: Path, vectors: np.ndarray[Any, Any], cluster: list[int], anchored: set[str]) -> Path:
    """A signed folder with the two tables that are scored."""
    folder.mkdir()
    rows = tuple(mapping(c, k, anchored=c in anchored) for c, k in zip(CODES, cluster, strict=True))
    pq.write_table(clusters_table(MappingSet(rows, vectors.astype(np.float32))), folder / "clusters.parquet")
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
    pq.write_table(pa.table({"code": CODES, "vector": flat}), folder / "embeddings.parquet")
    manifest = PublishedManifest(
        study=study().model_dump(mode="json"),
        study_digest=study().digest,
        round="r1",
        version=1,
        created=datetime.now(UTC),
        software="test",
        codes=len(CODES),
        clusters=N_CONCEPTS,
        sites=(),
        files=list_files(folder),
    )
    sign_manifest(folder, manifest, keys("hub"))
    return folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`v1`, right in all; `chance`, random vectors and clusters; `truth.csv`; `pairs.csv`."""
    folder = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    centers = unit_rows(rng, N_CONCEPTS, 24)
    vectors = centers[CONCEPT] + 0.05 * rng.standard_normal((len(CODES), 24))
    anchored = {f"SOUTH:{i}-a" for i in range(N_ANCHORED)}
    published(folder / "v1", vectors / np.linalg.norm(vectors, axis=1, keepdims=True), CONCEPT, anchored)
    shuffled = rng.permutation(CONCEPT).tolist()
    published(folder / "chance", unit_rows(rng, len(CODES), 24), shuffled, set())
    with (folder / "truth.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["system", "code", "concept", "chapter"])
        for code, concept in zip(CODES, CONCEPT, strict=True):
            writer.writerow([*code.split(":"), f"concept-{concept}", f"chapter {concept % 3}"])
    with (folder / "pairs.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["system_1", "code_1", "system_2", "code_2", "kind", "label", "similarity"])
        for i in range(10, N_CONCEPTS):
            writer.writerow(["SOUTH", f"{i}-a", "ICD10CM", f"A{i:02d}", "similar", "", ""])
            writer.writerow(["SOUTH", f"{i}-a", "SOUTH", f"{i}-b", "similar", "", ""])
            other = (i + 5) % N_CONCEPTS
            writer.writerow(["ICD10CM", f"A{i:02d}", "ICD10CM", f"A{other:02d}", "related", i % 2, ""])
            cosine = centers[i] @ centers[other]
            writer.writerow(["ICD10CM", f"A{i:02d}", "SOUTH", f"{other}-a", "resnik", "", f"{cosine:.6f}"])
        writer.writerow(["SOUTH", "unknown", "SOUTH", "1-a", "similar", "", ""])
    return folder


def run(bench: Path, output: Path, *words: object, release: str = "v1") -> dict[str, Any]:
    call = ["evaluate", bench / release, "--truth", bench / "truth.csv", "--output", output, "--json", *words]
    done = CliRunner().invoke(app, [str(w) for w in call])
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def by_name(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(s["metric"], s["group"]): s for s in report["scores"]}


def test_a_release_that_is_right(bench: Path, tmp_path: Path):
    report = run(bench, tmp_path, "--pairs", bench / "pairs.csv")
    # An anchored code, and the standard code that it is anchored to, are not scored.
    assert report["scored"] == len(CODES) - 2 * N_ANCHORED
    found = by_name(report)
    assert found["AMI", "all"]["value"] == pytest.approx(1.0)
    assert found["AMI", "SOUTH"]["n"] == 2 * N_CONCEPTS - N_ANCHORED
    assert ("AMI", "ICD10CM") not in found  # every code has a concept of its own
    hits = found["hits@1", "local code → ICD10CM"]
    # The anchored standard codes remain as candidates, without being anyone's answer.
    assert (hits["value"], hits["n"], hits["detail"]) == (1.0, 2 * (N_CONCEPTS - N_ANCHORED), "30 candidates")
    assert hits["chance"] == pytest.approx(1 / N_CONCEPTS, abs=1e-6)
    assert found["MRR", "local code → ICD10CM"]["chance"] == pytest.approx(
        np.mean(1 / np.arange(1, 31)), abs=1e-6
    )
    # Two of the ten negatives name a code that an anchor touches.
    similar = found["AUC", "similar"]
    assert similar["value"] == pytest.approx(1.0)
    assert (similar["n"], similar["detail"]) == (40, "400 drawn negatives")
    assert {g for m, g in found if m == "AUC"} == {
        "similar",
        "similar, ICD10CM – SOUTH",
        "similar, SOUTH – SOUTH",
        "related",
    }
    assert found["AUC", "related"]["detail"] == "8 given negatives"
    assert found["Spearman correlation", "resnik"]["value"] > 0.6
    for score in report["scores"]:
        assert score["low"] <= score["value"] + 1e-9
        assert score["value"] <= score["high"] + 1e-9
    assert {Path(f).name for f in report["files"]} == {"scores.csv", "figure.png", "figure.svg"}
    assert len(list(csv.DictReader((tmp_path / "scores.csv").open()))) == len(report["scores"])
    assert "hits@10" in (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_a_release_of_chance_reaches_chance(bench: Path, tmp_path: Path):
    found = by_name(run(bench, tmp_path, "--pairs", bench / "pairs.csv", release="chance"))
    for name in (("AMI", "all"), ("AUC", "similar"), ("hits@5", "local code → ICD10CM")):
        score = found[name]
        assert abs(score["value"] - score["chance"]) < 4 * score["error"]
        assert score["error"] > 0


def test_pairs_that_an_anchor_gave_away_are_left_out(bench: Path, tmp_path: Path):
    path = tmp_path / "pairs.csv"
    rows = [f"SOUTH,{i}-a,ICD10CM,A{i:02d},similar" for i in range(N_ANCHORED + 4)]
    path.write_text("system_1,code_1,system_2,code_2,kind\n" + "\n".join(rows) + "\n", encoding="utf-8")
    assert by_name(run(bench, tmp_path, "--pairs", path))["AUC", "similar"]["n"] == 4
    every = by_name(run(bench, tmp_path, "--pairs", path, "--with-anchored"))
    assert every["AUC", "similar"]["n"] == N_ANCHORED + 4


def test_groups_and_anchored_codes(bench: Path, tmp_path: Path):
    report = run(bench, tmp_path, "--by", "chapter", "--with-anchored")
    assert report["scored"] == len(CODES)
    assert {g for m, g in by_name(report) if m == "AMI"} == {"all", "chapter 0", "chapter 1", "chapter 2"}
    assert any("Anchored codes are scored too" in note for note in report["notes"])


def test_the_same_call_gives_the_same_scores(bench: Path, tmp_path: Path):
    words = ("--pairs", bench / "pairs.csv", "--seed", 3)
    assert run(bench, tmp_path, *words, release="chance") == run(bench, tmp_path, *words, release="chance")


def test_the_table_for_people(bench: Path, tmp_path: Path):
    call = ["evaluate", bench / "v1", "--truth", bench / "truth.csv", "--output", tmp_path]
    done = CliRunner().invoke(app, [str(w) for w in call])
    assert done.exit_code == 0
    for words in ("hits@20", "candidates", "1.000 ±", "--invitation"):
        assert words in done.stdout


def test_the_signature(bench: Path, tmp_path: Path):
    def invitation(name: str) -> Path:
        path = tmp_path / f"{name}.json"
        made = Invitation(
            study_digest="0" * 64,
            address="localhost:9443",
            certificate="",
            keys=keys(name).public(),
            bundle_digest="0" * 64,
        )
        path.write_text(made.model_dump_json(), encoding="utf-8")
        return path

    assert run(bench, tmp_path, "--invitation", invitation("hub"))["signature"] == "checked"
    stranger = ["evaluate", bench / "v1", "--truth", bench / "truth.csv", "--output", tmp_path]
    refused = CliRunner().invoke(app, [str(w) for w in (*stranger, "--invitation", invitation("other"))])
    assert isinstance(refused.exception, FederationError)
    assert "signature does not hold" in str(refused.exception)


def test_an_altered_folder_is_refused(bench: Path, tmp_path: Path):
    copy = tmp_path / "v1"
    copy.mkdir()
    for path in (bench / "v1").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert read_published(copy).codes == tuple(CODES)
    (copy / "clusters.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ProtocolError, match=r"clusters\.parquet .* is altered"):
        read_published(copy)
    with pytest.raises(ProtocolError, match=r"no published release.*manifest\.json"):
        read_published(tmp_path)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("has no column 'system'", "has nothing")),
        ("system,code\nSOUTH,1-a\n", ("has no column 'concept'", "needs system, code, concept")),
        ("system,code,concept\nSOUTH,1-a\n", ("Line 2", "number of cells", "quotes")),
        ("system,code,concept\nSOUTH,1-a,\n", ("Line 2", "no concept", "SOUTH:1-a")),
        ("system,code,concept\nSO UTH,1-a,x\n", ("Line 2", "names no code", "prefix")),
        (
            "system,code,concept\nSOUTH,1-a,x\nSOUTH,1-a,y\n",
            ("Line 3", "concept 'y'", "line 2 gives it 'x'", "Keep one"),
        ),
        ("system,code,concept\nNORTH,1-a,x\n", ("no code of the release", "NORTH:1-a", "ICD10CM:A00")),
        ("system,code,concept\nSOUTH,1-\xff,x\n", ("cannot be read", "UTF-8")),
    ],
    ids=["empty", "column", "cells", "concept", "prefix", "conflict", "foreign", "encoding"],
)
def test_a_bad_truth_file(bench: Path, tmp_path: Path, text: str, parts: tuple[str, ...]):
    path = tmp_path / "truth.csv"
    path.write_bytes(text.encode("latin-1"))
    done = CliRunner().invoke(
        app, ["evaluate", str(bench / "v1"), "--truth", str(path), "--output", str(tmp_path)]
    )
    assert isinstance(done.exception, DataError)
    for part in (*parts, str(path)):
        assert part in str(done.exception)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("SOUTH,1-a,SOUTH,1-a,similar,,", ("Line 2", "with itself")),
        ("SOUTH,1-a,SOUTH,2-a,,,", ("Line 2", "kind is empty")),
        ("SOUTH,1-a,SOUTH,2-a,similar,maybe,", ("Line 2", "label 'maybe'", "1 for a pair")),
        ("SOUTH,1-a,SOUTH,2-a,similar,,high", ("Line 2", "similarity 'high'", "finite number")),
        ("SOUTH,1-a,SOUTH,99-a,similar,1,", ("no pair of two codes",)),
    ],
)
def test_a_bad_pair_file(bench: Path, tmp_path: Path, row: str, parts: tuple[str, ...]):
    path = tmp_path / "pairs.csv"
    path.write_text(f"system_1,code_1,system_2,code_2,kind,label,similarity\n{row}\n", encoding="utf-8")
    call = ["evaluate", bench / "v1", "--truth", bench / "truth.csv", "--pairs", path, "--output", tmp_path]
    done = CliRunner().invoke(app, [str(w) for w in call])
    assert isinstance(done.exception, DataError)
    for part in parts:
        assert part in str(done.exception)


def test_a_group_that_is_no_column(bench: Path, tmp_path: Path):
    call = ["evaluate", bench / "v1", "--truth", bench / "truth.csv", "--output", tmp_path, "--by", "ward"]
    done = CliRunner().invoke(app, [str(w) for w in call])
    assert "no column 'ward'" in str(done.exception)


def test_nulls_have_the_systems_of_their_pairs():
    systems = ["A"] * 6 + ["B"] * 5
    positive = [(0, 6), (1, 2), (7, 3)]
    known = {frozenset(p) for p in positive}
    meaning = [str(i % 4) for i in range(11)]
    found = scores.matched_nulls(systems, meaning, positive, known, 50, np.random.default_rng(0))
    assert len(found) == 150
    assert [(systems[i], systems[j]) for i, j in found[::50]] == [("A", "B"), ("A", "A"), ("B", "A")]
    assert not {frozenset(p) for p in found} & known
    assert all(meaning[i] != meaning[j] for i, j in found)


def test_two_systems_without_another_pair_give_no_null():
    known = {frozenset((0, 1))}
    assert scores.matched_nulls(["A", "B"], ["x", "y"], [(0, 1)], known, 5, np.random.default_rng(0)) == []


def test_candidates_are_of_the_querys_type(bench: Path, tmp_path: Path):
    text = (bench / "truth.csv").read_text().splitlines()
    typed = [text[0] + ",type", *(f"{line},{'lab' if ' 0' in line else 'drug'}" for line in text[1:])]
    (tmp_path / "truth.csv").write_text("\n".join(typed) + "\n")
    release = read_published(bench / "v1")
    truth = read_truth(tmp_path / "truth.csv", release)
    test = scores.scored_codes(release, truth, with_anchored=True)
    hits = scores.retrieval_scores(release, truth, test)[0]
    assert hits.detail == "10 to 20 candidates"
    assert hits.chance == pytest.approx((20 / 10 + 40 / 20) / 60)


def test_auc_pools_pairs_of_matched_systems_only(bench: Path):
    release: Published = read_published(bench / "v1")
    truth = read_truth(bench / "truth.csv", release)
    pairs = [
        LabelledPair("SOUTH:1-a", "SOUTH:1-b", "similar", True),
        LabelledPair("SOUTH:2-a", "SOUTH:3-b", "similar", False),
        LabelledPair("ICD10CM:A01", "SOUTH:1-b", "similar", True),  # no negative of these two systems
    ]
    (score,) = scores.pair_scores(release, pairs, truth)
    assert (score.group, score.n, score.value) == ("similar", 1, 1.0)
