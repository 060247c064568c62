"""A whole round without any line between the parties: every command is real, and files alone pass between them."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coordinator.demo.inputs import generated
from protocol.processes import scripts_folder

pytestmark = pytest.mark.e2e


def run(program: str, *words: object, code: int = 0) -> str:
    """One command; its exit code must be this one, and a mistake must show no traceback."""
    done = subprocess.run(
        [str(scripts_folder() / program), *map(str, words)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr + done.stdout


def told(program: str, *words: object) -> Any:
    return json.loads(run(program, *words, "--json"))


@dataclass(frozen=True)
class Consortium:
    folder: Path
    sites: tuple[str, ...]

    @property
    def hub(self) -> Path:
        return self.folder / "hub"

    @property
    def usb(self) -> Path:
        return self.folder / "usb"

    def site(self, name: str) -> Path:
        return self.folder / name

    def pack(self, name: str) -> list[Path]:
        found = told(
            "coordinator", "round", "pack", "r1", "--site", name, "--output", self.usb, "--home", self.hub
        )
        return [Path(path) for path in found["files"]]


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    """Three sites with an approved release each; no service was ever started."""
    folder = tmp_path_factory.mktemp("gap")
    inputs = generated(folder / "data", sites=3, patients=1500, seed=3)
    found = Consortium(folder, tuple(inputs.sites))
    passphrase = folder / "passphrase"
    passphrase.write_text(secrets.token_hex(16) + "\n")
    passphrase.chmod(0o600)
    run("coordinator", "init", found.hub, "--study", inputs.study, "--address", "127.0.0.1:9443")
    for name in found.sites:
        home, files = found.site(name), inputs.files[name]
        anchors = ("--anchors", files.anchors) if files.anchors else ()
        run(
            *("site-agent", "init", home, "--site", name, "--system", files.system, *anchors),
            *(
                "--invitation",
                found.hub / "invitation.json",
                "--study",
                inputs.study,
                "--events",
                files.events,
            ),
        )
        paper = told("site-agent", "enroll", "--home", home)
        run(
            "coordinator", "enroll", paper["file"], "--fingerprint", paper["fingerprint"], "--home", found.hub
        )
        preview = told("site-agent", "preview", "--home", home)
        signer = ("--passphrase-file", passphrase, "--home", home)
        run("site-agent", "signer", "add", "it", *signer)
        run("site-agent", "approve", "--digest", preview["manifest_digest"], "--yes", "--by", "it", *signer)
    return found


def test_a_round_by_files_alone(enrolled: Consortium) -> None:
    hub, usb = enrolled.hub, enrolled.usb
    run("coordinator", "round", "open", "r1", "--by-file", "--home", hub)
    for name in enrolled.sites:
        (call,) = enrolled.pack(name)
        assert any(
            "sealed" in line
            for line in told("site-agent", "import", call, "--home", enrolled.site(name))["news"]
        )
        (carried,) = told("site-agent", "export", usb, "--home", enrolled.site(name))
        assert carried["kind"] == "release"
        (taken,) = told("coordinator", "import", carried["path"], "--home", hub)
        assert (taken["site"], taken["state"]) == (name, "accepted")
        # The same file again changes nothing.
        assert told("coordinator", "import", carried["path"], "--home", hub) == [taken]
    run("coordinator", "fit", "r1", "--home", hub)
    published = told("coordinator", "publish", "r1", "--home", hub)
    assert published["version"] == 1
    for name in enrolled.sites:
        home = enrolled.site(name)
        _, result = enrolled.pack(name)
        told("site-agent", "import", result, "--home", home)
        assert told("site-agent", "apply", "--home", home)["version"] == 1
        (receipt,) = told("site-agent", "export", usb, "--home", home)
        assert receipt["kind"] == "receipt"
        (taken,) = told("coordinator", "import", receipt["path"], "--home", hub)
        assert taken["state"] == "delivered"
        events = [json.loads(line)["event"] for line in (home / "ledger.jsonl").read_text().splitlines()]
        assert events.count("exported") == 2
    state = told("coordinator", "round", "status", "r1", "--home", hub)
    assert state["state"] == "delivered"
    assert {site["state"] for site in state["sites"]} == {"delivered"}
    # A round that is over is told once.
    lines = run("coordinator", "round", "watch", "r1", "--json", "--home", hub).splitlines()
    assert {json.loads(line)["site"]: json.loads(line)["state"] for line in lines} == dict.fromkeys(
        enrolled.sites, "delivered"
    )


def test_what_is_carried_is_checked(enrolled: Consortium, tmp_path: Path) -> None:
    hub, (one, other, *_) = enrolled.hub, enrolled.sites
    run("coordinator", "round", "open", "r2", "--by-file", "--home", hub)
    packed = told("coordinator", "round", "pack", "r2", "--site", one, "--output", tmp_path, "--home", hub)
    call = Path(packed["files"][0])
    forged = tmp_path / "forged.call"
    forged.write_bytes(call.read_bytes().replace(b"r2", b"r3"))
    assert "signature" in run("site-agent", "import", forged, "--home", enrolled.site(one), code=1)
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"\x00" * 100)
    assert "neither" in run("site-agent", "import", rubbish, "--home", enrolled.site(one), code=2)
    assert "neither" in run("coordinator", "import", rubbish, "--home", hub, code=2)
    assert "cannot be read" in run("coordinator", "import", tmp_path / "nothing", "--home", hub, code=2)
    sealed = next(enrolled.usb.glob(f"r1-{one}.release"), None)
    if sealed is None:
        pytest.fail("the round before this test left no release")
    assert "is a release of site" in run(
        "site-agent", "import", sealed, "--home", enrolled.site(other), code=2
    )
    altered = tmp_path / "altered.release"
    data = bytearray(sealed.read_bytes())
    data[len(data) // 2] ^= 1
    altered.write_bytes(data)
    assert "another release" in run("coordinator", "import", altered, "--home", hub, code=1)
