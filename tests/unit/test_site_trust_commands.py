"""`site-agent signer`, `approve`, `diff` and `ledger` as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from site_agent.agent import Agent
from site_agent.config import Home
from tests.synthetic import keys
from tests.unit.test_agent import PASSPHRASE, Bench
from tests.unit.test_command_lines import refused, run


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two signers are needed; a release is prepared."""
    bench = Bench(tmp_path_factory.mktemp("site"))
    path = bench.agent.home.folder / "site.toml"
    path.write_text(path.read_text().replace("signers = 1 ", "signers = 2 "))
    bench.agent = Agent(Home(bench.agent.home.folder))
    bench.agent.preview()
    return bench


@pytest.fixture(scope="module")
def secret(bench: Bench) -> Path:
    file = bench.folder / "passphrase"
    file.write_text(PASSPHRASE + "\n")
    file.chmod(0o600)
    return file


def test_from_signers_to_an_audited_ledger(bench: Bench, secret: Path, tmp_path: Path) -> None:
    home = ("--home", bench.agent.home.folder)
    signed = ("--passphrase-file", secret, *home)
    digest = bench.agent.outbox.prepared().release.manifest.digest
    yes = ("approve", "--yes", "--digest", digest[:16])

    refused(run("site-agent", *yes, *signed), 2, "Nobody may approve", "signer add")
    refused(run("site-agent", "signer", "add", "meier", *home), 2, "no terminal", "--passphrase-file")
    weak = tmp_path / "weak"
    weak.write_text("short")
    weak.chmod(0o600)
    refused(run("site-agent", "signer", "add", "meier", "--passphrase-file", weak, *home), 1, "easy to guess")
    for name in ("meier", "roth"):
        done = run("site-agent", "signer", "add", name, *signed)
        assert done.returncode == 0, done.stderr
        assert "fingerprint" in done.stdout
    refused(run("site-agent", "signer", "add", "meier", *signed), 2, "signer already")

    refused(run("site-agent", *yes, *signed), 2, "--by is missing", "meier, roth")
    refused(run("site-agent", *yes, "--by", "else", *signed), 2, "no signer 'else'")
    first = run("site-agent", *yes, "--by", "meier", *signed)
    assert "1 more signer must approve" in first.stdout, first.stderr
    second = json.loads(run("site-agent", *yes, "--by", "roth", "--json", *signed).stdout)
    assert second == {"manifest_digest": digest, "approved_by": ["meier", "roth"], "needed": 2}

    bench.call()
    bench.agent.step()
    assert bench.status().state == "sealed"
    taken = json.loads(run("site-agent", "approve", "--revoke", "--by", "roth", "--json", *home).stdout)
    assert taken == {"revoked": "roth", "rounds": ["r1"]}
    assert bench.status().state == "awaiting-approval"
    refused(run("site-agent", "approve", "--revoke", "--by", "roth", *home), 2, "no approval by roth")
    listed = json.loads(run("site-agent", "signer", "list", "--json", *home).stdout)
    assert [(s["signer"], s["approved"]) for s in listed["signers"]] == [("meier", True), ("roth", False)]
    assert run("site-agent", "signer", "remove", "meier", *home).returncode == 0
    refused(run("site-agent", "signer", "remove", "meier", *home), 2, "no signer 'meier'")
    assert "too few" in run("site-agent", "signer", "list", *home).stdout

    assert "Nothing" not in run("site-agent", "ledger", "verify", *home).stdout
    assert "byte for byte" in run("site-agent", "diff", *home).stdout
    _audit(bench, tmp_path)


def _audit(bench: Bench, tmp_path: Path) -> None:
    home = ("--home", bench.agent.home.folder)
    sealed = json.loads(run("site-agent", "ledger", "show", "--event", "sealed", "--json", *home).stdout)
    assert [e["facts"]["approved_by"] for e in sealed] == ["meier, roth"]
    newest = json.loads(run("site-agent", "ledger", "show", "--last", "1", "--json", *home).stdout)
    assert [e["event"] for e in newest] == ["signer-removed"]
    later = ("--since", "2990-01-01")
    assert json.loads(run("site-agent", "ledger", "show", *later, "--json", *home).stdout) == []
    refused(run("site-agent", "ledger", "show", "--event", "left", *home), 2, "no entry 'left'", "sealed")

    bench.call(name="r2", ledger_heads={"north": bench.agent.ledger.verify()[6].head})
    bench.agent.step()
    said = json.loads(run("site-agent", "ledger", "verify", "--json", *home).stdout)
    assert said["countersigned"] == 7
    assert "countersigned all up to entry 7" in run("site-agent", "ledger", "verify", *home).stdout

    for form in ("json", "csv"):
        file = tmp_path / f"ledger.{form}"
        assert run("site-agent", "ledger", "export", file, "--format", form, *home).returncode == 0
        own = bench.agent.home.keys.public().fingerprint
        done = run("site-agent", "ledger", "verify", "--file", file, "--fingerprint", own)
        assert f"{own}" in done.stdout, done.stderr
        other = keys("other").public().fingerprint
        told = ("--fingerprint", other)
        refused(run("site-agent", "ledger", "verify", "--file", file, *told), 2, "was signed by")
        file.write_bytes(file.read_bytes().replace(b"sealed", b"nothing", 1))
        refused(run("site-agent", "ledger", "verify", "--file", file), 1, "altered after it was signed")
    refused(run("site-agent", "ledger", "export", "x", "--format", "xml", *home), 2, "no format 'xml'")
    refused(run("site-agent", "ledger", "verify", "--file", tmp_path / "none"), 2, "side by side")


def test_a_ledger_that_was_cut_short_seals_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.approve()
    head = bench.agent.ledger.append("noted")
    lines = bench.agent.ledger.path.read_bytes().splitlines(keepends=True)
    bench.agent.ledger.path.write_bytes(b"".join(lines[:-1]))
    bench.call(ledger_heads={"north": head})
    bench.agent.step()
    assert bench.status().state == "refused"
    assert "does not hold the entry that the coordinator has seen last" in bench.status().detail
    assert list((bench.agent.home.exchange / "sealed").iterdir()) == []


def test_a_key_under_a_passphrase_from_init_on(bench: Bench, secret: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    files = ("--invitation", bench.invitation, "--study", bench.study_path, "--events", bench.events)
    words = ("init", home, "--site", "north", "--system", "ICD10CM", *files, "--passphrase-file", secret)
    assert run("site-agent", *words).returncode == 0
    refused(
        run("site-agent", "enroll", "--home", home), 1, "protected by a passphrase", "SMILE_PASSPHRASE_FILE"
    )
