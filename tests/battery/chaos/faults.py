"""Faults that are no kill at a step: each is put into a running round, says what people see of it, and heals."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.certificates import Certificates, renew_server
from coordinator.roundstates import STATES
from tests.battery.chaos.inputs import SITES
from tests.battery.chaos.processes import Found, kill
from tests.battery.chaos.stack import DISK, Federation

VICTIMS = (
    *("hub/serve", "hub/superlink", "hub/superexec", "hub/serverapp", "hub/proxy", "driver/driver"),
    *(f"{site}/{kind}" for site in SITES for kind in ("agent", "supernode", "runner")),
)


@dataclass
class Scene:
    """A round under way.

    Attributes:
        name: of the round.
        said: what people were told meanwhile.
        healed: when the last fault was over (monotonic).
        faults: how many processes were killed, or things broken beside the first.
    """

    federation: Federation
    name: str
    said: list[str] = field(default_factory=list)
    healed: float = 0.0
    faults: int = 0

    def mend(self) -> None:
        """From now on nothing is broken."""
        self.healed = time.monotonic()

    def state(self) -> str:
        """Where the round stands."""
        return self.federation.store().round(self.name).state

    def reach(self, state: str, seconds: float = 400) -> None:
        """Wait until the round has come to this state."""
        rank = STATES.index(state)
        self.federation.until(f"{self.name}: {state}", lambda: STATES.index(self.state()) >= rank, seconds)

    def over(self) -> bool:
        """Whether the driver has ended well."""
        return self.federation.services[f"round-{self.name}"].done

    def sleep(self, seconds: float) -> None:
        """Wait, or until the round has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.over():
            time.sleep(0.1)

    def listen(self, site: str) -> None:
        """Note what `round status` says of a site now."""
        found = next(s for s in self.federation.status(self.name)["sites"] if s["site"] == site)
        self.said.append(f"{site}: {found['state']}. {found['detail']}")


Fault = Callable[[Scene], None]


@dataclass(frozen=True)
class Named:
    """A fault as it stands in the table.

    Attributes:
        act: puts it in while the round runs, and takes it away.
        fresh: a site that makes a new release for this round.
    """

    name: str
    act: Fault
    fresh: str = ""


def nothing(scene: Scene) -> None:
    """An undisturbed round."""
    scene.mend()


def in_turn(*faults: Fault) -> Fault:
    """One fault after the other, in the same round."""

    def act(scene: Scene) -> None:
        for fault in faults:
            fault(scene)
            scene.faults += 1
        scene.faults -= 1

    return act


# --- The line ------------------------------------------------------------------------------------------


def partition(site: str, state: str, seconds: float) -> Fault:
    """A cable is out for a while, from when the round is in this state."""

    def act(scene: Scene) -> None:
        network = scene.federation.network
        assert network is not None
        scene.reach(state)
        network.cut(site)
        scene.sleep(seconds)
        scene.listen(site)
        network.heal(site)
        scene.mend()

    return act


def slow(rate: int) -> Fault:
    """The relayed site has so many bytes a second for the whole round."""

    def act(scene: Scene) -> None:
        fed = scene.federation
        assert fed.network is not None
        fed.network.slow(rate)
        begin = time.monotonic()
        try:
            fed.until("the slow round", scene.over, 1200)
        finally:
            fed.network.slow(0)
        scene.said.append(f"the round took {time.monotonic() - begin:.0f} s")
        scene.mend()

    return act


# --- Disks ---------------------------------------------------------------------------------------------


def full_disk(role: str, state: str, seconds: float) -> Fault:
    """The disk of a home has no byte left for a while."""

    def act(scene: Scene) -> None:
        fed = scene.federation
        disk = fed.home(role).parent
        scene.reach(state)
        used = os.statvfs(disk)
        size = (used.f_blocks - used.f_bfree) * used.f_frsize
        _resize(disk, str(size))
        scene.sleep(seconds)
        for site in SITES if role == "hub" else (role,):
            scene.listen(site)
        _resize(disk, DISK)
        scene.mend()

    return act


def _resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


# --- Clocks --------------------------------------------------------------------------------------------


COMPILER = shutil.which("cc") or ""


@functools.cache
def _library() -> str:
    target = Path(tempfile.mkdtemp(prefix="chaos-clock-")) / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", target, source], check=True)
    return str(target)


def _clock(minutes: int) -> dict[str, str]:
    return {"LD_PRELOAD": _library(), "CHAOS_SECONDS": str(60 * minutes)}


def clock(what: str, minutes: int, *, ends: bool) -> Fault:
    """A clock is off: a site's agent, its SuperNode, or the coordinator's services and driver.

    Args:
        ends: whether the round comes to its end in spite of it; otherwise the clock is set right after a while.
    """

    def act(scene: Scene) -> None:
        fed, wrong = scene.federation, _clock(minutes)
        if what == "coordinator":
            fed.services["hub"].stop()
            fed.start_hub(**wrong, CHAOS_CLOCK=":" + json.dumps(wrong))
            fed.services[f"round-{scene.name}"].stop()
            fed.drive(scene.name, **wrong)
        else:
            env = wrong if what == "agent" else {"CHAOS_CLOCK": "flower-supernode:" + json.dumps(wrong)}
            fed.services["north"].stop()
            fed.start_site("north", **env)
        if ends:
            fed.until("the round with a wrong clock", scene.over, 400)
        else:
            scene.sleep(100)
        scene.listen("north")
        scene.mend()
        if what == "coordinator":
            fed.services["hub"].stop()
            fed.start_hub()
            if not scene.over():
                fed.services[f"round-{scene.name}"].stop()
                fed.drive(scene.name)
        else:
            fed.services["north"].stop()
            fed.start_site("north")

    return act


# --- The SuperLink -------------------------------------------------------------------------------------


def locked(state: str, seconds: float) -> Fault:
    """Another process holds the SuperLink's database."""

    def act(scene: Scene) -> None:
        scene.reach(state)
        path = scene.federation.hub.flower / "superlink.db"
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            scene.sleep(seconds)
            for site in SITES:
                scene.listen(site)
            connection.execute("ROLLBACK")
        scene.mend()

    return act


def expired(scene: Scene) -> None:
    """The coordinator's certificate has expired; it is renewed after a while."""
    fed = scene.federation
    scene.reach("collecting")
    _expire(Certificates.at(fed.hub.flower / "tls"))
    fed.services["hub"].stop()
    fed.start_hub()
    scene.sleep(60)
    scene.said += [line for line in fed.services["hub"].text().splitlines()[-2:] if "error" in line]
    scene.said += fed.services[f"round-{scene.name}"].text().splitlines()[-1:]
    renew_server(fed.hub.flower / "tls", [fed.hub.config.host])
    fed.services["hub"].stop()
    fed.start_hub()
    scene.mend()


def _expire(files: Certificates) -> None:
    """The same certificate, good until yesterday."""
    old = x509.load_pem_x509_certificate(files.server.read_bytes())
    key = serialization.load_pem_private_key(files.ca_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=800)).not_valid_after(now - timedelta(days=1))
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    files.server.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


# --- Kills ---------------------------------------------------------------------------------------------


def random_kills(seed: int, count: int, length: float) -> Fault:
    """SIGKILL to processes at random times until the round is over, or `count` of them have died.

    Args:
        seed: of the times and victims.
        count: of kills at most.
        length: seconds within which they fall: some more than an undisturbed round takes.
    """
    rng = random.Random(seed)  # noqa: S311
    moments = sorted(rng.uniform(0, length) for _ in range(count))
    orders = [rng.sample(VICTIMS, len(VICTIMS)) for _ in moments]

    def act(scene: Scene) -> None:
        begin = time.monotonic()
        for moment, order in zip(moments, orders, strict=True):
            scene.sleep(moment - (time.monotonic() - begin))
            if scene.over():
                break
            alive: dict[str, Found] = {str(p): p for p in scene.federation.alive()}
            # Who does not run at this moment cannot be killed: the next one in the drawn order is.
            victim = next(alive[name] for name in order if name in alive)
            kill(victim.pid)
            scene.faults += 1
            scene.said.append(f"{moment:.1f} s {victim}")
            scene.mend()

    return act
