"""A study of three sites and its data: a few hundred codes, drawn so that a round takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SITES = ("lake", "north", "south")
CODES, SPREAD = 100, 5.0
"""Codes lie on a circle: each is known by its neighbours."""
PATIENTS, EVENTS = 600, 40

STUDY = """\
id = "chaos"
sites = ["lake", "north", "south"]
standard = "ICD10CM"
minimum_sites = 3
[[code_systems]]
prefix = "ICD10CM"
[[code_systems]]
prefix = "SOUTH"
local_to = "south"
[[code_systems]]
prefix = "LAKE"
local_to = "lake"
[embedding]
codes_per_dim = 8
[privacy]
public_data = true
small_site_patients = 0
min_changed_patients = 0
"""


class SiteInput(NamedTuple):
    """What `site-agent init` is told of a site's data."""

    system: str
    events: Path
    anchors: Path | None


def write_study(folder: Path) -> Path:
    """The study file."""
    path = folder / "study.toml"
    path.write_text(STUDY)
    return path


def write_site(folder: Path, site: str, edition: int) -> SiteInput:
    """The site's events of some month: each edition has other patients, so another release.

    Two thirds of a local system's codes are anchored; the others are what the map is for.
    """
    system = "ICD10CM" if site == "north" else site.upper()
    rng = np.random.default_rng([SITES.index(site), edition])
    who = np.repeat(np.arange(PATIENTS), EVENTS)
    place = rng.integers(0, CODES, PATIENTS)[who]
    number = (place + np.rint(rng.normal(0, SPREAD, len(who))).astype(int)) % CODES
    letter = "C" if system == "ICD10CM" else "L"
    table = {
        "patient": who,
        "date": (np.datetime64("2020-01-01") + rng.integers(0, 120, len(who))).astype("datetime64[D]"),
        "code": np.array([f"{letter}{n:03d}" for n in number]),
    }
    events = folder / f"{site}.parquet"
    pq.write_table(pa.table(table), events)
    if system == "ICD10CM":
        return SiteInput(system, events, None)
    anchors = folder / f"{site}.anchors.csv"
    known = [f"L{n:03d},C{n:03d}" for n in range(CODES) if n % 3]
    anchors.write_text("\n".join(["local_code,standard_code", *known]) + "\n")
    return SiteInput(system, events, anchors)
