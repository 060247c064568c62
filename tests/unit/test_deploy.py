"""The deploy files name commands, accounts and paths that exist, and restrict what they should."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from coordinator.cli import app as coordinator_app
from site_agent.cli import app
from site_agent.config import Home
from site_agent.flower import __main__ as flower_program
from tests.systemd_unit import AGENT, DEPLOY, FLOWER, ROOT, UNITS, Unit, configuration


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
    for unit in [*UNITS, *SERVICES.values()]:
        copies.append(tmp_path / unit.path.name)
        copies[-1].write_text(unit.path.read_text().replace("/opt/smile/bin", str(programs)))
    done = subprocess.run(["systemd-analyze", "verify", *copies], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- The coordinator's units ---------------------------------------------------------------------------

HUB = "/var/lib/smile-hub/hub"
SERVICES = {name: Unit.read(f"smile-hub-{name}.service") for name in ("sites", "web", "rounds", "backup")}
MADE_BY_INIT = {
    f"{HUB}/{n}"
    for n in ("coordinator.toml", "study.toml", "keys/coordinator.key", "flower", "flower/tls/ca.key")
}


def test_the_coordinators_commands_parse() -> None:
    for name, unit in SERVICES.items():
        words = unit.command()
        if words[0] == "/bin/sh":
            words = shlex.split(words[2].removeprefix("exec "))
        assert words[0] == "/opt/smile/bin/coordinator"
        command: click.Command = typer.main.get_command(coordinator_app)
        rest = list(words[1:])
        while isinstance(command, click.Group):
            assert rest[0] in command.commands, f"{name}: there is no {rest[0]}"
            command = command.commands[rest.pop(0)]
        given = command.make_context(name, rest).params
        expected = {"sites": ("only", "sites"), "web": ("only", "web"), "rounds": ("forever", True)}
        if name in expected:
            key, value = expected[name]
            assert given[key] == value


def test_the_coordinators_paths_are_made_by_somebody() -> None:
    users = {line[1]: line[-1] for line in configuration("sysusers.d", "smile-hub") if line[0] == "u"}
    folders = {line[1] for line in configuration("tmpfiles.d", "smile-hub")}
    for name, unit in SERVICES.items():
        assert unit.get("User") == unit.get("Group") == "smile-hub"
        assert users["smile-hub"] in folders
        made = folders | MADE_BY_INIT | {f"{HUB}/rounds"}  # the page makes this one
        keys = ("ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "BindPaths", "BindReadOnlyPaths")
        for key in (*keys, "TemporaryFileSystem"):
            assert {w for w in unit.words(key) if not w.startswith("-")} <= made, (name, key)
        assert unit.environment()["SMILE_COORDINATOR_HOME"] == HUB


def test_what_each_coordinator_service_may_see() -> None:
    sites, web = SERVICES["sites"], SERVICES["web"]
    assert sites.words("TemporaryFileSystem") == ["/var/lib/smile-hub"]
    assert {*sites.words("BindPaths"), *sites.words("BindReadOnlyPaths")} == {
        f"{HUB}/{n}" for n in ("coordinator.toml", "flower", "rounds")
    }
    assert ("Service", "ReadWritePaths") not in sites.values
    hidden = {w.removeprefix("-") for w in web.words("InaccessiblePaths")}
    assert {f"{HUB}/{n}" for n in ("keys/rounds", "fits", "flower", "quarantine")} <= hidden
    assert f"{HUB}/rounds" in {w.removeprefix("-") for w in web.words("ReadOnlyPaths")}
    assert web.words("IPAddressAllow") == ["127.0.0.3"]
    assert "proxy_bind 127.0.0.3;" in (DEPLOY / "nginx" / "web.conf").read_text()
    # Those that hold keys have a capability that what sites dial lacks, and nothing takes it away again.
    assert sites.get("AmbientCapabilities") == sites.get("CapabilityBoundingSet") == ""
    for name in ("web", "rounds", "backup"):
        held = SERVICES[name]
        assert held.get("AmbientCapabilities") == held.get("CapabilityBoundingSet") == "CAP_BLOCK_SUSPEND"
    for unit in SERVICES.values():
        for key in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "RestrictNamespaces", "PrivateDevices"):
            assert unit.get(key) == "yes", key
        assert (unit.get("ProtectSystem"), unit.get("LimitCORE")) == ("strict", "0")


# --- Wheel, images and Compose files -------------------------------------------------------------------


def test_the_sites_wheel_holds_the_site_and_nothing_else(tmp_path: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    subprocess.run([*argv, str(DEPLOY / "site")], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0].partition("-")[0] for n in names} == {
        "protocol",
        "site_agent",
        "smile_federation",
    }
    packed = {n for n in names if n.startswith(("protocol/", "site_agent/"))}
    there = {
        p.relative_to(ROOT).as_posix()
        for package in ("protocol", "site_agent")
        for p in (ROOT / package).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert packed == there
    (scripts,) = (n for n in names if n.endswith("entry_points.txt"))
    assert zipfile.ZipFile(wheel).read(scripts).decode().split() == [
        *("[console_scripts]", "site-agent", "=", "site_agent.cli:main"),
    ]


def compose(side: str) -> dict[str, Any]:
    """A Compose file with its defaults filled in, by docker-compose itself where it is there."""
    folder = DEPLOY / "compose" / side
    if program := shutil.which("docker-compose"):
        subprocess.run([program, "-f", folder / "compose.yaml", "config", "-q"], check=True)
    return dict(yaml.safe_load((folder / "compose.yaml").read_text()))


@pytest.mark.parametrize("side", ["site", "coordinator"])
def test_every_container_is_confined(side: str) -> None:
    text = compose(side)
    for name, service in text["services"].items():
        assert "mem_limit" in service or name in {"people", "database"}, name
        assert "privileged" not in service
        if name == "database":
            continue
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "docker.sock" not in str(service["volumes"])
    for secret in text["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    assert "PASSWORD:" not in (DEPLOY / "compose" / side / "compose.yaml").read_text()


def test_a_site_in_containers_publishes_nothing_and_its_agent_has_no_network() -> None:
    services = compose("site")["services"]
    assert [name for name, service in services.items() if "ports" in service or "expose" in service] == []
    assert services["agent"]["network_mode"] == services["people"]["network_mode"] == "none"
    shared = {v.split(":")[0] for v in services["agent"]["volumes"]} & {
        v.split(":")[0] for v in services["connection"]["volumes"]
    }
    assert shared == {"./exchange"}
    assert "secrets" not in services["connection"]


def test_what_sites_dial_gets_no_key_in_containers_either() -> None:
    services = compose("coordinator")["services"]
    inside = {v.split(":")[1].removeprefix(f"{HUB}/") for v in services["sites"]["volumes"]}
    assert inside == {"coordinator.toml", "flower", "rounds"}
    assert "secrets" not in services["sites"]
    assert any(t.startswith(f"{HUB}/keys/rounds:") for t in services["web"]["tmpfs"])
    assert [p for p in services["web"]["ports"] if not p.startswith("127.0.0.1:")] == []
    assert "ports" not in services["rounds"]
    assert "ports" not in services["database"]
