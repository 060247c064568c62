"""Real codes of one system at three hospitals, each of which writes a third of them in its own way.

The patients of a data set are dealt out to the sites by the seed. At each site a third of its codes, drawn anew, become
opaque local ids; the others are shared as they are. What a local id stands for is the truth, and no site says it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from protocol.study import StudySpec, parse_study
from tests.benchmarks.real.data import ROUNDING, Hospitals, release
from tests.benchmarks.real.regimes import Cell, Problem, task_of
from tests.cms import shared_file
from tests.keep_study import icd9_rows

SYSTEM = "CODE"
SITES = ("north", "lake", "south")
OWN = 1 / 3
DIAGNOSIS, DRUG, LAB, OTHER = "D", "R", "L", "P"
"""First letter of a code: what kind of thing it is."""
UCI_DRUGS = [
    "metformin",
    "repaglinide",
    "nateglinide",
    "chlorpropamide",
    "glimepiride",
    "acetohexamide",
    "glipizide",
    "glyburide",
    "tolbutamide",
    "pioglitazone",
    "rosiglitazone",
    "acarbose",
    "miglitol",
    "troglitazone",
    "tolazamide",
    "insulin",
    "glyburide-metformin",
    "glipizide-metformin",
]


@dataclass(frozen=True, eq=False)
class Events:
    """One row an event: numbers of patients, days, and of codes, which have names."""

    patient: NDArray[np.int64]
    day: NDArray[np.int64]
    code: NDArray[np.int64]
    names: NDArray[np.object_]


def _events(patient: pd.Series, day: NDArray[np.int64], code: pd.Series) -> Events:
    number, names = pd.factorize(code.to_numpy(dtype=object), sort=True)
    return Events(pd.factorize(patient, sort=True)[0], day, number, np.asarray(names, dtype=object))


@cache
def uci_events() -> Events:
    """ICD-9 diagnoses and the drugs given, of each encounter; encounters stand for days."""
    table = pq.read_table(shared_file("uci_diabetes130/diabetic_data.parquet")).to_pandas()
    known = {c for c in icd9_rows() if not c.startswith("chapter")}
    parts = []
    for column in ("diag_1", "diag_2", "diag_3"):
        code = table[column].fillna("?").astype(str).str.replace(".", "", regex=False)
        parts.append((table[code.isin(known)], DIAGNOSIS + code[code.isin(known)]))
    for drug in UCI_DRUGS:
        given = table[table[drug].fillna("No") != "No"]
        parts.append((given, pd.Series(DRUG + drug, index=given.index)))
    rows, code = pd.concat([part for part, _ in parts]), pd.concat([name for _, name in parts])
    return _events(rows["patient_nbr"], rows["encounter_id"].to_numpy(dtype=np.int64), code)


@cache
def synthea_events() -> Events:
    """Conditions (SNOMED CT), medications (RxNorm), tests and measurements (LOINC) and procedures, once a day each."""
    table = pq.read_table(
        shared_file("synthea/events.parquet"), columns=["patient", "kind", "date", "system", "code"]
    ).to_pandas()
    loinc = table["system"].astype(str).str.lower().str.contains("loinc")
    table = table[loinc | (table["kind"] != "observation")].drop_duplicates()
    letter = {"condition": DIAGNOSIS, "medication": DRUG, "observation": LAB, "procedure": OTHER}
    day = pd.to_datetime(table["date"].astype(str).str[:10]).to_numpy().astype("datetime64[D]")
    code = table["kind"].astype(str).map(letter) + table["code"].astype(str)
    return _events(table["patient"].astype(str), day.astype(np.int64), code)


def uci(seed: int) -> Problem:
    """Whole-history counts under the default floors."""
    study = _study({"privacy": {"margin_rounding": ROUNDING}, "counting": {"rule": "whole-history"}})
    return _problem(uci_events(), study, seed)


def synthea(seed: int) -> Problem:
    """400 patients a site, too few for the default floors: a code needs five of them, a pair two."""
    privacy = {
        "public_data": True,
        "min_code_patients": 5,
        "min_pair_patients": 2,
        "small_site_patients": 0,
        "margin_rounding": 1,
    }
    return _problem(synthea_events(), _study({"privacy": privacy}), seed)


def hospitals(events: Events, study: StudySpec, seed: int) -> Hospitals:
    """What the three sites release."""
    rng = np.random.default_rng(seed)
    n = int(events.patient.max()) + 1
    at = rng.integers(len(SITES), size=n)[events.patient]
    truth: dict[str, str] = {}
    releases = []
    for s, site in enumerate(SITES):
        mine = at == s
        seen, row = np.unique(events.code[mine], return_inverse=True)
        codes = events.names[seen]
        own = rng.permutation(len(codes)) < round(OWN * len(codes))
        opaque = rng.permutation(len(codes))
        names = [
            f"LOCAL{s}:{opaque[i]:05d}" if own[i] else f"{SYSTEM}:{code}" for i, code in enumerate(codes)
        ]
        truth |= {name: f"{SYSTEM}:{code}" for name, code in zip(names, codes, strict=True)}
        spelt = np.array(names, dtype=object)[row]
        releases.append(release(events.patient[mine], events.day[mine], spelt, site, study))
    mass = tuple(float(r.manifest.statistics.mass_kept) for r in releases)
    kinds = {name: code.partition(":")[2][0] for name, code in truth.items()}
    return Hospitals(study, tuple(releases), truth, {}, mass, kinds)


def _problem(events: Events, study: StudySpec, seed: int) -> Problem:
    found = hospitals(events, study, seed)
    # Few enough codes for every rival, whatever the floors.
    return task_of(Cell(seed, True, 0.0, "no text"), found, found.releases)


def _study(more: dict[str, object]) -> StudySpec:
    local = [{"prefix": f"LOCAL{s}", "local_to": site} for s, site in enumerate(SITES)]
    table = {
        "id": "recoded",
        "sites": list(SITES),
        "standard": SYSTEM,
        "minimum_sites": 3,
        "code_systems": [{"prefix": SYSTEM}, *local],
    }
    return parse_study(table | more, "of the benchmark")
