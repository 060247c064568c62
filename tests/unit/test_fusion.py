"""Codes and notes in one vector: what is learnt, what must not be looked at, and the command from notes to found patients."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from datetime import date
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from protocol.errors import DataError, FederationError, UsageError
from site_agent.cli import app
from site_agent.cohort import CohortStore, Window, build_cohort
from site_agent.cohort.fused import FusedVectors
from site_agent.cohort.fusing import code_vectors_without
from site_agent.cohort.labels import label_by_codes, label_by_file, label_terms
from site_agent.config import Home
from tests.unit.test_cohort import HEART, KIDNEY, MACHINE, N, make_home, write_release

torch = pytest.importorskip("torch")

from site_agent.cohort import comparing  # noqa: E402
from site_agent.cohort.comparing import compare_fusions, parts_of_both  # noqa: E402
from site_agent.cohort.fusion import KINDS, Fitting, hard_negatives, learn_fusion, standardised  # noqa: E402
from site_agent.cohort.pairs import draw_pairs, pair_area  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "_REPEATS", 60)
        patch.setattr(comparing, "Fitting", partial(Fitting, epochs=15, rate=1e-2, width=16))
        yield
    torch.set_num_threads(threads)


def halves(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A label of which one half of the patients is told by the codes, and the other by the notes."""
    rng = np.random.default_rng(seed)
    label = rng.random(n) < 0.4
    by_codes = rng.random(n) < 0.5
    codes, notes = (rng.standard_normal((n, 8)).astype(np.float32) for _ in range(2))
    codes[by_codes, 0] += np.where(label[by_codes], 4.0, -4.0)
    notes[~by_codes, 0] += np.where(label[~by_codes], 4.0, -4.0)
    return codes, notes, label


def test_what_is_told_half_by_codes_and_half_by_notes_is_learnt_from_both() -> None:
    codes, notes, label = halves(600)
    found = compare_fusions(codes, notes, label, np.arange(600), seeds=range(2))
    area = {name: way.area.value for name, way in found.ways.items()}
    for one in ("gated", "concatenated"):
        for other in ("text", "codes"):
            assert area[one] > area[other] + 0.1
    for way in found.ways.values():
        assert way.area.low <= way.area.value <= way.area.high
        assert way.area.low > found.with_label
        assert way.random > 0.5
    assert sum(found.patients) == 600
    assert abs(found.patients[0] - 360) < 2
    assert found.ways["gated"].gain is None
    assert found.ways["codes"].gain is not None
    assert found.ways["codes"].gain.low > 0
    gate = {name: way.gate for name, way in found.ways.items()}
    assert 0.2 < gate.pop("gated") < 0.8  # type: ignore[operator]
    assert set(gate.values()) == {None}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_and_the_asked_are_not_looked_at(kind: Any) -> None:
    codes, notes, label = halves(300)
    codes[:3] = notes[:3] = 0.0
    learn, stop, ask = np.split(np.random.default_rng(0).permutation(np.arange(3, 300)), [180, 240])
    fitting = Fitting(epochs=3, contrast=0.5)
    first = learn_fusion(kind, codes, notes, label, learn, stop, fitting)
    turned = label.copy()
    turned[ask] = ~turned[ask]
    torch.manual_seed(99)
    again = learn_fusion(kind, codes, notes, turned, learn, stop, fitting)
    assert np.array_equal(first.vectors, again.vectors)
    assert not first.vectors[:3].any(), "of whom nothing is known has no vector"
    assert np.allclose(np.linalg.norm(first.vectors[3:], axis=1), 1.0, atol=1e-5)
    other = learn_fusion(kind, codes, notes, label, learn, stop, Fitting(epochs=3, contrast=0.5, seed=1))
    assert not np.allclose(first.vectors, other.vectors)
    assert np.isnan(first.gate).all() == (kind != "gated")


def test_each_way_reads_what_its_name_says() -> None:
    codes, notes, label = halves(200)
    learn, stop = np.arange(120), np.arange(120, 160)
    zero = np.zeros_like(codes)
    for kind, unread in (("text", "codes"), ("codes", "notes")):
        full = learn_fusion(kind, codes, notes, label, learn, stop, Fitting(epochs=2))  # type: ignore[arg-type]
        args = (zero, notes) if unread == "codes" else (codes, zero)
        part = learn_fusion(kind, *args, label, learn, stop, Fitting(epochs=2))  # type: ignore[arg-type]
        assert np.array_equal(full.vectors, part.vectors)


def test_a_rare_label_is_in_each_part() -> None:
    label = np.arange(1000) % 20 == 0
    rows = np.arange(0, 1000)[::-1]
    split = parts_of_both(rows, label, 3)
    assert [int(label[p].sum()) for p in split] == [30, 10, 10]
    assert np.array_equal(np.sort(np.concatenate(split)), np.sort(rows))


def test_it_stops_when_the_kept_back_get_no_better() -> None:
    rng = np.random.default_rng(0)
    codes, notes = (rng.standard_normal((400, 30)).astype(np.float32) for _ in range(2))
    noise = rng.random(400) < 0.5
    fitting = Fitting(epochs=200, patience=3, dropout=0.0)
    made = learn_fusion("gated", codes, notes, noise, np.arange(300), np.arange(300, 400), fitting)
    assert made.epochs < 100


def test_the_mean_is_that_of_the_patients_learnt_from() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 2.0], [0.0, 0.0], [100.0, 100.0]], dtype=np.float32)
    found = standardised(rows, np.array([0, 1, 2]))
    assert np.allclose(found[:2].mean(axis=0), 0)
    assert np.isclose(np.mean(found[:2] ** 2), 1.0)
    assert not found[2].any()
    assert not standardised(np.zeros((4, 2), np.float32), np.arange(4)).any()


def test_pairs_and_hard_negatives_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((200, 5)).astype(np.float32)
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    label = np.arange(200) < 60
    rows = rng.permutation(np.arange(20, 180))
    near = hard_negatives(codes, label, rows, 5)
    assert set(near) == set(rows[label[rows]].tolist())
    for patient, found in near.items():
        others = rows[~label[rows]]
        assert set(found) == set(others[np.argsort(-(codes[others] @ codes[patient]))[:5]])
    pairs = draw_pairs(codes, label, rows, most=1000)
    assert label[pairs.anchor].all() and label[pairs.same].all()
    assert not label[pairs.other].any() and not label[pairs.hard].any()
    assert (pairs.anchor != pairs.same).all()
    assert set(np.concatenate([pairs.anchor, pairs.same, pairs.other, pairs.hard])) <= set(rows)
    ideal = np.where(label[:, None], [[1.0, 0.0]], [[0.0, 1.0]]).astype(np.float32)
    assert pair_area(ideal, pairs) == (1.0, 1.0)
    assert pair_area(np.zeros((200, 2), np.float32), pairs) == (0.5, 0.5)
    random, hard = pair_area(codes, pairs)
    assert abs(random - 0.5) < 0.1
    assert hard < 0.2, "they are nearest by these very vectors"


def notes_of(path: Path) -> None:
    """Notes of all but every tenth patient, with the patient's name, a date, and the organ in other words."""
    rng = np.random.default_rng(3)
    lines = ["patient,date,text"]
    for i in range(N):
        if i % 10:
            organ = "pulmonary congestion, leg swelling" if i % 2 == 0 else "uraemia, arteriovenous fistula"
            told = "heart failure" if i % 2 == 0 else "renal problem"
            day = date(2021, 1 + int(rng.integers(12)), 3)
            # A line that many have would be taken for a form's.
            else_ = " ".join(rng.permutation("tired pale anxious restless thirsty feverish".split())[:4])  # noqa: SIM905
            who = f"Seen by Dr. Quintana, 03/04/2021. {else_} Mr Surname{i:03} P{i:03}"
            lines.append(f'P{i:03},{day},"{who} has {organ}; {told}; MRN 00{i:03}11"')
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = make_home(tmp_path_factory.mktemp("fuse"))
    notes_of(made.folder / "notes.csv")
    people = (made.folder / "patients.csv").read_text().splitlines()
    named = [f"{people[0]},last_name", *(f"{line},Surname{line[1:4]}" for line in people[1:])]
    (made.folder / "patients.csv").write_text("\n".join(named) + "\n")
    toml = made.folder / "site.toml"
    toml.write_text(toml.read_text() + '\n[notes]\nfile = "notes.csv"\ndim = 64\n')
    made = Home(made.folder)
    build_cohort(made, Window(), machine=MACHINE)
    return made


def run(home: Home, *words: str) -> Any:
    result = CliRunner().invoke(app, ["cohort", *words, "--home", str(home.folder), "--json"])
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)


def test_from_notes_to_patients_like_a_patient(home: Home) -> None:
    with pytest.raises(UsageError, match="no fused vectors"):
        run(home, "search", "--patient", "P000", "--fused")
    report = run(home, "fuse", "--label", "I50*", "--term", "leg swelling", "--compare-terms", "--seeds", "2")
    assert report["notice"].startswith("Data of single patients")
    assert report["left_out"] == ["ICD10CM:I50.1", "ICD10CM:I50.9"]
    assert (report["patients_with_label"], report["patients_without"]) == (N // 2, N // 2 + 1)
    assert set(report["ways"]) == {*KINDS, "gated, terms left in", "text, terms left in"}
    counts = report["notes"]
    assert counts["notes"] == counts["patients"] == N - N // 10
    assert counts["terms"] == N // 2 - N // 10, "one sentence each with heart failure and leg swelling"
    assert {"name", "date", "known", "number"} <= set(counts["removed"])
    assert report["ways"]["text, terms left in"]["area"]["value"] > 0.9
    store = CohortStore.open(home)
    kept = FusedVectors.open(home, store)
    assert kept.manifest.kind == report["kept"] == "gated"
    found = run(home, "search", "--patient", "P002", "--fused", "-k", "20")["patients"]
    hearts = [p for p in found if int(p["patient"][1:]) % 2 == 0]
    assert len(hearts) >= 18
    assert "P002" not in {p["patient"] for p in found}
    assert run(home, "describe", "--patient", "P002", "--fused", "-k", "20")["cohort"]["patients"] == 20
    with pytest.raises(UsageError, match="asked with a patient"):
        run(home, "search", "--code", "I50.9", "--fused")


def test_what_is_kept_is_for_the_owner_and_holds_no_word_of_a_note(home: Home) -> None:
    run(home, "fuse", "--label", "I50*", "--seeds", "2", "--keep", "text")
    root = home.folder / "cohort"
    files = [p for p in root.rglob("*") if p.is_file()]
    assert any(p.name.startswith("note-vectors-") for p in files)
    for path in [root, *root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    for path in files:
        raw = path.read_bytes()
        for word in (b"Quintana", b"Surname", b"congestion", b"uraemia", b"swelling"):
            assert word not in raw, path
    assert not list(home.work.glob("cohort/*"))
    exchanged = [p for p in home.exchange.rglob("*") if p.is_file()]
    assert not [p for p in exchanged if "fused" in p.name or "note" in p.name]


def test_kept_vectors_belong_to_one_build(home: Home, tmp_path: Path) -> None:
    own = make_home(tmp_path)
    notes_of(own.folder / "notes.csv")
    toml = own.folder / "site.toml"
    toml.write_text(toml.read_text() + '\n[notes]\nfile = "notes.csv"\ndim = 32\n')
    own = Home(own.folder)
    with pytest.raises(UsageError, match="no patient vectors"):
        run(own, "fuse", "--label", "I50*")
    build_cohort(own, Window(), machine=MACHINE)
    run(own, "fuse", "--label", "I50*", "--seeds", "2", "--keep", "codes")
    folder = own.folder / "cohort" / "fused"
    (folder / "vectors.bin").write_bytes(b"")
    with pytest.raises(DataError, match="not as it was written"):
        run(own, "search", "--patient", "P002", "--fused")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"build": "another"}))
    with pytest.raises(UsageError, match="of an earlier build"):
        run(own, "search", "--patient", "P002", "--fused")
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        run(own, "search", "--patient", "P002", "--fused")
    write_release(own, 2)
    build_cohort(own, Window(), machine=MACHINE)
    assert not folder.exists()


def test_codes_that_are_left_out_change_no_vector_but_by_their_absence(home: Home) -> None:
    store = CohortStore.open(home)
    every = code_vectors_without(store, np.empty(0, dtype=np.intp))
    assert np.allclose(every, store.joined, atol=1e-5)
    label = label_by_codes(store, ["I50*"])
    without = code_vectors_without(store, label.own)
    assert np.allclose(without[~label.has], every[~label.has], atol=1e-6)
    assert not np.allclose(without[label.has], every[label.has], atol=1e-2)
    assert set(np.asarray(store.codes["code"])[label.own]) == {f"ICD10CM:{c}" for c in HEART[:2]}


def test_a_label_by_codes_or_by_a_file(home: Home, tmp_path: Path) -> None:
    store = CohortStore.open(home)
    label = label_by_codes(store, ["I50*", "I25.1"], ["R05"])
    even = np.array([store.label(i)[-1] in "02468" for i in range(N + 1)])
    assert np.array_equal(label.has, even)
    assert label.known.all()
    assert len(label.own) == 4
    assert "Heart failure" in label.names
    path = tmp_path / "flags.csv"
    lines = [f"P{i:03},{'yes' if i % 2 else 'No'}" for i in range(N - 8)]
    path.write_text("\n".join(["patient,flag", *lines, "STRANGER,1"]))
    flags = label_by_file(store, path, ["N18*"])
    assert int(flags.known.sum()) == N - 8
    assert np.array_equal(flags.has[flags.known], ~even[flags.known])
    assert {store.codes["code"][int(i)] for i in flags.own} == {f"ICD10CM:{c}" for c in KIDNEY[:2]}
    cases: tuple[tuple[str, type[FederationError], str], ...] = (
        ("patient,other\nP000,1\n", DataError, "cannot be read"),
        ("patient,flag\nP000,maybe\n", DataError, "neither yes nor no"),
        ("patient,flag\nP000,1\nP000,0\n", DataError, "both yes and no"),
        ("patient,flag\nP000,1\nP001,0\n", UsageError, "Too few patients to learn from: 1 have"),
    )
    for text, error, message in cases:
        path.write_text(text)
        with pytest.raises(error, match=message):
            label_by_file(store, path)
    with pytest.raises(UsageError, match="Too few"):
        label_by_codes(store, ["R05"])


def test_flags_of_patients_that_are_numbers(tmp_path: Path) -> None:
    """What `label_by_file` asks of a build whose patients are numbers."""
    store: Any = SimpleNamespace(
        has=lambda _: False,
        array=lambda _: np.arange(200, dtype=np.int64),
        manifest=SimpleNamespace(patients=200),
    )
    path = tmp_path / "flags.csv"
    path.write_text("patient,flag\n" + "".join(f" {i},{i % 2}\n" for i in range(150)))
    label = label_by_file(store, path)
    assert label.has.nonzero()[0].tolist() == list(range(1, 150, 2))
    assert label.known.sum() == 150
    path.write_text("patient,flag\nP1,1\n")
    with pytest.raises(DataError, match="cannot be read"):
        label_by_file(store, path)


def test_words_of_the_label() -> None:
    names = ["Congestive heart failure, unspecified", "Chronic kidney disease, stage III"]
    pattern = label_terms(names, ["CHF", "leg  swelling"])
    assert pattern is not None
    text = "CHF and chf, Hearts, congestive; Heart-failure; disease of the kidneys; leg swelling; CHFs"
    assert re.findall(r"\w+", pattern.sub(" ", text)) == ["and", "disease", "of", "the", "CHFs"]
    assert label_terms(["Unspecified disease"]) is None


def test_the_command_says_what_is_missing(home: Home, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="learnt from one label"):
        run(home, "fuse")
    bare = make_home(tmp_path)
    build_cohort(bare, Window(), machine=MACHINE)
    with pytest.raises(UsageError, match="names no notes"):
        run(bare, "fuse", "--label", "I50*")
    toml = bare.folder / "site.toml"
    before = toml.read_text()
    told = '\n[notes]\nfile = "notes.csv"\nidentifiers = ["surname"]\n'
    toml.write_text(before + told)
    with pytest.raises(DataError, match="has no column 'surname'"):
        run(bare, "fuse", "--label", "I50*")
    toml.write_text(before.replace('patients = "patients.csv"', "") + told)
    with pytest.raises(UsageError, match="and there is none"):
        run(bare, "fuse", "--label", "I50*")
    toml.write_text(before + '\n[notes]\ntable = "note"\n')
    with pytest.raises(UsageError, match="come from no database"):
        run(bare, "fuse", "--label", "I50*")
    toml.write_text(before + '\n[notes]\nfile = "a"\ntable = "note"\n')
    with pytest.raises(UsageError, match="not both"):
        run(bare, "fuse", "--label", "I50*")
    path = CohortStore.open(bare).folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"schema_version": 1}))
    with pytest.raises(DataError, match=r"cannot be read.*schema_version"):
        run(bare, "fuse", "--label", "I50*")
