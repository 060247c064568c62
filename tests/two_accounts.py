"""A coordinator, and a site whose two halves run under the accounts and restrictions of our systemd units."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.flower.bundle import bundle_digest
from coordinator.flower.desk import RoundDesk
from coordinator.flower.services import Services
from protocol.bundle import encode_bundle
from protocol.envelope import MAGIC, EnvelopeHeader, seal
from protocol.keys import PrivateKeys
from protocol.messages import Invitation, PublishedManifest, RoundCall
from protocol.processes import free_port
from protocol.published import list_files, sign_manifest
from protocol.signed import sign_message
from protocol.study import load_study
from tests.battery.watching import handing_on, watched_environment
from tests.systemd_unit import ROOT, UNITS, Machine, configuration, home_of

IDS = {"smile-agent": 64201, "smile-flower": 64202, "smile-exchange": 64203}
PATIENCE = 240.0

PATIENT, PASSWORD, PGPASS = "PATIENT-CANARY-7f3a", "PASSWORD-CANARY-91c4", "PGPASS-CANARY-55e0"
PASSPHRASE = "PASSPHRASE-CANARY-0be9"
HOSTILE_MARK = b"BUNDLE-CANARY-63d8"
SEALED_MARK = MAGIC + b"\0\0"
"""How every envelope begins, and no source text: a header is shorter than 64 KiB."""

STUDY = """\
id = "unit"
sites = ["north", "lake", "south"]
standard = "ICD10CM"
[[code_systems]]
prefix = "ICD10CM"
[embedding]
codes_per_dim = 10
"""

PROGRAM = Path(__file__).with_name("hostile_program.py")
CODE = [str(ROOT / "protocol"), str(ROOT / "site_agent"), str(Path(pa.__file__).parent)]


def write_events(path: Path) -> None:
    """400 patients of four topics over 60 codes; every patient's identifier is the canary with a number."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(400), 30)
    topic = (rng.integers(0, 4, 400)[who] + rng.integers(0, 2, len(who))) % 4
    code = topic * 15 + rng.integers(0, 15, len(who))
    day = np.datetime64("2020-01-01") + rng.integers(0, 90, len(who))
    columns = {
        "patient": [f"{PATIENT}-{w}" for w in who],
        "date": day.astype("datetime64[D]"),
        "code": [f"C{c:02d}" for c in code],
    }
    pq.write_table(pa.table(columns), path, compression="none")


def invite(path: Path, study: Path, hub: PrivateKeys, address: str, certificate: str, bundle: str) -> None:
    invitation = Invitation(
        study_digest=load_study(study).digest,
        address=address,
        certificate=certificate,
        keys=hub.public(),
        bundle_digest=bundle,
    )
    path.write_text(invitation.model_dump_json())


class Site:
    """A coordinator as root, and a site whose two halves run in the units' sandboxes."""

    def __init__(self, base: Path) -> None:
        self.base, self.machine = base, Machine(base, IDS)
        self.hub, self.round_keys = PrivateKeys.generate(), PrivateKeys.generate()
        self.services = Services(base / "coordinator", fleet_port=free_port(), hosts=["localhost"])
        self.services.prepare()
        self.digest = bundle_digest(self.services.bundle)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        # Every process of the stack reports if a loader or an import touches sealed bytes, or the hostile bundle.
        places = {"root": base, **{a: self.path(home_of(a)) for a in ("smile-agent", "smile-flower")}}
        self.logs = {account: place / "watch.log" for account, place in places.items()}
        self.watch = {
            account: watched_environment(base / "watch", log, [SEALED_MARK, HOSTILE_MARK])
            for account, log in self.logs.items()
        }
        self.node = 0

    def path(self, name: str) -> Path:
        return self.machine.path(name)

    @property
    def home(self) -> Path:
        return self.path("/var/lib/smile/site")

    @property
    def passphrase(self) -> Path:
        """As systemd hands a credential to the service."""
        return self.path("/run/credentials/passphrase")

    def environment(self, account: str) -> dict[str, str]:
        own = {"HOME": str(self.path(home_of(account))), "OMP_NUM_THREADS": "1"}
        if account == "smile-agent":
            own |= {"SMILE_DATABASE_PASSWORD": PASSWORD, "SMILE_SITE_HOME": str(self.home)}
            own |= {"SMILE_PASSPHRASE_FILE": str(self.passphrase)}
        return {"PATH": os.environ["PATH"], **own}

    def agent(self, *words: str) -> str:
        """A command of `site-agent` as a person runs it: as the agent's account, outside of the unit."""
        argv = self.machine.as_account(
            "smile-agent", str(Path(sys.executable).with_name("site-agent")), *words
        )
        done = subprocess.run(
            argv, cwd="/", env=self.environment("smile-agent"), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def set_up(self) -> None:
        """What docs/how-to/harden-a-site.md says, step by step."""
        for _, name, mode, user, group in configuration("tmpfiles.d"):
            self.path(name).mkdir(parents=True, exist_ok=True)
            os.chown(self.path(name), IDS.get(user, 0), IDS.get(group, 0))
            self.path(name).chmod(int(mode, 8))
        given = self.path("/srv/smile")
        given.mkdir(parents=True)
        study, invitation, events = given / "study.toml", given / "invitation.json", given / "events.parquet"
        study.write_text(STUDY)
        address = f"localhost:{self.services._fleet_port}"
        invite(invitation, study, self.hub, address, self.services.files.ca.read_text(), self.digest)
        write_events(events)
        pgpass = self.path("/var/lib/smile/.pgpass")
        pgpass.write_text(f"db:5432:*:smile:{PGPASS}\n")
        self.passphrase.parent.mkdir(parents=True)
        self.passphrase.write_text(PASSPHRASE + "\n")
        for secret in (events, pgpass, self.passphrase):
            os.chown(secret, IDS["smile-agent"], IDS["smile-agent"])
            secret.chmod(0o600)
        self.agent(
            *(
                "init",
                str(self.home),
                "--site",
                "north",
                "--invitation",
                str(invitation),
                "--study",
                str(study),
            ),
            *("--events", str(events), "--system", "ICD10CM", "--passphrase-file", str(self.passphrase)),
        )
        self.agent("signer", "add", "tester", "--passphrase-file", str(self.passphrase))
        self.agent("enroll")
        digest = json.loads(self.agent("preview", "--json"))["manifest_digest"]
        self.agent("approve", "--yes", "--digest", digest, "--passphrase-file", str(self.passphrase))
        made = self.path("/var/lib/smile/connection")
        self.agent("separate", "--exchange", str(self.path("/var/lib/smile/exchange")), "--to", str(made))
        etc, state = self.path("/etc/smile-flower"), self.path("/var/lib/smile-flower")
        text = (made / "connection.toml").read_text()
        text = text.replace('key = "node.key"', f'key = "{state}/node.key"').replace(
            'work = "work"', f'work = "{state}"'
        )
        (made / "connection.toml").write_text(text)
        for name, folder, uid, mode in (
            ("connection.toml", etc, 0, 0o640),
            ("ca.crt", etc, 0, 0o640),
            ("node.key", state, IDS["smile-flower"], 0o600),
        ):
            shutil.copyfile(made / name, folder / name)
            os.chown(folder / name, uid, IDS["smile-flower"])
            (folder / name).chmod(mode)
        shutil.rmtree(made)

    def start(self) -> None:
        with handing_on(self.watch["root"]):
            self.services.start()
        self.node = self.services.register("north", self.home / "flower" / "node.key.pub")
        for unit in UNITS:
            account = unit.get("User")
            log = (self.base / f"{account}.log").open("wb")
            self.running[account] = subprocess.Popen(
                self.machine.sandbox(unit, *self.machine.command(unit)),
                cwd="/",
                env=self.environment(account) | self.watch[account],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.until("the site online", lambda: self.services.online() == {self.node})

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait(60)
        self.services.stop()

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            ended = [name for name, process in self.running.items() if process.poll() is not None]
            if ended or time.monotonic() > end:
                logs = {p.name: p.read_text()[-800:] for p in self.base.rglob("*.log")}
                raise AssertionError(f"{what} did not happen; ended: {ended}; {json.dumps(logs, indent=1)}")
            time.sleep(0.2)

    def finish(self, run: int) -> str:
        def over() -> bool:
            return self.services.run_state(run).startswith("finished")

        self.until(f"run {run}", over)
        return self.services.run_state(run)

    def desk(self, name: str) -> RoundDesk:
        study = load_study(self.home / "study.toml")
        call = RoundCall(
            round=name,
            study_digest=study.digest,
            study=study.stated,
            recipient=self.round_keys.public(),
            expected={"north": (0, "")},
            expires=datetime.now(UTC) + timedelta(days=1),
        )
        desk = RoundDesk(self.base / "rounds" / name)
        if not desk.folder.exists():
            desk.open(sign_message(call, self.hub), {"north": self.node})
        return desk

    def site_keys(self) -> PrivateKeys:
        # Root may read it, but a key file must belong to its reader.
        copy = self.base / "root" / "site.key"
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        shutil.copyfile(self.home / "keys" / "site.key", copy)
        copy.chmod(0o600)
        return PrivateKeys.load(copy, lambda: PASSPHRASE)

    def result(self, name: str) -> bytes:
        """A signed release, sealed to the site."""
        release = self.base / "root" / "release"
        release.mkdir()
        (release / "clusters.parquet").write_bytes(b"clusters")
        manifest = PublishedManifest(
            study={},
            study_digest=load_study(self.home / "study.toml").digest,
            round=name,
            version=1,
            created=datetime.now(UTC),
            software="test",
            codes=1,
            clusters=1,
            sites=(),
            files=list_files(release),
        )
        sign_manifest(release, manifest, self.hub)
        to = self.site_keys().public()
        header = EnvelopeHeader(
            kind="result",
            suite=to.suite,
            consortium="unit",
            study_digest=manifest.study_digest,
            round=name,
            site="north",
            recipient_key=to.digest,
            signer_key=self.hub.public().digest,
            sequence=1,
            previous="",
            content=manifest.digest,
            agent_digest="0" * 64,
            policy_digest="0" * 64,
            ledger_head="",
            expires=datetime.now(UTC) + timedelta(days=1),
        )
        plain, target = self.base / "root" / "plain", self.base / "root" / "sealed"
        plain.write_bytes(encode_bundle(release))
        with plain.open("rb") as source:
            seal(source, target, header, to=to, keys=self.hub)
        return target.read_bytes()

    def hostile(self) -> dict[str, Any]:
        """What a program learns that runs as the Flower account, without the unit's restrictions, knowing all paths."""
        agent = self.pids("smile-agent")
        question = {
            "paths": [str(p) for p in sorted(self.base.rglob("*"))],
            "agent": agent,
            "secrets": [
                *(c.encode().hex() for c in (PATIENT, PASSWORD, PGPASS, PASSPHRASE)),
                *(s.hex() for s in (self.site_keys().sealing, self.site_keys().signing)),
            ],
        }
        argv = self.machine.as_account("smile-flower", sys.executable, str(PROGRAM), *CODE)
        done = subprocess.run(
            argv,
            cwd="/",
            input=json.dumps(question),
            env=self.environment("smile-flower"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def pids(self, account: str) -> list[int]:
        """The live processes of an account."""
        processes = [p for p in Path("/proc").iterdir() if p.name.isdecimal()]
        return [int(p.name) for p in processes if p.exists() and p.stat().st_uid == IDS[account]]
