"""The site's side of a round over real files, with the transport played by the test."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from protocol.bundle import encode_bundle
from protocol.canonical import file_digest
from protocol.envelope import EnvelopeHeader, open_sealed, seal
from protocol.errors import KeyFileError, StudyError, UsageError
from protocol.keys import PrivateKeys
from protocol.messages import Invitation, PublishedManifest, Receipt, RoundCall
from protocol.published import list_files, sign_manifest
from protocol.release import decode_release
from protocol.signed import open_signed, sign_message
from protocol.study import StudySpec, load_study
from site_agent.agent import Agent
from site_agent.codelist import apply_result
from site_agent.config import Home
from site_agent.enrolment import init_home, write_enrolment
from site_agent.exchange import MAX_CALLS
from site_agent.signers import standing
from site_agent.state import load_state
from tests.synthetic import keys

HUB, ROUND = keys("hub"), keys("round")
PASSPHRASE = "four words nobody joins"

STUDY = """\
id = "unit"
sites = ["north", "lake", "south"]
standard = "ICD10CM"
[[code_systems]]
prefix = "ICD10CM"
[embedding]
codes_per_dim = 10
"""


def write_events(path: Path, patients: int = 400) -> None:
    """Patients of four topics over 60 codes: enough for the default floors."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(patients), 30)
    # Each patient has two neighbouring topics of four, which makes one connected ring of codes.
    topic = (rng.integers(0, 4, patients)[who] + rng.integers(0, 2, len(who))) % 4
    code = topic * 15 + rng.integers(0, 15, len(who))
    day = np.datetime64("2020-01-01") + rng.integers(0, 90, len(who))
    table = {"patient": who, "date": day.astype("datetime64[D]"), "code": [f"C{c:02d}" for c in code]}
    pq.write_table(pa.table(table), path)


class Bench:
    """A site and the files of a coordinator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.study_path, self.events = folder / "study.toml", folder / "events.parquet"
        self.study_path.write_text(STUDY)
        write_events(self.events)
        self.study: StudySpec = load_study(self.study_path)
        invitation = Invitation(
            study_digest=self.study.digest,
            address="127.0.0.1:9",
            certificate="x",
            keys=HUB.public(),
            bundle_digest="0" * 64,
        )
        self.invitation = folder / "invitation.json"
        self.invitation.write_text(invitation.model_dump_json())
        self.agent = Agent(self.init("north"))

    def init(self, site: str, **changes: Any) -> Home:
        files = {
            "invitation": self.invitation,
            "study": self.study_path,
            "events": self.events,
            "anchors": None,
        }
        return init_home(self.folder / f"home-{site}", site=site, system="ICD10CM", **(files | changes))

    def approve(self, by: str = "tester") -> str:
        digest = self.agent.preview().release.manifest.digest
        self.sign(digest, by)
        return digest

    def sign(self, digest: str, by: str = "tester") -> None:
        if by not in standing(self.agent.ledger.verify()).signers:
            self.agent.add_signer(by, lambda: PASSPHRASE)
        self.agent.approve(by, digest, lambda: PASSPHRASE)

    def call(self, *, name: str = "r1", signer: PrivateKeys = HUB, **changes: Any) -> None:
        values: dict[str, Any] = {
            "round": name,
            "study_digest": self.study.digest,
            "study": self.study.stated,
            "recipient": ROUND.public(),
            "expected": {"north": (0, "")},
            "expires": datetime.now(UTC) + timedelta(days=1),
        }
        self.agent.exchange.put_call(sign_message(RoundCall(**(values | changes)), signer))

    def status(self, name: str = "r1") -> Any:
        return self.agent.exchange.status(name)

    def deliver(
        self, version: int = 1, *, site: str = "north", signer: PrivateKeys = HUB, name: str = "r1"
    ) -> None:
        """What a coordinator would publish, sealed to the site and put where Flower puts it."""
        release = self.folder / f"release-{version}"
        release.mkdir(exist_ok=True)
        codes = list(self.agent.outbox.prepared().release.manifest.codes)
        n = len(codes)
        candidates = [
            [{"code": c, "name": f"=name of {c}"}, {"code": "ICD10CM:Z99", "name": ""}] for c in codes
        ]
        columns = {
            "code": codes,
            "sites": [["north"]] * n,
            "cluster": pa.array(range(n), pa.int32()),
            "probability": pa.array([0.5] * n, pa.float32()),
            "anchored": [False] * n,
            "standard_code": [*codes[:-1], ""],
            "candidates": pa.array(
                candidates, pa.list_(pa.struct([("code", pa.string()), ("name", pa.string())]))
            ),
        }
        pq.write_table(pa.table(columns), release / "clusters.parquet")
        manifest = PublishedManifest(
            study={},
            study_digest=self.study.digest,
            round=name,
            version=version,
            created=datetime(2026, 1, 1, tzinfo=UTC),
            software="test",
            codes=n,
            clusters=n,
            sites=(),
            files=list_files(release),
        )
        sign_manifest(release, manifest, HUB)
        to = self.agent.home.keys.public()
        header = EnvelopeHeader(
            kind="result",
            suite=to.suite,
            consortium="unit",
            study_digest=self.study.digest,
            round=name,
            site=site,
            recipient_key=to.digest,
            signer_key=signer.public().digest,
            sequence=version,
            previous="",
            content=manifest.digest,
            agent_digest="0" * 64,
            policy_digest="0" * 64,
            ledger_head="",
            expires=datetime.now(UTC) + timedelta(days=1),
        )
        path = self.folder / "result.sealed"
        seal(io.BytesIO(encode_bundle(release)), path, header, to=to, keys=signer)
        data = path.read_bytes()
        self.agent.exchange.put_result_block(file_digest(path), len(data), 0, data)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_nothing_is_sealed_before_approval(bench: Bench) -> None:
    bench.call()
    bench.agent.step()
    assert bench.status().state == "preparing"
    bench.agent.preview()
    bench.agent.step()
    assert bench.status().state == "awaiting-approval"
    assert not list((bench.agent.home.exchange / "sealed").iterdir())


def test_an_approved_release_is_sealed_to_the_rounds_key(bench: Bench, tmp_path: Path) -> None:
    digest = bench.approve()
    bench.call()
    bench.agent.step()
    status = bench.status()
    assert status.state == "sealed"
    path = bench.agent.home.exchange / "sealed" / f"{status.sha256}.sealed"
    header = open_sealed(path, tmp_path / "plain", keys=ROUND, signer=bench.agent.home.keys.public())
    assert header.content == digest == decode_release((tmp_path / "plain").read_bytes()).manifest.digest
    (sealed,) = (e for e in bench.agent.ledger.verify() if e.event == "sealed")
    assert header.ledger_head == sealed.previous
    assert (sealed.facts["sha256"], sealed.facts["bytes"]) == (status.sha256, path.stat().st_size)
    assert sealed.facts["approved_by"] == "tester"
    assert bench.agent.step() == []


def test_a_release_altered_after_approval_is_not_sealed(bench: Bench) -> None:
    bench.approve()
    path = bench.agent.home.folder / "outbox" / "prepared.release"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    bench.call()
    bench.agent.step()
    assert bench.status().state == "refused"
    assert "altered" in bench.status().detail
    assert not list((bench.agent.home.exchange / "sealed").iterdir())


def test_another_preview_voids_the_approval(bench: Bench) -> None:
    bench.approve()
    write_events(bench.events, patients=500)
    bench.agent.preview()
    bench.call()
    bench.agent.step()
    assert bench.status().state == "awaiting-approval"


def test_approval_names_one_manifest(bench: Bench) -> None:
    bench.approve()
    with pytest.raises(UsageError, match="another release"):
        bench.agent.approve("tester", "0" * 64, lambda: PASSPHRASE)


def test_a_forged_call_is_ignored(bench: Bench) -> None:
    bench.approve()
    bench.call(signer=keys("stranger"))
    assert "did not sign" in bench.agent.step()[0]
    assert bench.status() is None


def test_a_study_that_differs_is_refused_with_the_field(bench: Bench) -> None:
    bench.approve()
    other = bench.study.model_dump(mode="json")
    other["privacy"]["min_pair_patients"] = 12
    bench.call(study=other, study_digest="e" * 64)
    bench.agent.step()
    assert bench.status().state == "refused"
    assert "privacy.min_pair_patients: 11 here, 12 there" in bench.status().detail


def test_an_expired_call(bench: Bench) -> None:
    bench.approve()
    bench.call(expires=datetime.now(UTC) - timedelta(seconds=1))
    assert "expired" in bench.agent.step()[0]
    assert bench.status() is None


def test_a_stale_release_must_be_prepared_again(bench: Bench) -> None:
    digest = bench.approve()
    bench.call(name="r1")
    bench.agent.step()
    bench.call(name="r2", expected={"north": (1, digest)})
    bench.agent.step()
    assert bench.status("r2").state == "sealed", "the release that was accepted may be sent again"
    bench.call(name="r3", expected={"north": (2, "f" * 64)})
    bench.agent.step()
    assert bench.status("r3").state == "preparing"
    assert "stale" in bench.status("r3").detail
    bench.call(name="r4", expected={"north": (1, digest)})
    bench.agent.step()
    assert bench.status("r4").state == "refused", "a coordinator's memory does not go back in time"


def test_a_new_round_key_means_sealing_again(bench: Bench) -> None:
    bench.approve()
    bench.call()
    bench.agent.step()
    first = bench.status().sha256
    bench.call(recipient=keys("round2").public())
    bench.agent.step()
    assert bench.status().sha256 != first


def test_result_receipt_and_apply(bench: Bench) -> None:
    with pytest.raises(UsageError, match="No published release"):
        apply_result(bench.agent.home)
    bench.approve()
    bench.deliver()
    assert "run site-agent apply" in bench.agent.step()[0]
    receipt = open_signed(bench.status().receipt.encode(), Receipt, bench.agent.home.keys.public())
    assert (receipt.site, receipt.version) == ("north", 1)
    applied = apply_result(bench.agent.home)
    n = len(bench.agent.outbox.prepared().release.manifest.codes)
    assert applied.states["mapped"] == n - 1
    assert applied.states["no standard code"] == 1
    text = applied.path.read_text()
    assert text.splitlines()[0].startswith('"code","description","state"')
    rows = pq.read_table(bench.agent.home.folder / "harmonised.parquet").to_pylist()
    first = next(r for r in rows if r["state"] == "mapped")
    assert (first["standard_name"], first["alternatives"]) == (
        f"=name of {first['standard_code']}",
        "ICD10CM:Z99",
    )
    assert f'"\'=name of {first["standard_code"]}"' in text
    last = next(r for r in rows if r["state"] == "no standard code")
    assert (last["standard_name"], last["alternatives"]) == ("", f"{last['code']} ICD10CM:Z99")


def test_stale_foreign_and_forged_results_are_quarantined(bench: Bench) -> None:
    bench.approve()
    bench.deliver(version=2)
    bench.agent.step()
    assert load_state(bench.agent.home.folder).result_version == 2
    for bad in ({"version": 1}, {"version": 3, "site": "lake"}, {"version": 3, "signer": keys("stranger")}):
        bench.deliver(**bad)  # type: ignore[arg-type]
        assert "Refused a result" in bench.agent.step()[0]
    assert load_state(bench.agent.home.folder).result_version == 2
    assert len(list((bench.agent.home.folder / "quarantine").iterdir())) == 3
    assert [p.name for p in (bench.agent.home.folder / "results").iterdir()] == ["v2"]


def test_rounds_that_are_over_make_room_for_others(bench: Bench) -> None:
    bench.approve()
    for i in range(1, MAX_CALLS + 3):
        bench.call(name=f"r{i}")
        bench.agent.step()
        assert bench.status(f"r{i}").state == "sealed"
        bench.deliver(i, name=f"r{i}")
        bench.agent.step()
        bench.call(name=f"r{i}")  # the coordinator's last look
        assert bench.agent.step() == []
        assert bench.status(f"r{i}").state == "delivered"
    assert bench.agent.exchange.calls() == []


def test_the_same_result_again_is_acknowledged_again(bench: Bench) -> None:
    bench.approve()
    for _ in range(2):
        bench.deliver()
        assert "arrived and holds" in bench.agent.step()[0]


def test_init_is_whole_or_nothing(bench: Bench) -> None:
    with pytest.raises(UsageError, match="not empty"):
        bench.init("north")
    with pytest.raises(StudyError, match="not in the study"):
        bench.init("elsewhere")
    with pytest.raises(UsageError, match="no file"):
        bench.init("lake", events=bench.folder / "none.csv")
    other = bench.folder / "other.toml"
    other.write_text(STUDY.replace("codes_per_dim = 10", "codes_per_dim = 11"))
    with pytest.raises(StudyError, match="not the one that the invitation"):
        bench.init("lake", study=other)
    assert not (bench.folder / "home-lake").exists()
    assert not list(bench.folder.glob(".part-*"))


def test_a_study_changed_after_init(bench: Bench) -> None:
    path = bench.agent.home.folder / "study.toml"
    path.write_text(STUDY.replace("codes_per_dim = 10", "codes_per_dim = 11"))
    with pytest.raises(StudyError, match="not the one that the coordinator's invitation names"):
        Agent(Home(bench.agent.home.folder)).preview()


def test_keys_open_to_others(bench: Bench) -> None:
    (bench.agent.home.folder / "keys" / "site.key").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        write_enrolment(Home(bench.agent.home.folder), "")
