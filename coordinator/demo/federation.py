"""`coordinator demo`: the real commands and processes of a whole federation, one after the other.

Nothing here takes a shortcut: each step is a command that a person at the
coordinator or at a site would run, in a process of its own.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.demo.inputs import Inputs, generated, real
from protocol.console import Step, out, print_json, progress, table
from protocol.errors import FederationError, RoundError
from protocol.files import write_atomic
from protocol.processes import free_port, scripts_folder

MARK = ".smile-demo"
"""Only a folder that holds this file is ever replaced."""

_ROUND = "demo-1"
_WAIT = "600"
_SIGNER = "demo"


@dataclass(frozen=True)
class Demo:
    """The folders of a demo."""

    folder: Path
    inputs: Inputs

    @property
    def hub(self) -> Path:
        """The coordinator's home."""
        return self.folder / "coordinator"

    @property
    def passphrase(self) -> Path:
        """What protects the keys of the demo's signers."""
        return self.folder / "passphrase"

    def site(self, name: str) -> Path:
        """A site's home."""
        return self.folder / "sites" / name


def run_demo(
    output: Path, *, sites: int, patients: int, seed: int, data: Path | None, as_json: bool = False
) -> None:
    """Make or take the data, run the federation, print what came of it.

    Raises:
        FederationError: a command failed; its own message is the reason.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / MARK).touch()
    with progress("demo", quiet=as_json) as step:
        if data is None:
            step("drawing patients of a generated consortium", 0.0)
            inputs = generated(output / "data", sites=sites, patients=patients, seed=seed)
        else:
            step("reading the sites' files", 0.0)
            inputs = real(data, output / "data")
        demo = Demo(output, inputs)
        write_atomic(demo.passphrase, secrets.token_hex(16) + "\n")
        previews, published = _federate(demo, step)
    if as_json:
        print_json({"previews": previews, "published": published})
    else:
        _show(demo, previews, published)


def _federate(demo: Demo, step: Step) -> tuple[dict[str, Any], dict[str, Any]]:
    """All commands in order; what `preview` said at each site, and what `publish` said."""
    names = demo.inputs.sites
    step("making the coordinator's keys and certificates", 0.1)
    address = f"127.0.0.1:{free_port()}"
    study = str(demo.inputs.study)
    _coordinator("init", str(demo.hub), "--study", study, "--address", address, "--listen", "127.0.0.1")
    if demo.inputs.titles:
        shutil.copyfile(demo.inputs.titles, demo.hub / "titles.csv")
        config = demo.hub / "coordinator.toml"
        write_atomic(config, 'titles = "titles.csv"\n' + config.read_text(encoding="utf-8"))
    with ExitStack() as stack:
        log = demo.folder / "coordinator.log"
        serving = stack.enter_context(
            _running("coordinator", ("serve", "--only", "sites", "--home", str(demo.hub)), log)
        )
        step("enrolling the sites", 0.15)
        enrolled = _in_parallel(lambda name: _make_site(demo, name), names)
        files = [e["file"] for e in enrolled]
        told = [word for e in enrolled for word in ("--fingerprint", e["fingerprint"])]
        _coordinator("enroll", *files, *told, "--home", str(demo.hub))
        step("counting, suppressing and embedding at each site", 0.25)
        previews = dict(
            zip(names, _in_parallel(lambda name: _preview_and_approve(demo, name), names), strict=True)
        )
        step("connecting the sites over TLS", 0.45)
        home = ("--home", str(demo.hub))
        _wait_for_services(demo, serving, log)
        # A node that the SuperLink does not know yet is turned away, and tries again after a minute only.
        _coordinator("round", "open", _ROUND, *home)
        for name in names:
            words = ("run", "--home", str(demo.site(name)))
            stack.enter_context(_running("site-agent", words, demo.folder / f"{name}.log"))
        step("collecting sealed releases, one site at a time", 0.55)
        collected = _json(
            _coordinator("round", "collect", _ROUND, "--wait", _WAIT, "--poll", "1", "--json", *home)
        )
        for site in collected["sites"]:
            if site["state"] != "accepted":
                raise FederationError(f"Site {site['site']} is {site['state']}", why=site["detail"])
        step("fitting SMILE", 0.7)
        _coordinator("fit", _ROUND, *home)
        step("publishing the release", 0.8)
        truth = ("--truth", str(demo.inputs.truth)) if demo.inputs.truth else ()
        published = _json(_coordinator("publish", _ROUND, *truth, "--json", *home))
        step("delivering sealed results", 0.9)
        _coordinator("round", "deliver", _ROUND, "--wait", _WAIT, "--poll", "1", *home)
    step("applying the map at each site", 0.98)
    _in_parallel(lambda name: _site("apply", "--home", str(demo.site(name))), names)
    return previews, published


def _make_site(demo: Demo, name: str) -> dict[str, Any]:
    files = demo.inputs.files[name]
    anchors = ("--anchors", str(files.anchors)) if files.anchors else ()
    _site(
        *("init", str(demo.site(name)), "--site", name, "--system", files.system, *anchors),
        *("--invitation", str(demo.hub / "invitation.json"), "--study", str(demo.inputs.study)),
        *("--events", str(files.events)),
    )
    found: dict[str, Any] = _json(_site("enroll", "--home", str(demo.site(name)), "--json"))
    return found


def _preview_and_approve(demo: Demo, name: str) -> dict[str, Any]:
    home = ("--home", str(demo.site(name)))
    preview: dict[str, Any] = _json(_site("preview", "--json", *home))
    signer = ("--passphrase-file", str(demo.passphrase), *home)
    _site("signer", "add", _SIGNER, *signer)
    _site("approve", "--digest", preview["manifest_digest"], "--yes", "--by", _SIGNER, *signer)
    return preview


def _wait_for_services(demo: Demo, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once `serve` answers.

    Raises:
        FederationError: it ended, or did not answer in three minutes.
    """
    from coordinator.flower.services import Services  # noqa: PLC0415 - Flower takes seconds to import

    end = time.monotonic() + 180
    while True:
        try:
            Services.attach(demo.hub / "flower")
        except RoundError:
            if process.poll() is not None or time.monotonic() > end:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise FederationError(
                    "The coordinator's services did not start", why=" ".join(last)
                ) from None
            time.sleep(0.3)
        else:
            return


def _show(demo: Demo, previews: dict[str, Any], published: dict[str, Any]) -> None:
    rows = []
    for name, preview in previews.items():
        manifest = preview["manifest"]
        s = manifest["statistics"]
        codes = f"{s['codes_released'] / max(s['codes_seen'], 1):.0%}"
        numbers = [s["patients"], s["codes_seen"], s["codes_released"], codes, f"{s['mass_kept']:.0%}"]
        rows.append([name, *numbers, len(manifest["anchors"]), preview["bytes"]])
    columns = ["site", "patients", "seen", "released", "codes kept", "mass kept", "anchors", "bytes"]
    table(
        "What left each hospital: codes, and the share of co-occurrence mass (counts are rounded)",
        columns,
        rows,
    )
    from coordinator.cli import show_quality  # noqa: PLC0415 - the command line imports this module

    if published["quality"]:
        show_quality(published["quality"], published["scored"])
    folder = Path(published["folder"])
    first = demo.inputs.sites[0]
    out.print("\nOpen these:")
    for path, what in (
        (folder / "report.html", "the report"),
        (folder / "mappings.sssom.tsv", "the map in SSSOM"),
        (demo.site(first) / "harmonised.csv", f"{first}'s own code list, harmonised"),
        (demo.site(first) / "ledger.jsonl", f"what left {first}, line by line"),
    ):
        out.print(f"  {path}  [dim]{what}[/]")
    programs = scripts_folder()
    out.print("Try:")
    for words in (
        f"site-agent search {demo.inputs.example} --near -k 5 --home {demo.site(first)}",
        f"coordinator token add me --role reviewer --home {demo.hub}",
        f"coordinator serve --only web --home {demo.hub}",
    ):
        out.print(f"  {programs / words}", markup=False)


def _in_parallel(call: Any, names: Sequence[str]) -> list[Any]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(call, names))


def _coordinator(*words: str) -> str:
    return _run("coordinator", words)


def _site(*words: str) -> str:
    return _run("site-agent", words)


def _run(program: str, words: Sequence[str]) -> str:
    """One command to its end; its own error is passed on."""
    done = subprocess.run(
        [str(scripts_folder() / program), *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise FederationError(
            f"The step `{program} {' '.join(words[:3])}` failed", why=reason.removeprefix("error: ")
        )
    return done.stdout


def _json(text: str) -> Any:
    return json.loads(text)


@contextmanager
def _running(program: str, words: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in the background, ended by SIGTERM."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(scripts_folder() / program), *words],
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            sys.stderr.write(f"{program} had to be killed\n")
