"""A generated consortium: hospitals with real diagnoses, each in its own codes, and the truth beside them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.demo.codesystems import CodeSystems, Concepts, choose_concepts, load_code_systems
from coordinator.demo.dictionary import Dictionary, make_dictionary
from coordinator.demo.medicine import Hospital, Medicine, make_hospital, make_medicine
from coordinator.demo.patients import FIRST_DAY, Batch, distinct, draw_patients
from protocol.errors import UsageError
from protocol.vocabulary import curie

NAMES = ("north", "lake", "south", "harbor", "valley", "ridge", "river", "meadow", "island")
MAX_SITES = 99
MAX_PATIENTS = 1_000_000
ANCHOR_SHARE = 0.20
"""Share of a site's codes whose standard code the site knows."""
RARE_SHARE = 0.10
"""Share of the concepts that only one or two of the sites see."""
BATCH = 5_000
"""Patients drawn at once; bounds the memory."""

SCHEMA = pa.schema(
    [
        ("patient", pa.string()),
        ("date", pa.date32()),
        ("code", pa.string()),
        ("system", pa.string()),
        ("description", pa.string()),
    ]
)
TRUTH_COLUMNS = ("site", "system", "code", "concept", "standard_code", "category", "chapter")

_CHARACTERS = ((58.0, 1.0), (66.0, 1.15), (51.0, 0.95))
"""Mean age and intensity: an average hospital, an older and thorough one, a younger and terse one."""


@dataclass(frozen=True)
class Site:
    """What was written for one hospital.

    Attributes:
        name: the site's identifier, and its folder.
        prefix: CURIE prefix of its codes.
        patients: number of patients, each with at least one event.
        events: rows of events.parquet.
        codes: distinct codes in use.
        codes_per_patient: mean number of distinct codes a patient.
    """

    name: str
    prefix: str
    patients: int
    events: int
    codes: int
    codes_per_patient: float


@dataclass(frozen=True)
class Consortium:
    """A folder with one folder a site, and `truth.csv`."""

    folder: Path
    sites: tuple[Site, ...]
    seed: int


@dataclass(frozen=True)
class _World:
    """What all sites share: the code systems, the diagnoses, the medicine, and who sees what."""

    systems: CodeSystems
    concepts: Concepts
    medicine: Medicine
    present: npt.NDArray[np.bool_]  # (sites, n)
    patients: int
    seed: int


def generate(
    out: Path,
    *,
    sites: int = 3,
    patients: int = 5000,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Consortium:
    """Write a consortium's events, anchors and truth.

    Each site gets `<site>/events.parquet` (patient, date, code, system, description; by patient and date) and
    `<site>/anchors.csv` (local_code, standard_code): a fifth of its codes with their ICD-10-CM code. At the top,
    `truth.csv` names the concept of every code in use. Files of these names are overwritten.

    Args:
        out: folder, made if need be.
        sites: number of hospitals; the first codes in ICD-10-CM, the second in ICD-9-CM, the others in local ids.
        patients: patients of each hospital; nobody is a patient of two.
        seed: equal seeds give equal files.
        progress: called with one line for each finished site.

    Raises:
        UsageError: a number is out of range, the code systems are not installed or the folder cannot be written.
    """
    _check(sites, patients, seed)
    shared = np.random.default_rng([seed, 0])
    systems = load_code_systems()
    concepts = choose_concepts(systems, shared)
    medicine = make_medicine(concepts, shared)
    world = _World(systems, concepts, medicine, _presence(len(concepts), sites, shared), patients, seed)
    done: list[Site] = []
    truth: list[tuple[str, ...]] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number in range(sites):
            site, rows = _write_site(out, number, world)
            done.append(site)
            truth += rows
            if progress is not None:
                figures = (
                    f"{site.patients:,} patients, {site.events:,} events, {site.codes:,} {site.prefix} codes"
                )
                progress(f"{site.name}: {figures}")
        _write_csv(out / "truth.csv", TRUTH_COLUMNS, truth)
    except OSError as error:
        raise UsageError(
            f"The consortium cannot be written to {out}",
            why=str(error),
            do="Choose a folder that can be written",
        ) from error
    return Consortium(folder=out, sites=tuple(done), seed=seed)


def site_name(number: int) -> str:
    """Name of site `number`, from 0; beyond the last name they begin anew with a number behind."""
    turn, place = divmod(number, len(NAMES))
    return NAMES[place] + (f"-{turn + 1}" if turn else "")


def _check(sites: int, patients: int, seed: int) -> None:
    if not 2 <= sites <= MAX_SITES:
        raise UsageError(
            f"A consortium of {sites} sites cannot be made", do=f"Ask for 2 to {MAX_SITES} sites"
        )
    if not 1 <= patients <= MAX_PATIENTS:
        raise UsageError(
            f"A site of {patients} patients cannot be made",
            do=f"Ask for 1 to {MAX_PATIENTS:,}; from about 2,000 the codes pass the usual privacy floors",
        )
    if seed < 0:
        raise UsageError(f"The seed {seed} is negative", do="Take a whole number from 0")


def _write_site(out: Path, number: int, world: _World) -> tuple[Site, list[tuple[str, ...]]]:
    """Write one site's folder; return its figures and its rows of truth.csv."""
    rng = np.random.default_rng([world.seed, 1, number])
    age, intensity = rng.uniform(48, 68), rng.uniform(0.95, 1.2)
    if number < len(_CHARACTERS):
        age, intensity = _CHARACTERS[number]
    present = world.present[number]
    hospital = make_hospital(world.medicine, present, rng, mean_age=age, intensity=intensity)
    name = site_name(number)
    words = make_dictionary(world.systems, world.concepts, present, rng, number=number, name=name)
    (out / name).mkdir(exist_ok=True)
    events, pairs, used = _write_events(out, number, world, hospital, words)

    icd10 = [codes[0] for codes in world.concepts.icd10]
    anchored = rng.permutation(used)[: round(ANCHOR_SHARE * len(used))].tolist()
    anchors = [(words.codes[i], curie("ICD10CM", icd10[words.concept[i]])) for i in anchored]
    _write_csv(out / name / "anchors.csv", ("local_code", "standard_code"), sorted(anchors))
    truth: list[tuple[str, ...]] = []
    for i in used:
        c = int(words.concept[i])
        meaning = (f"concept-{c:04d}", curie("ICD10CM", icd10[c]), icd10[c][:3], world.concepts.chapter[c])
        truth.append((name, words.prefix, words.codes[i], *meaning))
    site = Site(name, words.prefix, world.patients, events, len(used), pairs / world.patients)
    return site, truth


def _write_events(
    out: Path, number: int, world: _World, hospital: Hospital, words: Dictionary
) -> tuple[int, int, list[int]]:
    """Draw and write the events batch by batch: their number, distinct (patient, code) pairs, codes in use."""
    name = site_name(number)
    used = np.zeros(len(words.codes), dtype=bool)
    events = pairs = 0
    with pq.ParquetWriter(out / name / "events.parquet", SCHEMA, compression="zstd") as writer:
        for turn, start in enumerate(range(0, world.patients, BATCH)):
            size = min(BATCH, world.patients - start)
            rng = np.random.default_rng([world.seed, 2, number, turn])
            batch = draw_patients(world.medicine, hospital, size, rng)
            code = words.encode(batch)
            used[code] = True
            events += len(code)
            pairs += len(distinct(batch.patient * len(used) + code))
            names = [f"{name}-{start + i:06d}" for i in range(1, size + 1)]
            writer.write_table(_table(batch, code, names, words))
    return events, pairs, np.flatnonzero(used).tolist()


def _table(batch: Batch, code: npt.NDArray[np.int64], names: list[str], words: Dictionary) -> pa.Table:
    def texts(values: Sequence[str], index: npt.NDArray[np.int64]) -> pa.Array:
        return pa.array(values, pa.string()).take(pa.array(index))

    columns = [
        texts(names, batch.patient),
        pa.array(FIRST_DAY + batch.day, pa.date32()),
        texts(words.codes, code),
        texts([words.prefix], np.zeros_like(code)),
        texts(words.titles, code),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _presence(n: int, sites: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Bool (sites, n): which site sees which concept; a tenth of the concepts are at one or two sites only."""
    present = np.ones((sites, n), dtype=bool)
    for c in rng.permutation(n)[: round(RARE_SHARE * n)].tolist():
        n_sites = 1 if sites == 2 else int(rng.integers(1, 3))
        present[:, c] = False
        present[rng.permutation(sites)[:n_sites], c] = True
    return present


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
