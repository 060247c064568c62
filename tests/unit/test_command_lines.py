"""Both command lines as people meet them: one sentence for a mistake, the right exit code, never a traceback."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

from protocol.processes import scripts_folder
from tests.unit.test_agent import STUDY, Bench

ROOT = Path(__file__).parents[2]


def run(program: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(scripts_folder() / program), *map(str, words)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    """One line on stderr that says what happened and what to do."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    for part in parts:
        assert part in line


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("site"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("is empty", "Export the events again")),
        ("patient,when,code\n1,2020-01-01,x\n", ("no column 'date'", "data.columns")),
        ("patient,date,code\n1,yesterday,x\n", ("not a date", "data row 1", "bad_rows")),
        ("patient,date,code\n1,2190-01-01,x\n", ("date in the future", "data row 1")),
        ("patient,date,code\n1,2020-01-01,NaN\n", ("no code", "data row 1")),
        ("patient,date,code\n" + "1,2020-01-01,x\n" * 9, ("gate refuses", "fewer than 20 patients", "0 of ")),
        (
            "patient,date,code\n" + "".join(f"{i},2020-01-01,ü\n" for i in range(99)),
            ("gate refuses", "codes are left"),
        ),
    ],
    ids=["empty", "column", "date", "future", "nan", "one-patient", "one-code"],
)
def test_bad_events(bench: Bench, tmp_path: Path, text: str, parts: tuple[str, ...]) -> None:
    events = tmp_path / "events.csv"
    events.write_text(text)
    home = tmp_path / "home"
    files = ("--invitation", bench.invitation, "--study", bench.study_path, "--events", events)
    assert run("site-agent", "init", home, "--site", "north", "--system", "ICD10CM", *files).returncode == 0
    refused(run("site-agent", "preview", "--home", home), 1, *parts)
    assert not (home / "outbox" / "prepared.release").exists()
    assert list((home / "local").iterdir()) == []


def test_a_study_that_differs(bench: Bench, tmp_path: Path) -> None:
    other = tmp_path / "study.toml"
    other.write_text(STUDY.replace('id = "unit"', 'id = "another"'))
    files = ("--invitation", bench.invitation, "--study", other, "--events", bench.events)
    done = run("site-agent", "init", tmp_path / "home", "--site", "north", "--system", "ICD10CM", *files)
    refused(done, 2, "not the one that the invitation", "same study")
    assert not (tmp_path / "home").exists()


def test_approving_needs_the_digest(bench: Bench) -> None:
    home = bench.agent.home.folder
    digest = bench.agent.preview().release.manifest.digest
    refused(run("site-agent", "approve", "--yes", "--home", home), 2, "--yes needs --digest")
    refused(
        run("site-agent", "approve", "--yes", "--digest", "0" * 16, "--home", home),
        2,
        "The prepared release is",
    )
    refused(
        run("site-agent", "approve", "--yes", "--digest", digest[:8], "--home", home),
        2,
        "The prepared release is",
    )
    refused(run("site-agent", "approve", "--yes", "--digest", digest[:16], "--home", home), 2, "signer add")


def test_nothing_there(tmp_path: Path) -> None:
    refused(
        run("site-agent", "preview", "--home", tmp_path), 2, "not a site's home folder", "site-agent init"
    )
    refused(
        run("coordinator", "sites", "--home", tmp_path),
        2,
        "not a coordinator's home folder",
        "coordinator init",
    )
    refused(run("coordinator", "init", tmp_path / "hub"), 2, "--study and --address", "--example-study")
    assert run("site-agent", "no-such-command").returncode == 2


def test_a_coordinator_from_its_example(tmp_path: Path, bench: Bench) -> None:
    study, hub = tmp_path / "study.toml", tmp_path / "hub"
    study.write_text(run("coordinator", "init", "--example-study").stdout)
    refused(run("coordinator", "init", hub, "--study", study, "--address", "nowhere"), 2, "is not host:port")
    assert run("coordinator", "init", hub, "--study", study, "--address", "127.0.0.1:9443").returncode == 0
    refused(
        run("coordinator", "init", hub, "--study", study, "--address", "127.0.0.1:9443"), 2, "is not empty"
    )
    refused(run("coordinator", "round", "open", "r1", "--home", hub), 1, "coordinator serve")
    refused(run("coordinator", "fit", "r1", "--home", hub), 1, "no round 'r1'")
    refused(run("coordinator", "export", "1", "--output", tmp_path / "x", "--home", hub), 2, "no version 1")
    foreign = bench.folder / "home-north" / "enrolment-north.json"
    assert run("site-agent", "enroll", "--home", bench.agent.home.folder).returncode == 0
    refused(run("coordinator", "enroll", foreign, "--home", hub), 2, "another study file")
    altered = tmp_path / "altered.json"
    altered.write_text(foreign.read_text().replace("north", "lakes"))
    refused(run("coordinator", "enroll", altered, "--home", hub), 1, "signature does not hold")


def calls(name: str) -> set[str]:
    """Modules of the product that call a class by name."""
    found = set()
    for package in ("protocol", "site_agent", "coordinator"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                    found.add(path.relative_to(ROOT).as_posix())
    return found


def test_only_the_gate_and_the_codec_make_a_release() -> None:
    assert calls("Release") == {"site_agent/gate/release.py", "protocol/release.py"}


def test_only_intake_makes_a_verified_release() -> None:
    assert calls("VerifiedRelease") == {"coordinator/intake.py"}


def test_no_received_byte_reaches_pickle_or_numpys_loader() -> None:
    for package in ("protocol", "site_agent", "coordinator"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert "import pickle" not in text
            assert "np.load(" not in text
