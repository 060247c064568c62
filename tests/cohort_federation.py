"""A consortium that is asked how many patients like this it has: three sites with patient vectors, counted by hand too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.sums.asking import Asked
from protocol.arrays import encode_arrays
from protocol.codeindex import GRAPH, LABELS, VECTORS, CodeIndex
from protocol.cohort import CohortQuestion, space_digest
from protocol.messages import PublishedManifest
from protocol.published import list_files, sign_manifest
from site_agent.cohort import Window, build_cohort
from site_agent.cohort.asked import preview_question
from site_agent.config import Home
from site_agent.resources import Resources
from site_agent.state import load_state, save_state
from site_agent.sums.approval import approve_sum
from site_agent.sums.folder import CohortAnswer, SumFolder, SumPreview
from tests.sum_federation import PASSPHRASE, SITES, Consortium

HEART, KIDNEY = ("I50.1", "I50.9", "I25.1"), ("N18.3", "N18.5", "Z49.1")
PROFILE = {"ICD10CM:I50.9": 1.0, "ICD10CM:I25.1": 0.5}
PATIENTS = {"lake": (262, 80), "north": (437, 100), "south": (17, 60)}
"""Of the heart, of the kidney. South writes local codes that the release maps."""
MACHINE = Resources(256 << 20, 1)


class CohortConsortium(Consortium):
    """Patients of the heart and of the kidney, a release in which these point two ways, and a build at each site."""

    patients: Mapping[str, tuple[int, int]] = PATIENTS

    def __init__(
        self,
        folder: Path,
        address: str = "127.0.0.1:9443",
        *,
        patients: Mapping[str, tuple[int, int]] = PATIENTS,
    ) -> None:
        super().__init__(folder, address)
        self.patients = patients
        for site, home in self.homes.items():
            write_patients(self.folder / f"{site}.parquet", site, *patients[site])
            write_people(self.folder / f"{site}.people.csv", site, sum(patients[site]))
            with (home.folder / "site.toml").open("a") as stream:
                stream.write(f'\n[cohort]\npatients = "{self.folder / f"{site}.people.csv"}"\n')
            self.homes[site] = Home(home.folder)
            write_release(self.homes[site], self.hub.keys)
            build_cohort(self.homes[site], Window(None, None), machine=MACHINE)

    def question(self, **given: Any) -> CohortQuestion:
        """Patients like the profile of the heart, but for what is given."""
        index = CodeIndex.load(
            self.homes["north"].folder / "results" / "v1", trust=self.hub.keys.public(), exact=True
        )
        usual = {
            "title": "heart failure",
            "release": 1,
            "space": space_digest(index, "ICD10CM"),
            "weights": PROFILE,
            "least": 0.6,
        }
        return CohortQuestion.model_validate(usual | given)

    def asked(self, **given: Any) -> Asked:
        """What `open_sum` takes."""
        question = self.question(**given)
        return Asked("cohort", question.codes, cohort=question)

    def preview(self, site: str, name: str) -> SumPreview:
        """What a person there is shown."""
        return preview_question(self.homes[site], name)

    def memory(self, site: str, name: str) -> CohortAnswer:
        """What a site has said, in its own files."""
        preview = SumFolder(self.homes[site].folder / "sums").preview(name)
        assert preview is not None
        assert preview.answer is not None
        return preview.answer

    def say_yes(self, site: str, name: str) -> SumPreview:
        """Preview, and a signer's yes."""
        preview = self.preview(site, name)
        approve_sum(self.homes[site], name, preview.digest[:16], "officer", lambda: PASSPHRASE)
        return preview


def patient_id(site: str, number: int) -> str:
    """A text that would be seen wherever it went."""
    return f"PATIENT-{site}-{number:04}"


def write_patients(path: Path, site: str, heart: int, kidney: int) -> None:
    """Each patient with all three codes of one organ and, as everyone, R05; one in ten of the heart has N18.3 once."""
    rows = []
    for number in range(heart + kidney):
        codes = HEART if number < heart else KIDNEY
        if number < heart and number % 10 == 0:
            codes = (*codes, "N18.3")
        for i, code in enumerate((*codes, "R05")):
            system = "SOUTH" if site == "south" and i == 1 else "ICD10CM"
            bare = f"L{code}" if system == "SOUTH" else code
            rows.append((patient_id(site, number), date(2020, 1 + i, 1 + number % 28), bare, system))
    patient, day, code, system_ = zip(*rows, strict=True)
    pq.write_table(pa.table({"patient": patient, "date": day, "code": code, "system": system_}), path)


def write_people(path: Path, site: str, patients: int) -> None:
    """Every other patient a woman, as each site writes it; one in five over 65."""
    women, men = {"lake": ("F", "M"), "north": ("female", "male"), "south": ("8532", "8507")}[site]
    lines = ["patient,birth,sex"]
    for number in range(patients):
        birth = "1950-06-01" if number % 5 == 0 else "1980-06-01"
        lines.append(f"{patient_id(site, number)},{birth},{men if number % 2 else women}")
    path.write_text("\n".join(lines) + "\n")


def write_release(home: Home, keys: Any, version: int = 1) -> None:
    """A signed release: organs point two ways, South's local codes lie beside the standard ones that they are mapped to."""
    folder = home.folder / "results" / f"v{version}"
    (folder / "index").mkdir(parents=True)
    standard = [f"ICD10CM:{c}" for c in (*HEART, *KIDNEY, "R05")]
    local = [f"SOUTH:L{c}" for c in (*HEART, *KIDNEY)]
    rng = np.random.default_rng(version)
    place = np.array([[1, 0, 0]] * 3 + [[0, 1, 0]] * 3 + [[0, 0, 1]], dtype=float)
    place = np.vstack([place, place[:6]])
    vectors = np.hstack([place, 0.1 * rng.standard_normal((13, 5))])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    codes = [*standard, *local]
    told = {GRAPH: json.dumps({"ef": 0, "recall": 1.0})}
    (folder / VECTORS).write_bytes(encode_arrays({"vectors": vectors.astype(np.float32)}, told))
    (folder / LABELS).write_text(json.dumps(codes))
    table = {
        "code": codes,
        "name": [""] * 13,
        "cluster": pa.array(range(13), pa.int32()),
        "standard_code": [*standard, *standard[:6]],
    }
    pq.write_table(pa.table(table), folder / "clusters.parquet")
    manifest = PublishedManifest(
        study=home.study.stated,
        study_digest=home.study.digest,
        round="r1",
        version=version,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        software="test",
        codes=13,
        clusters=13,
        sites=(),
        files=list_files(folder),
    )
    sign_manifest(folder, manifest, keys)
    state = load_state(home.folder)
    save_state(home.folder, state.model_copy(update={"result_version": version}))


__all__ = ["PATIENTS", "PROFILE", "SITES", "CohortConsortium", "patient_id", "write_patients"]
