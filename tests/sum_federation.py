"""A consortium that sums counts: homes of a coordinator and three sites, with events and an independent count."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator import setup
from coordinator.config import Home as Hub
from coordinator.store import Store
from protocol.study import StudySpec
from site_agent.agent import Agent
from site_agent.config import Home
from site_agent.enrolment import init_home, write_enrolment
from site_agent.sums import SumAgent, roster
from site_agent.sums.approval import approve_sum, preview_sum
from site_agent.sums.folder import SumPreview

PASSPHRASE = "four words nobody joins"
SITES = ("lake", "north", "south")
CODES = tuple(f"ICD10CM:C{c:02d}" for c in range(40))

STUDY = """\
id = "unit"
sites = ["north", "lake", "south"]
standard = "ICD10CM"
[[code_systems]]
prefix = "ICD10CM"
[[code_systems]]
prefix = "SOUTH"
local_to = "south"
[sharing]
counts = "summed"
minimum_summed_sites = 3
"""

Row = tuple[int, int, str]  # patient, day, standard code


class Counts(NamedTuple):
    """Of one site, counted by hand."""

    patients: int
    code_patients: dict[str, int]
    pairs: dict[tuple[str, str], int]
    pair_patients: dict[tuple[str, str], int]


def make_events(site: str, seed: int, patients: int = 150) -> list[tuple[int, int, str]]:
    """Two topics of codes a patient; south writes half of its events under local codes, some twice a day."""
    rng = np.random.default_rng(seed)
    rows = []
    for who in range(patients):
        topic = int(rng.integers(0, 4))
        for _ in range(20):
            code = ((topic + int(rng.integers(0, 2))) % 4) * 10 + int(rng.integers(0, 10))
            day = int(rng.integers(0, 90))
            name = f"ICD10CM:C{code:02d}"
            if site == "south" and rng.random() < 0.5:
                rows.append((who, day, f"SOUTH:L{code:02d}"))
                if rng.random() < 0.2:
                    rows.append((who, day, name))
            else:
                rows.append((who, day, name))
    # A code that only one patient has, and one that V does not know.
    return [*rows, (0, 5, "ICD10CM:C39"), (1, 5, "ICD10CM:Z99")]


def by_hand(rows: list[Row], window: int = 30) -> Counts:
    """Distinct events, pairs of them at most `window` days apart, and patients; nothing is withheld."""
    patients: dict[int, set[tuple[int, str]]] = defaultdict(set)
    for who, day, code in rows:
        patients[who].add((day, code.replace("SOUTH:L", "ICD10CM:C")))
    code_patients: dict[str, int] = defaultdict(int)
    pairs: dict[tuple[str, str], int] = defaultdict(int)
    who_pairs: dict[tuple[str, str], int] = defaultdict(int)
    for events in patients.values():
        found = sorted(events)
        for code in {c for _, c in found}:
            code_patients[code] += 1
        own: dict[tuple[str, str], int] = defaultdict(int)
        for i, (day, code) in enumerate(found):
            for later, other in found[i + 1 :]:
                if later - day <= window:
                    own[min(code, other), max(code, other)] += 1
        for pair, n in own.items():
            pairs[pair] += n
            who_pairs[pair] += 1
    return Counts(len(patients), dict(code_patients), dict(pairs), dict(who_pairs))


def margins(counts: Counts, *, code_floor: int = 20, pair_floor: int = 11) -> np.ndarray[Any, Any]:
    """What the site would put into a sum of margins over CODES."""
    kept = kept_pairs(counts, code_floor=code_floor, pair_floor=pair_floor)
    patients = [n if (n := counts.code_patients.get(c, 0)) >= code_floor else 0 for c in CODES]
    rows = dict.fromkeys(CODES, 0)
    for (a, b), n in kept.items():
        rows[a] += n
        if a != b:
            rows[b] += n
    return np.array([*patients, *rows.values(), counts.patients])


def kept_pairs(counts: Counts, *, code_floor: int = 20, pair_floor: int = 11) -> dict[tuple[str, str], int]:
    """Pairs over CODES that reach the floors."""
    low = {c for c in CODES if counts.code_patients.get(c, 0) < code_floor}
    return {
        pair: n
        for pair, n in counts.pairs.items()
        if counts.pair_patients[pair] >= pair_floor and not low & set(pair) and set(pair) <= set(CODES)
    }


class Consortium:
    """Homes with keys, enrolment, data, a signer each, and a roster that people have compared."""

    def __init__(self, folder: Path, address: str = "127.0.0.1:9443", *, study: str = STUDY) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, path = folder, folder / "study.toml"
        path.write_text(study)
        self.hub: Hub = setup.init_home(folder / "hub", study=path, address=address, listen="127.0.0.1")
        self.store = Store(self.hub.database_url)
        self.study: StudySpec = self.hub.study
        self.rows = {site: make_events(site, seed) for seed, site in enumerate(SITES)}
        self.homes = {site: self._site(site, path) for site in SITES}
        codes = folder / "codes.csv"
        codes.write_text("code\n" + "\n".join(CODES) + "\n")
        self.codes = codes

    @classmethod
    def copied(cls, source: Path, folder: Path) -> Consortium:
        """A copy of a consortium at another place."""
        shutil.copytree(source, folder)
        for toml in folder.glob("*/site.toml"):
            toml.write_text(toml.read_text().replace(str(source), str(folder)))
        found = cls.__new__(cls)
        found.folder, found.hub = folder, Hub(folder / "hub")
        found.store, found.study = Store(found.hub.database_url), found.hub.study
        found.rows = {site: make_events(site, seed) for seed, site in enumerate(SITES)}
        found.homes = {site: Home(folder / site) for site in SITES}
        found.codes = folder / "codes.csv"
        return found

    def _site(self, site: str, study: Path) -> Home:
        events, anchors = self.folder / f"{site}.parquet", self.folder / f"{site}.anchors.csv"
        self.write_events(site, self.rows[site])
        lines = [f"L{c:02d},C{c:02d}" for c in range(40)] if site == "south" else []
        anchors.write_text("\n".join(["local_code,standard_code", *lines]) + "\n")
        home = init_home(
            self.folder / site,
            site=site,
            invitation=self.hub.folder / "invitation.json",
            study=study,
            events=events,
            anchors=anchors if lines else None,
            system="SOUTH" if lines else "ICD10CM",
        )
        enrolment, _ = write_enrolment(home, "")
        setup.enrol(self.store, setup.read_enrolment(self.hub, enrolment))
        Agent(home).add_signer("officer", lambda: PASSPHRASE)
        return home

    def write_events(self, site: str, rows: list[Row]) -> None:
        """The site's event file."""
        who, day, code = zip(*rows, strict=True)
        date = np.datetime64("2020-01-01") + np.array(day)
        prefix, bare = zip(*(c.split(":") for c in code), strict=True)
        table = {"patient": who, "date": date.astype("datetime64[D]"), "code": bare, "system": prefix}
        pq.write_table(pa.table(table), self.folder / f"{site}.parquet")

    def trust(self, site: str) -> None:
        """What a person does after the telephone call."""
        offered = roster.offered(self.homes[site])
        roster.trust(self.homes[site], offered, offered.fingerprint)

    def approve(self, site: str, name: str) -> SumPreview:
        """Preview, and a signer's yes."""
        preview = preview_sum(self.homes[site], name)
        approve_sum(self.homes[site], name, preview.digest[:16], "officer", lambda: PASSPHRASE)
        return preview

    def agents(self) -> Mapping[str, SumAgent]:
        """A new agent for each site, as after a restart."""
        return {site: SumAgent(home) for site, home in self.homes.items()}

    def plain(self) -> dict[str, Counts]:
        """Each site's counts, by hand."""
        return {site: by_hand(rows) for site, rows in self.rows.items()}
