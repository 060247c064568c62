"""The generated consortium: repeatable, honest about what means what, neither hopeless nor trivial."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from coordinator.demo import codesystems
from coordinator.demo.abbreviate import HABITS, abbreviate
from coordinator.demo.codesystems import COMMON, HOSPITAL, choose_concepts, load_code_systems
from coordinator.demo.consortium import NAMES, SCHEMA, Consortium, generate, site_name
from coordinator.demo.inputs import generated
from coordinator.demo.medicine import make_hospital, make_medicine
from coordinator.demo.patients import draw_patients
from protocol.errors import UsageError
from protocol.statistics import embed, nonempty, ppmi
from protocol.vocabulary import IDENTIFIER, PREFIX, curie
from site_agent.cooccurrence import count_pairs

PATIENT_FLOOR, PAIR_FLOOR = 20, 11


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    """The defaults: three sites of 5,000 patients."""
    return generate(tmp_path_factory.mktemp("consortium"))


@pytest.fixture(scope="module")
def systems() -> codesystems.CodeSystems:
    return load_code_systems()


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def truth_of(consortium: Consortium, site: str) -> dict[str, dict[str, str]]:
    return {r["code"]: r for r in read_csv(consortium.folder / "truth.csv") if r["site"] == site}


def integers(column: Any) -> tuple[NDArray[np.int64], list[str]]:
    encoded = pc.dictionary_encode(column).combine_chunks()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def events_of(consortium: Consortium, site: str) -> Any:
    return pq.read_table(consortium.folder / site / "events.parquet")


def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path: Path) -> None:
    first, second, other = (
        generate(tmp_path / name, patients=120, seed=seed) for name, seed in (("a", 7), ("b", 7), ("c", 8))
    )
    assert first.sites == second.sites
    assert (tmp_path / "a" / "truth.csv").read_bytes() == (tmp_path / "b" / "truth.csv").read_bytes()
    assert (tmp_path / "a" / "truth.csv").read_bytes() != (tmp_path / "c" / "truth.csv").read_bytes()
    for site in first.sites:
        a, b = (tmp_path / name / site.name for name in "ab")
        assert (a / "anchors.csv").read_bytes() == (b / "anchors.csv").read_bytes()
        assert events_of(first, site.name).equals(events_of(second, site.name))
        assert not events_of(first, site.name).equals(events_of(other, site.name))


def test_the_figures_are_those_of_the_files(consortium: Consortium) -> None:
    assert [s.name for s in consortium.sites] == ["north", "lake", "south"]
    assert [s.prefix for s in consortium.sites] == ["ICD10CM", "ICD9CM", "SOUTH"]
    people: set[str] = set()
    for site in consortium.sites:
        events = events_of(consortium, site.name)
        assert events.schema.equals(SCHEMA)
        patient, patients = integers(events["patient"])
        code, codes = integers(events["code"])
        n_pairs = len(np.unique(patient * len(codes) + code))
        assert site.patients == len(patients) == 5000
        assert (site.events, site.codes) == (len(events), len(codes))
        assert site.codes_per_patient == pytest.approx(n_pairs / 5000)
        assert events["system"].unique().to_pylist() == [site.prefix]
        assert not people & set(patients)
        people |= set(patients)


def test_sites_are_large_enough_to_be_a_realistic_example(consortium: Consortium) -> None:
    for site in consortium.sites:
        assert site.codes >= 600
        assert site.codes_per_patient >= 30


def test_events_are_sorted_distinct_and_within_ten_years(consortium: Consortium) -> None:
    events = events_of(consortium, "lake")
    patient, names = integers(events["patient"])
    code, _ = integers(events["code"])
    day = events["date"].to_numpy().astype("datetime64[D]")
    assert names == sorted(names)
    assert (np.diff(patient) >= 0).all()
    assert (np.diff(day.astype(int))[np.diff(patient) == 0] >= 0).all()
    assert day.min() >= np.datetime64("2015-01-01")
    assert day.max() <= np.datetime64("2024-12-31")
    key = (patient * 10_000 + (day - day.min()).astype(int)) * 10_000 + code
    assert len(np.unique(key)) == len(key)


def test_a_code_has_one_description(consortium: Consortium, systems: codesystems.CodeSystems) -> None:
    for site, titles in (("north", systems.icd10), ("lake", systems.icd9), ("south", None)):
        table = events_of(consortium, site).group_by(["code", "description"]).aggregate([])
        assert len(table) == len(table["code"].unique())
        if titles is not None:
            assert all(titles[r["code"]] == r["description"] for r in table.to_pylist())


def test_truth_covers_exactly_the_codes_in_use(consortium: Consortium) -> None:
    for site in consortium.sites:
        rows = [r for r in read_csv(consortium.folder / "truth.csv") if r["site"] == site.name]
        assert len({r["code"] for r in rows}) == len(rows) == site.codes
        assert {r["code"] for r in rows} == set(events_of(consortium, site.name)["code"].unique().to_pylist())
        assert {r["system"] for r in rows} == {site.prefix}
        assert all(curie(r["system"], r["code"]) for r in rows)


def test_concept_and_standard_code_name_each_other(consortium: Consortium) -> None:
    rows = read_csv(consortium.folder / "truth.csv")
    assert len({(r["concept"], r["standard_code"]) for r in rows}) == len({r["concept"] for r in rows})
    assert len({r["concept"] for r in rows}) == len({r["standard_code"] for r in rows})
    assert all(r["standard_code"].startswith("ICD10CM:" + r["category"]) for r in rows)


def test_the_truth_agrees_with_the_gems(consortium: Consortium, systems: codesystems.CodeSystems) -> None:
    concept10 = {c: r["concept"] for c, r in truth_of(consortium, "north").items()}
    concept9 = {c: r["concept"] for c, r in truth_of(consortium, "lake").items()}
    met = [(a, b) for a, b in systems.equivalent if a in concept10 and b in concept9]
    assert len(met) > 600
    assert all(concept10[a] == concept9[b] for a, b in met)


def test_some_concepts_have_two_codes_and_some_are_missing(consortium: Consortium) -> None:
    everywhere: set[str] = set()
    per_site = {}
    for site in consortium.sites:
        count = Counter(r["concept"] for r in truth_of(consortium, site.name).values())
        assert set(count.values()) == {1, 2}
        assert 0.08 < np.mean([n == 2 for n in count.values()]) < 0.17
        per_site[site.name] = set(count)
        everywhere |= set(count)
    common = set.intersection(*per_site.values())
    assert 0.07 < 1 - len(common) / len(everywhere) < 0.13


def test_anchors_are_a_fifth_and_true(consortium: Consortium) -> None:
    for site in consortium.sites:
        truth = truth_of(consortium, site.name)
        anchors = read_csv(consortium.folder / site.name / "anchors.csv")
        assert list(anchors[0]) == ["local_code", "standard_code"]
        assert len(anchors) == round(0.2 * site.codes)
        assert len({a["local_code"] for a in anchors}) == len(anchors)
        assert all(truth[a["local_code"]]["standard_code"] == a["standard_code"] for a in anchors)


def test_local_ids_say_nothing_of_the_concept(consortium: Consortium) -> None:
    rows = sorted(truth_of(consortium, "south").values(), key=lambda r: r["concept"])
    ids = np.array([int(r["code"].removeprefix("D")) for r in rows])
    ranks = np.argsort(np.argsort(ids))
    assert abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) < 0.15


def test_patients_are_of_one_sex(systems: codesystems.CodeSystems) -> None:
    rng = np.random.default_rng(3)
    concepts = choose_concepts(systems, rng)
    medicine = make_medicine(concepts, rng)
    present = np.ones(len(concepts), dtype=bool)
    hospital = make_hospital(medicine, present, rng, mean_age=60, intensity=1)
    batch = draw_patients(medicine, hospital, 2000, rng)
    by_sex = [set(batch.patient[~concepts.sexes[batch.concept, s]].tolist()) for s in range(2)]
    assert min(len(s) for s in by_sex) > 100
    assert not by_sex[0] & by_sex[1]


class Embedded:
    """A site after the floors: its co-occurrence embedding and what survived."""

    def __init__(self, consortium: Consortium, site: str) -> None:
        events = events_of(consortium, site)
        patient, _ = integers(events["patient"])
        code, codes = integers(events["code"])
        day = events["date"].to_numpy().astype("datetime64[D]").astype(np.int64)
        counts = count_pairs(patient, day, code, len(codes), window_days=30)
        frequent = counts.code_patients >= PATIENT_FLOOR
        kept = counts.events.copy()
        row = np.repeat(np.arange(len(codes)), np.diff(kept.indptr))
        kept.data *= (counts.pair_patients.data >= PAIR_FLOOR) & frequent[row] & frequent[kept.indices]
        kept.eliminate_zeros()
        weights = ppmi(kept)
        rows = np.flatnonzero(nonempty(weights))
        self.share_codes = frequent.mean()
        self.share_mass = kept.sum() / counts.events.sum()
        self.codes = [codes[i] for i in rows]
        self.vectors = embed(weights[rows][:, rows], 48).astype(float)


@pytest.fixture(scope="module")
def embedded(consortium: Consortium) -> dict[str, Embedded]:
    return {site.name: Embedded(consortium, site.name) for site in consortium.sites}


def test_the_privacy_floors_leave_most_of_a_site(embedded: dict[str, Embedded]) -> None:
    for site in embedded.values():
        assert site.share_codes >= 0.7
        assert site.share_mass >= 0.4


def test_codes_without_anchors_can_be_aligned_but_not_trivially(
    consortium: Consortium, embedded: dict[str, Embedded]
) -> None:
    """Procrustes on the anchors: far above chance (0.1 % and 0.6 %), far below perfection."""
    north = embedded["north"]
    place = {code: i for i, code in enumerate(north.codes)}
    meaning = [truth_of(consortium, "north")[c]["concept"] for c in north.codes]
    for name in ("lake", "south"):
        site, truth = embedded[name], truth_of(consortium, name)
        known = {
            a["local_code"]: place.get(a["standard_code"].removeprefix("ICD10CM:"))
            for a in read_csv(consortium.folder / name / "anchors.csv")
        }
        pairs = [(i, known[c]) for i, c in enumerate(site.codes) if known.get(c) is not None]
        ours, theirs = (np.array(x) for x in zip(*pairs, strict=True))
        left, _, right = np.linalg.svd(site.vectors[ours].T @ north.vectors[theirs])
        scores = site.vectors @ (left @ right) @ north.vectors.T
        asked = [i for i, c in enumerate(site.codes) if c not in known and truth[c]["concept"] in meaning]
        best = np.argsort(-scores[asked], axis=1)
        hit = np.array(meaning)[best] == np.array([[truth[site.codes[i]]["concept"]] for i in asked])
        assert 0.2 < hit[:, 0].mean() < 0.65
        assert 0.45 < hit[:, :5].any(axis=1).mean() < 0.9


def test_chosen_concepts_fill_the_chapters_and_start_with_the_common_ones(
    systems: codesystems.CodeSystems,
) -> None:
    concepts = choose_concepts(systems, np.random.default_rng(0))
    assert Counter(concepts.chapter) == {name: quota for name, (quota, _) in HOSPITAL.items()}
    standard = [codes[0] for codes in concepts.icd10]
    assert standard[: len(COMMON)] == list(COMMON)
    assert len({c for codes in concepts.icd10 for c in codes}) == sum(map(len, concepts.icd10))
    assert len({c for codes in concepts.icd9 for c in codes}) == sum(map(len, concepts.icd9))
    partner = defaultdict(set)
    for ten, nine in systems.equivalent:
        partner[ten].add(nine)
    assert all(
        nines[0] in partner[tens[0]] for tens, nines in zip(concepts.icd10, concepts.icd9, strict=True)
    )


def test_more_sites_have_other_names_ids_and_habits(tmp_path: Path) -> None:
    consortium = generate(tmp_path, sites=5, patients=100, seed=1)
    assert [s.name for s in consortium.sites] == list(NAMES[:5])
    tables = [events_of(consortium, s.name) for s in consortium.sites[2:]]
    assert len({s.prefix for s in consortium.sites}) == 5
    for i, table in enumerate(tables):
        for other in tables[i + 1 :]:
            assert not set(table["code"].to_pylist()) & set(other["code"].to_pylist())
    first, second, _ = (set(t["description"].to_pylist()) for t in tables)
    assert len(first & second) < 0.2 * len(first)


def test_names_and_prefixes_are_valid_for_every_number_of_sites() -> None:
    names = [site_name(i) for i in range(99)]
    assert len(set(names)) == 99
    assert all(IDENTIFIER.fullmatch(n) and PREFIX.fullmatch(n.upper()) for n in names)


@pytest.mark.parametrize(
    ("title", "short"),
    [
        ("Type 2 diabetes mellitus without complications", "T2DM w/o compl"),
        ("Acute respiratory failure with hypoxia", "Ac resp fail w hypoxia"),
        ("Essential (primary) hypertension", "Essn primary HTN"),
        ("Dehydration", "Dhyd"),
    ],
)
def test_abbreviations(title: str, short: str) -> None:
    assert abbreviate(title, HABITS[0]) == short


def test_abbreviations_fit_and_are_never_empty(systems: codesystems.CodeSystems) -> None:
    titles = [*list(systems.icd10.values())[::50], "of the", "A", "unspecified"]
    for habit in HABITS:
        for title in titles:
            assert 0 < len(abbreviate(title, habit)) <= habit.width
        narrow = dataclasses.replace(habit, width=6)
        assert all(0 < len(abbreviate(title, narrow)) <= 6 for title in titles)


def test_progress_is_told_site_by_site(tmp_path: Path) -> None:
    lines: list[str] = []
    generate(tmp_path, patients=60, progress=lines.append)
    assert [line.partition(":")[0] for line in lines] == ["north", "lake", "south"]
    assert all("60 patients" in line for line in lines)


@pytest.mark.parametrize("wrong", [{"sites": 1}, {"sites": 100}, {"patients": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        generate(tmp_path / "out", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("occupied")
    with pytest.raises(UsageError, match="cannot be written"):
        generate(tmp_path / "out", patients=10)


def test_missing_code_systems_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> Path:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("coordinator.demo.codesystems.resources.files", absent)
    with pytest.raises(UsageError, match=r"smile-federation\[demo\]"):
        generate(tmp_path)


def test_the_titles_of_a_demo_are_those_of_public_systems(tmp_path: Path) -> None:
    found = generated(tmp_path, sites=3, patients=60, seed=0)
    assert found.titles is not None
    rows = csv.DictReader(found.titles.open(encoding="utf-8", newline=""))
    named = {(r["system"], r["code"]): r["title"] for r in rows}
    assert {system for system, _ in named} == {"ICD10CM", "ICD9CM"}  # and none of a site's own
    assert all(named.values())
    used = pq.read_table(found.files["north"].events, columns=["system", "code"]).to_pylist()
    assert {(r["system"], r["code"]) for r in used} <= named.keys()
