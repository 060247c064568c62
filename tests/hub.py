"""A coordinator's home with sites that seal real releases for it; only the transport is left out."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from coordinator import publish, rounds, setup
from coordinator.config import Home
from coordinator.fitting import fit_round
from coordinator.flower.desk import RoundDesk
from coordinator.harmonize import load_fit
from coordinator.store import Store, Submission
from protocol.envelope import EnvelopeHeader, seal
from protocol.keys import PrivateKeys
from protocol.messages import Enrolment, RoundCall
from protocol.release import Release, encode_release
from protocol.signed import open_signed
from tests.synthetic import keys, release, unit_rows

STUDY = """\
id = "unit"
sites = ["lake", "north", "south", "west"]
standard = "ICD10CM"
minimum_sites = 3
[[code_systems]]
prefix = "ICD10CM"
[[code_systems]]
prefix = "WEST"
local_to = "west"
"""


def releases(names: tuple[str, ...] = ("lake", "north", "south", "west"), seed: int = 0) -> dict[str, Any]:
    """Sites that see 60 shared codes from different sides; `west` has some of its own, half of them anchored."""
    rng = np.random.default_rng(seed)
    meaning = unit_rows(rng, 75, 8)
    found = {}
    for number, site in enumerate(names):
        rows = np.sort(rng.permutation(60)[: 50 + number])
        codes = [f"ICD10CM:C{r:02d}" for r in rows]
        given: dict[str, str] = {}
        vectors = meaning[rows]
        if site == "west":
            codes += [f"WEST:{i}" for i in range(15)]
            vectors = np.vstack([vectors, meaning[:15]])
            given = {f"WEST:{i}": f"ICD10CM:C{i:02d}" for i in range(8)}
        turn, _ = np.linalg.qr(rng.standard_normal((8, 8)))
        noisy = vectors @ turn + 0.05 * rng.standard_normal(vectors.shape)
        found[site] = (codes, noisy / np.linalg.norm(noisy, axis=1, keepdims=True), given)
    return found


@dataclass
class Hub:
    """A coordinator and, for each site, what it would release."""

    folder: Path
    study: str = STUDY
    key_of: dict[str, PrivateKeys] = field(default_factory=dict)
    last: dict[str, tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "study.toml"
        path.write_text(self.study)
        self.home = setup.init_home(
            self.folder / "hub", study=path, address="localhost:9443", listen="127.0.0.1"
        )

    @property
    def store(self) -> Store:
        """Opened anew: another process would see the same."""
        return Store(self.home.database_url)

    def fresh(self) -> Home:
        """The home as the next command finds it."""
        self.home = Home(self.home.folder)
        return self.home

    def enrol(self, *sites: str, again: bool = False, suffix: str = "") -> None:
        for site in sites:
            self.key_of[site] = keys(f"{site}{suffix}")
            told = Enrolment(
                study_digest=self.home.study.digest,
                site=site,
                keys=self.key_of[site].public(),
                node_key=f"node {site}{suffix}",
                contact=f"it@{site}.example",
            )
            setup.enrol(self.store, told, again=again)

    def open_round(self, name: str = "r1") -> None:
        nodes = {s.name: 10 + i for i, s in enumerate(self.store.members())}
        rounds.open_round(self.home, self.store, name, days=30, nodes=nodes)

    def desk(self, name: str = "r1") -> RoundDesk:
        return RoundDesk(self.home.round_folder(name))

    def call(self, name: str = "r1") -> RoundCall:
        return open_signed(self.desk(name).call(), RoundCall, self.home.keys.public())

    def seal(
        self, site: str, given: Release, name: str = "r1", *, by: PrivateKeys | None = None, **changes: Any
    ) -> Path:
        """The site's answer to the call, put where Flower puts it."""
        call, m, signer = self.call(name), given.manifest, by or self.key_of[site]
        values: dict[str, Any] = {
            "kind": "release",
            "suite": call.recipient.suite,
            "consortium": "unit",
            "study_digest": call.study_digest,
            "round": name,
            "site": site,
            "recipient_key": call.recipient.digest,
            "signer_key": signer.public().digest,
            "sequence": m.sequence,
            "previous": m.previous,
            "content": m.digest,
            "agent_digest": "a" * 64,
            "policy_digest": m.policy.digest,
            "ledger_head": "",
            "expires": datetime.now(UTC) + timedelta(days=1),
        }
        target = self.desk(name).received(site)
        header = EnvelopeHeader(**(values | changes))
        seal(io.BytesIO(encode_release(given)), target, header, to=call.recipient, keys=signer)
        return target

    def release(self, site: str, parts: Any, name: str = "r1", **changes: Any) -> Release:
        """Seal a release made of (codes, matrix, anchors), next in the site's sequence."""
        sequence, previous = self.last.get(site, (0, ""))
        made = release(
            site,
            parts[0],
            parts[1],
            spec=self.home.study,
            anchors=parts[2],
            sequence=sequence + 1,
            previous=previous,
        )
        self.seal(site, made, name, **changes)
        return made

    def collect(self, name: str = "r1") -> dict[str, Submission]:
        found = {s.site: s for s in rounds.take_in(self.home, self.store, name)}
        for site in self.store.members():
            self.last[site.name] = (site.accepted_sequence, site.accepted_digest)
        return found

    def publish(self, name: str = "r1", created: datetime | None = None) -> Path:
        """What `fit` and `publish` do."""
        fit_round(self.home, self.store, name)
        found = rounds.accepted_releases(self.home, self.store, name)
        path = self.home.fit_path(name)
        fitted = load_fit(path, found, self.home.study)
        when = created or datetime.now(UTC).replace(microsecond=0)
        edition = publish.make_edition(self.home, self.store, name, found, fitted, created=when)
        return publish.publish(self.home, self.store, edition)

    def run_round(self, given: Mapping[str, Any], name: str = "r1", created: datetime | None = None) -> Path:
        """A whole round of these sites."""
        self.open_round(name)
        for site, parts in given.items():
            self.release(site, parts, name)
        assert {s.state for s in self.collect(name).values()} == {"accepted"}
        return self.publish(name, created)

    def home_release(self, site: str) -> Release:
        """The release of a site as it was made for the first round."""
        parts = releases()[site]
        return release(site, parts[0], parts[1], spec=self.home.study, anchors=parts[2])
