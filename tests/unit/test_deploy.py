"""The deploy files name commands, accounts and paths that exist, and restrict what they should."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

from site_agent.cli import app
from site_agent.config import Home
from site_agent.flower import __main__ as flower_program
from tests.systemd_unit import AGENT, FLOWER, UNITS, Unit, configuration


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.path.stem)
def test_the_commands_of_a_unit_parse(unit: Unit) -> None:
    words = unit.command()
    assert Path(words[0]).parent == Path("/opt/smile/bin")
    if unit is AGENT:
        group = typer.main.get_command(app)
        assert isinstance(group, click.Group)
        assert Path(words[0]).name == "site-agent"
        assert group.commands[words[1]].make_context(words[1], words[2:]).params["agent_only"]
    else:
        assert words[1:4] == ["-P", "-m", flower_program.__package__]
        connect = typer.main.get_command(flower_program.app)
        assert connect.make_context("connect", words[4:]).params == {"config": words[5]}


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.path.stem)
def test_accounts_and_paths_of_a_unit_are_made_by_somebody(unit: Unit) -> None:
    users = {line[1]: line[-1] for line in configuration("sysusers.d") if line[0] == "u"}
    members = {(line[1], line[2]) for line in configuration("sysusers.d") if line[0] == "m"}
    folders = {line[1] for line in configuration("tmpfiles.d")}
    account = unit.get("User")
    assert account == unit.get("Group")
    assert (account, unit.get("SupplementaryGroups")) in members
    # Numba keeps its cache, and Flower its files, in the account's home: it must be writable in the unit.
    assert users[account] in unit.words("ReadWritePaths")
    home = Path("/var/lib/smile/site")
    made_later = {str(home), f"{home}/keys", f"{home}/site.toml"}  # by site-agent init
    for key in ("ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "RequiresMountsFor"):
        section = "Unit" if key == "RequiresMountsFor" else "Service"
        named = {w for w in unit.words(key, section) if not w.startswith("-")}
        assert named <= folders | made_later, key
    assert {w for w in unit.command() if w.startswith("/etc/")} <= {"/etc/smile-flower/connection.toml"}
    assert unit.environment().get("SMILE_SITE_HOME", str(home)) == str(home)


def test_the_hidden_folders_are_those_of_a_home_folder(tmp_path: Path) -> None:
    hidden = {Path(w).name for w in AGENT.words("InaccessiblePaths") if "/site/" in w}
    home = Home(tmp_path / "site")
    assert hidden == {"work", "local"}
    assert hidden.isdisjoint({home.exchange.name, home.node_key.parent.name, "outbox", "results", "keys"})


def test_the_two_units_restrict_what_they_should() -> None:
    for unit in UNITS:
        for key in (
            "NoNewPrivileges",
            "PrivateTmp",
            "ProtectHome",
            "RestrictSUIDSGID",
            "RestrictNamespaces",
        ):
            assert unit.get(key) == "yes", key
        assert (unit.get("ProtectSystem"), unit.get("CapabilityBoundingSet")) == ("strict", "")
        assert unit.get("LimitCORE") == "0"  # a core file would hold keys
    assert (AGENT.get("PrivateNetwork"), AGENT.words("RestrictAddressFamilies")) == ("yes", ["AF_UNIX"])
    assert FLOWER.get("MemoryDenyWriteExecute") == "yes"
    assert int(FLOWER.get("RestartSec")) >= 65
    assert "/var/lib/smile/site" in FLOWER.words("InaccessiblePaths")


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    programs = Path(sys.executable).parent
    copies = []
    for unit in UNITS:
        copies.append(tmp_path / unit.path.name)
        copies[-1].write_text(unit.path.read_text().replace("/opt/smile/bin", str(programs)))
    done = subprocess.run(["systemd-analyze", "verify", *copies], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
