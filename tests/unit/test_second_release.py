"""The second release of a site: too few changed patients, the same data again, other rules, and what is remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from protocol.errors import FederationError, GateError
from protocol.messages import Invitation
from protocol.release import decode_release, encode_release
from protocol.study import load_study
from site_agent.config import Home
from site_agent.enrolment import init_home
from site_agent.prepare import Prepared, prepare_release
from site_agent.released import promote, remembered
from tests.synthetic import keys

STUDY = """\
id = "unit"
sites = ["north", "lake", "south"]
standard = "ICD10CM"
[[code_systems]]
prefix = "ICD10CM"
[[code_systems]]
prefix = "SOUTH"
local_to = "south"
[embedding]
codes_per_dim = 10
"""
PUBLIC = "[privacy]\npublic_data = true\nmin_changed_patients = 50\n"
Table = dict[str, Any]


def patients(n: int = 600, seed: int = 0) -> Table:
    """Patients of four topics over 60 codes."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(n), 20)
    topic = (rng.integers(0, 4, n)[who] + rng.integers(0, 2, len(who))) % 4
    code = np.array([f"C{c:02d}" for c in topic * 15 + rng.integers(0, 15, len(who))])
    day = (np.datetime64("2020-01-01") + rng.integers(0, 90, len(who))).astype("datetime64[D]")
    return {"patient": who, "date": day, "code": code}


def without(table: Table, gone: int) -> Table:
    stays = table["patient"] >= gone
    return {k: v[stays] for k, v in table.items()}


class Site:
    """A site's home, and releases that left it."""

    def __init__(self, folder: Path, study: str = STUDY) -> None:
        self.folder, self.events = folder, folder / "events.parquet"
        self.home = Home(folder / "home")
        self.agree(study)
        pq.write_table(pa.table(patients()), self.events)
        init_home(
            self.home.folder,
            site="north",
            invitation=folder / "invitation.json",
            study=folder / "study.toml",
            events=self.events,
            anchors=None,
            system="ICD10CM",
        )

    def agree(self, study: str) -> None:
        """Give the site another study, with the invitation that names it."""
        path = self.folder / "study.toml"
        path.write_text(study)
        invitation = Invitation(
            study_digest=load_study(path).digest,
            address="127.0.0.1:9",
            certificate="x",
            keys=keys("hub").public(),
            bundle_digest="0" * 64,
        )
        (self.folder / "invitation.json").write_text(invitation.model_dump_json())
        if self.home.folder.exists():
            for name in ("study.toml", "invitation.json"):
                (self.home.folder / name).write_bytes((self.folder / name).read_bytes())

    def configure(self, change: Callable[[str], str]) -> None:
        path = self.home.folder / "site.toml"
        path.write_text(change(path.read_text()))

    def prepare(self, table: Table, **how: Any) -> Prepared:
        pq.write_table(pa.table(table), self.events)
        last = remembered(self.home.folder)
        identity = {"sequence": len(last) + 1, "previous": last[-1].digest if last else ""}
        return prepare_release(Home(self.home.folder), **(identity | how))

    def send(self, table: Table) -> Prepared:
        prepared = self.prepare(table)
        promote(self.home.folder, prepared.release.manifest.digest)
        return prepared


def content(prepared: Prepared) -> tuple[Any, ...]:
    """What leaves, but for the place in the sequence."""
    release = prepared.release
    m = release.manifest
    return m.codes, m.statistics, m.arrays, {n: a.tobytes() for n, a in release.arrays.items()}


def test_fewer_changed_patients_than_the_minimum_are_refused(tmp_path: Path) -> None:
    site = Site(tmp_path)
    first = site.send(patients())
    assert first.changed == ""
    with pytest.raises(GateError) as caught:
        site.prepare(without(patients(), 13))
    assert caught.value.reasons == (
        "the events of about 15 patients have changed since release 1 of this site: none or at least 1,000 are needed",
    )
    assert "the last one stays valid" in str(caught.value)
    with pytest.raises(GateError, match="fewer than 5 patients have changed"):
        site.prepare(without(patients(), 1))


def test_the_same_data_give_the_same_bytes_again(tmp_path: Path) -> None:
    site = Site(tmp_path)
    first = site.send(patients())
    again = site.prepare(patients())
    assert again.changed == "0"
    assert content(again) == content(first)
    # Not accepted yet: the same place in the sequence, and so the same release to the last byte.
    same = site.prepare(patients(), sequence=1, previous="")
    assert encode_release(same.release) == encode_release(first.release)
    promote(site.home.folder, same.release.manifest.digest)
    assert len(remembered(site.home.folder)) == 1
    # New pseudonyms and rows in another order are no change.
    table = patients()
    order = np.random.default_rng(1).permutation(len(table["code"]))
    moved = {k: v[order] for k, v in table.items()} | {"patient": 10_000 - table["patient"][order]}
    assert content(site.prepare(moved)) == content(first)


def test_enough_changed_patients_give_a_sticky_release(tmp_path: Path) -> None:
    site = Site(tmp_path, STUDY + PUBLIC)
    first = site.send(patients())
    second = site.send(without(patients(), 60))
    assert second.changed == "about 60"
    one, two = (p.release.arrays["code-patients"] for p in (first, second))
    old = dict(zip(first.release.manifest.codes, one, strict=True))
    new = dict(zip(second.release.manifest.codes, two, strict=True))
    changes = [abs(new[c] - old[c]) for c in old.keys() & new.keys()]
    assert 0 in changes  # of a code with fewer than 11 of the 60
    assert max(changes) >= 10
    assert all(c == 0 or c >= 5 for c in changes)  # 11 patients, each count rounded to 5


def test_data_that_go_back_are_held_against_the_older_release(tmp_path: Path) -> None:
    site = Site(tmp_path, STUDY + PUBLIC)
    site.send(patients())
    site.send(without(patients(), 100))
    with pytest.raises(GateError) as caught:
        site.prepare(without(patients(), 2))
    assert "since release 1" in str(caught.value)
    assert "since release 2" not in str(caught.value)


def test_other_rules_need_changed_patients_in_any_case(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.send(patients())
    site.agree(STUDY + "[counting]\nwindow_days = 60\n")
    with pytest.raises(GateError) as caught:
        site.prepare(patients())
    (reason,) = caught.value.reasons
    assert "counting.window_days: 30 then, 60 now" in reason
    assert "of 0 patients' events have changed since: 1,000 are needed" in reason


def test_recoding_all_events_is_no_way_around_the_minimum(tmp_path: Path) -> None:
    site = Site(tmp_path, STUDY.replace('"SOUTH"\nlocal_to = "south"', '"ICD10"'))
    site.send(patients())
    site.configure(lambda text: text.replace('"ICD10CM"', '"ICD10"'))
    with pytest.raises(GateError, match=r'data.system: "ICD10CM" then, "ICD10" now.*fewer than 5 patients'):
        site.prepare(without(patients(), 1))


def test_another_study_with_the_same_rules_may_release_the_same_counts(tmp_path: Path) -> None:
    site = Site(tmp_path)
    first = site.send(patients())
    site.agree('title = "renamed"\n' + STUDY.replace("codes_per_dim = 10", "codes_per_dim = 5"))
    again = site.prepare(patients())
    assert again.release.manifest.codes == first.release.manifest.codes
    np.testing.assert_array_equal(*(p.release.arrays["code-patients"] for p in (first, again)))


def test_a_refusal_lists_all_reasons_at_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.send(patients())
    site.configure(lambda text: text.replace('"ICD10CM"', '"SOUTH"'))
    with pytest.raises(GateError) as caught:
        site.prepare(without(patients(), 590), previous="f" * 64)
    text = "; ".join(caught.value.reasons)
    for reason in (
        "fewer than 20 patients in all",
        "20 are needed for two dimensions",
        "was counted by other rules (data.system",
        "the coordinator has release ffffffffffffffff",
    ):
        assert reason in text
    for step in ("Bring more patients", "the last one stays valid", "Restore"):
        assert step in str(caught.value)


def test_a_code_system_of_another_site_is_a_reason(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(lambda text: text.replace('"ICD10CM"', '"SOUTH"'))
    with pytest.raises(GateError, match="code system SOUTH is local to site south"):
        site.prepare(patients())


def test_a_release_without_its_memory_is_refused(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.send(patients())
    (known,) = remembered(site.home.folder)
    (known.folder / "counts.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(FederationError, match="Restore the folder from a backup"):
        site.prepare(patients())


def test_a_refusal_leaves_the_prepared_release_as_it_was(tmp_path: Path) -> None:
    site = Site(tmp_path, STUDY + PUBLIC)
    site.send(patients())
    second = site.prepare(without(patients(), 60))
    with pytest.raises(GateError):
        site.prepare(without(patients(), 2))
    promote(site.home.folder, second.release.manifest.digest)
    assert [r.number for r in remembered(site.home.folder)] == [1, 2]


def test_a_site_may_ask_for_more(tmp_path: Path) -> None:
    site = Site(tmp_path, STUDY + PUBLIC)
    site.configure(lambda text: text.replace("max_dim = 0", "max_dim = 2\nmin_changed_patients = 90"))
    first = site.send(patients())
    assert first.release.views()[0].matrix.shape[1] == 2
    assert first.release.manifest.policy.max_dim == 2
    with pytest.raises(GateError, match="at least 90 are needed"):
        site.prepare(without(patients(), 60))


def test_names_that_leave_are_in_the_manifest_beside_their_codes(tmp_path: Path) -> None:
    site = Site(tmp_path, STUDY + "[privacy]\nnames = true\n")
    table = patients()
    number = np.array([int(c[1:]) for c in table["code"]])
    named = table | {"description": np.where(number < 30, "Acute asthma", "Asthma, Dr Smith")}
    assert site.prepare(named).release.manifest.descriptions == ()
    site.configure(lambda text: text.replace("[policy]", "[policy]\nnames = true"))
    site.configure(lambda text: text.replace("[data]", '[data]\nterminology = "terms.txt"'))
    (site.home.folder / "terms.txt").write_text("Asthma\nAcute pain\n")
    prepared = site.prepare(named)
    m = prepared.release.manifest
    assert [bool(d) for d in m.descriptions] == [int(c[9:]) < 30 for c in m.codes]
    assert set(m.descriptions) == {"Acute asthma", ""}
    assert m.statistics.names_released + m.statistics.names_withheld == len(m.codes)
    assert prepared.names_undecided == m.statistics.names_withheld > 0
    assert decode_release(encode_release(prepared.release)).manifest == m
